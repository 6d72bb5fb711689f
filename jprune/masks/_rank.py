"""The one ranking behind every pattern: keep the k largest, exactly.

All order statistics come from `jprune.selection`. What this file adds is the floor: no
leaf may be emptied by a global ranking. With `min_keep` = m, the best m of each leaf
are kept first and the rest of the budget goes to the best of what is left; the total
never changes. Nearly always the plain global top-k already leaves every leaf its m, so
that is tried first and the floor costs one counting pass.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._errors import value_error
from jprune.masks._count import is_traced

Ranking = Literal["global", "leaf"]


def rank(
    scores: Sequence[jax.Array],
    keep: Any,
    *,
    ranking: Ranking = "global",
    within: Sequence[jax.Array] | None = None,
    min_keep: int = 1,
    signed: bool = False,
    init: Any = None,
) -> tuple[list[jax.Array], selection.Threshold]:
    """Keeps the `keep` largest scores; ties go to the first leaf, then row-major order.

    Args:
      scores: float arrays, any shapes. They are compared as they are: a caller that
      ranks
        magnitudes may pass the weights themselves when not `signed`.
      keep: number kept over all leaves, an int or a traced int32; with
        `ranking="leaf"` one number for each leaf.
      ranking: one ranking over all leaves, or each leaf by itself.
      within: bool arrays; only positions that are True can be kept (fewer than `keep`
      are
        kept if fewer are True).
      min_keep: each leaf keeps at least so many (or all it has). It moves budget
      between
        leaves and never changes the total.
      signed: rank by value instead of by magnitude.
      init: warm start of a global ranking, see `selection.WarmStart`.

    Returns:
      Bool arrays shaped as `scores`, and the threshold found.

    Raises:
      ValueError: `keep` smaller than the sum of the floors.
    """
    image: selection.ImageKind = "signed" if signed else "magnitude"
    inside = None if within is None else list(within)
    leaves = list(scores)
    if ranking == "leaf":
        counts = _raise_to_floor(keep, [x.size for x in leaves], min_keep)
        found = selection.kth_magnitude(
            leaves, counts, image=image, ranking="leaf", within=inside
        )
        kept = selection.keep_mask(leaves, found, counts, image=image, within=inside)
        return kept, found
    if ranking != "global":
        raise value_error(f"`ranking` must be 'global' or 'leaf', got {ranking!r}.")
    found = selection.kth_magnitude(leaves, keep, image=image, within=inside, init=init)
    floors = [min(min_keep, x.size) for x in leaves]
    _require_room(keep, floors)
    kept = selection.keep_mask(leaves, found, keep, image=image, within=inside)
    if sum(floors) == 0 or len(leaves) == 1:
        return kept, found
    above = selection.counts_above(leaves, found, image=image, within=inside)
    safe = jnp.all(above >= jnp.array(floors, above.dtype)) | (keep < sum(floors))
    kept = jax.lax.cond(
        safe,
        lambda: kept,
        lambda: _with_floor(leaves, keep, floors, image, inside),
    )
    return kept, found


def _with_floor(
    leaves: list[jax.Array],
    keep: Any,
    floors: list[int],
    image: selection.ImageKind,
    within: list[jax.Array] | None,
) -> list[jax.Array]:
    """The best of each leaf first, then the best of the rest, `keep` in all."""
    best = selection.kth_magnitude(
        leaves, floors, image=image, ranking="leaf", within=within
    )
    first = selection.keep_mask(leaves, best, floors, image=image, within=within)
    rest = [~f for f in first]
    if within is not None:
        rest = [r & w for r, w in zip(rest, within, strict=True)]
    taken = sum(jnp.sum(f, dtype=jnp.int32) for f in first)
    left = jnp.asarray(keep, jnp.int32) - taken
    found = selection.kth_magnitude(leaves, left, image=image, within=rest)
    others = selection.keep_mask(leaves, found, left, image=image, within=rest)
    return [f | o for f, o in zip(first, others, strict=True)]


def _require_room(keep: Any, floors: list[int]) -> None:
    if not is_traced(keep) and int(keep) < sum(floors):
        raise value_error(
            f"Asked to keep {int(keep)} scalars, but `min_keep` guarantees "
            f"{sum(floors)} over {len(floors)} leaves. Lower `sparsity` or `min_keep`."
        )


def _raise_to_floor(keep: Any, sizes: list[int], min_keep: int) -> Any:
    """Counts of a per-leaf ranking, none under the floor, with the total unchanged."""
    floors = np.minimum(min_keep, np.asarray(sizes, np.int32))
    if any(is_traced(k) for k in jax.tree.leaves(keep)):
        given = jnp.stack([jnp.asarray(k, jnp.int32) for k in keep])
        counts = jnp.maximum(given, floors)
        excess = jnp.sum(counts) - jnp.sum(given)
        return counts.at[jnp.argmax(counts)].add(-excess)
    asked = np.asarray([int(k) for k in keep], np.int64)
    _require_room(asked.sum(), floors.tolist())
    counts = np.maximum(asked, floors)
    for _ in range(int(counts.sum() - asked.sum())):
        counts[np.argmax(counts - floors)] -= 1
    return [int(k) for k in counts]
