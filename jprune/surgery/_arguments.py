"""What the call of a model object takes, and what it was given.

A framework's own error of a call that does not fit says how many arguments Python
counted, the model and its parameters among them. It is judged only where a call has
failed: what works is nobody's concern.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jprune._errors import PREFIX, short, type_error

ADVICE = (
    "Give the arguments of the model's own call: labels are none of them, and a "
    "compact model stands beside the dense one as `compact=`, or as `compare`'s second."
)

_SWITCHES = ("train", "training", "is_training", "deterministic", "inference")
"""Arguments that are no arrays, whatever their default is."""


@contextmanager
def explained(
    call: Callable[..., Any] | None,
    args: tuple,
    kwargs: dict[str, Any],
    advice: str = ADVICE,
) -> Iterator[None]:
    """Says of what a model raises in this block how it was called.

    Args:
      call: what was called, for its signature; None where it is not known.
      args: the arguments, all that the signature names first.
      kwargs: the keyword arguments.
      advice: what to do, a sentence.

    Raises:
      TypeError: in place of the model's error, if the arguments do not fit.
    """
    try:
        yield
    except Exception as error:
        if PREFIX in str(error):
            raise
        given = ", ".join(
            [*map(_text, args), *(f"{k}={_text(x)}" for k, x in kwargs.items())]
        )
        found = None if call is None else _signature(call)
        if found is not None and (why := _misfit(found, args, kwargs)):
            raise type_error(
                f"the model's call takes {_without_types(found)}, got ({given}): {why}."
                f" {advice}"
            ) from error
        error.add_note(f"{PREFIX}the model was called on ({given}). {advice}")
        raise


def _signature(call: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(call)
    except (TypeError, ValueError):
        return None


def _misfit(found: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> str:
    """Why arguments do not fit a signature; empty if they do."""
    try:
        bound = found.bind(*args, **kwargs).arguments
    except TypeError as error:
        return str(error)
    for name, value in bound.items():
        switch = name in _SWITCHES or isinstance(found.parameters[name].default, bool)
        if switch and getattr(value, "ndim", 0):
            return f"`{name}` must be True or False, got {short(value)}"
    return ""


def _without_types(found: inspect.Signature) -> str:
    rows = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=rows, return_annotation=found.empty))


def _text(value: Any) -> str:
    """A value in a few words, and of a tuple or list those in it."""
    if type(value) in (tuple, list) and len(value) <= 4:
        text = ", ".join(map(_text, value))
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    return short(value)
