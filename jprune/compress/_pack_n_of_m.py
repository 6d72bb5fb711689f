r"""N:M weights written down as values and indices, and read back.

Of every M consecutive weights along the contracted axis N values are kept, each with
its place in the group in $\lceil \log_2 M \rceil$ bits: 2:4 takes 17/32 of the dense
bytes in float32 and 9/16 in bfloat16, 1:4 takes 17/64 and 9/32. It makes files small
and nothing faster. Sparse matrix units read values and places too, but every vendor
orders them in its own way, and JAX calls none of those units.
"""

import dataclasses
import functools
import operator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._axes import axis_list, contraction_axis, whole_along
from jprune._dtypes import not_zero, owned
from jprune._errors import listing, value_error
from jprune._stacks import stacked_axes
from jprune._tree import named_leaves
from jprune._typing import Params, PyTree
from jprune.masks._count import is_traced
from jprune.masks._scope import resolve_scope


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedNOfM:
    """One leaf, packed; a pytree of two arrays.

    Attributes:
      values: the kept weights, the contracted axis moved last. [..., groups, n]
      indices: their places in the groups, 0 to m - 1 and increasing within a group, one
        after the other in as many bits as tell m places apart. uint8
      n: kept of each m.
      m: group length.
      axis: the contracted axis.
      length: of that axis.
    """

    values: jax.Array
    indices: jax.Array
    n: int = dataclasses.field(metadata={"static": True})
    m: int = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense leaf."""
        rest = list(self.values.shape[:-2])
        rest.insert(self.axis, self.length)
        return tuple(rest)

    @property
    def nbytes(self) -> int:
        """Bytes of values and indices."""
        return self.values.nbytes + self.indices.nbytes

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense leaf."""
        return prod(self.shape) * self.values.dtype.itemsize

    def places(self) -> jax.Array:
        """The indices unpacked. [..., groups, n] int32"""
        width = _index_bits(self.m)
        count = self.values.size
        bits = jnp.unpackbits(self.indices, count=count * width).reshape(-1, width)
        powers = np.left_shift(1, np.arange(width)[::-1]).astype(np.int32)
        read = jnp.sum(bits * powers[None], axis=1, dtype=jnp.int32)
        return read.reshape(self.values.shape)


def pack_n_of_m(
    params: Params,
    n: int,
    m: int,
    axis: int | PyTree | None = None,
    *,
    scope: Any = None,
    stacked: Any = None,
) -> Params:
    """Each leaf in scope as values and indices; the others as they are.

    Call it outside `jit`, once, at the end: it looks whether the weights are N:M.

    Args:
      params: parameters of which at most `n` of every `m` along the axis are not zero.
      n: values stored of each m.
      m: group length; must divide the axis.
      axis: the contracted axis; see `masks.n_of_m`.
      scope: which leaves; see `masks.unstructured`.
      stacked: see `masks.n_of_m`.

    Returns:
      The tree with a `PackedNOfM` in place of each leaf in scope, which knows its
      `nbytes` and `dense_nbytes`. `unpack_n_of_m` gives the parameters back exactly (a
      negative zero comes back as zero).

    Raises:
      ValueError: a group with more than `n` weights that are not zero, with the leaf's
        path; traced parameters; as `masks.n_of_m`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import compress
      >>> params = {"w": jnp.array([[0.0], [3.0], [0.0], [-1.0]])}
      >>> packed = compress.pack_n_of_m(params, 2, 4)
      >>> packed["w"].values.tolist(), packed["w"].places().tolist()
      ([[[3.0, -1.0]]], [[[1, 3]]])
      >>> packed["w"].nbytes, packed["w"].dense_nbytes
      (9, 16)
      >>> compress.unpack_n_of_m(packed)["w"].T
      Array([[ 0.,  3.,  0., -1.]], dtype=float32)

    References:
      Zhou et al., arXiv 2102.04010, section 2.
    """
    taken = jax.tree.leaves(resolve_scope(scope, params))
    # Exactly n of each group: all that is not zero (finite or not), zeros that fill up.
    present = jax.tree.map(lambda x: not_zero(x).astype(jnp.float32), params)
    kept = masks.n_of_m(present, n, m, axis, scope=scope, stacked=stacked)
    n, m = operator.index(n), operator.index(m)
    rows = zip(
        named_leaves(params),
        jax.tree.leaves(kept),
        axis_list(axis, params),
        stacked_axes(params, stacked),
        taken,
        strict=True,
    )
    packed, bad = [], []
    for (path, x), keep, given, stack, inside in rows:
        if is_traced(x):
            raise value_error(f"`pack_n_of_m` got a traced array at {path}.")
        if not inside:
            packed.append(owned(x))
            continue
        leaf, lost = _packed(x, keep, n, m, contraction_axis(path, x, given, stack))
        packed.append(leaf)
        if lost:
            bad.append(f"{path}: {lost} weights more than {n} of {m} allow")
    if bad:
        raise value_error(f"`params` are not {n}:{m}; mask them first:{listing(bad)}")
    return jax.tree.unflatten(jax.tree.structure(params), packed)


def unpack_n_of_m(packed: Params) -> Params:
    """The dense parameters of `pack_n_of_m`; under `jit` as well.

    Args:
      packed: a tree with some `PackedNOfM` leaves.

    Returns:
      The tree with dense arrays in their place.
    """
    return jax.tree.map(
        lambda x: _dense(x) if _is_packed(x) else owned(x), packed, is_leaf=_is_packed
    )


def _index_bits(m: int) -> int:
    return max((m - 1).bit_length(), 1)


def _is_packed(x: Any) -> bool:
    return isinstance(x, PackedNOfM)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _packed(
    x: jax.Array, keep: jax.Array, n: int, m: int, axis: int
) -> tuple[PackedNOfM, jax.Array]:
    """The kept values packed, and how many others are not zero."""
    # Indices are packed bit by bit over the whole leaf.
    x, keep = (whole_along(v, range(v.ndim)) for v in (x, keep))
    lost = jnp.sum(~keep & not_zero(x))
    values, kept = _groups(x, m, axis), _groups(keep, m, axis)
    # The j-th kept stands after all places up to which fewer than j + 1 are kept.
    upto = jnp.cumsum(kept, axis=-1)[..., None, :]
    j = np.arange(n).reshape(*[1] * (upto.ndim - 2), n, 1)
    places = jnp.sum(upto <= j, axis=-1, dtype=jnp.int32)
    stored = jnp.take_along_axis(values, places, axis=-1)
    width = _index_bits(m)
    shifts = np.arange(width)[::-1].astype(np.int32)
    bits = (places.reshape(-1, 1) >> shifts[None]) & 1
    indices = jnp.packbits(bits.astype(jnp.uint8))
    return PackedNOfM(stored, indices, n, m, axis, x.shape[axis]), lost


def _dense(x: PackedNOfM) -> jax.Array:
    blank = jnp.zeros((*x.values.shape[:-1], x.m), x.values.dtype)
    groups = jnp.put_along_axis(blank, x.places(), x.values, axis=-1, inplace=False)
    return jnp.moveaxis(groups.reshape(*groups.shape[:-2], x.length), -1, x.axis)


def _groups(x: jax.Array, m: int, axis: int) -> jax.Array:
    """The axis moved last and split. [..., groups, m]"""
    moved = jnp.moveaxis(x, axis, -1)
    return moved.reshape(*moved.shape[:-1], x.shape[axis] // m, m)
