"""TRP on digits.

Command: `python -m experiments.train digits_trp`.
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
            "trp": {
                "method": "trp",
                "kinds": ("channel", "spatial", "decoupled"),
                "energy": 0.9,
                "every": 20,
                "nuclear": 3e-4,
                "epochs": 20,
                "lr": 0.05,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "stats_momentum": 0.9,
                "rounds": 20,
            },
        },
        claims=CLAIMS,
    )


CLAIMS = ()
