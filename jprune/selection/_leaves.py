r"""The leaves of a tree as the selection reads them: checked, named, placed.

Nothing here copies a leaf. Under GSPMD a leaf has its global shape and XLA splits every
element-wise operation and reduction as the leaf is split; nothing is ever flattened,
since flattening a sharded leaf gathers it. Inside `jax.shard_map` a leaf is the local
shard, and a `PartitionSpec` says which mesh axes split which of its dimensions, so that
a replicated leaf is counted once and every entry knows its place in the global array.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jprune._errors import listing, type_error, value_error
from jprune._tree import named_leaves, require_same_structure
from jprune._typing import Mask, PyTree
from jprune.selection._image import Image, ImageKind, common_image

Instead = tuple[PyTree, jax.Array]
"""What is ranked in place of another tree where a 0-d bool is true, and that bool."""

LIMIT = 2**31 - 1
"""One more than the largest count: the end of a search over positions is n + 1."""


def _static(**kwargs: Any) -> Any:
    """A field that is part of a pytree's structure, not of its leaves."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of the tree.

    Attributes:
      value: the (local) array.
      times: what it is multiplied by before it is ranked, of the same shape; None is 1.
      within: which entries take part: bool of the same shape or 0-d; None is all.
      instead: an array of the same shape that takes the place of `value` where the
        table's `which` is true, as the complement of `within` does of that.
      split: for each dimension, the mesh axes that split it.
      replicas: the mesh axes over which the leaf is replicated.
      shape: the global shape.
      offset: entries in the leaves before this one.
      places: the position of each entry in the whole, where strides cannot tell. int32
    """

    value: jax.Array
    times: jax.Array | None
    within: jax.Array | None
    instead: jax.Array | None
    split: tuple[tuple[str, ...], ...] = _static()
    replicas: tuple[str, ...] = _static()
    shape: tuple[int, ...] = _static()
    offset: int = _static()
    places: np.ndarray | None = None

    @property
    def swept(self) -> tuple[Any, ...]:
        """The arrays that one sweep reads, as `Image.of` takes them."""
        return self.value, self.within, self.times, self.instead

    @property
    def size(self) -> int:
        """Number of entries of the global array."""
        return math.prod(self.shape)

    def counted_here(self) -> jax.Array | None:
        """Whether this device counts the leaf: the first of its replicas does."""
        here = [lax.axis_index(name) == 0 for name in self.replicas]
        return jnp.stack(here).all() if here else None

    def strides(self, per_leaf: bool) -> jax.Array:
        """Position = strides[0] + sum of index_d * strides[d + 1], row-major. int32"""
        steps = [math.prod(self.shape[d + 1 :]) for d in range(len(self.shape))]
        start = 0 if per_leaf else self.offset
        if not any(self.split):
            return jnp.asarray(np.array([start, *steps], np.int32))
        base = jnp.int32(start)
        for length, names, step in zip(
            self.value.shape, self.split, steps, strict=True
        ):
            if names:
                base += lax.axis_index(names).astype(jnp.int32) * (length * step)
        return jnp.stack([base, *(jnp.int32(step) for step in steps)])

    def from_end(self, strides: jax.Array, total: int) -> jax.Array:
        """The place total - 1 - position of each entry: the first has the largest."""
        if self.places is not None:
            return jnp.asarray(total - 1 - self.places)
        shape = self.value.shape
        place = jnp.broadcast_to(total - 1 - strides[0], shape)
        for axis in range(len(shape)):
            index = lax.broadcasted_iota(jnp.int32, shape, axis)
            place -= index * strides[axis + 1]
        return place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """All leaves that take part, in flattening order.

    Attributes:
      leaves: the leaves.
      image: the integer image they share.
      axis_names: mesh axes over which counts are added; empty outside `shard_map`.
      which: whether what is ranked is `instead`, 0-d bool; None is never.
    """

    leaves: tuple[Leaf, ...]
    image: Image = _static()
    axis_names: tuple[str, ...] = _static()
    which: jax.Array | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of entries of each leaf."""
        return tuple(leaf.size for leaf in self.leaves)


def read(
    tree: PyTree,
    image: ImageKind,
    within: Mask | None,
    axis_name: str | Sequence[str] | None,
    specs: PyTree | None,
    times: PyTree | None = None,
    instead: Instead | None = None,
    apart: bool = False,
) -> Table:
    """Checks a tree and lays it out.

    Args:
      tree: pytree of floating leaves.
      image: `"magnitude"` or `"signed"`.
      within: pytree of bool like `tree`, or None.
      axis_name: mesh axes of the enclosing `shard_map`, or None.
      specs: pytree prefix of `PartitionSpec`, or None.
      times: pytree like `tree` that it is multiplied by, or None.
      instead: a pytree like `tree`, and `which` of the `Table`; or None.
      apart: whether each leaf is counted by itself.

    Returns:
      The table.

    Raises:
      TypeError: a leaf that is not floating, or a `within` leaf that is not bool.
      ValueError: structure, shape or specs that do not fit, or a whole of 2**31 - 1
        entries or more.
    """
    dtypes = float_dtypes(tree)
    named = named_leaves(tree)
    values = [jnp.asarray(value) for _, value in named]
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    factors = _times(tree, named, values, times)
    masks = _within(tree, named, values, within)
    others, which = instead or (None, None)
    others = [None] * len(values) if instead is None else jax.tree.leaves(others)
    placed = _specs(tree, named, values, axes, specs)
    leaves, total = [], 0
    rows = zip(values, factors, others, masks, placed, strict=True)
    for value, factor, other, mask, spec in rows:
        fixed = lax.stop_gradient((value, factor, other))
        leaves.append(_leaf(*fixed, mask, spec, axes, total))
        total += leaves[-1].size
    if apart:
        total = max((leaf.size for leaf in leaves), default=0)
    if total >= LIMIT:
        which = " in one leaf" if apart else ""
        raise value_error(
            f"`tree` has {total} entries{which}; counts are int32, so one selection "
            f"takes fewer than {LIMIT}. Rank leaves (or parts of the tree) separately."
        )
    if times is not None:
        dtypes = dtypes + float_dtypes(times, "times")
    if instead is not None:
        dtypes = dtypes + float_dtypes(instead[0], "instead")
    kind = common_image(dtypes, image, products=times is not None)
    return Table(tuple(leaves), kind, axes, which)


