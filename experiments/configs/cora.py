"""Cora.

Command: `python -m experiments.train cora --data-dir FOLDER`.
"""

from experiments.config import Claim, Config

SPARSITY = (0.5, 0.8, 0.9, 0.95, 0.98)


def get_config(data: str = "cora") -> Config:
    """The settings; `citeseer` has the same ones."""
    every = {"sparsity": SPARSITY, "steps": 200}
    trained = {"lr": 0.01, "weight_decay": 5e-4}
    return Config(
        runner="graphs",
        data=data,
        model="gcn",
        batch=0,
        setup={"seeds": 5, "hidden": 16, "validation": 500},
        dense={"steps": 200, **trained},
        runs={
            "one_shot": {"method": "one_shot", "sparsity": SPARSITY},
            "gradual": {
                **every,
                **trained,
                "method": "gradual",
                "end": 0.75,
                "every": 5,
            },
            "snip": {**every, **trained, "method": "snip"},
            "rigl": {
                **every,
                **trained,
                "method": "rigl",
                "end": 0.75,
                "every": 5,
                "drop_fraction": 0.3,
                "dense_last": True,
            },
            "gsm": {
                **every,
                "method": "gsm",
                "lr": 1.0,
                "momentum": 0.98,
                "weight_decay": 5e-4,
            },
            "swd": {
                **every,
                "method": "swd",
                "decoupled": False,
                "lr": 5.0,
                "last_lr": 0.05,
                "schedule": "cosine",
                "momentum": 0.9,
                "mu": 5e-4,
                "a_min": 0.1,
                "a_max": 1e5,
            },
            "swd_adam": {
                **every,
                "method": "swd",
                "decoupled": True,
                "lr": 0.02,
                "last_lr": 1e-4,
                "schedule": "cosine",
                "momentum": 0.0,
                "mu": 5e-4,
                "a_min": 0.1,
                "a_max": 1e7,
            },
            "hidden": {**trained, "method": "hidden", "keep": (8, 4), "steps": 200},
        },
        claims=CLAIMS,
    )


CLAIMS: tuple[Claim, ...] = ()
