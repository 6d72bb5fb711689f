"""Channel similarity on a part of CIFAR-10: removed in one shot, nothing tuned.

Claim and deviations: `digits_similarity` (Zhang et al., arXiv 1908.02620, the abstract
alone; the distances are ours). Data, network and dense run are those of `cifar_arena`.

Found, three seeds (dense 55.12 +- 1.44), accuracy as removed / with recalibrated
statistics:

                                   70 % of the FLOPs        50 %
    magnitude                      40.93 +- 2.61 / 51.3     27.98 +- 3.70 / 44.4
    merged by the filters          43.73 +- 2.45 / 47.2     29.52 +- 1.71 / 32.7
    removed by the filters         43.97 +- 2.12 / 50.0     30.10 +- 3.31 / 40.7
    merged by data                 49.13 +- 0.46 / 50.8     35.52 +- 2.99 / 40.6
    removed as if independent      41.42 +- 3.34 / 48.6     29.95 +- 5.65 / 39.6
    merged as if comonotone        36.50 +- 2.66 / 40.6     24.35 +- 3.69 / 26.6

Merging by data is ahead as removed; that merging by the filters is, cannot be told.
With recalibrated statistics plain magnitude leads at both budgets: the statistics, not
the choice of channels, cost most of what was lost.

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
