"""ResNet-110 on CIFAR-10 in the authors' settings: C-SGD and MaskSparsity.

C-SGD (Ding et al., CVPR 2019) with 5/8 of the filters: 94.38 -> 94.41, 60.89 % of the
FLOPs removed [recalled]. Settings and deviations: `authors_resnet56`; a tenth of the
rate after 200 and 400 of 600 epochs.
MaskSparsity (Jiang et al., 2022/23, abstract): no loss at 63.03 % fewer FLOPs and
60.34 % fewer parameters. The authors' code has ImageNet alone: global sparsity, then
MaskSparsity from the same baseline, 100 epochs each, rate 0.1, a tenth after 30, 60 and
90, Nesterov 0.9, decay 1e-4 (norms too), strength 5e-4, threshold 0.01; 40 epochs of
fine-tuning, a tenth after 10, 20, 30.

Deviations:
- C-SGD: those of `authors_resnet56`; settings of this depth not given; taken: of 56
  layers.
- MaskSparsity: settings on CIFAR-10 not given; taken: 164 epochs of 128 in each of
  three stages, rate 0.1, a tenth after halves and three quarters, strength, threshold,
  momentum and decay as on ImageNet; tuned 40 epochs at 1e-2. Heavy ball in the base and
  in fine-tuning, and no decay of the norms there. What share goes is an outcome of the
  strength.

Ours: not run; half an hour an epoch on two cores [estimated].
`--small`: seven minutes of one core [estimated], see `authors.small`.

Command: `python -m experiments.train authors_resnet110 --data-dir FOLDER`, a method
alone with `--only csgd` or `--only masksparsity`.
"""

import dataclasses
from typing import Any

from experiments import authors
from experiments.config import Claim, Config, cheaper, combine, loses
from experiments.configs.authors_resnet56 import MERGED
from experiments.schedules import in_steps


def get_config(small: bool = False) -> Config:
    """The settings.

    Args:
      small: minutes of one core, see `authors.small`.
    """
    rate = in_steps(3e-2, 600, (200, 400))
    csgd = dataclasses.replace(authors.csgd("resnet110", 0.375, rate), claims=CSGD)
    whole = combine([csgd, _masksparsity()])
    if not small:
        return whole
    return authors.small(whole, 4, examples=208, tests=100, batch=8)


def _masksparsity() -> Config:
    shared: dict[str, Any] = {
        "epochs": 164,
        "lr": in_steps(0.1, 164, (82, 123)),
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
    return Config(
        data="cifar10",
        model="resnet110",
        batch=128,
        augment="crop_flip",
        dense=shared,
        runs={
            "masksparsity": {
                **shared,
                "method": "masksparsity",
                "strength": (5e-4,),
                "threshold": 0.01,
                "tune_epochs": 40,
                "tune_lr": in_steps(1e-2, 40, (10, 20, 30)),
            },
        },
        claims=MASKSPARSITY,
    )


CSGD = (
    loses("csgd 37.5% kmeans", -0.03),
    cheaper("csgd 37.5% kmeans", 1 / (1 - 0.6089)),
    MERGED,
)

MASKSPARSITY = (
    loses("masksparsity 0.0005", 0.0, extra="tuned"),
    cheaper("masksparsity 0.0005", 1 / (1 - 0.6303)),
    Claim(
        "removal costs at most 0.1 points after MaskSparsity",
        ("masksparsity 0.0005",),
        lambda row: row.before - row.after <= 0.001,
    ),
)

PAPER = {"dense": "94.38", "csgd 37.5% kmeans": "94.41"}
"""The papers' test accuracy, % (recalled)."""
