"""A graph convolutional network on Cora loses 50 to 98 % of its weights.

Claim (Tessier et al., Rethinking Weight Decay for Efficient Neural Network Pruning,
2022, section 4: CIFAR-10, ImageNet and a GCN on Cora): SWD has the better trade-off of
accuracy against parameters, most clearly at aggressive targets, and its final removal
costs nothing. The paper's tables and its Cora settings could not be read, its code has
none: what follows is ours.

Network: Kipf & Welling's, 1433-16-7, 23,040 weights in two kernels ranked together, 140
training nodes, dropout 0.5, 200 full-batch steps for every run. `dense`, `gradual`,
`snip` and `rigl`: Adam 0.01 with coupled decay 5e-4 as in the network's paper (81.5 %
there). Two forms of SWD, both from the initialization: the paper's, on SGD (rate 5,
falling along a cosine: features are divided by their sum, so that gradients are small);
and decoupled after Adam, where the rate falls too and the strength must end at 1e7, not
1e5: with a constant rate Adam moves a targeted weight by as much as the decay takes.
GSM and one-shot start from the dense network, so that GSM has twice the steps.

Deviations: RigL around Adam, and its last kernel (112 weights) stays whole, for which
the first pays. By the paper's Erdos-Renyi-kernel rule 7 of its 112 weights are left at
98 %, and whole classes are cut off. Settings of SWD, GSM and RigL were chosen on the
500 validation nodes with seeds 100 to 102, the rows have seeds 0 to 4 on the 1,000 test
nodes.

`hidden` removes whole hidden features by surgery, through the segment sums: parameters
fall in proportion, the compact network equals the zeroed one to rounding.

Ours, mean +- deviation over five seeds (dense 81.32 +- 0.81):

                     50 %          80 %          90 %          95 %          98 %
    SWD            82.10 +- 0.34 81.78 +- 0.47 81.60 +- 0.71 81.16 +- 0.21 80.14 +- 1.10
    SWD after Adam 81.26 +- 0.70 81.28 +- 0.75 80.64 +- 0.40 80.02 +- 0.35 77.48 +- 0.90
    GSM, longer    81.98 +- 0.33 81.18 +- 0.72 80.48 +- 1.16 81.16 +- 0.50 78.98 +- 1.43
    gradual        81.14 +- 0.71 81.52 +- 0.68 80.92 +- 0.83 81.10 +- 0.91 78.66 +- 0.72
    RigL           81.64 +- 0.44 81.62 +- 0.49 80.58 +- 0.72 78.68 +- 0.49 74.54 +- 2.10
    one-shot       81.24 +- 0.94 80.48 +- 0.64 80.02 +- 0.53 79.64 +- 1.17 76.14 +- 1.99
    SNIP           81.70 +- 0.44 80.82 +- 0.63 79.76 +- 1.00 78.62 +- 1.09 68.98 +- 6.77

The paper's form of SWD leads at 98 % by 1.2 points and is level with GSM and gradual
pruning at 95 %; down to 80 % nearly all stand within a deviation. Its removal changes
at most 0.02 points; after Adam at most 0.04. GSM's changes up to 0.8, both ways: 200
steps are too few for its passive weights. Hidden features 16 -> 8: 80.86 +- 0.32 when
trained on for 200 steps, 16 -> 4: 72.58 +- 3.88.

Cost: 914 s, two cores shared by eight jobs.

Command: `python -m experiments.train cora --data-dir FOLDER`.
"""

from typing import Any

from experiments.config import Claim, Config

SPARSITY = (0.5, 0.8, 0.9, 0.95, 0.98)


def get_config(data: str = "cora") -> Config:
    """The settings; `citeseer` has the same ones.

    Args:
      data: "cora" or "citeseer".
    """
    return Config(
        runner="graphs",
        data=data,
        model="gcn",
        batch=0,
        setup={"seeds": 5, "hidden": 16, "validation": 500},
        dense={"steps": 200, **ADAM},
        runs=_runs(),
        claims=CLAIMS,
    )


ADAM = {"lr": 0.01, "weight_decay": 5e-4}


def _runs() -> dict[str, dict[str, Any]]:
    every = {"sparsity": SPARSITY, "steps": 200}
    swd = {**every, "method": "swd", "mu": 5e-4, "a_min": 0.1, "schedule": "cosine"}
    return {
        "one_shot": {"method": "one_shot", "sparsity": SPARSITY},
        "gradual": {**every, **ADAM, "method": "gradual", "end": 0.75, "every": 5},
        "snip": {**every, **ADAM, "method": "snip"},
        "rigl": {
            **every,
            **ADAM,
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
            **swd,
            "decoupled": False,
            "lr": 5.0,
            "last_lr": 0.05,
            "momentum": 0.9,
            "a_max": 1e5,
        },
        "swd_adam": {
            **swd,
            "decoupled": True,
            "lr": 0.02,
            "last_lr": 1e-4,
            "momentum": 0.0,
            "a_max": 1e7,
        },
        "hidden": {**ADAM, "method": "hidden", "keep": (8, 4), "steps": 200},
    }


def _ahead(swd, *others) -> bool:
    return all(swd.after > other.after for other in others)


CLAIMS = (
    *(
        Claim(
            f"at {share} SWD is above one-shot, gradual, SNIP, RigL and GSM",
            tuple(
                f"{run} {share}"
                for run in ("SWD", "one-shot", "gradual", "SNIP", "RigL", "GSM")
            ),
            _ahead,
        )
        for share in ("90%", "95%", "98%")
    ),
    Claim(
        "removal after SWD costs at most 0.1 points at every sparsity, in both forms",
        tuple(
            f"{run} {share:.0%}"
            for run in ("SWD", "SWD after Adam")
            for share in SPARSITY
        ),
        lambda *rows: all(row.before - row.after <= 0.001 for row in rows),
    ),
    Claim(
        "at 50 % every method is within a deviation of the dense network",
        (
            "dense",
            *(f"{run} 50%" for run in ("one-shot", "gradual", "SNIP", "RigL", "SWD")),
        ),
        lambda dense, *rows: all(
            abs(row.after - dense.after)
            <= max(row.extra["deviation"], dense.extra["deviation"])
            for row in rows
        ),
    ),
    Claim(
        "the compact network equals the zeroed one",
        ("hidden 16 -> 8", "hidden 16 -> 4"),
        lambda *rows: all(
            row.extra["largest difference from the zeroed network"] < 1e-5
            for row in rows
        ),
    ),
    Claim(
        "every count is exactly the one asked for",
        tuple(
            f"{run} {share:.0%}"
            for run in (
                *("one-shot", "gradual", "SNIP", "RigL", "GSM"),
                *("SWD", "SWD after Adam"),
            )
            for share in SPARSITY
        ),
        lambda *rows: all(row.nonzero == row.kept for row in rows),
    ),
)

PAPER = {"dense": "81.5"}
"""The test accuracy of the network's own paper, %."""
