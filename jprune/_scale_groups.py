"""Weights whose scale a network does not see, as data.

A filter in front of a batch norm may be multiplied by any c > 0. `analysis.
scale_invariance` finds such groups; scores, transformations and `canonicalize` receive
them and never ask where they come from.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._tree import KeyTuple, leaf_numbers, variable_path
from jprune._typing import PyTree


class Scaled(NamedTuple):
    """What happens to one parameter when its group is scaled by c.

    Attributes:
      path: key tuple of the leaf.
      axis: each position of it has a scale of its own; None: the whole leaf has one.
      degree: it is multiplied by c ** degree (2 for a running variance).
    """

    path: KeyTuple
    axis: int | None
    degree: float


class ScaleGroup(NamedTuple):
    """Parameters that may be scaled together without changing the function.

    Attributes:
      kernel: the weights, degree 1.
      others: what has to be scaled with them: biases before the norm, and in evaluation
        its running statistics.
    """

    kernel: Scaled
    others: tuple[Scaled, ...] = ()

    @property
    def name(self) -> str:
        """The kernel's path as text."""
        return "/".join(map(str, self.kernel.path))


def group_leaves(
    tree: PyTree, groups: Sequence[ScaleGroup]
) -> list[tuple[ScaleGroup, int, Any]]:
    """The groups whose kernel a tree holds: the group, the leaf's number, the kernel.

    The tree may be a part of what the groups were found on, or a sub-tree: a path may
    begin above it ("params").

    Raises:
      ValueError: it holds none of them.
    """
    leaves, number = jax.tree.leaves(tree), leaf_numbers(tree)
    found = []
    for group in groups:
        place = find_leaf(number, group.kernel.path)
        if place is not None:
            found.append((group, place, leaves[place]))
    if not found:
        raise value_error(
            f"`groups` name {[g.name for g in groups]}, none of which the parameters "
            "have: they were found on another network."
        )
    return found


def find_leaf(number: Mapping[KeyTuple, int], path: KeyTuple) -> int | None:
    """The number of a leaf by its path, which may begin above the tree."""
    for form in (path, variable_path(path)):
        for n in range(max(len(form), 1)):
            if form[n:] in number:
                return number[form[n:]]
    return None


def rescaled(
    params: PyTree, groups: Sequence[ScaleGroup], factors: Sequence[Any]
) -> PyTree:
    """The parameters with each group scaled, filter by filter.

    Args:
      params: the parameters; of a group's members those it holds are scaled.
      groups: see `analysis.scale_invariance`.
      factors: for each group one positive factor for each filter, [filters], or a
        number.

    Returns:
      Parameters of the same function, if all members are among them.
    """
    leaves, tree = jax.tree.flatten(params)
    number = leaf_numbers(params)
    for group, factor in zip(groups, factors, strict=True):
        for one in (group.kernel, *group.others):
            i = find_leaf(number, one.path)
            if i is None:
                continue
            x = leaves[i]
            scale = jnp.asarray(factor) ** one.degree
            if one.axis is not None and scale.ndim:
                scale = jnp.expand_dims(
                    scale, [d for d in range(np.ndim(x)) if d != one.axis]
                )
            leaves[i] = (x * scale).astype(x.dtype)
    return jax.tree.unflatten(tree, leaves)


def filter_norms(w: jax.Array, axis: int | None) -> jax.Array:
    """Norm of each filter, of length 1 on all axes but `axis`: to be divided by."""
    w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    axes = tuple(d for d in range(w.ndim) if d != axis)
    largest = jnp.max(jnp.abs(w), axes, keepdims=True)
    safe = jnp.where(largest > 0, largest, 1)
    return safe * jnp.sqrt(jnp.sum((w / safe) ** 2, axes, keepdims=True))


def flat_norms(w: jax.Array, axis: int | None) -> jax.Array:
    """Norm of each filter, [filters]; a number for a whole leaf."""
    return jnp.squeeze(filter_norms(w, axis), [d for d in range(w.ndim) if d != axis])


def turn(before: jax.Array, after: jax.Array, axis: int | None) -> jax.Array:
    """The angle between filters, [filters], in radians; 0 for zeros."""
    sizes = [filter_norms(w, axis) for w in (before, after)]
    u, v = (
        w / jnp.where(s > 0, s, 1) for w, s in zip((before, after), sizes, strict=True)
    )
    angle = 2 * jnp.arcsin(jnp.clip(filter_norms(u - v, axis) / 2, 0, 1))
    angle = jnp.where((sizes[0] > 0) & (sizes[1] > 0), angle, 0)
    return jnp.squeeze(angle, [d for d in range(before.ndim) if d != axis])
