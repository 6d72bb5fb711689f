"""What a setting may be, by its name: looked at before anything is trained.

A setting has one meaning in every method, so one table serves them all. What is not
named here must be finite and not negative.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.config import ConfigError, unknown


class Range(NamedTuple):
    """A test of one number, and what it asks for in words."""

    holds: Callable[[float], bool]
    words: str


_AT_LEAST_0 = Range(lambda x: x >= 0, "a finite number, at least 0")
_AT_LEAST_1 = Range(lambda x: x >= 1, "at least 1")
_POSITIVE = Range(lambda x: x > 0, "finite and greater than 0")
_BELOW_1 = Range(lambda x: 0 <= x < 1, "at least 0 and less than 1")
_SHARE = Range(lambda x: 0 <= x <= 1, "from 0 to 1")
_PART = Range(lambda x: 0 < x <= 1, "greater than 0 and at most 1")

_RANGES: dict[str, Range] = {
    **dict.fromkeys(
        ("sparsity", "momentum", "stats_momentum", "smoothing", "ema"), _BELOW_1
    ),
    **dict.fromkeys(
        ("begin", "end", "density", "distill", "drops_at", "factors", "rise"),
        _SHARE,
    ),
    **dict.fromkeys(("energy", "flops", "fraction", "target"), _PART),
    **dict.fromkeys(
        ("lr", "tune_lr", "peak", "alpha", "temperature", "distill_temperature"),
        _POSITIVE,
    ),
    **dict.fromkeys(
        (
            *(
                "accumulate",
                "batch",
                "chunks",
                "compression",
                "cyclic_rounds",
                "early_epochs",
            ),
            *("epochs", "every", "interval", "k", "m", "multiple", "pairs"),
            *("parallel_rounds", "per_class", "rounds", "samples", "tune_epochs"),
            *("window", "backward", "seeds"),
        ),
        _AT_LEAST_1,
    ),
    "drop_fraction": _SHARE,
    "grow": _SHARE,
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "budget": ("global", "leaf"),
    "clusters": ("even", "imbalanced", "kmeans"),
    "compute": ("bfloat16", "float32"),
    "recipe": ("rigl", "set", "static"),
    "kinds": ("channel", "decoupled", "spatial"),
}
_RATE = ("peak", "rise", "drops_at", "factor")
"""The parts of a rate that falls in steps: `schedules.in_steps`."""
_REPEATS = {"draw", "drops_at", "partitions", "strengths"}
"""Tuples that are one setting, or are swept as pairs: their parts may be equal."""


def check(owner: str, settings: Mapping[str, Any]) -> None:
    """Refuses a value that is out of range, or a sweep that names one value twice.

    Args:
      owner: the run they belong to, for the message.
      settings: by name.

    Raises:
      ConfigError: naming the setting, what was expected and what came.
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            _check_rate(f"{owner}.{name}", value)
            continue
        for item in _flat(value):
            _check_one(f"{owner}.{name}" if owner else name, name, item)
        if isinstance(value, tuple) and name not in _REPEATS:
            shown = [label(item) for item in value]
            twice = sorted({text for text in shown if shown.count(text) > 1})
            if twice:
                raise ConfigError(
                    f"`{owner}.{name}` names {', '.join(twice)} twice: two runs of one "
                    "job must differ."
                )


def _check_rate(place: str, value: Mapping[str, Any]) -> None:
    """A dict is a rate that falls in steps: all of it, and nothing else."""
    for key in value:
        if key not in _RATE:
            raise unknown(f"part of `{place}`", key, _RATE)
    missing = [key for key in _RATE if key not in value]
    if missing:
        raise ConfigError(f"`{place}` lacks {', '.join(missing)}.")
    check(place, value)


def label(value: Any) -> str:
    """A swept value in a label."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    """A share in a label: "98.1%", as many digits as it takes."""
    return f"{100 * share:.6g}%"


def check_distinct(runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses two runs of one configuration that are the same run.

    Raises:
      ConfigError: naming both.
    """
    seen: dict[str, str] = {}
    for name, settings in runs.items():
        text = repr(sorted(settings.items()))
        if text in seen:
            raise ConfigError(
                f"runs `{seen[text]}` and `{name}` have the same settings: leave one."
            )
        seen[text] = name


def check_seed(seed: int) -> None:
    """Refuses a seed that JAX would fold onto another.

    Raises:
      ConfigError: naming the range.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"`--seed` must be from 0 to 2**32 - 1, got {seed}.")


def _check_one(place: str, name: str, value: Any) -> None:
    if isinstance(value, str):
        known = _CHOICES.get(name)
        if known and value not in known:
            raise unknown(f"value of `{place}`", value, known)
        return
    if isinstance(value, bool) or value is None:
        return
    allowed = _RANGES.get(name, _AT_LEAST_0)
    if not math.isfinite(value) or not allowed.holds(value):
        raise ConfigError(f"`{place}` must be {allowed.words}, got {value!r}.")


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [item for part in value for item in _flat(part)]
    return [value]
