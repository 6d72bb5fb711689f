"""The one ranking behind every pattern: keep the k largest, exactly.

All order statistics come from `jprune.selection`. Under a floor (`min_keep`) no leaf
may be emptied: the best of each leaf are kept first and the rest of the budget goes to
the best of what is left; in a ranking per leaf, the leaves that keep most above their
floor give up what the others lack. Either way the total never changes.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._errors import require_static, value_error
from jprune.masks._count import is_traced

RankingName = Literal["global", "leaf"]


def rank(
    scores: Sequence[jax.Array],
    keep: Any,
    *,
    ranking: RankingName = "global",
    within: Sequence[jax.Array] | None = None,
    min_keep: int = 1,
    signed: bool = False,
    init: selection.WarmStart | None = None,
    times: Sequence[jax.Array] | None = None,
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
      times: arrays like `scores` that these are multiplied by; see
        `selection.kth_magnitude`.

    Returns:
      Bool arrays shaped as `scores`, and the threshold found.

    Raises:
      ValueError: `keep` smaller than the sum of the floors, or a negative `min_keep`.
    """
    floors = _floors(scores, min_keep)
    _require_room(keep, floors)
    if ranking == "leaf":
        keep = _raise_to_floors(keep, floors)
    floored = ranking == "global" and len(floors) > 1 and any(floors)
    return _rank(
        list(scores),
        jnp.asarray(keep, jnp.int32),
        jnp.asarray(floors, jnp.int32) if floored else None,
        None if within is None else list(within),
        None if times is None else list(times),
        init,
        ranking,
        signed,
    )


# Compiled once for all counts, so that a call outside `jit` is cheap the second time.
@functools.partial(jax.jit, static_argnums=(6, 7))
def _rank(
    leaves: list[jax.Array],
    keep: jax.Array,
    floors: jax.Array | None,
    within: list[jax.Array] | None,
    times: list[jax.Array] | None,
    init: selection.WarmStart | None,
    ranking: RankingName,
    signed: bool,
) -> tuple[list[jax.Array], selection.Threshold]:
    image = "signed" if signed else "magnitude"
    how: Any = {"image": image, "within": within, "times": times}
    if floors is not None:
        shares = selection.kth_with_floors(leaves, keep, floors, init=init, **how)
        kept = selection.keep_mask(leaves, shares.leaf, shares.counts, **how)
        return kept, shares.common
    found = selection.kth_magnitude(leaves, keep, ranking=ranking, init=init, **how)
    return selection.keep_mask(leaves, found, keep, **how), found


def _floors(leaves: Sequence[jax.Array], min_keep: int) -> tuple[int, ...]:
    require_static(min_keep=min_keep)
    if not isinstance(min_keep, int | np.integer) or min_keep < 0:
        raise value_error(f"`min_keep` must be an integer >= 0, got {min_keep!r}.")
    return tuple(min(int(min_keep), x.size) for x in leaves)


def _require_room(keep: Any, floors: tuple[int, ...]) -> None:
    if any(is_traced(k) for k in jax.tree.leaves(keep)):
        return
    total = int(np.sum(keep, dtype=np.int64))
    if total < sum(floors):
        raise value_error(
            f"Asked to keep {total} in all, but `min_keep` guarantees {sum(floors)} "
            f"over {len(floors)} leaves. Lower `sparsity` or `min_keep`."
        )


def _raise_to_floors(keep: Sequence[Any], floors: tuple[int, ...]) -> Any:
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