def float_dtypes(tree: PyTree, name: str = "tree") -> list[np.dtype]:
    """The dtype of each leaf (or `ShapeDtypeStruct`), in flattening order.

    Raises:
      TypeError: with the paths of the leaves that are not floating.
    """
    named = [(path, jnp.result_type(leaf)) for path, leaf in named_leaves(tree)]
    floating = [jnp.issubdtype(dtype, jnp.floating) for _, dtype in named]
    if not all(floating):
        bad = [
            f"{named[i][0]}: {named[i][1]}" for i, ok in enumerate(floating) if not ok
        ]
        raise type_error(
            f"`{name}` must have floating leaves only; pass those in scope, or the "
            f"magnitude of complex ones. Got:{listing(bad)}"
        )
    return [dtype for _, dtype in named]


def _times(
    tree: PyTree, named: list, values: list[jax.Array], times: PyTree | None
) -> list[jax.Array | None]:
    if times is None:
        return [None] * len(values)
    require_same_structure("times", times, tree)
    factors: list[jax.Array | None] = []
    for (name, _), value, factor in zip(
        named, values, jax.tree.leaves(times), strict=True
    ):
        if np.shape(factor) != value.shape:
            raise value_error(
                f"`times` must have the shape of its leaf: at {name} expected "
                f"{value.shape}, got {np.shape(factor)}."
            )
        factors.append(jnp.asarray(factor))
    return factors


def own(scalar: jax.Array, leaf: jax.Array) -> jax.Array:
    """A scalar of many leaves as one that belongs to this leaf.

    Where leaves of one shape share a scalar, XLA hands it to their kernels at different
    places, so that they are not the same and each is compiled.
    """
    return lax.optimization_barrier((scalar, leaf))[0]


def _within(
    tree: PyTree, named: list, values: list[jax.Array], within: Mask | None
) -> list[jax.Array | None]:
    if within is None:
        return [None] * len(values)
    require_same_structure("within", within, tree)
    masks: list[jax.Array | None] = []
    for (name, _), value, mask in zip(
        named, values, jax.tree.leaves(within), strict=True
    ):
        dtype = getattr(mask, "dtype", np.dtype(type(mask)))
        if dtype != np.bool_:
            raise type_error(f"`within` must be a tree of bool, got {dtype} at {name}.")
        if np.shape(mask) not in ((), value.shape):
            raise value_error(
                f"`within` must have the shape of its leaf, or be 0-d: at {name} "
                f"expected {value.shape}, got {np.shape(mask)}."
            )
        everything = isinstance(mask, (bool, np.bool_)) and bool(mask)
        masks.append(None if everything else jnp.asarray(mask))
    return masks


def _specs(
    tree: PyTree,
    named: list,
    values: list[jax.Array],
    axes: tuple[str, ...],
    specs: PyTree | None,
) -> list[PartitionSpec]:
    """One spec for each leaf; without `specs` a leaf is split along its first axis."""
    if not axes:
        if specs is not None:
            raise value_error(
                "`specs` describes the shards inside `jax.shard_map`: give `axis_name` "
                "too, or leave both out (arrays under `jit` carry their own sharding)."
            )
        return [PartitionSpec()] * len(values)
    if specs is None:
        return [PartitionSpec(axes) if v.ndim else PartitionSpec() for v in values]
    is_spec = lambda s: isinstance(s, PartitionSpec)  # noqa: E731
    full = jax.tree.broadcast(specs, tree, is_leaf=is_spec)
    placed = jax.tree.leaves(full, is_leaf=is_spec)
    for (name, _), value, spec in zip(named, values, placed, strict=True):
        if not is_spec(spec) or len(spec) > value.ndim:
            raise value_error(
                f"`specs` must give each leaf a PartitionSpec of at most its rank: at "
                f"{name} (rank {value.ndim}) got {spec!r}."
            )
    return placed


def _leaf(
    value: jax.Array,
    times: Any,
    instead: Any,
    within: Any,
    spec: PartitionSpec,
    axes: tuple[str, ...],
    offset: int,
) -> Leaf:
    split = tuple(
        tuple(name for name in _names(entry) if name in axes)
        for entry in (*spec, *([None] * (value.ndim - len(spec))))
    )
    used = {name for names in split for name in names}
    shape = tuple(
        length * math.prod(lax.axis_size(name) for name in names)
        for length, names in zip(value.shape, split, strict=True)
    )
    replicas = tuple(name for name in axes if name not in used)
    return Leaf(value, times, within, instead, split, replicas, shape, offset)


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
