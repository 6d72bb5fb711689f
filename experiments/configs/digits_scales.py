"""Shrinking scales on digits: gates without noise, closed by a proximal step.

Claim (ours, as in `digits_gates`): with a price on norm scales and on one factor for
each block, training closes channels and whole blocks by itself; the compact network
equals the gated one, and is faster.

Ours, seed 0 (dense 99.17 %; columns as in `digits_gates`):

    price   FLOPs  channels  blocks  after  tuned  faster
    0.1    43.5 %        63       6  99.44  100.0    1.02
    0.3    11.4 %        19       4  99.44  99.72    2.80
    1       4.8 %         8       2  98.89  98.89    7.32

All claims hold. On another processor, which adds in another order, the price of 0.3
left all six blocks (12.9 % of the FLOPs, 19 channels, 1.53 times faster). Prices of
0.01 (all of a run) and 0.03 (its first 24 epochs) closed nothing. Without noise and
without an optimizer of its own for the gates this does at least as well here as
`digits_gates`.

Cost: 131 s of CPU time, compilation included.
Command: `python -m experiments.train digits_scales`.
"""

from experiments.config import Claim, Config

AGAIN = ("cifar_arena",)


def get_config() -> Config:
    """The settings; data, network and dense run are those of `digits_gates`."""
    return Config(
        data="digits",
        model="digits_resnet14",
        batch=64,
        dense={"epochs": 20, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "scales": {
                "method": "scales",
                "price": (0.1, 0.3, 1.0),
                "epochs": 30,
                "lr": 0.05,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "stats_momentum": 0.9,
                "tune_epochs": 5,
                "tune_lr": 0.02,
            },
        },
        claims=CLAIMS,
    )


ALL = ("scales 0.1", "scales 0.3", "scales 1")

CLAIMS = (
    Claim(
        "removing what is closed changes no prediction and no logit by 0.001",
        ALL,
        lambda *rows: all(r.changed == 0 and r.logit_change < 1e-3 for r in rows),
    ),
    Claim(
        "at a price of 0.3 at least two of the six blocks are gone, and the compact "
        "network is at least 1.5 times faster, measured",
        ("scales 0.3",),
        lambda row: row.extra["blocks"] <= 4 and row.extra["dense over compact"] >= 1.5,
    ),
    Claim(
        "a higher price leaves fewer FLOPs",
        ALL,
        lambda a, b, c: a.extra["flops"] > b.extra["flops"] > c.extra["flops"],
    ),
    Claim(
        "tuned, each is within a point of the dense network",
        ("dense", *ALL),
        lambda dense, *rows: all(r.extra["tuned"] >= dense.after - 0.01 for r in rows),
    ),
)
