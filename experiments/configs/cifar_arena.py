"""The structured arena: who chooses channels best, all else equal, on CIFAR-10 images.

Every entrant gets the same dense network, the same 2 epochs beside its 8, and the same
budgets: a half and a quarter of the FLOPs, counted on the compact network. Those that
prepare the cut spend one epoch before it and one after; the others both after it. All
but two remove channels inside the residual blocks and leave the streams whole.

  random, l1 (filter norms, Li et al. 2017), lasso (He et al. 2017, with its refit): one
    ratio in every block, chosen on the dense network.
  uniform: Torch-Pruning's default rule, group norms and one ratio for every group of
    the network, the residual streams among them.
  similarity (Zhang et al. 2019, our distances): clusters of filters.
  slimming (Liu et al. 2017), masksparsity (Jiang et al. 2022): one threshold of the
    norm scales. MaskSparsity takes its masks from the run of slimming, which costs it
    one epoch more than the others have.
  csgd (Ding et al. 2019): k-means clusters in every block, merged at the cut.
  tpp (Wang and Fu 2023): the filters that l1 would remove, prepared for it.
  swd channels (Tessier et al. 2022): norm scales and shifts under selective decay.
  gates, scales: ours; the price is FLOPs, the budget is met by the least open ones.
  trp (Xu et al. 2020): no channels go, every kernel becomes two of low rank; trained at
    low rank for both epochs, the ranks those that meet the budget.

Claims, each the idea of its paper: see `CLAIMS`.

Deviations: everything is small, for two cores. 10,000 training and 2,000 test images,
shrunk to 16 x 16 by means of 2 x 2 pixels; a ResNet-14 of width 8 (1.7 M multiply-adds,
43,160 kernel weights); 8 epochs of batch 25 for the dense network. No entrant has its
paper's length, strengths are scaled up to act in 400 steps and were not tuned, SWD
starts from the dense network where the paper trains from scratch. The latency is of 200
images on the same two cores, dense and compact in turns, the fastest call of each.

Found, mean of three seeds (dense 55.12, trained on 55.43;
`cifar_arena_seed{0,1,2}.json`), accuracy just after the cut and trained on; standard
errors of a mean are about 0.7 points, of a difference 1:

    FLOPs              50 %            25 %
    random         18.38  52.50    10.65  47.72
    l1             30.55  53.23    13.32  49.05
    uniform        29.88  53.40    15.18  48.70
    similarity     30.10  52.90    18.88  49.20
    lasso          51.12  53.73    38.00  49.62
    slimming       20.47  51.80    12.62  45.60
    masksparsity   24.77  52.08    14.28  45.28
    csgd           51.07  52.55    45.95  47.32
    tpp            49.67  51.35    45.82  48.22
    swd channels   50.93  52.75    42.32  47.82
    gates          47.12  52.22    26.30  48.60
    scales         45.45  47.93    45.45  48.35
    trp                   48.87           27.93

Those that prepare (C-SGD, TPP, SWD) and LASSO's refit lose little at the cut, where
plain removal loses 20 points and more. Two epochs later most of it is gone: at half the
FLOPs all but `scales` and TRP lie within 3 points of each other, random channels among
them. What prepares has spent one of its two epochs before the cut. In 400 steps the L1
penalty of slimming and MaskSparsity has not emptied its channels: so short a run is no
test of their papers. The latency says little: other jobs shared the cores, and at
widths of 2 to 32 channels a call is mostly overhead.

Cost: a seed is about 10 minutes of one core.

Command: `python -m experiments.train cifar_arena --data-dir FOLDER`.
"""

from typing import Any

from experiments.config import Claim, Config

