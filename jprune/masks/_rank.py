"""The one ranking behind every pattern: keep the k largest, exactly.

All order statistics come from `jprune.selection`. Under a floor (`min_keep`) no leaf
may be emptied: the best of each leaf are kept first and the rest of the budget goes to
the best of what is left; in a ranking per leaf, the leaves that keep most above their
floor give up what the others lack. Either way the total never changes.

A leaf that is a stack of layers (`jprune._stacks`) counts as so many leaves: each layer
has its own ranking per leaf, and its own floor. So do the outputs of a kernel under
`ranking="output"`.
"""

import functools
from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._dtypes import wide
from jprune._errors import require_static, value_error
from jprune._stacks import Axes, layer_shape, stack_shape
from jprune.masks._count import is_traced
from jprune.masks._rows import largest_of_rows
from jprune.selection._count_true import counts_true
from jprune.selection._image import common_image, image_of
from jprune.selection._largest import largest
from jprune.selection._leaves import Instead

RankingName = Literal["global", "leaf", "output"]


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
    instead: tuple[Sequence[jax.Array], jax.Array] | None = None,
    stacks: Sequence[Axes] | None = None,
) -> tuple[list[jax.Array], selection.Threshold]:
    """Keeps the `keep` largest scores; ties go to the first leaf, then row-major order.

    Args:
      scores: float arrays, any shapes. When not `signed` they rank by magnitude.
      keep: number kept over all leaves, an int or a traced int32; otherwise one entry
        for each leaf: a number, or an array of the shape of its stack.
      ranking: one ranking over all leaves, or each leaf, or layer, by itself.
      within: bool arrays; only positions that are True can be kept (fewer than `keep`
        are kept if fewer are True).
      min_keep: each leaf keeps at least so many (or all it has). A traced `keep` too
        small for that is ranked without floors.
      signed: rank by value instead of by magnitude.
      init: warm start of the ranking, see `selection.WarmStart`.
      times: arrays like `scores` that these are multiplied by; see
        `selection.kth_magnitude`.
      instead: arrays like `scores` and a 0-d bool; see `largest`.
      stacks: the axes along which each leaf is a stack; none by default.

    Returns:
      Bool arrays shaped as `scores`, and the threshold found.

    Raises:
      ValueError: `keep` smaller than the sum of the floors, or a negative `min_keep`.
    """
    own = ranking != "global"
    stacks = [()] * len(scores) if stacks is None else stacks
    if own:
        # A single number for a stack ranks it as one leaf.
        stacks = [a if np.ndim(k) else () for a, k in zip(stacks, keep, strict=True)]
    floors, units = _floors(scores, min_keep, stacks)
    _require_room(keep, floors, units)
    if ranking == "leaf" and any(floors):
        keep = _raise_to_floors(keep, floors)
    floored = not own and sum(units) > 1 and any(floors)
    kept, found = _rank(
        list(scores),
        jax.tree.map(lambda k: jnp.asarray(k, jnp.int32), keep),
        tuple(floors) if floored else None,
        None if within is None else list(within),
        None if times is None else list(times),
        None if instead is None else (list(instead[0]), instead[1]),
        init,
        own,
        signed,
        tuple(stacks) if own or floored else ((),) * len(scores),
    )
    if times is None and not any(map(is_traced, (found.bits, *scores))):
        _require_numbers(scores, kept, found, signed)
    return kept, found


# Compiled once for all counts, so that a call outside `jit` is cheap the second time.
@functools.partial(jax.jit, static_argnums=(2, 7, 8, 9))
def _rank(
    leaves: list[jax.Array],
    keep: Any,
    floors: tuple[int, ...] | None,
    within: list[jax.Array] | None,
    times: list[jax.Array] | None,
    instead: Instead | None,
    init: selection.WarmStart | None,
    own: bool,
    signed: bool,
    stacks: tuple[Axes, ...],
) -> tuple[list[jax.Array], selection.Threshold]:
    image = "signed" if signed else "magnitude"
    how: Any = {"image": image, "within": within, "times": times, "instead": instead}
    if own:
        return _rank_leaves(leaves, keep, stacks, init, how)
    if floors is None:
        best = largest(leaves, keep, init=init, **how)
        return best.masks, best.found
    return _rank_floored(leaves, keep, floors, stacks, init, how)


