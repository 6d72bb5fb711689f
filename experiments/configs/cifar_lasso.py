"""LASSO channel pruning of a ResNet-20 on a part of CIFAR-10, before fine-tuning.

Claim: as in `digits_lasso` (He, Zhang, Sun, ICCV 2017), on natural images.

Deviations: 10,000 training and 2,000 test images and two epochs (two CPU cores);
otherwise those of `digits_lasso`. On an accelerator: `--set data=cifar10 --set
dense.epochs=160`.

Command: `python -m experiments.train cifar_lasso --data-dir FOLDER`.
"""

from experiments.config import Claim, Config


def get_config() -> Config:
    """The settings."""
    return Config(
        data="cifar10_part",
        model="resnet20",
        batch=100,
        dense={"epochs": 2, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        augment="crop_flip",
        runs={
            "lasso": {
                "method": "lasso",
                "flops": (0.5, 0.25),
                "images": 500,
                "batch": 100,
                "samples": 20,
                "stats_momentum": None,
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
