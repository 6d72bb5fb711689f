"""The state of a wrapped optimizer: find its moments, begin some of them anew.

A wrapper does not know its inner optimizer. What it holds for each weight, whatever it
is called, is what `optax.tree.map_params` finds; the rest (counters, schedules, keys)
belongs to no weight and is left alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jprune._typing import Mask, Params, PyTree


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

    A moment that is not of its parameter's shape (Adafactor's rows and columns) speaks
    of many weights and is kept.

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
    marks = optax.tree.map_params(
        inner,
        lambda s, *m: s if _is_masked(s) else _Marks(m),
        state,
        *masks,
        transform_non_params=lambda _: _Marks(()),
        is_leaf=_is_masked,
    )

    def leaf(mark: Any, now: Any, begun: Any) -> Any:
        if _is_masked(mark) or not mark.of or mark.of[0].shape != now.shape:
            return now
        return select(now, begun, *mark.of)

    return jax.tree.map(leaf, marks, state, first, is_leaf=_is_masked)


class _Marks:
    """The masks of one moment, as a leaf; none for what belongs to no weight."""

    def __init__(self, of: tuple[jax.Array, ...]):
        self.of = of


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
