"""Masks of groups: a coordinate goes from every parameter it lives in, together."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

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
