"""What is no function where one is asked for, and a function not yet called.

Functions that measure (`verify`, `analysis.flops`, ...) take a model object as well;
what it is as a function its file in `jprune.frameworks` knows, which is read when such
an object arrives.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax

from jprune._errors import PREFIX, noting, short, type_error
from jprune._jaxpr._trace import Traced, is_array, trace
from jprune._tree import KeyTuple

_FRAMEWORKS = {
    ("flax", "linen"): "linen",
    ("flax", "nnx"): "nnx",
    ("equinox",): "equinox",
    ("keras",): "keras",
    ("haiku",): "haiku",
}


def require_function(fn: Any, call: str = "") -> None:
    """Raises unless `fn` can be called and is no model that holds its parameters.

    An Equinox or NNX object called on an array would make that array its "parameters",
    without a word.

    Args:
      fn: what should be `fn(params, *args)`.
      call: the function that asks, for the message ("groups"), if the files of the
        frameworks have one for their models.

    Raises:
      TypeError: naming the class, and what to give.
    """
    name = model_kind(fn)
    if callable(fn) and name is None:
        return
    if name is None:
        raise type_error(
            f"`fn` must be a function `fn(params, *args)`, got {type(fn).__name__}."
        )
    theirs = f"Use `jprune.frameworks.{name}`, whose `groups` and `shrink` take a model"
    raise type_error(
        f"`fn` must be a function `fn(params, *args)`, got the model object "
        f"{type(fn).__name__}. "
        + (f"{theirs}, or pass `surgery.{call}` " if call else "Pass ")
        + f"{_PURE[name]}."
    )


def require_list(batches: Any) -> None:
    """Raises for one array in place of batches, which would be taken row by row."""
    if hasattr(batches, "shape"):
        raise type_error(
            "`batches` must be a list of batches, or any iterable of them, got one "
            f"array, {short(batches)}, whose rows would be taken for batches. One "
            "batch `x` is given as `[x]`."
        )


def traced(fn: Any, params: Any, args: tuple, more: str = "") -> Traced:
    """The program of a caller's function, whose errors say how it was called.

    Args:
      fn: `fn(params, *args)`.
      params: its first argument.
      args: the others.
      more: what may be wrong, as `BATCH`.

    Raises:
      TypeError: as `require_function`.
    """
    require_function(fn)
    with calling("", params, args, {}, more):
        return trace(fn)(params, *args)


def on_batch(params: Any, batch: Any) -> AbstractContextManager[None]:
    """Notes on what a caller's function raises which batch it was called on.

    Args:
      params: its first argument.
      batch: the tuple of the others, or the one.
    """
    args = batch if isinstance(batch, tuple) else (batch,)
    return calling("", params, args, {}, BATCH)


BATCH = (
    " A batch is the argument behind `params`, or the tuple of those: labels of a "
    "function that takes none do not belong to it (`[x for x, y in batches]`)."
)
"""What may be wrong with a batch, for the note of a call on one."""


STATE_OUTPUTS = "_jprune_state_outputs"
"""Where the function of a model says which of its outputs are its new state."""


STATISTICS = "_jprune_statistics"
"""Where the function of a model says which of its parameters are statistics."""


def statistics_of(fn: Any, paths: Iterable[KeyTuple]) -> frozenset[KeyTuple]:
    """The parameters that the function of a model says to be statistics."""
    says = getattr(fn, STATISTICS, None)
    return frozenset(filter(says, paths)) if says else frozenset()


def state_outputs_of(fn: Any) -> Any:
    """The outputs that are updated parameters, of a function that `as_function` made.

    None for any other: they are then looked for.
    """
    return getattr(fn, STATE_OUTPUTS, None)


def model_kind(fn: Any) -> str | None:
    """The file of `jprune.frameworks` whose model object this is; None for any other.

    A module of Equinox without arrays is a function like any other.
    """
    name = _framework(type(fn))
    if name != "equinox" or any(map(is_array, jax.tree.leaves(fn))):
        return name
    return None


def as_function(fn: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, tuple, Any]:
    """A model object and the arguments of its call, as a function of its parameters.

    Args:
      fn: a function, which passes with its arguments; or a model object.
      args: for a model, the arguments that `groups` of its framework takes after it.
      kwargs: keyword arguments, the same.

    Returns:
      `(fn, (params, *args), kwargs)`: `fn` returns the result of the call and the new
      values of the state that it changed.
    """
    name = model_kind(fn)
    if name is None:
        return fn, args, kwargs
    file: Any = importlib.import_module(f"jprune.frameworks.{name}")
    state: Any = importlib.import_module("jprune.frameworks._state")
    stateful, *given = file.as_function(fn, args, kwargs)
    return _advised(state.tied(stateful), name), tuple(given), {}


@contextlib.contextmanager
def looked_at(name: str) -> Iterator[None]:
    """What a model's call raises in this block says in which mode it is looked at.

    Args:
      name: its file in `jprune.frameworks`, which may have said so already.
    """
    try:
        yield
    except Exception as error:
        said = [str(error), *getattr(error, "__notes__", ())]
        if PREFIX not in said[0] and not any("training mode" in x for x in said):
            error.add_note(_LOOKED_AT.format(PREFIX, _QUIET[name]))
        raise


_LOOKED_AT = (
    "{}this is the model's own error. A model that has a training mode is looked at "
    "outside of it: {}."
)

_QUIET = {
    "linen": "pass what its call takes for that, such as `train=False`",
    "haiku": "pass what its call takes for that, such as `is_training=False`",
    "keras": "pass `training=False`, or nothing",
    "nnx": "call `model.eval()` first",
    "equinox": (
        "give `eqx.nn.inference_mode(model)`. A batch is no argument of a module that "
        "takes one example: give `x[0]`"
    ),
}


def _advised(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function of a model, in `looked_at`."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with looked_at(name):
            return fn(*args, **kwargs)

    return call


def with_variables(pair: tuple[Any, Any], args: tuple) -> tuple[Any, tuple]:
    """A pair of a function or a model and what it does not hold, ready to be called.

    Returns:
      The function or model, and the arguments with the variables in their place: of
      Equinox the state stands where the call names a `state`, else last; of Haiku
      `(params, state)` are two.
    """
    fn, variables = pair
    name = model_kind(fn)
    if name == "equinox":
        file: Any = importlib.import_module("jprune.frameworks.equinox")
        return fn, file.with_state(fn, args, variables)
    if name == "haiku" and isinstance(variables, tuple):
        return fn, (*variables, *args)
    return fn, (variables, *args)


class Finder:
    """What `groups(fn)` returns: a function, which says so where it is not called."""

    def __init__(self, find: Callable[..., Any], fn: Any) -> None:
        self._find = find
        model = getattr(fn, "__self__", None)
        self._more = "" if (name := model_kind(model)) is None else _OWNER.format(name)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The groups of the function on these arguments."""
        what = "groups(fn)(params, *args)"
        with calling(what, params, args, kwargs, self._more):
            return self._find(params, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"[jprune] `surgery.groups(fn)` is a function and has no {name!r}: the "
            "groups are `surgery.groups(fn)(params, *args)`."
        )


_OWNER = (
    " Of the model itself `jprune.frameworks.{0}.groups(model, ...)` knows more: what "
    "the call lacks, and in which mode it is."
)


def calling(
    what: str, params: Any, args: tuple, kwargs: dict[str, Any], more: str = ""
) -> AbstractContextManager[None]:
    """Notes on what a caller's function raises how it was called.

    Args:
      what: the call of ours that calls it; "" for any.
      params: the first argument.
      args: the others.
      kwargs: the keyword arguments.
      more: what may be wrong.
    """

    def note() -> str:
        given = [*map(short, args), *(f"{k}={short(x)}" for k, x in kwargs.items())]
        head = f"`{what}` calls `fn(params, *args)`: it" if what else "`fn`"
        return (
            f"{head} was called with `params` {short(params)} and "
            f"{', '.join(given) or 'nothing else'}.{more}"
        )

    return noting(note, unless=PREFIX)


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
