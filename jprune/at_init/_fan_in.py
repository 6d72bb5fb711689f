"""How many inputs one output of a kernel sums over."""

from math import prod

import jax
import numpy as np

from jprune._axes import output_axis
from jprune._errors import value_error
from jprune._tree import named_leaves, require_same_structure
from jprune._typing import Params, PyTree, Scope
from jprune.masks._scope import in_scope


def fan_ins(fan_in: int | PyTree | None, params: Params, scope: Scope) -> list[int]:
    """The fan-in of each leaf in scope.

    Args:
      fan_in: a number, a tree of numbers, or None for all axes but the last of leaves
        named `kernel` or `w` of rank 2 or 4.
      params: the parameters.
      scope: a tree of bools.

    Raises:
      ValueError: no default for a leaf; a number below 1, or another structure.
    """
    names = in_scope(_names(params), scope)
    leaves = in_scope(params, scope)
    if fan_in is None:
        pairs = zip(names, leaves, strict=True)
        axes = [output_axis(n, x, None, "fan_in") for n, x in pairs]
        pairs = zip(leaves, axes, strict=True)
        return [prod(x.shape) // max(x.shape[axis], 1) for x, axis in pairs]
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


def _names(params: Params) -> PyTree:
    treedef = jax.tree.structure(params)
    return jax.tree.unflatten(treedef, [name for name, _ in named_leaves(params)])
