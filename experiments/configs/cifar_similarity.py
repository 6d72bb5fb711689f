"""Channel similarity on a part of CIFAR-10: removed in one shot, nothing tuned.

Claim and deviations: `digits_similarity` (Zhang et al., arXiv 1908.02620, the abstract
alone; the distances are ours). Data, network and dense run are those of `cifar_arena`.

Found, seed 0 (`cifar_similarity_seed0.json`; dense 53.50), accuracy as removed at 70 /
50 % of the FLOPs: magnitude 43.95 / 28.15, merged by the filters 45.75 / 29.35, by
data 49.45 / 32.35, removed as if channels were independent 38.60 / 24.90, merged as if
comonotone 36.70 / 21.45. With recalibrated statistics plain magnitude is level with the
best at 70 % (50.1, by data 50.2) and ahead at 50 % (45.4). That merging by the filters
is ahead cannot be told from one seed: 1.8 and 1.2 points, one standard error being 1.1.

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
