"""Pruning at initialization on digits: SNIP, GraSP, SynFlow, SBP with rescaling.

Papers and claims:
  SNIP (Lee et al., ICLR 2019), GraSP (Wang et al., ICLR 2020): far better than a random
    or a magnitude mask at initialization.
  SynFlow (Tanaka et al., NeurIPS 2020): on a chain it never empties a layer before it
    must; one-shot criteria do. Beside a shortcut it may empty one.
  Robust Pruning at Initialization (Hayou et al., ICLR 2021; its body and tables could
    not be read): on the edge of chaos SNIP may remove more before a layer is empty, and
    the rescaling trick makes the pruned deep network trainable.
  Frankle et al. (ICLR 2021): masks shuffled within each layer do as well.

Nothing keeps a criterion from emptying a layer here. Networks: the chain is dense
64-300-100-10, 50,200 weights, from He's initialization; the deep one has 20 hidden tanh
layers of 128 units, 320,768 weights, biases of variance 0.05, and starts on the edge of
chaos (weight variance 1.76095), in the ordered (0.88) or the chaotic phase (5); the
last is the residual network of `digits`. 20 training examples of each class score;
GraSP's logits are divided by 200, SynFlow takes 100 rounds.

Ours, test accuracy in percent, seeds 0 / 1 / 2 of the chain, dense 97.78 / 97.50 /
96.94 (`experiments/results/digits_at_init_seed{0,1,2}.json`), and the effective
sparsity at 98 % and 99.8 %, seed 0:

                     90 %                   98 %                   99.8 %
    random           96.39 / 95.83 / 95.56  41.67 / 38.06 / 36.39  10 / 10 / 10
    magnitude        96.11 / 93.89 / 95.28  10.00 / 10.00 / 10.00  10 / 10 / 10
    SNIP             96.11 / 97.78 / 96.94  88.33 / 92.50 / 95.00  17.22 / 10 / 22.22
      rescaled       96.39 / 94.44 / 97.22  62.22 / 73.89 / 93.06  10 / 10 / 10
      shuffled       96.94 / 96.11 / 97.22  77.22 / 64.44 / 73.06  10 / 10 / 10
    GraSP            96.11 / 96.39 / 96.11  90.00 / 88.89 / 90.83  10 / 10 / 10
      shuffled       96.67 / 96.11 / 96.67  19.72 / 54.72 / 44.72  10 / 10 / 10
    SynFlow          97.78 / 97.50 / 96.67  95.28 / 94.44 / 95.28  46.94 / 47.22 / 56.39
      shuffled       96.39 / 96.94 / 97.50  71.67 / 71.67 / 64.72  10 / 10 / 10

    effective        random   magnitude  SNIP    GraSP   SynFlow
      98 %           99.48    99.99      98.51   99.30   98.00
      99.8 %         100.00   100.00     99.97   100.00  99.80

Magnitude keeps 1,004 weights at 98 % of which 4 are on a path: layers of unlike fan-in
are initialized at unlike scales. SynFlow wastes nothing at any sparsity.

The claim on shuffling holds at 90 % and fails at 98 %, on every seed, at learning rates
0.03, 0.1 and 0.2, and with 100 examples of each class: there a shuffled mask of so
small a network leaves units without inputs or outputs.

Deep network, dense 98.06 / 97.50 / 97.78: from the edge of chaos SNIP at 90 % and 95 %
leaves chance, rescaled 94.72 / 94.72 / 95.28 and 89.17 / 95.28 / 89.44; at 98 % it is
at chance but in one seed (10.28 / 47.50 / 10.28), in seed 0 with 666 of 6,415 weights
on a path. The critical sparsity, from which a layer is empty, is 99.95 / 99.93 / 99.89
on the edge, 96.55 / 94.60 / 95.07 in the ordered and 84.61 / 86.26 / 86.40 in the
chaotic phase, where at 95 % nothing flows any more and rescaling cannot help. On the
shallow chain the trick does not pay: at 98 % it costs 2 to 26 points, also at learning
rates 0.03 and 0.2 (seed 0).

Residual network, 99.5 % (385 weights left), dense 99.17 / 99.72 / 98.33: magnitude
51.11 / 49.17 / 41.67, SNIP 50.00 / 60.56 / 50.56, GraSP 76.94 / 61.94 / 76.94, SynFlow
88.61 / 92.78 / 89.72. SynFlow empties two layers in each seed, in seed 0 both 3x3
convolutions of the last block, and keeps its 1x1 shortcut (the reverse is reported for
ResNet-18); all but 5 of its weights are on a path. SNIP empties one layer or two,
magnitude three to five.

Command: `python -m experiments.train digits_at_init`. Cost: about 160 s of CPU time,
compilation included.
"""

import dataclasses
from typing import Any

from experiments.config import Claim, Config
from experiments.results import Row

