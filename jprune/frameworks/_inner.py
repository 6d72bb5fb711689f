"""A method of a compact model that is given a width from inside of it.

What a method takes comes from outside, at its dense shape; a width that the plan has
cut has no dense values any more, and at its compact size the dense method does not run.
"""

from collections.abc import Callable, Iterator
from typing import Any

from jprune._errors import PREFIX, short, value_error
from jprune._jaxpr._trace import flatten_call, trace
from jprune._tree import KeyTuple
from jprune.surgery import Plan
from jprune.surgery._program import INPUT

Width = tuple[KeyTuple, Any, int, int]
"""Path of an argument, the array, one of its axes, and the dense length of that."""


def inner_width(
    error: Exception,
    method: str,
    plan: Plan,
    fn: Callable[..., Any],
    params: Any,
    args: tuple,
    kwargs: dict[str, Any],
) -> ValueError | None:
    """The error to raise in place of another one, where an argument has such a width.

    Args:
      error: what the call raised.
      method: its name.
      plan: the plan.
      fn: the dense call as a function of its parameters.
      params: the compact parameters.
      args: the arguments of `fn` behind them.
      kwargs: its keyword arguments.
    """
    cut = {
        (len(mask), int(mask.sum()))
        for masks in plan.keep.values()
        for mask in masks
        if not mask.all()
    }
    flat = flatten_call(params, args, kwargs)
    arrays = list(zip(flat.others, flat.arrays[len(flat.params) :], strict=True))
    if PREFIX in str(error):
        found = _dense(arrays, cut) if INPUT in str(error) else iter(())
    else:
        found = (
            width
            for width in _compact(arrays, cut)
            if _runs(fn, plan, width, params, args, kwargs)
        )
    for _, x, axis, before in found:
        after = sorted({b for a, b in cut if a == before})
        left = " or ".join(map(str, after))
        return value_error(
            f"`{method}` was given {short(x)}, whose axis {axis} is a width inside of "
            f"the model: {before} in the dense one, of which the plan leaves {left}. "
            "Neither may come from outside. Call a method that begins at the model's "
            "own input, or keep that width whole (`exclude=` in `select`)."
        )
    return None


def _dense(arrays: list, cut: set[tuple[int, int]]) -> Iterator[Width]:
    """The axes that have the dense length of a width that was cut, the last first."""
    for path, x in arrays:
        for axis in reversed(range(x.ndim)):
            if any(before == x.shape[axis] for before, _ in cut):
                yield path, x, axis, x.shape[axis]


def _compact(arrays: list, cut: set[tuple[int, int]]) -> Iterator[Width]:
    """The axes that have the compact length of one, the last first."""
    for path, x in arrays:
        for axis in reversed(range(x.ndim)):
            for before, after in sorted(cut):
                if after == x.shape[axis]:
                    yield path, x, axis, before


def _runs(
    fn: Callable[..., Any],
    plan: Plan,
    width: Width,
    params: Any,
    args: tuple,
    kwargs: dict[str, Any],
) -> bool:
    """Whether the dense call runs with an argument of the dense width."""
    path, x, axis, before = width
    shape = (*x.shape[:axis], before, *x.shape[axis + 1 :])
    try:
        trace(fn, plan.dense_shapes, {path: shape})(params, *args, **kwargs)
    except Exception:  # the model's own, whatever it is
        return False
    return True
