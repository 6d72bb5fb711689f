"""Masks by a value instead of a count: the sparsity is an outcome."""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._axes import Axes
from jprune._errors import require_static, value_error
from jprune._stacks import layer_shape, stacked_axes
from jprune._typing import Mask, Scalar, Scores
from jprune.masks._count import is_traced
from jprune.masks._rows import largest_of_rows
from jprune.masks._scope import (
    from_scope,
    in_scope,
    in_scope_list,
    inside,
    resolve_scope,
)
from jprune.selection._count_true import count_true
from jprune.selection._image import image_of
from jprune.selection._largest import largest


def above(
    scores: Scores,
    threshold: Scalar,
    *,
    within: Mask | None = None,
    scope: Any = None,
    min_keep: int | None = 1,
    stacked: Any = None,
) -> Mask:
    """Keeps the scores above a number, however many they are.

    A leaf that would fall below its floor keeps its `min_keep` best instead, and with
    them all that score like the last of them: equal scores stay or go together, so a
    channel or block whose scalars score alike stays whole.

    Args:
      scores: non-negative scores. NaN and infinities are removed.
      threshold: a number, at least 0; may be traced. What equals it is removed.
      within: a mask; only what it keeps can be kept.
      scope: see `masks.unstructured`.
      min_keep: the fewest scalars any leaf keeps (all it has, if fewer); None for the
        length of its last axis, one weight for each output of a Flax kernel.
      stacked: see `masks.unstructured`; a floor is that of each layer of a stack.

    Returns:
      A mask with the structure of `scores`.

    Raises:
      ValueError: a negative or infinite `threshold`, a negative `min_keep`; as
        `unstructured` for `within` and `scope`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks
      >>> masks.above({"w": jnp.array([[0.3, 0.1], [0.2, 0.0]])}, 0.1)["w"]
      Array([[ True, False],
             [ True, False]], dtype=bool)
    """
    if not is_traced(threshold) and not 0 <= float(threshold) < float("inf"):
        raise value_error(f"`threshold` must be finite and >= 0, got {threshold}.")
    scope = resolve_scope(scope, scores)
    leaves = in_scope(scores, scope)
    allowed = inside(within, scores, scope)
    kept = [(x > threshold) & jnp.isfinite(x) for x in leaves]
    if allowed is not None:
        kept = [k & m for k, m in zip(kept, allowed, strict=True)]
    stacks = in_scope_list(stacked_axes(scores, stacked), scope)
    floors = [
        _floor(layer_shape(np.shape(x), a), min_keep)
        for x, a in zip(leaves, stacks, strict=True)
    ]
    if not any(floors):
        return from_scope(scope, kept)
    # A stack is ranked layer by layer, the others in one search.
    one = [0 if a else n for n, a in zip(floors, stacks, strict=True)]
    least = _least(leaves, jnp.asarray(one), allowed)
    best = selection.keep_mask(leaves, least, one, ties="all", within=allowed)
    for i, axes in enumerate(stacks):
        if axes:
            part = None if allowed is None else allowed[i]
            best[i] = _best_of_layers(leaves[i], floors[i], axes, part)
    chosen = [
        jnp.where(_of_layer(k, a) < n, b, k)
        for k, b, n, a in zip(kept, best, floors, stacks, strict=True)
    ]
    return from_scope(scope, chosen)


@jax.jit  # compiled once for all calls outside `jit`
def _least(leaves: list[jax.Array], counts: jax.Array, within: Any) -> Any:
    """The threshold of so many best of each leaf."""
    return largest(leaves, counts, within=within, masked=False).leaf


def _best_of_layers(
    leaf: jax.Array, floor: int, axes: Axes, within: jax.Array | None
) -> jax.Array:
    """The `floor` best of each layer, with all that equal the last of them."""
    images = image_of(leaf)
    lowest, highest = jnp.iinfo(images.dtype).min, jnp.iinfo(images.dtype).max
    if within is not None:
        images = jnp.where(within, images, lowest)
    best = largest_of_rows(images, floor, axes)
    others = tuple(i for i in range(images.ndim) if i not in axes)
    last = jnp.min(jnp.where(best, images, highest), axis=others, keepdims=True)
    return (images >= last) & (images > lowest)


def _of_layer(kept: jax.Array, axes: Axes) -> jax.Array:
    """How many each layer keeps, along the axes of the leaf."""
    if not axes:
        return count_true(kept)
    others = tuple(i for i in range(kept.ndim) if i not in axes)
    return jnp.sum(kept, axis=others, dtype=jnp.int32, keepdims=True)


def _floor(shape: tuple[int, ...], min_keep: int | None) -> int:
    """How many scalars a leaf, or layer, of this shape keeps at least."""
    if min_keep is None:
        return min(shape[-1], prod(shape)) if shape else 1
    require_static(min_keep=min_keep)
    if not isinstance(min_keep, int | np.integer) or min_keep < 0:
        raise value_error(
            f"`min_keep` must be an integer >= 0, or None, got {min_keep!r}."
        )
    return min(int(min_keep), prod(shape))
