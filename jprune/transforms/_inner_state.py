"""The state of a wrapped optimizer: find its moments, begin some of them anew.

A wrapper does not know its inner optimizer. What it holds for each parameter, whatever
it is called, is what `map_moments` finds; the rest (counters, schedules, keys) belongs
to no weight and is left alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.tree_util as jtu
import optax

from jprune._errors import type_error
from jprune._typing import Mask, Params, PyTree


def map_moments(
    tx: optax.GradientTransformation,
    fn: Callable[..., Any],
    state: PyTree,
    *like: PyTree,
    other: Callable[[Any], Any],
) -> PyTree:
    """`optax.tree.map_params`, for anything that stands in a parameter's place.

    Args:
      tx: the transformation.
      fn: of what stands in the place of a parameter, mostly an array, but a list for
        SM3, and an `optax.MaskedNode` where the parameter is masked out; and of the
        leaves of `like`.
      state: its state.
      *like: trees with the structure of the parameters, at least one.
      other: of every other leaf.

    Returns:
      A tree of what the functions return.

    Raises:
      TypeError: `tx` does not take the stand-in by which Optax finds moments.
    """
    places = {path for path, _ in jtu.tree_leaves_with_path(like[0])}

    def of_tree(moments: PyTree, *trees: PyTree) -> PyTree:
        return jtu.tree_map_with_path(
            lambda _, *at: fn(*at),
            moments,
            *trees,
            is_leaf=lambda path, x: path in places or _is_masked(x),
            is_leaf_takes_path=True,
        )

    def init(stand_in: Any) -> PyTree:
        try:
            return tx.init(stand_in)
        except Exception as error:
            raise type_error(
                "Which arrays of this optimizer's state belong to which weights cannot "
                "be told: its `init` does not take the stand-in of "
                f"`optax.tree.map_params` ({type(error).__name__}: {error}). Those "
                "with a line search, such as `optax.lbfgs`, do not; use another, such "
                "as `optax.adam`."
            ) from error

    return optax.tree.map_params(
        init,
        of_tree,
        state,
        *like,
        transform_non_params=other,
        is_leaf=lambda _: True,
    )


def renew(
    inner: optax.GradientTransformation,
    state: PyTree,
    params: Params,
    select: Callable[..., jax.Array],
    *masks: Mask,
) -> PyTree:
    """`state`, with some moments put back to what `inner.init` makes them.

    To be handed to `inner.update`: a select before the step runs in its kernels, one
    after it would cost a copy of the moments. Outside any `lax.cond`, which would write
    every moment to memory.

    A moment that is not of its parameter's shape (the rows and columns of Adafactor and
    SM3) speaks of many weights and is kept.

    Args:
      inner: the optimizer.
      state: its state.
      params: the parameters; `inner.init(params)` gives the first values. They are
        constants for most optimizers, and cost nothing.
      select: `(now, first, *masks)` -> one moment, now and at first, and the leaves of
        `masks` of its weights -> which of the two.
      *masks: trees of arrays with the structure of the parameters.

    Returns:
      A state like `state`.
    """
    first = inner.init(params)
    # The place of a moment holds its masks, any other place the marker.
    marks = map_moments(
        inner,
        lambda s, *m: s if _is_masked(s) else _Marks(m),
        state,
        *masks,
        other=lambda _: _Marks(()),
    )

    def leaf(mark: Any, now: Any, begun: Any) -> Any:
        shape = getattr(now, "shape", None)
        if _is_masked(mark) or not mark.of or mark.of[0].shape != shape:
            return now
        return select(now, begun, *mark.of)

    return jax.tree.map(leaf, marks, state, first, is_leaf=_is_masked)


class _Marks:
    """The masks of one moment, as a leaf; none for what belongs to no weight."""

    def __init__(self, of: tuple[jax.Array, ...]):
        self.of = of


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
