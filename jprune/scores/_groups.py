"""Scores of groups: what one channel, head or unit is worth over all its parameters."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune._dtypes import wide
from jprune._errors import value_error
from jprune._groups import AxisRef, Group, Role, member_leaves, no_member
from jprune._typing import Scores


def over_groups(
    scores: Scores,
    groups: Sequence[Group],
    *,
    roles: Sequence[Role] | None = None,
    order: int = 1,
    reduce: Literal["mean", "sum", "max"] = "mean",
    signed: bool = False,
) -> tuple[jax.Array, ...]:
    r"""One vector of scores for each group.

    A member contributes, for each coordinate, the norm of everything that lives at it:
    $(\sum |s|^p)^{1/p}$ over the coordinate's positions and all other axes. Members are
    then reduced.

    Args:
      scores: non-negative scores with the structure of the parameters, or of a sub-tree
        of the variables the groups were found on.
      groups: what `surgery.groups(fn)(params, x)` returns, or a list of some of
        its groups.
      roles: count only members in these roles, e.g. `("scale",)` for BatchNorm scales
        or `("out",)` for the producing kernels; None counts all.
      order: p, 1 or 2.
      reduce: how a group's members combine.
      signed: add scores up with their signs (movement, GraSP); `order` 1 only. Rank the
        vectors with `masks.unstructured(vectors, ..., signed=True)`.

    Returns:
      A tuple of arrays, `[group.size]` each, in the order of `groups`; float32 or
      wider.

    Raises:
      ValueError: a group with no member of the given roles in the tree; `signed` with
        another `order`.
    """
    combine = {"mean": jnp.mean, "sum": jnp.sum, "max": jnp.max}
    if reduce not in combine or order not in (1, 2):
        raise value_error(
            f"`reduce` must be mean, sum or max and `order` 1 or 2; got {reduce!r}, "
            f"{order!r}."
        )
    if signed and order != 1:
        raise value_error(f"Signed scores need `order` 1, got {order}.")
    vectors = []
    for group, members in member_leaves(scores, groups):
        rows = [
            _member(leaf, ref, group.size, order, signed)
            for ref, _, leaf in members
            if roles is None or ref.role in roles
        ]
        if not rows:
            raise no_member(group, roles)
        vectors.append(combine[reduce](jnp.stack(rows), axis=0))
    return tuple(vectors)


def _member(
    leaf: jax.Array, ref: AxisRef, size: int, order: int, signed: bool
) -> jax.Array:
    """The norm, or signed sum, of a leaf at each coordinate of the group. [size]"""
    others = tuple(i for i in range(leaf.ndim) if i != ref.axis)
    terms = wide(leaf) if signed else jnp.abs(wide(leaf)) ** order
    total = jnp.sum(terms, axis=others)  # [axis length]
    if ref.labels is not None:
        labels = np.asarray(ref.labels)
        at = np.flatnonzero(labels >= 0)
        total = jnp.zeros(size, total.dtype).at[labels[at]].add(total[at])
    return total if order == 1 else jnp.sqrt(total)
