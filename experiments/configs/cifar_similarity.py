"""Channel similarity on a part of CIFAR-10: removed in one shot, nothing tuned.

Claim and deviations: `digits_similarity` (Zhang et al., arXiv 1908.02620, the abstract
alone; the distances are ours). Data, network and dense run are those of `cifar_arena`.

Command: `python -m experiments.train cifar_similarity --data-dir FOLDER`.
"""

import dataclasses

from experiments.config import Config
from experiments.configs import cifar_arena, digits_similarity


def get_config() -> Config:
    """The settings."""
    return dataclasses.replace(
        cifar_arena.get_config(),
        runs={
            "similarity": {
                "method": "similarity",
                "flops": (0.7, 0.5),
                "stats_momentum": 0.9,
                "images": 1000,
            },
        },
        claims=digits_similarity.CLAIMS,
    )
