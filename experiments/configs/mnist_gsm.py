"""GSM on MNIST at 60x, and its winning tickets.

Command: `python -m experiments.train mnist_gsm --data-dir FOLDER`.
"""

from experiments.config import Claim, Config


def get_config() -> Config:
    """The settings."""
    return Config(
        runner="mnist",
        data="mnist",
        model="lenet300",
        batch=256,
        setup={"seeds": 1, "inputs": "standardized", "init": "he", "validation": 0},
        dense={
            "epochs": 80,
            "lr": 3e-2,
            "drops": (40,),
            "warmup": 5,
            "momentum": 0.9,
            "weight_decay": 5e-4,
        },
        runs={
            "gsm": {
                "method": "gsm",
                "compression": 60,
                "epochs": 240,
                "lr": 3e-2,
                "drops": (160, 200),
                "warmup": 5,
                "momentum": 0.99,
                "nesterov": False,
                "weight_decay": 5e-4,
                "tickets": True,
            },
        },
        claims=CLAIMS,
    )


CLAIMS = (
    Claim(
        "after removal GSM is within 0.15 points of the dense network",
        ("dense", "gsm 60x"),
        lambda dense, gsm: gsm.after >= dense.after - 0.0015,
    ),
    Claim(
        "the ticket by GSM is above the ticket by magnitude",
        ("ticket by magnitude 60x", "ticket by GSM 60x"),
        lambda magnitude, gsm: gsm.after > magnitude.after,
    ),
    Claim(
        "every count is exactly the one asked for",
        ("gsm 60x", "one-shot 60x", "ticket by magnitude 60x", "ticket by GSM 60x"),
        lambda *rows: all(row.nonzero == row.kept for row in rows),
    ),
)
