"""LASSO channel pruning of a small ResNet on a part of CIFAR-10, before fine-tuning.

Claim: as in `digits_lasso` (He, Zhang, Sun, ICCV 2017), on natural images: channels
chosen by LASSO with the next layer refitted by least squares keep far more of a network
than channels removed by their size.

Data, network and dense run are those of `cifar_arena` (two CPU cores). Deviations:
those, and those of `digits_lasso`.

Command: `python -m experiments.train cifar_lasso --data-dir FOLDER`. On an accelerator:
`--set data=cifar10 --set model=resnet20 --set augment=crop_flip --set batch=100 --set
dense.lr=0.1 --set dense.epochs=160`.
"""

import dataclasses

from experiments.config import Config
from experiments.configs import cifar_arena, digits_lasso


def get_config() -> Config:
    """The settings."""
    return dataclasses.replace(
        cifar_arena.get_config(),
        runs={
            "lasso": {
                "method": "lasso",
                "flops": (0.5, 0.25),
                "images": 1000,
                "batch": 100,
                "samples": 20,
                "stats_momentum": 0.9,
            },
        },
        claims=digits_lasso.CLAIMS,
    )