DENSE = {"epochs": 8, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


def get_config() -> Config:
    """The settings."""
    shared = {"momentum": 0.9, "weight_decay": 5e-4, "flops": (0.5, 0.25)}
    prepared: dict[str, Any] = {
        **shared,
        "epochs": 1,
        "lr": 0.05,
        "tune_epochs": 1,
        "tune_lr": 0.05,
    }
    at_once: dict[str, Any] = {
        **shared,
        "method": "arena_at_once",
        "rules": ("random", "l1", "uniform", "similarity", "lasso"),
        "images": 500,
        "samples": 20,
        "tune_epochs": 2,
        "tune_lr": 0.05,
    }
    return Config(
        data="cifar10_small",
        model="cifar_resnet14",
        batch=25,
        dense=DENSE,
        augment="small_crop_flip",
        checkpoint_every=1,
        runs={"at_once": at_once, **_channels(prepared), **_others(prepared, shared)},
        claims=CLAIMS,
    )


def _channels(prepared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Optimizers of the weights that make channels ready to go."""
    own: dict[str, dict[str, Any]] = {
        "slimming": {"strength": 0.005},
        "csgd": {"strength": 0.2, "vector_multiplier": 1.0},
        "tpp": {
            "lr": 0.01,
            "grow": 0.5,
            "interval": 20,
            "gram": 1000.0,
            "ceiling": 1.0,
        },
        "swd": {"mu": 5e-4, "a_min": 0.1, "a_max": 1e5},
    }
    return {
        name: {**prepared, "method": f"arena_{name}", **run}
        for name, run in own.items()
    }


def _others(
    prepared: dict[str, Any], shared: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Gates, scales, and low rank."""
    return {
        "gates": {
            **prepared,
            "method": "arena_gates",
            "rate": 0.02,
            "channel_rate": 0.05,
            "stats_momentum": 0.9,
        },
        "scales": {
            **prepared,
            "method": "arena_scales",
            "price": 0.3,
            "stats_momentum": 0.9,
        },
        "trp": {
            **shared,
            "method": "arena_trp",
            "every": 40,
            "nuclear": 3e-4,
            "epochs": 2,
            "lr": 0.05,
            "stats_momentum": 0.9,
        },
    }


SHARES = ("50%", "25%")


def _pair(first: str, second: str) -> tuple[str, ...]:
    return tuple(f"{name}, {s} FLOPs" for s in SHARES for name in (first, second))


def _ahead(one, other, low_one, low_other) -> bool:
    return one.after > other.after and low_one.after > low_other.after


def _spared(one, other, low_one, low_other) -> bool:
    return (
        one.extra["at the cut"] > other.extra["at the cut"]
        and low_one.extra["at the cut"] > low_other.extra["at the cut"]
    )


ENTRANTS = (
    *("random", "l1", "uniform", "similarity", "lasso", "slimming", "masksparsity"),
    *("csgd", "tpp", "swd channels", "gates", "scales", "trp"),
)

CLAIMS = (
    Claim(
        "every entrant meets its budget",
        tuple(f"{name}, {share} FLOPs" for share in SHARES for name in ENTRANTS),
        lambda *rows: (
            all(row.extra["flops"] <= 0.5 for row in rows[: len(ENTRANTS)])
            and all(row.extra["flops"] <= 0.25 for row in rows[len(ENTRANTS) :])
        ),
    ),
    *(
        Claim(
            f"{name} is ahead of random channels at both budgets",
            _pair(name, "random"),
            _ahead,
        )
        for name in ENTRANTS[1:]
    ),
    Claim(
        "at the cut MaskSparsity has kept more than slimming",
        _pair("masksparsity", "slimming"),
        _spared,
    ),
    Claim(
        "trained on, MaskSparsity is ahead of slimming",
        _pair("masksparsity", "slimming"),
        _ahead,
    ),
    Claim("at the cut TPP has kept more than L1", _pair("tpp", "l1"), _spared),
    Claim("trained on, TPP is ahead of L1", _pair("tpp", "l1"), _ahead),
    Claim("at the cut C-SGD has kept more than L1", _pair("csgd", "l1"), _spared),
    Claim("at the cut LASSO has kept more than L1", _pair("lasso", "l1"), _spared),
    Claim(
        "at the cut SWD on channels has kept more than slimming",
        _pair("swd channels", "slimming"),
        _spared,
    ),
)