def _rank_leaves(
    leaves: list[jax.Array],
    keep: list[jax.Array],
    stacks: Sequence[Axes],
    init: selection.WarmStart | None,
    how: dict[str, Any],
) -> tuple[list[jax.Array], selection.Threshold]:
    """Every leaf by itself: plain ones in one search, stacks by rows."""
    if not any(stacks):
        best = largest(leaves, jnp.stack(keep), init=init, **how)
        return best.masks, best.found
    masks: list[Any] = [
        largest_of_rows(_images(leaves, i, how), keep[i], a) if a else None
        for i, a in enumerate(stacks)
    ]
    plain = np.asarray([i for i, a in enumerate(stacks) if not a], int)
    few = {k: _some(how[k], plain) for k in ("within", "times")}
    if how["instead"] is not None:
        others, which = how["instead"]
        few["instead"] = _some(others, plain), which
    of, counts = _some(leaves, plain), jnp.asarray(_some(keep, plain), jnp.int32)
    if init is not None:
        init = jax.tree.map(lambda x: x[plain] if x.ndim else x, init)
    if not of:
        none = jnp.zeros(len(leaves), jnp.int32)
        return masks, selection.Threshold(none, none, none)
    best = largest(of, counts, init=init, image=how["image"], **few)
    kept, found = iter(best.masks), best.found
    whole = [next(kept) if m is None else m for m in masks]
    # The threshold of a stack is not kept: its entry of the warm start stays 0.
    at = jax.tree.map(lambda x: jnp.zeros(len(leaves), x.dtype), found)
    return whole, jax.tree.map(lambda z, x: z.at[plain].set(x), at, found)


def _rank_floored(
    leaves: list[jax.Array],
    keep: jax.Array,
    floors: Sequence[int],
    stacks: Sequence[Axes],
    init: selection.WarmStart | None,
    how: dict[str, Any],
) -> tuple[list[jax.Array], selection.Threshold]:
    """One ranking in which every leaf, and every layer, keeps at least its floor."""
    sizes = [prod(stack_shape(x.shape, a)) for x, a in zip(leaves, stacks, strict=True)]
    total = sum(f * n for f, n in zip(floors, sizes, strict=True))
    first: list[jax.Array | None] = [None] * len(leaves)
    for i, axes in enumerate(stacks):
        if axes:  # Its floors are taken first, then it has none.
            floor = jnp.where(keep < total, 0, floors[i])
            first[i] = largest_of_rows(_images(leaves, i, how), floor, axes)
    given = how["within"]
    if any(stacks):
        allowed = given or [jnp.array(True)] * len(leaves)
        rest = [a if f is None else a & ~f for a, f in zip(allowed, first, strict=True)]
        how = {**how, "within": rest}
        taken = [jnp.sum(f, dtype=jnp.int32) for f in first if f is not None]
        keep = jnp.maximum(keep - sum(taken, jnp.int32(0)), 0)
    own = [0 if a else f for f, a in zip(floors, stacks, strict=True)]
    best = largest(leaves, keep, floors=own, init=init, **how)
    both = [k if f is None else k | f for k, f in zip(best.masks, first, strict=True)]
    return both, best.found


def _images(leaves: list[jax.Array], i: int, how: dict[str, Any]) -> jax.Array:
    """The integer images of one leaf, the lowest where it may not be kept."""
    x, times, within = leaves[i], how["times"], how["within"]
    part = None if within is None else within[i]
    if how["instead"] is not None:
        others, which = how["instead"]
        x = jnp.where(which, wide(others[i]), wide(x))
        part = None if part is None else part ^ which
    product = x if times is None else wide(x) * wide(times[i])
    images = image_of(product, how["image"])
    return images if part is None else jnp.where(part, images, _least(images))


