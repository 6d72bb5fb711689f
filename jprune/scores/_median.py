r"""How far a filter lies from the others of its layer: pruning by geometric median.

Small filters may matter, and large ones may be redundant. A filter near the geometric
median of its layer, where the sum of distances to all of them is least, can be
expressed by those that stay,

$$ s_c = \sum_j \lVert x_c - x_j \rVert_2 , $$

$x_c$ all entries of the writing kernels at coordinate c, one after the other.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._axes import whole_along
from jprune._dtypes import wide
from jprune._groups import (
    AxisRef,
    Group,
    Role,
    member_leaves,
    no_member,
    require_whole,
)
from jprune._typing import PyTree

_ROWS = 1024  # at a time, so that a wide layer needs no square of its width


def geometric_median(
    tree: PyTree,
    groups: Sequence[Group],
    *,
    roles: Sequence[Role] = ("out", "table"),
    raw: bool = False,
    at: Any = None,
) -> dict[str, jax.Array]:
    """One vector of scores for each group: summed distances to the other coordinates.

    A sharded leaf is gathered. Time grows with the square of a group's size. The layers
    of a stack are members like any other: a coordinate's vector holds the entries of
    all of them, as that of the unrolled network would.

    Args:
      tree: the parameters, or a sub-tree of the variables the groups were found on.
      groups: what `surgery.groups(fn)(params, x)` returns, or some of them.
      roles: which members make a coordinate's vector; the paper's are the kernels that
        write it.
      raw: not divided by the mean of the group.
      at: see `scores.over_groups`.

    Returns:
      `{group.id: [group.size]}`, float32 or wider, for `surgery.select`. A group with
      no member of the roles is left out.

    Raises:
      ValueError: no group has a member of the given roles in the tree.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import scores, surgery
      >>> fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
      >>> params = {"a": jnp.array([[0.0, 1.0, 5.0]]), "b": jnp.ones((3, 1))}
      >>> deps = surgery.groups(fn)(params, jnp.ones((1, 1)))
      >>> scores.geometric_median(params, deps, raw=True)["a:1"].tolist()
      [6.0, 5.0, 9.0]

    References:
      He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural
      Networks Acceleration", CVPR 2019, eq. (6).
    """
    vectors, found = {}, member_leaves(tree, groups, at)
    require_whole(found, roles)
    for group, members in found:
        parts = [
            _by_coordinate(ref, leaf, group.size)
            for ref, _, leaf in members
            if ref.role in roles and jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
        if parts:
            total = _distances(jnp.concatenate(parts, axis=1))
            mean = jnp.mean(total)
            vectors[group.id] = total if raw else total / jnp.where(mean > 0, mean, 1)
    if groups and not vectors:
        raise no_member(groups, roles)
    return vectors


def _by_coordinate(ref: AxisRef, leaf: Any, size: int) -> jax.Array:
    """All entries of a member at each coordinate. [size, entries]"""
    whole = whole_along(wide(jnp.asarray(leaf)), range(leaf.ndim))
    x = jnp.moveaxis(whole, ref.axis, 0)
    x = x.reshape(x.shape[0], -1)
    if ref.labels is None:
        return x
    labels = np.asarray(ref.labels)
    places = [np.flatnonzero(labels == c) for c in range(size)]
    most = max(map(len, places))
    at = np.full((size, most), len(labels))  # where one has fewer: a row of zeros
    for row, place in zip(at, places, strict=True):
        row[: len(place)] = place
    padded = jnp.concatenate([x, jnp.zeros_like(x[:1])])
    return padded[at].reshape(size, -1)


def _distances(x: jax.Array) -> jax.Array:
    """The sum of the distances of each row to all rows. [rows]"""
    x = x - jnp.mean(x, axis=0, keepdims=True)  # small numbers: squares lose less
    square = jnp.sum(x * x, axis=1)

    def some(first: int) -> jax.Array:
        rows = x[first : first + _ROWS]
        product = jnp.matmul(rows, x.T, precision="highest")
        apart = square[first : first + _ROWS, None] + square[None] - 2 * product
        other = np.arange(first, first + len(rows))[:, None] != np.arange(len(x))[None]
        apart = jnp.where(other, jnp.maximum(apart, 0), 0)
        return jnp.sum(jnp.sqrt(apart), axis=1)

    return jnp.concatenate([some(i) for i in range(0, len(x), _ROWS)])
