"""TRP on digits.

Command: `python -m experiments.train digits_trp`.
"""

from experiments.config import Claim, Config


def get_config() -> Config:
    """The settings; data, network and dense run are those of `digits`."""
    shared = {
        "every": 20,
        "nuclear": 3e-4,
        "epochs": 20,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "stats_momentum": 0.9,
        "rounds": 20,
    }
    return Config(
        data="digits",
        model="digits_resnet",
        batch=64,
        dense={"epochs": 20, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "trp": {
                "method": "trp",
                "kinds": ("channel", "spatial"),
                "energy": 0.9,
                **shared,
            },
            "decoupled": {
                "method": "trp",
                "kinds": ("decoupled",),
                "energy": 0.5,
                **shared,
            },
        },
        claims=CLAIMS,
    )


RUNS = ("trp channel 0.9", "trp spatial 0.9")
ALL = (*RUNS, "trp decoupled 0.5")


def _same(*rows) -> bool:
    return all(row.changed == 0 and row.logit_change < 1e-3 for row in rows)


def _gain(*rows) -> bool:
    return all(row.after > row.extra["accuracy by one shot"] for row in rows)


CLAIMS = (
    Claim("the factorised network is the truncated one", ALL, _same),
    Claim("trained at low rank beats one shot at the same ranks", ALL, _gain),
    Claim(
        "channel- and spatial-wise take at most half the FLOPs",
        RUNS,
        lambda *rows: all(row.extra["flops"] <= 0.5 for row in rows),
    ),
    Claim(
        "channel- and spatial-wise are faster on the clock",
        RUNS,
        lambda *rows: all(row.extra["latency"] < 1 for row in rows),
    ),
    Claim(
        "decoupled takes fewer FLOPs as well",
        ALL[-1:],
        lambda row: row.extra["flops"] < 1,
    ),
    Claim(
        "TRP is within 3 points of the dense network",
        ("dense", *ALL),
        lambda dense, *rows: all(row.after >= dense.after - 0.03 for row in rows),
    ),
)
