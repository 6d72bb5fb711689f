"""Masks by a value instead of a count: the sparsity is an outcome."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._errors import require_static, value_error
from jprune._typing import Mask, Scores
from jprune.masks._count import is_traced
from jprune.masks._scope import from_scope, in_scope, inside, resolve_scope


def above(
    scores: Scores,
    threshold: Any,
    *,
    within: Mask | None = None,
    scope: Any = None,
    min_keep: int | None = 1,
) -> Mask:
    """Keeps the scores above a number, however many they are.

    A leaf that would fall below its floor keeps its `min_keep` best instead, and with
    them all that score like the last of them: equal scores stay or go together, so a
    channel or block whose scalars score alike stays whole.

    Args:
      scores: non-negative scores. NaN is kept, where it can be seen.
      threshold: a number, at least 0; may be traced. What equals it is removed.
      within: a mask; only what it keeps can be kept.
      scope: see `masks.unstructured`.
      min_keep: the fewest scalars any leaf keeps (all it has, if fewer); None for the
        length of its last axis, one weight for each output of a Flax kernel.

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
    kept = [~(x <= threshold) for x in leaves]
    if allowed is not None:
        kept = [k & m for k, m in zip(kept, allowed, strict=True)]
    floors = [_floor(x, min_keep) for x in leaves]
    if not any(floors):
        return from_scope(scope, kept)
    least = selection.kth_magnitude(leaves, floors, ranking="leaf", within=allowed)
    best = selection.keep_mask(leaves, least, floors, ties="all", within=allowed)
    chosen = [
        jnp.where(jnp.sum(k, dtype=jnp.int32) < n, b, k)
        for k, b, n in zip(kept, best, floors, strict=True)
    ]
    return from_scope(scope, chosen)


def _floor(leaf: jax.Array, min_keep: int | None) -> int:
    """How many scalars the leaf keeps at least."""
    if min_keep is None:
        return leaf.shape[-1] if leaf.ndim else leaf.size
    require_static(min_keep=min_keep)
    if not isinstance(min_keep, int | np.integer) or min_keep < 0:
        raise value_error(
            f"`min_keep` must be an integer >= 0, or None, got {min_keep!r}."
        )
    return min(int(min_keep), leaf.size)
