r"""One move of a sparse mask: in each leaf the smallest weights go, as many come.

With the magnitudes |w| and lots s, a leaf that keeps n weights and exchanges k of them
keeps

$$ A = \mathrm{top}_{n-k}\, |w| \text{ within } m, \qquad
   B = \mathrm{top}_{k}\, s \text{ outside } A. $$

Two rankings, the second of what the first leaves out. They are compiled once, as two
rounds of one loop: what a user waits for at the first call is the ranking of every leaf
being compiled.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune._axes import Axes
from jprune.masks._count import is_traced, traced_share
from jprune.masks._rank import rank
from jprune.selection._leaves import own

Marks = tuple[list[jax.Array], list[jax.Array], jax.Array]
"""Of each leaf the mask and what of it is new, and the passes over the weights."""


def exchanged(
    weights: list[jax.Array],
    lots: list[jax.Array],
    mask: list[jax.Array],
    kept: Any,
    fraction: Any,
    axes: list[Axes],
) -> Marks:
    """The next mask of each leaf: the smallest weights go, the largest lots come.

    Magnitudes are taken by the ranking. Without stacks all leaves may be flat.
    """
    # A leaf's count never changes; those of its layers are counted anew.
    if any(axes):
        rows = zip(kept, mask, axes, strict=True)
        kept = [_of_layers(m, a) if a else n for n, m, a in rows]
    dropped = jax.tree.map(lambda n: _share(fraction, n), kept)
    stays = jax.tree.map(jnp.subtract, kept, dropped)

    def turn(second: jax.Array, kept: list[jax.Array]) -> _Turn:
        """What is kept: the largest of what was, and then also those that grow."""
        count = functools.partial(jnp.where, second)
        best, found = rank(
            weights,
            list(jax.tree.map(count, dropped, stays)),
            ranking="leaf",
            within=kept,
            min_keep=0,
            instead=(lots, second),
            stacks=axes,
        )
        both = [b | (k & own(second, k)) for b, k in zip(best, kept, strict=True)]
        return both, jnp.max(found.passes).astype(jnp.int32)

    union, passes = _twice(turn, mask)
    # What was dropped and grown again is not new.
    new = [now & ~was for now, was in zip(union, mask, strict=True)]
    return union, new, passes


_Turn = tuple[list[jax.Array], jax.Array]
"""Of each leaf what is kept, and the passes over the weights."""


def _twice(turn: Callable[..., _Turn], kept: list[jax.Array]) -> _Turn:
    """The first turn and the second, compiled once."""
    if not any(map(is_traced, kept)):  # a loop would be compiled at every step
        kept, one = turn(jnp.array(False), kept)
        kept, two = turn(jnp.array(True), kept)
        return kept, jnp.maximum(one, two)

    def once(carry: Any) -> Any:
        second, _, kept, most = carry
        kept, passes = turn(second, kept)
        return jnp.array(True), second, kept, jnp.maximum(most, passes)

    # The condition reads two values: see `_Search.run`.
    no = jnp.array(False)
    goes_on = lambda carry: ~carry[1] & (carry[3] >= 0)  # noqa: E731
    *_, kept, passes = jax.lax.while_loop(goes_on, once, (no, no, kept, jnp.int32(0)))
    return kept, passes


def _share(fraction: Any, kept: jax.Array) -> jax.Array:
    """How many of so many kept weights are dropped."""
    return jnp.clip(traced_share(fraction, kept), 0, kept)


def _of_layers(mask: jax.Array, axes: Axes) -> jax.Array:
    """How many weights each layer of a stack keeps. [stack] int32"""
    others = tuple(i for i in range(mask.ndim) if i not in axes)
    return jnp.sum(mask, axis=others, dtype=jnp.int32)
