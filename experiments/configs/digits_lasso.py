"""LASSO channel pruning on digits, before any fine-tuning.

Claim (He, Zhang, Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV
2017): channels chosen by LASSO with the next layer refitted by least squares keep far
more of a network than channels removed by their size; the paper's VGG-16 loses 2.7
points of top-5 at twice the speed and 7.9 at four times, nothing tuned.

Deviations: every block loses the same share of its inner channels (the paper keeps more
in sensitive blocks); the stream is whole and no sampler is used; batch norm is left in,
its running mean takes the intercept.

Command: `python -m experiments.train digits_lasso`.
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
            "lasso": {
                "method": "lasso",
                "flops": (0.5, 0.25),
                "images": 1400,
                "batch": 100,
                "samples": 10,
                "stats_momentum": 0.9,
            },
        },
        claims=CLAIMS,
    )


def _ahead(ours, theirs) -> bool:
    return ours.after > theirs.after


CLAIMS = tuple(
    Claim(
        f"at {share} of the FLOPs LASSO with its refit is ahead of plain removal",
        (f"lasso, {share} FLOPs", f"magnitude, {share} FLOPs"),
        _ahead,
    )
    for share in ("50%", "25%")
) + (
    Claim(
        "LASSO with its refit loses at most 3 points at 50% of the FLOPs",
        ("dense", "lasso, 50% FLOPs"),
        lambda dense, ours: ours.after >= dense.after - 0.03,
    ),
)
