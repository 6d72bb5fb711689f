"""Which axis of a weight is contracted and which is produced, where a name tells.

Only leaves named `kernel` or `w` of rank 2 `(in, out)` or 4 `(height, width, in, out)`
have a default: for them Flax, Haiku and plain JAX agree. Elsewhere (attention kernels
are `(d, heads, head_dim)`, Equinox's Linear is `(out, in)`) a guess would be silently
wrong, so the axis must be given.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jprune._errors import injected, is_integer, value_error
from jprune._tree import leaf_name, like_variables
from jprune._typing import PyTree

_KERNEL_NAMES = ("kernel", "w")


Axes = tuple[int, ...]


def contraction_axis(path: str, leaf: Any, given: int | None, stack: Axes = ()) -> int:
    """The axis summed over when the weight is applied, counted from 0.

    `stack` are the axes along which the leaf is a stack of layers.
    """
    return _axis(path, leaf, given, -2, "contracted", stack=stack)


def contraction_axes(
    path: str, leaf: Any, given: int | Axes | None, stack: Axes = ()
) -> Axes:
    """All axes summed over when the weight is applied: for a kernel of a convolution
    the spatial ones too.
    """
    if isinstance(given, tuple):
        return tuple(_axis(path, leaf, a, -2, "contracted", stack=stack) for a in given)
    at = contraction_axis(path, leaf, given, stack)
    if given is not None:
        return (at,)
    out = output_axis(path, leaf, None, stack=stack)
    return tuple(i for i in range(np.ndim(leaf)) if i != out and i not in stack)


def output_axis(
    path: str,
    leaf: Any,
    given: int | None,
    argument: str = "axis",
    stack: Axes = (),
) -> int:
    """The axis of the units the weight produces, counted from 0.

    `argument` is what a caller gives instead of the default, for the error.
    """
    return _axis(path, leaf, given, -1, "output", argument, stack)


def _axis(
    path: str,
    leaf: Any,
    given: int | None,
    default: int,
    what: str,
    argument: str = "axis",
    stack: Axes = (),
) -> int:
    rank = np.ndim(leaf)
    if given is None:
        layer = [i for i in range(rank) if i not in stack]
        if leaf_name(path) not in _KERNEL_NAMES or len(layer) not in (2, 4):
            found = ", as `surgery.contraction_axes(deps)`"
            found = found if what == "contracted" else ""
            raise value_error(
                f"No default {what} axis for {path} of shape {np.shape(leaf)}: only "
                "leaves named `kernel` or `w` of rank 2 or 4 have one. Pass "
                f"`{argument}` (a number or a tree of numbers{found}), or leave the "
                "leaf out of `scope`."
            )
        given = layer[default]
    if not -rank <= given < rank or given % rank in stack:
        raise value_error(
            f"`axis` {given} is out of range for {path} of shape {np.shape(leaf)}"
            + (f", a stack of layers along {stack}." if stack else ".")
        )
    return given % rank


def axes_list(axis: int | Axes | PyTree | None, tree: PyTree) -> list[Any]:
    """As `axis_list`, where an entry, or `axis` itself, may be a tuple of numbers."""
    treedef = jax.tree.structure(tree)
    if isinstance(axis, tuple) and jax.tree.structure(axis) != treedef:
        if all(isinstance(a, int | np.integer) for a in axis):
            return [axis] * treedef.num_leaves
    return axis_list(axis, tree, tuples=True)


def axis_list(
    axis: int | PyTree | None, tree: PyTree, *, tuples: bool = False
) -> list[Any]:
    """`axis` for every leaf of `tree`, in flattening order (None = the default).

    Raises:
      ValueError: `axis` is neither a number nor a tree with the structure of `tree`.
    """
    treedef = jax.tree.structure(tree)
    if isinstance(axis, jax.Array):
        raise value_error(f"`axis` must be a Python integer. {injected('axis')}")
    if axis is None or is_integer(axis):
        return [axis] * treedef.num_leaves
    axis = like_variables(axis, tree, lambda x: x is None or isinstance(x, tuple))
    try:
        given = treedef.flatten_up_to(axis)
    except ValueError as error:
        raise value_error(
            "`axis` must be a number or a tree of numbers with the structure of the "
            f"parameters (None for the default): {error}"
        ) from error
    for one in given:
        if tuples and isinstance(one, tuple):
            continue
        if one is not None and not is_integer(one):
            raise value_error(
                f"`axis` must hold a number or None for each leaf, got {one!r}."
            )
    return given


def whole_along(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """`x` with these axes whole on every device.

    Splitting or sorting a sharded axis needs it. On an Auto mesh XLA sees to it; an
    Explicit mesh wants to be told.
    """
    x = jnp.asarray(x)
    spec = jax.typeof(x).sharding.spec
    if all(spec[axis] is None for axis in axes):
        return x
    kept = [None if axis in axes else name for axis, name in enumerate(spec)]
    return jax.sharding.reshard(x, NamedSharding(mesh_of(x), PartitionSpec(*kept)))


def mesh_of(x: jax.Array) -> Any:
    """The mesh of an array that lies on one, whether or not a mesh is set around."""
    sharding = getattr(x, "sharding", None)  # traced arrays have it in their type
    return (sharding or jax.typeof(x).sharding).mesh


def placed_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` split over devices as `like`, of the same rank; see `whole_along`."""
    spec = jax.typeof(like).sharding.spec
    if jax.typeof(x).sharding.spec == spec:
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh_of(like), spec))
