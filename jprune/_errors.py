"""One form for every error: what was expected, what came, which leaf, what to do.

Errors are plain `ValueError` and `TypeError`, so nothing has to be imported to catch
them; the prefix says where they come from in a long trace.
"""

import difflib
import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax

PREFIX = "[jprune] "

_MOST = 2**31 - 1


def value_error(message: str) -> ValueError:
    """A `ValueError` that says it is ours."""
    return ValueError(PREFIX + message)


def type_error(message: str) -> TypeError:
    """A `TypeError` that says it is ours."""
    return TypeError(PREFIX + message)


def warn(message: str) -> None:
    """A warning at the caller's line: the first that is not of this package."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_globals.get("__name__", "")[:7] == "jprune.":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def no_params(name: str) -> ValueError:
    """The error of a transformation whose `update` was called without `params`."""
    return value_error(
        f"`{name}` needs the parameters: call `update(updates, state, params)` with "
        "`params`, got None."
    )


def require_static(**options: Any) -> None:
    """Steps, periods and floors decide the program: integers of Python or NumPy.

    An array cannot, and what is planned for step 13.5 would never come.

    Args:
      **options: the values, by the names of the arguments; None where none is given.

    Raises:
      ValueError: one is an array of JAX, traced or not, or no integer; 3.0 is none; or
        it is larger than an int32.
    """
    arrays = [f"`{name}`" for name, x in options.items() if isinstance(x, jax.Array)]
    if arrays:
        raise value_error(
            f"{', '.join(arrays)} must be Python integers, got arrays. Under "
            "`optax.inject_hyperparams` name them in `static_args`."
        )
    for name, x in options.items():
        if x is not None and not is_integer(x):
            raise value_error(
                f"`{name}` must be a whole number, got {short(x)}: use round(...)."
            )
        if x is not None and abs(operator.index(x)) > _MOST:
            raise value_error(
                f"`{name}` must be at most {_MOST}, what a step count (int32) holds; "
                f"got {x}."
            )


def injected(name: str) -> str:
    """What to do if `optax.inject_hyperparams` called a function or made an array."""
    return (
        f"Under `optax.inject_hyperparams`, which takes every function for a schedule "
        f"of the step, name `{name}` in `static_args`."
    )


def require_functions(**options: Any) -> None:
    """Functions that decide the program are functions, not what a step gave.

    Args:
      **options: the values, by the names of the arguments; None where none is given.

    Raises:
      TypeError: one is no function.
    """
    for name, x in options.items():
        if x is not None and not callable(x):
            raise type_error(
                f"`{name}` must be a function, got {type(x).__name__}. {injected(name)}"
            )


def is_integer(x: Any) -> bool:
    """Whether a value counts something: an integer of Python, NumPy or JAX, no bool.

    Args:
      x: anything.

    Returns:
      False also for `True`, 3.0 and arrays that are not 0-d.
    """
    try:
        operator.index(x)
    except TypeError:
        return False
    return not isinstance(x, bool)


def require_regex(name: str, pattern: str) -> None:
    """A text given for leaf paths is a regular expression.

    Args:
      name: of the argument.
      pattern: its value.

    Raises:
      ValueError: it is not one, as a glob that begins with a star.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise value_error(
            f"`{name}`={pattern!r} is not a regular expression ({error}); for a glob "
            "such as '*/kernel' write '/kernel$', for '*' write '.*'."
        ) from error


def nearest(pattern: str, names: Sequence[str], limit: int = 6) -> list[str]:
    """Which of some names a pattern that found none may have meant, best first.

    Those that it finds in another case, then those of which an entry is spelled like
    its own longest run of letters.
    """
    try:
        loose = re.compile(pattern, re.IGNORECASE)
    except re.error:
        loose = re.compile(re.escape(pattern), re.IGNORECASE)
    near = [name for name in names if loose.search(name)]
    if not near:
        words = sorted(re.findall(r"[A-Za-z_]\w*", pattern), key=len)
        word = words[-1].lower() if words else pattern
        entries: dict[str, list[str]] = {}
        for name in names:
            for entry in re.split(r"[/:]", name.lower()):
                entries.setdefault(entry, []).append(name)
        close = difflib.get_close_matches(word, entries, 3)
        near = [name for entry in close for name in entries[entry]]
    return list(dict.fromkeys(near))[:limit]


@contextmanager
def noting(note: Callable[[], str], unless: str | None = None) -> Iterator[None]:
    """Adds a note to an error that is not ours: what we had called the caller with.

    Args:
      note: makes the note.
      unless: the beginning of a note that says it better.
    """
    try:
        yield
    except Exception as error:
        had = [x for x in getattr(error, "__notes__", ()) if unless and unless in x]
        if PREFIX not in str(error) and not had:
            error.add_note(PREFIX + note())
        raise


def short(value: Any) -> str:
    """A value in a few words: what an array or a tree is, not what is in it."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, list(value)[:4])) + (
            ", ..." if len(value) > 4 else ""
        )
        return f"{type(value).__name__} of {keys or 'nothing'}"
    text = repr(value)
    few = len(text) <= 40 and "\n" not in text and " at 0x" not in text
    return text if few else type(value).__name__


def listing(lines: Sequence[str], limit: int = 12) -> str:
    """Offending leaves, one a line, cut after `limit` with a count of the rest."""
    shown = [f"\n  {line}" for line in lines[:limit]]
    if len(lines) > limit:
        shown.append(f"\n  ... and {len(lines) - limit} more")
    return "".join(shown)
