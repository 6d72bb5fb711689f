"""Masks of groups: a coordinate goes from every parameter it lives in, together."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._errors import value_error
from jprune._groups import AxisRef, Group, Role, member_leaves
from jprune._typing import Mask, Params


def from_groups(
    params: Params,
    groups: Sequence[Group],
    keeps: Sequence[jax.Array],
    *,
    roles: Sequence[Role] | None = None,
) -> Mask:
    """The mask that removes the coordinates `keeps` drops from all members.

    Args:
      params: the parameters, or the sub-tree of the variables one prunes.
      groups: the groups, as data.
      keeps: for each group a bool vector `[group.size]`, True = keep.
      roles: touch only members in these roles, e.g. `("scale", "bias")`; None for all.

    Returns:
      A mask. A scalar is removed when any coordinate it lives at is removed; leaves
      that no group touches hold a 0-d True.

    Raises:
      ValueError: a vector of the wrong length.
    """
    leaves, treedef = jax.tree.flatten(params)
    kept = [jnp.array(True)] * len(leaves)
    found = member_leaves(params, groups)
    for (group, members), keep in zip(found, keeps, strict=True):
        if jnp.shape(keep) != (group.size,):
            raise value_error(
                f"Group {group.id!r} has {group.size} coordinates, got a keep vector "
                f"of shape {jnp.shape(keep)}."
            )
        for ref, i, leaf in members:
            if roles is None or ref.role in roles:
                kept[i] = kept[i] & _along(keep, ref, jnp.shape(leaf))
    return jax.tree.unflatten(treedef, kept)


def _along(keep: jax.Array, ref: AxisRef, shape: tuple[int, ...]) -> jax.Array:
    """The vector laid along one axis of a leaf. [shape]"""
    if ref.labels is not None:
        labels = np.asarray(ref.labels)
        keep = jnp.where(labels >= 0, keep[np.maximum(labels, 0)], True)
    column = [1] * len(shape)
    column[ref.axis] = -1
    return jnp.broadcast_to(keep.reshape(column), shape)


def within_budget(
    scores: Sequence[jax.Array],
    cost: Callable[[jax.Array], jax.Array],
    budget: Any,
    *,
    min_keep: int = 1,
) -> tuple[jax.Array, ...]:
    r"""Keeps the highest-scoring coordinates of all groups that a cost allows.

    One threshold for all groups: the lowest one at which `cost` of the numbers kept is
    at most `budget`. Cost may be anything that does not grow when fewer are kept, such
    as the parameters or multiply-adds that remain. Equal scores go together.

    Args:
      scores: one vector `[size]` of non-negative scores for each group.
      cost: function of the kept numbers, a float array `[number of groups]`.
      budget: the most that may remain, in the units of `cost`.
      min_keep: fewest coordinates each group keeps, budget or not.

    Returns:
      For each group a bool vector, True = keep.
    """
    bits = [selection.image_of(s, "magnitude") for s in scores]
    floors = [jnp.sort(b)[-min(min_keep, b.size)] if min_keep else None for b in bits]

    def keeps(threshold: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(
            (b >= threshold) if f is None else (b >= threshold) | (b >= f)
            for b, f in zip(bits, floors, strict=True)
        )

    def fits(threshold: jax.Array) -> jax.Array:
        counts = [jnp.sum(k) for k in keeps(threshold)]
        return cost(jnp.stack(counts).astype(jnp.float32)) <= budget

    # The 31 bits of the lowest threshold that fits, from the most significant: `low` is
    # always too low, so the answer is `low + 1`; a threshold of 0 keeps everything.
    def bit(i: jax.Array, low: jax.Array) -> jax.Array:
        higher = low + (jnp.int32(1) << (30 - i))
        return jnp.where(fits(higher), low, higher)

    low = jax.lax.fori_loop(0, 31, bit, jnp.int32(-1))
    return keeps(low + 1)
