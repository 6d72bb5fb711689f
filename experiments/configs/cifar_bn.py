"""Scale-invariant filters on a part of CIFAR-10: `digits_bn` on natural images.

Claims, scores and deviations: `digits_bn` (Liu et al., arXiv 2102.03497). Data, network
and dense run are those of `cifar_arena`.

Found, seed 0 (dense 54.45; `cifar_bn_seed0.json`), accuracy with measured statistics,
of the network as trained -> of the same function with rescaled filters:

    pruned       50 %             80 %             90 %
    magnitude    54.60 -> 53.25   50.00 -> 33.50   39.15 -> 21.95
    invariant    51.75 -> 51.75   27.45 -> 27.45   17.65 -> 17.65
    canonical    53.85 -> 53.85   47.75 -> 47.75   38.15 -> 38.15
    folded       54.35 -> 54.35   49.30 -> 49.30   37.70 -> 37.70

As on the digits: rescaling changes 20 to 48 % of what plain magnitude keeps and nothing
of the other three. On the network as trained the canonical and the folded score are
level with plain magnitude, one standard error being 1.1 points; after a rescaling they
are far ahead at 80 and 90 %. Per root mean square the score is much worse than either.
Three seeds (`cifar_bn_seed{0,1,2}.json`) agree: as trained, mean at 90 %, magnitude
42.0, invariant 26.4, canonical 41.2, folded 35.9.

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
