"""Scale-invariant filters on a part of CIFAR-10: `digits_bn` on natural images.

Claims, scores and deviations: `digits_bn` (Liu et al., arXiv 2102.03497). Data, network
and dense run are those of `cifar_arena`.

Command: `python -m experiments.train cifar_bn --data-dir FOLDER`.
"""

import dataclasses

from experiments.config import Config
from experiments.configs import cifar_arena, digits_bn


def get_config() -> Config:
    """The settings."""
    return dataclasses.replace(
        cifar_arena.get_config(),
        runs={
            "invariant": {
                "method": "invariant",
                "sparsity": (0.5, 0.8, 0.9),
                "spread": 1.0,
                "stats_momentum": 0.9,
            },
        },
        claims=digits_bn.claims(("50%", "80%", "90%")),
    )
