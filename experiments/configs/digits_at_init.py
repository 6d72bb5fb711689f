"""Pruning at initialization on digits: SNIP, GraSP, SynFlow, SBP with rescaling.

Command: `python -m experiments.train digits_at_init`.
"""

import dataclasses
from typing import Any

from experiments.config import Claim, Config
from experiments.results import Row

SCORING = {"per_class": 20, "chunks": 2, "temperature": 200.0, "rounds": 100}
TRAINING = {"epochs": 15, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
DEEP_TRAINING = {"epochs": 30, "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
BLOCK_TRAINING = {"epochs": 12, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


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
                "criteria": (
                    "random",
                    "magnitude",
                    "snip",
                    "snip rescaled",
                    "snip shuffled",
                    "grasp",
                    "grasp shuffled",
                    "synflow",
                    "synflow shuffled",
                ),
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
    return (1 - row.extra["effective"]) / (1 - row.got)


def _emptied(row: Row) -> float:
    assert row.extra is not None
    return row.extra["emptied"]


def _critical(row: Row) -> float:
    assert row.extra is not None
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
