"""SLS on digits: layers choose their own N of N:8 under one budget.

Claim (Oh et al., Attentive Fine-Grained Structured Sparsity for Image Restoration, CVPR
2022, table 2: EDSR on Urban100, SLS 25.84 dB at 29.56 GMACs against 25.73 for SR-STE
8:32 at 30.09): under the same budget, a learned N for each layer is at least as good as
the same N everywhere. The search ends as soon as the budget is met, and every layer's
mask is exactly N:M.

Network and data as in `digits`; the eight 3 x 3 and 1 x 1 kernels behind the stem take
part, from the dense network. The uniform network is trained straight-through without
SR-STE's decay.

Ours, seed 0, all claims hold (one test image is 0.28 points):

    dense         99.72
    sls 25 %      99.17   19,472 weights   N = 8, 8, 4, 2, 8, 1, 1, 8
    uniform 2:8   99.44   19,856 weights

The cost counts parameters, and the search empties the large late layers first, keeping
the small ones dense. It is no better than the uniform choice here, one image worse.

Cost: 570 s on two very busy cores. Command: `python -m experiments.train digits_sls`.
"""

from experiments.config import Claim, Config

AGAIN = ("edsr",)


def get_config() -> Config:
    """The settings."""
    return Config(
        data="digits",
        model="digits_resnet",
        batch=64,
        dense={"epochs": 20, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "sls": {
                "method": "sls",
                "m": 8,
                "density": (0.25,),
                "uniform": True,
                "weight": 1.0,
                "scope": "Conv_[1-8]/kernel",
                "epochs": 15,
                "lr": 0.05,
                "momentum": 0.9,
                "weight_decay": 5e-4,
            },
        },
        claims=CLAIMS,
    )


CLAIMS = (
    Claim(
        "the search meets its budget and uses at least half of it",
        ("sls 25%", "uniform 2:8"),
        lambda search, same: 0.5 * same.nonzero <= search.nonzero <= same.nonzero,
    ),
    Claim(
        "no more than a point below the same N everywhere",
        ("sls 25%", "uniform 2:8"),
        lambda search, same: search.after >= same.after - 0.01,
    ),
    Claim(
        "layers choose unlike N",
        ("sls 25%",),
        lambda search: len({round(8 * s) for s in search.extra.values()}) > 1,
    ),
    Claim(
        "within 2 points of the dense network",
        ("dense", "sls 25%"),
        lambda dense, search: search.after >= dense.after - 0.02,
    ),
)
