"""Learned gates on digits: layers find their widths and the network finds its depth.

Command: `python -m experiments.train digits_gates`.
"""

from experiments.config import Claim, Config


def get_config() -> Config:
    """The settings."""
    return Config(
        data="digits",
        model="digits_resnet14",
        batch=64,
        dense={"epochs": 20, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "gates": {
                "method": "gates",
                "price": (0.3, 1.0, 3.0),
                "target": (0.25,),
                "rate": 0.01,
                "wait": 2,
                "ramp": 5,
                "epochs": 30,
                "lr": 0.05,
                "channel_rate": 0.05,
                "branch_rate": 0.05,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "stats_momentum": 0.9,
                "tune_epochs": 5,
                "tune_lr": 0.02,
            },
        },
        claims=CLAIMS,
    )


CLAIMS: tuple[Claim, ...] = ()
