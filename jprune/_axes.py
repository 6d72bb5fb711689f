"""Which axis of a weight is contracted and which is produced, where a name tells.

Only leaves named `kernel` or `w` of rank 2 `(in, out)` or 4 `(height, width, in, out)`
have a default: for them Flax, Haiku and plain JAX agree. Elsewhere (attention kernels
are `(d, heads, head_dim)`, Equinox's Linear is `(out, in)`) a guess would be silently
wrong, so the axis must be given.
"""

from typing import Any

import jax
import numpy as np

from jprune._errors import value_error

_KERNEL_NAMES = ("kernel", "w")


def contraction_axis(path: str, leaf: Any, given: int | None) -> int:
    """The axis summed over when the weight is applied, counted from 0."""
    return _axis(path, leaf, given, -2, "contracted")


def output_axis(path: str, leaf: Any, given: int | None) -> int:
    """The axis of the units the weight produces, counted from 0."""
    return _axis(path, leaf, given, -1, "output")


def _axis(path: str, leaf: Any, given: int | None, default: int, what: str) -> int:
    rank = np.ndim(leaf)
    if given is None:
        if path.split("/")[-1] not in _KERNEL_NAMES or rank not in (2, 4):
            raise value_error(
                f"No default {what} axis for {path} of shape {np.shape(leaf)}: only "
                "leaves named `kernel` or `w` of rank 2 or 4 have one. Pass `axis` (a "
                "number or a tree of numbers), or leave the leaf out of `scope`."
            )
        given = default
    if not -rank <= given < rank:
        raise value_error(f"`axis` {given} is out of range for {path}, rank {rank}.")
    return given % rank


def axis_list(axis: Any, tree: Any) -> list[int | None]:
    """`axis` for every leaf, as a list in flattening order (None = the default)."""
    leaves = jax.tree.leaves(tree)
    if axis is None or isinstance(axis, int):
        return [axis] * len(leaves)
    given = jax.tree.leaves(axis, is_leaf=lambda x: x is None)
    if len(given) != len(leaves):
        raise value_error(
            f"`axis` must be a number or a tree of {len(leaves)} numbers (None for the "
            f"default), got {len(given)} leaves."
        )
    return given
