"""A small EDSR.

Command: `python -m experiments.train edsr --data-dir FOLDER`.
"""

from experiments.config import Claim, Config


def get_config() -> Config:
    """The settings."""
    return Config(
        runner="super_resolution",
        data="t91",
        model="edsr",
        batch=8,
        setup={
            "scale": 2,
            "channels": 16,
            "blocks": 4,
            "side": 16,
            "stride": 12,
            "steps": 1000,
            "lr": 2e-3,
            "drops_at": (0.7, 0.9),
        },
        dense={},
        runs={
            "one_shot": {"method": "one_shot", "sparsity": 0.9},
            "gradual": {"method": "gradual", "sparsity": 0.9, "end": 0.6, "every": 10},
            "issp": {
                "method": "issp",
                "sparsity": 0.9,
                "factors": (0.95, 0.0),
                "end": 0.6,
            },
            "issr": {
                "method": "issr",
                "sparsity": 0.9,
                "increment": 0.01,
                "every": 10,
                "limit": 0.5,
                "end": 0.6,
            },
            "sls": {
                "method": "n_of_m",
                "m": 16,
                "n": 4,
                "weight": 0.1,
                "search_epoch": 100,
            },
        },
        claims=CLAIMS,
    )


CLAIMS: tuple[Claim, ...] = ()