SCORING = {"per_class": 20, "chunks": 2, "temperature": 200.0, "rounds": 100}
TRAINING = {"epochs": 15, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
DEEP_TRAINING = {"epochs": 30, "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
BLOCK_TRAINING = {"epochs": 12, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
CRITERIA = (
    "random",
    "magnitude",
    "snip",
    "snip rescaled",
    "snip shuffled",
    "grasp",
    "grasp shuffled",
    "synflow",
    "synflow shuffled",
)


AGAIN = ("mnist_arena", "mnist_stable", "authors_lenet300", "authors_resnet32")


def get_config() -> Config:
    """The settings."""
    chain = Config(
        data="digits",
        model="lenet300",
        batch=64,
        dense=TRAINING,
        runs={
            "chain": {
                "method": "prune_at_init",
                "criteria": CRITERIA,
                "sparsity": (0.9, 0.98, 0.998),
                "prefix": "",
                "draw": (2.0, 0.0),
                "sigma_w2": 2.0,
                **SCORING,
                **TRAINING,
            },
        },
        claims=CHAIN_CLAIMS,
    )
    deep = Config(
        data="digits",
        model="deep_tanh",
        batch=64,
        dense=DEEP_TRAINING,
        runs={
            "edge": _deep("edge", 1.76095, (0.9, 0.95, 0.98)),
            "ordered": _deep("ordered", 0.88, (0.95,)),
            "chaotic": _deep("chaotic", 5.0, (0.95,)),
        },
        claims=DEEP_CLAIMS,
    )
    blocks = Config(
        data="digits",
        model="digits_resnet",
        batch=64,
        dense=BLOCK_TRAINING,
        runs={
            "blocks": {
                "method": "prune_at_init",
                "criteria": ("magnitude", "snip", "grasp", "synflow"),
                "sparsity": (0.995,),
                "prefix": "blocks: ",
                "draw": (2.0, 0.0),
                "sigma_w2": 2.0,
                **SCORING,
                **BLOCK_TRAINING,
            }
        },
        claims=BLOCK_CLAIMS,
    )
    return dataclasses.replace(chain, beside=(deep, blocks))


def _deep(phase: str, variance: float, sparsity: tuple[float, ...]) -> dict[str, Any]:
    """SNIP without and with the rescaling trick, from one phase of initialization."""
    return {
        "method": "prune_at_init",
        "criteria": ("snip", "snip rescaled"),
        "sparsity": sparsity,
        "prefix": f"{phase}: ",
        "draw": (variance, 0.05),
        "sigma_w2": 1.76095,
        **SCORING,
        **DEEP_TRAINING,
    }


def _on_paths(row: Row) -> float:
    """The share of the kept weights that lie on a path from input to output."""
    assert row.extra is not None
    left = row.extra["effective"]
    assert left is not None and row.got is not None
    return (1 - left) / (1 - row.got)


def _emptied(row: Row) -> float:
    assert row.extra is not None and row.extra["emptied"] is not None
    return row.extra["emptied"]


def _critical(row: Row) -> float:
    assert row.extra is not None and row.extra["critical"] is not None
    return row.extra["critical"]


def _shuffling_is_free(share: str) -> Claim:
    names = ("snip", "grasp", "synflow")
    plain = tuple(f"{name} {share}" for name in names)
    shuffled = tuple(f"{name} shuffled {share}" for name in names)
    return Claim(
        f"at {share} masks shuffled within each layer cost at most 2 points",
        plain + shuffled,
        lambda *rows: all(
            b.after >= a.after - 0.02 for a, b in zip(rows[:3], rows[3:], strict=True)
        ),
    )


CHAIN_CLAIMS = (
    Claim(
        "at 98 % SNIP, GraSP and SynFlow are 10 points above random and magnitude",
        tuple(f"{n} 98%" for n in ("random", "magnitude", "snip", "grasp", "synflow")),
        lambda *rows: (
            min(r.after for r in rows[2:]) >= max(r.after for r in rows[:2]) + 0.1
        ),
    ),
    Claim(
        "at 99.8 % SynFlow empties no layer and 95 % of its weights are on a path; of "
        "what one shot of random, magnitude, SNIP or GraSP leaves, less than half",
        tuple(
            f"{n} 99.8%" for n in ("synflow", "random", "magnitude", "snip", "grasp")
        ),
        lambda ours, *others: (
            _emptied(ours) == 0
            and _on_paths(ours) >= 0.95
            and max(map(_on_paths, others)) < 0.5
        ),
    ),
    _shuffling_is_free("90%"),
    _shuffling_is_free("98%"),
)

DEEP_CLAIMS = (
    Claim(
        "started on the edge of chaos SNIP may remove more before it empties a layer "
        "than started in the ordered or the chaotic phase",
        tuple(f"{phase}: snip 95%" for phase in ("edge", "ordered", "chaotic")),
        lambda edge, *others: _critical(edge) > max(map(_critical, others)),
    ),
    Claim(
        "at 90 and 95 % the rescaled deep network trains, 50 points above the other",
        tuple(
            f"edge: {name} {share}%"
            for name in ("snip", "snip rescaled")
            for share in (90, 95)
        ),
        lambda *rows: all(
            b.after >= a.after + 0.5 for a, b in zip(rows[:2], rows[2:], strict=True)
        ),
    ),
)

BLOCK_CLAIMS = (
    Claim(
        "of a residual network at 99.5 % SynFlow empties a layer, yet 95 % of its "
        "weights are on a path and it is the most accurate",
        tuple(f"blocks: {n} 99.5%" for n in ("synflow", "magnitude", "snip", "grasp")),
        lambda ours, *others: (
            _emptied(ours) > 0
            and _on_paths(ours) >= 0.95
            and ours.after > max(r.after for r in others)
        ),
    ),
)
