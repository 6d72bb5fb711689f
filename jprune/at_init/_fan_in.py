"""How many inputs one output of a kernel sums over."""

from math import prod
from typing import Any

import jax
import numpy as np

from jprune._axes import Axes, output_axis
from jprune._errors import value_error
from jprune._stacks import layer_shape, stacked_axes
from jprune._tree import named_leaves, require_same_structure
from jprune._typing import Params, PyTree, Scope
from jprune.masks._scope import in_scope, in_scope_list


def fan_ins(
    fan_in: int | PyTree | None, params: Params, scope: Scope, stacked: Any = None
) -> list[int]:
    """The fan-in of each leaf in scope.

    Args:
      fan_in: a number, a tree of numbers, or None for all axes but the last of leaves
        named `kernel` or `w` of rank 2 or 4, or of a layer of a stack of such.
      params: the parameters.
      scope: a tree of bools.
      stacked: see `masks.unstructured`.

    Raises:
      ValueError: no default for a leaf; a number below 1, or another structure.
    """
    names = in_scope(_names(params), scope)
    leaves = in_scope(params, scope)
    if fan_in is None:
        stacks = in_scope_list(stacked_axes(params, stacked), scope)
        rows = zip(names, leaves, stacks, strict=True)
        return [_default(*row) for row in rows]
    if isinstance(fan_in, int | np.integer):
        given = [fan_in] * len(leaves)
    else:
        require_same_structure("fan_in", fan_in, params)
        given = in_scope(fan_in, scope)
    for name, one in zip(names, given, strict=True):
        if not isinstance(one, int | np.integer) or one < 1:
            raise value_error(
                f"`fan_in` at {name} must be a positive integer, got {one!r}."
            )
    return [int(one) for one in given]


def _default(name: str, leaf: jax.Array, stack: Axes) -> int:
    """All axes of a layer but the one of its outputs."""
    out = output_axis(name, leaf, None, "fan_in", stack)
    return prod(layer_shape(leaf.shape, (*stack, out)))


def _names(params: Params) -> PyTree:
    treedef = jax.tree.structure(params)
    return jax.tree.unflatten(treedef, [name for name, _ in named_leaves(params)])
