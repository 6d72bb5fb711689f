"""Names for the few kinds of pytree that every signature speaks of.

They are aliases, not classes: a parameter tree of any framework is accepted as it is.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import jax
from jax.typing import ArrayLike

PyTree = Any
"""Any JAX pytree."""

Params = Any
"""A pytree of arrays: the parameters of a model."""

Mask = Any
"""A pytree of bool arrays with exactly the structure of the parameters; True = keep.

A leaf out of scope holds a 0-d True, never None, so that the two structures stay equal.
"""

Scores = Any
"""A pytree of float arrays with the structure and shapes of the parameters."""

Scope = Any
"""A pytree of Python bools, structured as the parameters: which leaves take part."""

Schedule = Callable[[ArrayLike], ArrayLike]
"""A function of the step count, as Optax's schedules are."""

Scalar = float | int | jax.Array
"""A number, concrete or traced."""

ScalarOrSchedule = float | int | jax.Array | Schedule
"""A number (concrete or traced) or a schedule of the step."""


class Named:
    """An alias at run time: `help` shows its name, `kinds` what it stands for.

    A type checker sees the alias itself.
    """

    def __init__(self, name: str, kinds: tuple[Any, ...]) -> None:
        self.name, self.kinds = name, kinds

    def __repr__(self) -> str:
        return self.name

    def __call__(self, *args: Any) -> Any:
        """For `typing`, which asks whether a type can be called."""
        raise TypeError(f"{self.name} is an alias of types and makes nothing.")

    def __or__(self, other: Any) -> "Named":
        return Named(f"{self} | {text_of(other)}", (*self.kinds, *kinds_of(other)))

    def __ror__(self, other: Any) -> "Named":
        return Named(f"{text_of(other)} | {self}", (*kinds_of(other), *self.kinds))


_UNIONS: Any = (type(float | int), type(Any | None))
"""How Python writes a union, of classes and of others."""


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else itself."""
    if annotation is None:
        return (type(None),)
    if isinstance(annotation, Named):
        return annotation.kinds
    if not isinstance(annotation, _UNIONS):
        return (annotation,)
    return tuple(kind for part in get_args(annotation) for kind in kinds_of(part))


def text_of(annotation: Any) -> str:
    """An annotation as a reader writes it."""
    if annotation is None or annotation is type(None):
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else repr(annotation)


if not TYPE_CHECKING:
    for _name in ("PyTree", "Params", "Mask", "Scores", "Scope"):
        globals()[_name] = Named(_name, (_name,))
    for _name in ("Schedule", "Scalar", "ScalarOrSchedule"):
        globals()[_name] = Named(_name, kinds_of(globals()[_name]))
