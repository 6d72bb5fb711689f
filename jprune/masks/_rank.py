"""The one ranking behind every pattern: keep the k largest, exactly.

All order statistics come from `jprune.selection`. What this file adds is the floor: no
leaf may be emptied. With `min_keep` = m under a global ranking, the best m of each leaf
are kept first and the rest of the budget goes to the best of what is left. Nearly
always the plain global top-k already leaves every leaf its m, so that is tried first
and the floor costs one counting pass. In a ranking per leaf, the leaves that keep most
above their floor give up what the others lack. Either way the total never changes.
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
    init: selection.WarmStart | None = None,
) -> tuple[list[jax.Array], selection.Threshold]:
    """Keeps the `keep` largest scores; ties go to the first leaf, then row-major order.

    Args:
      scores: float arrays, any shapes. When not `signed` they rank by magnitude.
      keep: number kept over all leaves, an int or a traced int32; with
        `ranking="leaf"` one number for each leaf.
      ranking: one ranking over all leaves, or each leaf by itself.
      within: bool arrays; only positions that are True can be kept (fewer than `keep`
        are kept if fewer are True).
      min_keep: each leaf keeps at least so many (or all it has). A traced `keep` too
        small for that is ranked without floors.
      signed: rank by value instead of by magnitude.
      init: warm start of the ranking, see `selection.WarmStart`.

    Returns:
      Bool arrays shaped as `scores`, and the threshold found.

    Raises:
      ValueError: `keep` smaller than the sum of the floors, or a negative `min_keep`.
    """
    image: selection.ImageKind = "signed" if signed else "magnitude"
    leaves, inside = list(scores), None if within is None else list(within)
    floors = _floors(leaves, min_keep)
    _require_room(keep, floors)
    if ranking == "leaf":
        keep = _raise_to_floors(keep, floors)
    how: Any = {"image": image, "within": inside}
    found = selection.kth_magnitude(leaves, keep, ranking=ranking, init=init, **how)
    kept = selection.keep_mask(leaves, found, keep, **how)
    if ranking == "leaf" or len(leaves) == 1 or not any(floors):
        return kept, found
    above = selection.counts_above(leaves, found, **how)
    safe = jnp.all(above >= jnp.array(floors, above.dtype)) | (keep < sum(floors))
    kept = jax.lax.cond(
        safe, lambda: kept, lambda: _with_floors(leaves, keep, floors, found, how)
    )
    return kept, found


def _with_floors(
    leaves: list[jax.Array],
    keep: Any,
    floors: list[int],
    near: selection.Threshold,
    how: dict[str, Any],
) -> list[jax.Array]:
    """The best of each leaf first, then the best of the rest, `keep` in all."""
    best = selection.kth_magnitude(leaves, floors, ranking="leaf", **how)
    first = selection.keep_mask(leaves, best, floors, **how)
    rest = [~f for f in first]
    if how["within"] is not None:
        rest = [r & w for r, w in zip(rest, how["within"], strict=True)]
    taken = [jnp.sum(f, dtype=jnp.int32) for f in first]
    left = jnp.asarray(keep, jnp.int32) - sum(taken, jnp.int32(0))
    # Few scalars change hands, so the threshold is near the one without floors.
    init = selection.WarmStart(near.bits, jnp.ones_like(near.bits))
    how = how | {"within": rest}
    found = selection.kth_magnitude(leaves, left, init=init, **how)
    others = selection.keep_mask(leaves, found, left, **how)
    return [jnp.logical_or(f, o) for f, o in zip(first, others, strict=True)]


def _floors(leaves: list[jax.Array], min_keep: int) -> list[int]:
    if not isinstance(min_keep, int | np.integer) or min_keep < 0:
        raise value_error(f"`min_keep` must be an integer >= 0, got {min_keep!r}.")
    return [min(int(min_keep), x.size) for x in leaves]


def _require_room(keep: Any, floors: list[int]) -> None:
    if any(is_traced(k) for k in jax.tree.leaves(keep)):
        return
    total = int(np.sum(keep, dtype=np.int64))
    if total < sum(floors):
        raise value_error(
            f"Asked to keep {total} in all, but `min_keep` guarantees {sum(floors)} "
            f"over {len(floors)} leaves. Lower `sparsity` or `min_keep`."
        )


def _raise_to_floors(keep: Sequence[Any], floors: list[int]) -> Any:
    """Counts of a per-leaf ranking, none under its floor, with the total unchanged."""
    if any(is_traced(k) for k in jax.tree.leaves(keep)):
        xp, counts = jnp, jnp.stack([jnp.asarray(k, jnp.int32) for k in keep])
    else:
        xp, counts = np, np.asarray(keep, np.int32)
    least = np.asarray(floors, np.int32)
    owed = xp.sum(xp.maximum(least - counts, 0))
    spare = xp.maximum(counts - least, 0)
    lowered = least + _level_off(spare, owed, xp)
    return xp.where(xp.sum(spare) < owed, counts, lowered)


def _level_off(spare: Any, owed: Any, xp: Any) -> Any:
    """`spare` less `owed` in all, its largest entries cut down to one level."""
    order = xp.argsort(-spare, stable=True)
    high = spare[order]
    m = xp.arange(1, len(high) + 1)
    total = xp.cumsum(high)
    to_next = total - m * xp.append(high[1:], 0)  # cutting the first m to the next
    last = xp.argmax(to_next >= owed)
    level, extra = xp.divmod(total[last] - owed, m[last])
    cut = xp.where(m - 1 <= last, level + (m - 1 < extra), high)
    return cut[xp.argsort(order)]
