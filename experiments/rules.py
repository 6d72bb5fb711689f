"""What a setting may be, by its name: looked at before anything is trained.

A setting has one meaning in every method, so one table serves them all. What is not
named here must be finite and not negative.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

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
            *("window", "backward", "seeds", "steps", "side", "stride", "scale"),
            *("blocks", "channels", "hidden", "n", "images"),
        ),
        _AT_LEAST_1,
    ),
    "drop_fraction": _SHARE,
    "grow": _SHARE,
    "keep": Range(
        lambda x: x >= 1 if isinstance(x, int) else 0 < x <= 1,
        "a count of at least 1, or a share greater than 0 and at most 1",
    ),
    "tune_at": _BELOW_1,
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "budget": ("global", "leaf"),
    "clusters": ("even", "imbalanced", "kmeans"),
    "compute": ("bfloat16", "float32"),
    "recipe": ("rigl", "set", "static"),
    "kinds": ("channel", "decoupled", "spatial"),
    "init": ("he", "lecun"),
    "inputs": ("pixels", "standardized"),
    "schedule": ("cosine", "exponential"),
}
_PATTERNS = ("partitions", "scope", "spare")
"""Regular expressions."""

_ORDERED = (("n", "m"), ("begin", "end"), ("a_min", "a_max"))
"""The first must not exceed the second, where a run has both."""

_LARGEST = 2**31 - 1
"""What counts on the devices can hold."""

_LEAST, _GREATEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""What float32 can: a smaller number is 0 there, a larger one infinite."""
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
    for low, high in _ORDERED:
        if low in settings and high in settings and settings[low] > settings[high]:
            raise ConfigError(
                f"`{owner}.{low}` must not exceed `{high}`, got {settings[low]!r} and "
                f"{settings[high]!r}."
            )


def check_kind(place: str, value: Any, wanted: Any) -> None:
    """Refuses a value that is not what the parameter of a method is annotated with.

    Args:
      place: the setting, for the message.
      value: its value.
      wanted: the annotation: `float`, `tuple[tuple[int, int], ...]`, `float | None`.

    Raises:
      ConfigError: naming the setting, the kind that was expected and what came.
    """
    if not _is(value, wanted):
        kind = wanted.__name__ if isinstance(wanted, type) else str(wanted)
        kind = str(wanted) if get_args(wanted) else kind
        raise ConfigError(f"`{place}` must be of the kind {kind}, got {value!r}.")


def _is(value: Any, wanted: Any) -> bool:
    """Whether a literal is of an annotated kind; an integer is a float too."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return any(_is(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_is(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_is, value, parts))
    if wanted in (int, float) and isinstance(value, bool):
        return False
    if wanted is float:
        return isinstance(value, int | float)
    if wanted in (Any, inspect.Parameter.empty):
        return True
    return isinstance(value, NoneType if wanted is None else origin or wanted)


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


def check_seed(seed: int, count: int = 1) -> None:
    """Refuses a seed that JAX would fold onto another.

    Args:
      seed: the first.
      count: how many, one after the other.

    Raises:
      ConfigError: naming the range.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"`--seed` must be from 0 to 2**32 - 1, got {seed}.")
    if seed + count > 2**32:
        raise ConfigError(
            f"`--seed` is the first of {count}: it must be at most 2**32 - {count}, "
            f"got {seed}."
        )


def _check_one(place: str, name: str, value: Any) -> None:
    if isinstance(value, str):
        known = _CHOICES.get(name)
        if known and value not in known:
            raise unknown(f"value of `{place}`", value, known)
        if name in _PATTERNS:
            _check_pattern(place, value)
        return
    if isinstance(value, bool) or value is None:
        return
    if not isinstance(value, int | float):
        raise ConfigError(f"`{place}` must be a number, got {value!r}.")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ConfigError(f"`{place}` must be at most {_LARGEST:,}, got more.")
    allowed = _RANGES.get(name, _AT_LEAST_0)
    if not math.isfinite(value) or not allowed.holds(value):
        raise ConfigError(f"`{place}` must be {allowed.words}, got {value!r}.")
    if value and not _LEAST <= abs(value) <= _GREATEST:
        raise ConfigError(
            f"`{place}` is {value!r}: float32 holds {_LEAST:.3g} to {_GREATEST:.3g}."
        )


def _check_pattern(place: str, text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ConfigError(
            f"`{place}` is {text!r}: no regular expression ({error})."
        ) from error


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [item for part in value for item in _flat(part)]
    return [value]
