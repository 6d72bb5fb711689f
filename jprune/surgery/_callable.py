"""What is no function where one is asked for, and a function not yet called."""

from collections.abc import Callable
from typing import Any

import jax

from jprune._errors import type_error
from jprune._jaxpr._trace import is_array

_FRAMEWORKS = {
    ("flax", "linen"): "linen",
    ("flax", "nnx"): "nnx",
    ("equinox",): "equinox",
    ("keras",): "keras",
    ("haiku",): "haiku",
}


def require_function(fn: Any, call: str) -> None:
    """Raises unless `fn` can be called and is no model that holds its parameters.

    An Equinox or NNX object called on an array would make that array its "parameters",
    without a word.

    Args:
      fn: what should be `fn(params, *args)`.
      call: the function that asks, for the message ("groups").

    Raises:
      TypeError: naming `jprune.frameworks` and the class.
    """
    name = _framework(type(fn))
    holds = name in ("linen", "keras") or any(map(is_array, jax.tree.leaves(fn)))
    if callable(fn) and not (name and holds):
        return
    if name is None:
        raise type_error(
            f"`fn` must be a function `fn(params, *args)`, got {type(fn).__name__}."
        )
    raise type_error(
        f"`fn` must be a function `fn(params, *args)`, got the model object "
        f"{type(fn).__name__}. Use `jprune.frameworks.{name}`, whose `groups` and "
        f"`shrink` take a model, or pass `surgery.{call}` {_PURE[name]}."
    )


class Finder:
    """What `groups(fn)` returns: a function, which says so where it is not called."""

    def __init__(self, find: Callable[..., Any]) -> None:
        self._find = find

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The groups of the function on these arguments."""
        return self._find(params, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"[jprune] `surgery.groups(fn)` is a function and has no {name!r}: the "
            "groups are `surgery.groups(fn)(params, *args)`."
        )


_PURE = {
    "linen": "its `model.apply`",
    "haiku": "its `model.apply`",
    "keras": "`lambda v, x: model.stateless_call(*v, x)[0]`",
    "nnx": "`lambda state, *args: nnx.merge(graphdef, state)(*args)`",
    "equinox": "`lambda model, *args: model(*args)`",
}


def _framework(cls: type) -> str | None:
    """The page of the framework of which a class is a model, or None."""
    for base in cls.__mro__:
        module = tuple(base.__module__.split("."))
        for prefix, name in _FRAMEWORKS.items():
            if module[: len(prefix)] == prefix and (
                base.__name__ in ("Module", "Layer", "Transformed")
                or base.__name__ == "TransformedWithState"
            ):
                return name
    return None
