"""K-starts, dissipating gradients and both on digits, against random pruning.

Command: `python -m experiments.train digits_kstarts`.
"""

from experiments.config import Config


def get_config() -> Config:
    """The settings."""
    return Config(
        data="digits",
        model="lenet300",
        batch=64,
        dense={"epochs": 15, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "early_pruning": {
                "method": "early_pruning",
                "arms": (
                    "random",
                    "K-starts",
                    "K-starts |w|",
                    "K-starts |g|",
                    "K-starts by channel",
                    "dissipating",
                    "dissipating, then K-starts",
                    "K-starts, then dissipating",
                    "magnitude",
                ),
                "sparsity": (0.9, 0.95, 0.98),
                "seeds": 5,
                "k": 16,
                "fraction": (0.1, 0.3, 1.0),
                "window": 2,
                "scope": "Dense_[01]/kernel",
                "epochs": 15,
                "lr": 0.1,
                "momentum": 0.9,
                "weight_decay": 5e-4,
            },
        },
    )
