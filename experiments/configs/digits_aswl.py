"""ASWL on digits: layers learn their own sparsity from the initialization.

Claim (He, Shi, Dong, arXiv 2111.02399; the paper's numbers were not obtained): weights
and per-layer sparsity are learned in one run without pre-training, the unimportant
layers are pruned harder, and accuracy holds. With the penalty's least at a density r
the run ends near r.

Network: dense 64-300-100-10, 50,200 weights, without the batch norm that would cancel
the attention. The first layer is large and over-complete: it should be the sparsest.

Command: `python -m experiments.train digits_aswl`.
"""

from experiments.config import Claim, Config


def get_config() -> Config:
    """The settings; gamma, alpha and decay are those of the authors' code."""
    return Config(
        data="digits",
        model="lenet300",
        batch=64,
        dense={"epochs": 30, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "one_shot": {
                "method": "one_shot",
                "sparsity": (0.9,),
                "stats_momentum": None,
            },
            "aswl": {
                "method": "aswl",
                "density": (0.1, 0.0),
                "gamma": 5.0,
                "alpha": 1.0,
                "decay": 1e-4,
                "epochs": 30,
                "lr": 0.1,
                "attention_rate": 0.01,
                "momentum": 0.9,
            },
        },
        claims=CLAIMS,
    )


CLAIMS = (
    Claim(
        "with r = 0.1 the density ends within 0.02 of it",
        ("aswl r=0.1",),
        lambda row: abs(1 - row.got - 0.1) <= 0.02,
    ),
    Claim(
        "with r = 0.1 within 2 points of the dense network",
        ("dense", "aswl r=0.1"),
        lambda dense, sparse: sparse.after >= dense.after - 0.02,
    ),
    Claim(
        "the head is kept denser than the first layer",
        ("aswl r=0.1",),
        lambda row: row.extra["Dense_2"] < row.extra["Dense_0"],
    ),
    Claim(
        "above one-shot at 90 %",
        ("aswl r=0.1", "one-shot 90%"),
        lambda ours, cut: ours.after > cut.after,
    ),
)
