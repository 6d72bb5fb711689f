"""Channel similarity on digits: removed in one shot, without data or tuning.

Claim (Zhang et al., Exploiting Channel Similarity, arXiv 1908.02620; of the paper the
abstract alone was to be had): channels that are alike can go where those of small norm
cannot, from batch norm statistics alone; a ResNet-50 without 30 % of its FLOPs is above
its baseline after tuning. The distances here are ours (`compress.similar_channels`).

Deviations: nothing is tuned; only groups inside blocks; the accuracy with recalibrated
statistics is reported beside the plain one.

Found, seed 0 (dense 99.72; `digits_similarity_seed0.json`), test accuracy as removed,
and with recalibrated statistics:

    FLOPs                 70 %           50 %
    magnitude             97.22, 98.33   70.00, 96.67
    weights merge         96.11, 98.61   83.33, 95.28
    weights remove        97.50, 99.17   90.83, 97.22
    independent remove    96.94, 99.17   88.06, 97.22
    comonotone merge      90.83, 93.89   71.67, 77.22
    data merge            98.33, 98.06   89.72, 95.56

At half of the FLOPs similarity by filters or by data is ahead of plain removal, by 13
to 21 points as removed; at 70 % merging by the filters is behind it, by 4 images of
360. Giving the readers the mean of a removed channel does better than giving its slices
to a similar one. At seeds 1 and 2 (`digits_similarity_seed{1,2}.json`) both claims
hold.

Command: `python -m experiments.train digits_similarity`.
"""

from experiments.config import Claim, Config

AGAIN = ("cifar_similarity", "cifar_arena")


def get_config() -> Config:
    """The settings; data, network and dense run are those of `digits`."""
    return Config(
        data="digits",
        model="digits_resnet",
        batch=64,
        dense={"epochs": 20, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "similarity": {
                "method": "similarity",
                "flops": (0.7, 0.5),
                "stats_momentum": 0.9,
                "images": 1000,
            },
        },
        claims=CLAIMS,
    )


CLAIMS = tuple(
    Claim(
        f"at {share} of the FLOPs merging by the filters is ahead of plain removal",
        (f"weights merge, {share} FLOPs", f"magnitude, {share} FLOPs"),
        lambda ours, theirs: ours.after > theirs.after,
    )
    for share in ("70%", "50%")
)
