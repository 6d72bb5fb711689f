"""Scheduled grow-and-prune on digits: sparse from the start, one part dense at a time.

Claim (Ma et al., Effective Model Sparsification by Scheduled Grow-and-Prune Methods,
2022): without dense pre-training, networks at 80 % sparsity match dense ones. ResNet-50
on ImageNet, four parts, uniform sparsity: C-GaP 77.86 % at 80 % and 76.35 % at 90 %,
P-GaP 77.49 % and 76.13 %. The abstract gives no static baseline; ours are random masks
trained as long.

Four parts in the order of the network, each with its norms: the stem and block 0, block
1, the first convolution of block 2, the rest. A step has 2 epochs (30 in the paper),
fine-tuning 6 (150). Every kernel is pruned, the first and the last too. One image of
the test set is 0.28 points.

Found, seed 0, test accuracy in percent (dense, 20 epochs: 99.72):

                               epochs   80 %   90 %
    C-GaP, 1 round                 14  98.89  98.06
    C-GaP, 3 rounds                30  98.89  98.61
    P-GaP, 3 rounds                30  98.06  96.11
    static random masks            30  98.06  97.78

Other strengths at 80 % (a dense run of 1 epoch, only its sizes are used):

    lr=0.05, 3 rounds (30 epochs)                C-GaP 99.44, P-GaP 97.22, static 98.06
    epochs=4, 2 rounds (38 epochs)               C-GaP 99.17, P-GaP 98.06, static 98.61

(`--set dense.epochs=1 --set "gap.sparsity=(0.8,)"` with `--set gap.lr=0.05`, or with
`--set gap.epochs=4` and rounds of 2; `digits_gap_lr005_seed0.json` and
`digits_gap_epochs4_seed0.json` beside the result of this configuration. Those two
decayed C-GaP's kernels alone; `transforms.gap`, which the rows above are made by,
decays all leaves. Before it one round had 99.44 and 98.61, three 98.61 and 98.06.)

C-GaP is above static masks at both sparsities, and within 1 point of the dense network
at 80 % in each of the four settings (in the earlier form three rounds were not).
Whether more rounds help cannot be told: three are as good as one at 80 % and two images
better at 90 %, in the earlier form three images worse. P-GaP stays 1.6 points or more
below the dense network at each of three strengths, and at 90 % below static masks. Its
parts were trained apart and meet for the first time when they are combined; each has 12
or 14 epochs here, fine-tuning included, where the paper's have 390 [recalled].

Cost: 12 minutes on two busy cores.

Command: `python -m experiments.train digits_gap`.
"""

from experiments.config import Claim, Config

AGAIN = ("mnist_arena", "authors_resnet50")


def get_config() -> Config:
    """The settings; data, network and dense run are those of `digits`."""
    return Config(
        data="digits",
        model="digits_resnet",
        batch=64,
        dense={"epochs": 20, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "gap": {
                "method": "gap",
                "sparsity": (0.8, 0.9),
                "partitions": PARTS,
                "epochs": 2,
                "cyclic_rounds": (1, 3),
                "parallel_rounds": (3,),
                "tune_epochs": 6,
                "lr": 0.1,
                "momentum": 0.9,
                "weight_decay": 5e-4,
            },
        },
        claims=CLAIMS,
    )


PARTS = (
    r"(Conv|BatchNorm)_[0-2]/",
    r"(Conv|BatchNorm)_[3-5]/",
    r"(Conv|BatchNorm)_6/",
    r"(Conv|BatchNorm)_[78]/|Dense_0/",
)
"""The stem and block 0; block 1; the first convolution of block 2; the rest."""

RUNS = tuple(
    tuple(f"{name} {share}{length}" for share in ("80%", "90%"))
    for name, length in (
        ("C-GaP", ", 1 rounds"),
        ("C-GaP", ", 3 rounds"),
        ("P-GaP", ", 3 rounds"),
        ("static random", ""),
    )
)
SHORT, CYCLIC, PARALLEL, STATIC = RUNS
IMAGE = 1 / 360 + 1e-6


def _pairs(rows: tuple) -> list[tuple]:
    return list(zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True))


CLAIMS = (
    Claim(
        "C-GaP and P-GaP at 80 % are within 1 point of the dense network",
        ("dense", CYCLIC[0], PARALLEL[0]),
        lambda dense, *rows: all(r.after >= dense.after - 0.01 for r in rows),
    ),
    Claim(
        "C-GaP is above static random masks trained as long",
        CYCLIC + STATIC,
        lambda *rows: all(a.after > b.after for a, b in _pairs(rows)),
    ),
    Claim(
        "C-GaP and P-GaP of as many rounds are within 1 point of each other",
        CYCLIC + PARALLEL,
        lambda *rows: all(abs(a.after - b.after) <= 0.01 for a, b in _pairs(rows)),
    ),
    Claim(
        "three rounds of C-GaP are no worse than one, give or take an image",
        CYCLIC + SHORT,
        lambda *rows: all(a.after >= b.after - IMAGE for a, b in _pairs(rows)),
    ),
    Claim(
        "every count is exactly the one asked for",
        SHORT + CYCLIC + PARALLEL + STATIC,
        lambda *rows: all(row.nonzero == row.kept for row in rows),
    ),
)