def _least(images: jax.Array) -> Any:
    """What takes no part."""
    return jnp.iinfo(images.dtype).min


def _some(values: Any, index: np.ndarray) -> Any:
    return None if values is None else [values[i] for i in index]


def _floors(
    leaves: Sequence[jax.Array], min_keep: int, stacks: Sequence[Axes]
) -> tuple[list[int], list[int]]:
    """The floor of a layer of each leaf, and how many layers it has."""
    require_static(min_keep=min_keep)
    if not isinstance(min_keep, int | np.integer) or min_keep < 0:
        raise value_error(f"`min_keep` must be an integer >= 0, got {min_keep!r}.")
    pairs = list(zip(leaves, stacks, strict=True))
    floors = [min(int(min_keep), prod(layer_shape(x.shape, a))) for x, a in pairs]
    return floors, [prod(stack_shape(x.shape, a)) for x, a in pairs]


def _require_room(keep: Any, floors: Sequence[int], units: Sequence[int]) -> None:
    if any(is_traced(k) for k in jax.tree.leaves(keep)):
        return
    counts = [np.asarray(k, np.int64) for k in jax.tree.leaves(keep)]
    total = sum(int(k.sum()) for k in counts)
    least = sum(f * n for f, n in zip(floors, units, strict=True))
    if total < least:
        raise value_error(
            f"Asked to keep {total} in all, but `min_keep` guarantees {least} over "
            f"{sum(units)} leaves. Lower `sparsity`, raise `keep`, or lower `min_keep`."
        )


def _require_numbers(
    scores: Sequence[jax.Array],
    kept: Sequence[jax.Array],
    found: selection.Threshold,
    signed: bool,
) -> None:
    """Raises if more are kept than there are numbers: the rest went by position.

    Only a threshold at the lowest image lets through what is no number.
    """
    image = common_image([x.dtype for x in scores], "signed" if signed else "magnitude")
    low = np.broadcast_to(np.asarray(found.bits) <= image.lowest, (len(scores),))
    rows = zip(scores, kept, low, strict=True)
    pairs = [(x, k) for x, k, at in rows if at]
    wrong = sum(np.asarray(_not_numbers(pairs)).tolist()) if pairs else 0
    if not wrong:
        return
    numbers = sum(int(jnp.sum(jnp.isfinite(x))) for x in scores)
    if numbers < sum(int(jnp.sum(k)) for k in kept):
        raise value_error(
            f"`scores` must be finite where something is kept, got {numbers} numbers "
            f"of {sum(x.size for x in scores)}: {wrong} would be kept by their "
            "position alone. Look for NaN or infinities in the weights, or in the loss "
            "and gradients that the scores were made of."
        )


@jax.jit  # outside `jit` each operation would be compiled for each shape
def _not_numbers(pairs: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """How many are kept of each leaf that are no numbers."""
    return counts_true([k & ~jnp.isfinite(x) for x, k in pairs])


def _raise_to_floors(keep: Sequence[Any], floors: Sequence[int]) -> list[Any]:
    """Counts of a per-leaf ranking, none under its floor, with the total unchanged."""
    traced = any(is_traced(k) for k in keep)
    xp: Any = jnp if traced else np
    counts = xp.concatenate([xp.ravel(xp.asarray(k, np.int32)) for k in keep])
    sizes = [int(np.prod(np.shape(k))) for k in keep]
    least = np.repeat(np.asarray(floors, np.int32), sizes)
    owed = xp.sum(xp.maximum(least - counts, 0))
    spare = xp.maximum(counts - least, 0)
    lowered = least + _level_off(spare, owed, xp)
    raised = xp.where(xp.sum(spare) < owed, counts, lowered)
    ends = np.cumsum(sizes)[:-1].tolist()
    parts = xp.split(raised, ends)
    return [xp.reshape(x, np.shape(k)) for x, k in zip(parts, keep, strict=True)]


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
