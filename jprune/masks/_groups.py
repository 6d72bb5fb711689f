"""Masks of groups: a coordinate goes from every parameter it lives in, together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._groups import Group, Role, chosen, member_leaves, no_member
from jprune._typing import Mask, Params


def from_groups(
    params: Params,
    groups: Sequence[Group],
    keeps: Mapping[str, jax.Array],
    *,
    roles: Sequence[Role] | None = None,
) -> Mask:
    """The mask that removes the coordinates `keeps` drops from all members.

    Args:
      params: the parameters, or the sub-tree of the variables one prunes.
      groups: what `surgery.groups(fn)(params, x)` returns, or a list of some of
        its groups.
      keeps: by group id a bool vector `[group.size]`, True = keep; groups that it does
        not name stay whole.
      roles: touch only members in these roles, e.g. `("scale", "bias")`; None for all.

    Returns:
      A mask. A scalar is removed when any coordinate it lives at is removed; leaves
      that no group touches hold a 0-d True.

    Raises:
      ValueError: `keeps` is no mapping or names an unknown group, a vector of the wrong
        length or not of bools, or a group with no member of the given roles in the tree
        (nothing of it would be removed).
    """
    chosen(groups, keeps)
    leaves, treedef = jax.tree.flatten(params)
    kept = [jnp.array(True)] * len(leaves)
    for group, members in member_leaves(params, groups):
        if group.id not in keeps:
            continue
        touched = [m for m in members if roles is None or m[0].role in roles]
        if not touched:
            raise no_member(group, roles)
        keep = jnp.asarray(keeps[group.id])
        for ref, i, leaf in touched:
            # Laid out as the leaf is, which a mesh with explicit axes insists on.
            like = jnp.ones_like(leaf, bool)
            kept[i] = kept[i] & like & ref.spread(keep, like.ndim, fill=True)
    return jax.tree.unflatten(treedef, kept)


def within_budget(
    scores: Sequence[jax.Array],
    cost: Callable[[jax.Array], jax.Array],
    budget: Any,
    *,
    min_keep: int = 1,
) -> tuple[jax.Array, ...]:
    r"""Keeps the highest-scoring coordinates of all groups, as many as a cost allows.

    All coordinates are ranked together (ties: the first group, then the lower
    coordinate), and the longest head of that ranking whose `cost` is at most `budget`
    is kept. Cost may be anything that does not grow when fewer are kept, such as the
    parameters or multiply-adds that remain; it is evaluated some fifty times.

    Args:
      scores: one vector `[size]` of non-negative scores for each group.
      cost: function of the kept numbers, a float32 array `[number of groups]`.
      budget: the most that may remain, in the units of `cost`; may be traced.
      min_keep: the fewest coordinates each group keeps, budget or not.

    Returns:
      For each group a bool vector, True = keep.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks
      >>> wide, narrow = jnp.array([0.9, 0.2]), jnp.array([0.5, 0.3])
      >>> masks.within_budget((wide, narrow), lambda n: 10 * n[0] + n[1], 12)
      (Array([ True, False], dtype=bool), Array([ True,  True], dtype=bool))
    """
    if not scores:
        return ()
    dtype = jnp.result_type(*scores)
    leaves = [jnp.asarray(s, dtype) for s in scores]
    floors = [min(min_keep, s.size) for s in leaves]
    best = selection.kth_magnitude(leaves, floors, ranking="leaf")
    always = selection.keep_mask(leaves, best, floors)
    bits = [selection.image_of(s) for s in leaves]
    ends = np.cumsum([s.size for s in leaves]).tolist()
    place = [
        np.arange(end - s.size, end, dtype=np.int32)
        for s, end in zip(leaves, ends, strict=True)
    ]

    def keeps(level: jax.Array, ties: Any) -> tuple[jax.Array, ...]:
        """What is above a level, and of what is at it the first `ties` places."""
        return tuple(
            f | (b > level) | ((b == level) & (p < ties))
            for f, b, p in zip(always, bits, place, strict=True)
        )

    def fits(level: jax.Array, ties: Any) -> jax.Array:
        counts = jnp.stack([jnp.sum(k) for k in keeps(level, ties)])
        return jnp.asarray(cost(counts.astype(jnp.float32)) <= budget)

    dtype = bits[0].dtype
    level = 1 + _last(lambda t: ~fits(t, 0), jnp.iinfo(dtype).bits - 1, dtype)
    ties = _last(lambda n: fits(level, n), ends[-1].bit_length() + 1, jnp.int32)
    return keeps(level, ties)


def _last(holds: Callable[[jax.Array], jax.Array], bits: int, dtype: Any) -> jax.Array:
    """The last x of 0..2**bits - 2 with `holds(x)`, which turns false once; else -1."""

    def bit(i: jax.Array, x: jax.Array) -> jax.Array:
        higher = x + (jnp.ones((), dtype) << (bits - 1 - i).astype(dtype))
        return jnp.where(holds(higher), higher, x)

    return jax.lax.fori_loop(0, bits, bit, jnp.asarray(-1, dtype))
