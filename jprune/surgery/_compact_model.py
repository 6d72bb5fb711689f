"""What `verify` runs: the dense function, and a compact model object beside it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jprune._errors import listing, type_error, value_error
from jprune._jaxpr._trace import Traced, is_array, trace
from jprune._tree import keyed_leaves, keys_text
from jprune._typing import PyTree
from jprune.surgery._callable import as_function, calling, model_kind, require_function
from jprune.surgery._measure import Result
from jprune.surgery._plan import Plan

_PURE = ("linen", "haiku")
"""Frameworks whose models do not hold their parameters."""


class Call(NamedTuple):
    """One call of a compact function, its parameters first.

    Attributes:
      fn: the function.
      given: its parameters, its other arguments, its keyword arguments; None: those
        that the compact form of the dense function gets.
    """

    fn: Callable[..., Any]
    given: tuple[PyTree, tuple, dict[str, Any]] | None = None


def compact_call(
    compact: Any, dense: Any, plan: Plan, given: tuple, kwargs: dict[str, Any]
) -> Call | None:
    """What `compact` is to be called with.

    Args:
      compact: a function of the packed parameters, or a model object; None passes.
      dense: the dense function, or model object.
      plan: the plan.
      given: what follows the dense one in `verify`, its parameters or state included.
      kwargs: the keyword arguments.

    Raises:
      TypeError: a function beside a model object, or models of two frameworks; a model
        object that holds its parameters beside a function.
    """
    if compact is None:
        return None
    kind, of_dense = model_kind(compact), model_kind(dense)
    if kind in _PURE and of_dense is None:
        return Call(compact.apply)
    if kind != of_dense:
        raise type_error(
            "`compact` must be what `fn` is, a function or a model object of its "
            f"framework: got {type(compact).__name__} for {type(dense).__name__}."
        )
    if kind is None:
        return Call(compact)
    _, (params, *_), _ = as_function(dense, given, kwargs)
    packed = plan.pack(params)
    if kind in _PURE:
        trees = packed if isinstance(packed, tuple) else (packed,)
        given = (*trees, *given[len(trees) :])
    fn, (own, *rest), kwargs = as_function(compact, given, kwargs)
    if kind == "equinox" and isinstance(own, tuple):  # the module and its state
        own = (own[0], packed[1])
    return Call(lambda *a, **k: {"out": fn(*a, **k)["out"]}, (own, tuple(rest), kwargs))


def paired(found: Result, call: Call) -> Result:
    """Results under the paths of the packed dense parameters.

    A compact module of Equinox holds these in its field `packed`.
    """
    if call.given is None:
        return found
    held = {tuple(k for k in p if k != "packed"): g for p, g in found.gradient.items()}
    return dataclasses.replace(found, gradient=held)


def traced_dense(
    fn: Callable[..., Any], plan: Plan, params: PyTree, args: tuple, kwargs: Any
) -> Traced:
    """The dense function on the arguments that `verify` got.

    Raises:
      TypeError: `fn` is no function.
      ValueError: parameters that are compact, or not those of the plan.
    """
    _require_dense(fn, plan, params)
    with calling("verify(fn, plan, params, *args)", params, args, kwargs):
        return trace(fn, plan.dense_shapes)(params, *args, **kwargs)


def _require_dense(fn: Any, plan: Plan, params: PyTree) -> None:
    """Raises for what is no function, and for the compact parameters."""
    require_function(fn, "verify")
    shapes = {p: tuple(x.shape) for p, x in keyed_leaves(params) if is_array(x)}
    if plan.removed and shapes == plan.compact_shapes:
        raise value_error(
            "`verify` takes the dense function and parameters, and makes the compact "
            "ones itself; got parameters of the compact shapes."
        )
    dense = plan.dense_shapes
    other = sorted(keys_text(p) for p, shape in shapes.items() if shape != dense.get(p))
    if other:
        raise value_error(
            "`params` must have the leaves and shapes that the plan was made for; "
            f"these differ:{listing(other)}"
        )
