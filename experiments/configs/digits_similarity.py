"""Channel similarity on digits: removed in one shot, without data or tuning.

Claim (Zhang et al., Exploiting Channel Similarity, arXiv 1908.02620; of the paper the
abstract alone was to be had): channels that are alike can go where those of small norm
cannot, from batch norm statistics alone; a ResNet-50 without 30 % of its FLOPs is above
its baseline after tuning. The distances here are ours (`compress.similar_channels`).

Deviations: nothing is tuned; only groups inside blocks; the accuracy with recalibrated
statistics is reported beside the plain one.

Command: `python -m experiments.train digits_similarity`.
"""

from experiments.config import Claim, Config


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
