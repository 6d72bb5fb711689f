"""K-starts, dissipating gradients and both on digits, against random pruning.

Command: `python -m experiments.train digits_kstarts`.
"""

from itertools import product

from experiments.config import Claim, Config


def get_config() -> Config:
    """The settings; the first of `fraction` is also the combination's."""
    return Config(
        data="digits",
        model="lenet300",
        batch=64,
        dense={"epochs": 15, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        runs={
            "early_pruning": {
                "method": "early_pruning",
                "arms": (
                    "random",
                    "K-starts",
                    "K-starts |w|",
                    "K-starts |g|",
                    "K-starts by channel",
                    "dissipating",
                    "dissipating, then K-starts",
                    "K-starts, then dissipating",
                    "magnitude",
                ),
                "sparsity": (0.9, 0.95, 0.98),
                "seeds": 5,
                "k": 16,
                "fraction": (1.0, 0.3, 0.1),
                "window": 2,
                "scope": "Dense_[01]/kernel",
                "epochs": 15,
                "lr": 0.1,
                "momentum": 0.9,
                "weight_decay": 5e-4,
            },
        },
        claims=CLAIMS,
    )


def _rows(*arms: str) -> tuple[str, ...]:
    """The rows of these arms at every sparsity, arm by arm."""
    return tuple(f"{arm}, {s}%" for arm, s in product(arms, (90, 95, 98)))


def _first_is_best(*rows) -> bool:
    """Whether the first three rows, one a sparsity, beat all others at theirs."""
    return all(rows[i].after > row.after for i in range(3) for row in rows[3 + i :: 3])


DISSIPATING_FIRST = "dissipating, then K-starts"
K_STARTS_FIRST = "K-starts, then dissipating"

CLAIMS = (
    Claim(
        "at every sparsity both combinations are above random pruning",
        _rows(DISSIPATING_FIRST, K_STARTS_FIRST, "random"),
        lambda *rows: (
            _first_is_best(*rows[:3], *rows[6:]) and _first_is_best(*rows[3:])
        ),
    ),
    Claim(
        "at every sparsity dissipating, then K-starts, is above either alone",
        _rows(DISSIPATING_FIRST, "K-starts", "dissipating"),
        _first_is_best,
    ),
    Claim(
        "at every sparsity K-starts, then dissipating, is above either alone",
        _rows(K_STARTS_FIRST, "K-starts", "dissipating"),
        _first_is_best,
    ),
    Claim(
        "at every sparsity dissipating is above K-starts and random pruning",
        _rows("dissipating", "K-starts", "random"),
        _first_is_best,
    ),
    Claim(
        "two epochs of dissipating at f = 0.1 remove less than half of the weights",
        ("dissipating 0.1",),
        lambda row: 0 < row.got < 0.5,
    ),
    Claim(
        "at 98 % a choice in every channel is above one choice in every layer",
        ("K-starts by channel, 98%", "K-starts, 98%"),
        lambda channel, layer: channel.after > layer.after,
    ),
)
