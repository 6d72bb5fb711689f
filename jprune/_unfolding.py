r"""How a kernel is read as a matrix, so that it has a rank, and what its SVD gives.

An *unfolding* splits the axes of a kernel into rows and columns (and, rarely, axes
along which there is one matrix *each*). Where the matrix has rank k, the layer is two
layers of width k: the first reads the rows' axes, the second the columns'. For a
convolution kernel $(H, W, I, O)$ there are three in use:

* channel-wise, $(HWI) \times O$: an $H \times W$ convolution to k channels, then 1 x 1;
* spatial-wise, $(HI) \times (WO)$: an $H \times 1$ convolution, then $1 \times W$;
* decoupled, $I \times (HW)$ for each output: k 1 x 1 convolutions, each followed by one
  depthwise $H \times W$, summed.

A matrix $(I, O)$ has one unfolding, whichever is asked for.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._axes import placed_as, whole_along
from jprune._dtypes import wide
from jprune._errors import value_error
from jprune._tree import leaf_name


class Unfolding(NamedTuple):
    """Which axes of a kernel are the rows of its matrix, and which the columns.

    Attributes:
      rows: axes of the kernel, in the order in which they are flattened.
      columns: likewise; rows and columns together are all axes but those of `each`.
      each: axes along which every position has a matrix of its own, with its own rank.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    each: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """All axes: those of `each`, then rows, then columns."""
        return (*self.each, *self.rows, *self.columns)

    def sizes(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """How many matrices a kernel of this shape is, and their rows and columns."""
        count, rows, columns = (
            prod(shape[a] for a in axes)
            for axes in (self.each, self.rows, self.columns)
        )
        return count, rows, columns


Kind = Literal["channel", "spatial", "decoupled"]
Unfold = Kind | Unfolding | Callable[[str, Any], Any]
"""A name, an `Unfolding`, or a function of a leaf's path and value to either."""

_NAMED: dict[str, Unfolding] = {
    "channel": Unfolding((0, 1, 2), (3,)),
    "spatial": Unfolding((0, 2), (1, 3)),
    "decoupled": Unfolding((2,), (0, 1), (3,)),
}


def unfolding_of(path: str, leaf: Any, kind: Unfold) -> Unfolding:
    """The unfolding of a leaf.

    Args:
      path: its path text.
      leaf: anything with a shape.
      kind: what was asked for.

    Raises:
      ValueError: an unknown name; a leaf that a name says nothing about; axes that are
        not each axis once.
    """
    if callable(kind):
        kind = kind(path, leaf)
    rank = np.ndim(leaf)
    if isinstance(kind, Unfolding):
        if sorted(kind.order) != list(range(rank)) or not (kind.rows and kind.columns):
            raise value_error(
                f"`kind` for {path} of shape {np.shape(leaf)} must name every axis "
                f"once, rows and columns at least one, got {kind}."
            )
        return Unfolding(*map(tuple, kind))  # hashable, whatever the fields were
    if not isinstance(kind, str) or kind not in _NAMED:
        raise value_error(
            f"`kind` must be one of {', '.join(_NAMED)}, an `Unfolding`, or a function "
            f"(path, leaf) of either, got {kind!r} for {path}."
        )
    if rank == 2:
        return Unfolding((0,), (1,))
    if rank != 4 or leaf_name(path) not in ("kernel", "w"):
        raise value_error(
            f"No default unfolding for {path} of shape {np.shape(leaf)}: only matrices "
            "and leaves named `kernel` or `w` of rank 4 (height, width, in, out) have "
            "one. Give `kind` as a function (path, leaf) to an `Unfolding`, or leave "
            "the leaf out of `scope`."
        )
    return _NAMED[kind]


class Spectrum(NamedTuple):
    """The SVD of every matrix of a kernel: `u @ diag(s) @ vt`.

    Attributes:
      u: [*each, rows, q].
      s: [*each, q], not increasing; q is the smaller of rows and columns.
      vt: [*each, q, columns].
    """

    u: jax.Array
    s: jax.Array
    vt: jax.Array


def spectrum(kernel: jax.Array, unfolding: Unfolding) -> Spectrum:
    """The SVD, in float32 at least.

    It needs the whole matrix on every device: on a mesh with explicit axes the kernel
    is resharded for it, on an Auto mesh XLA gathers it.
    """
    kernel = wide(whole_along(kernel, range(kernel.ndim)))
    _, rows, columns = unfolding.sizes(kernel.shape)
    outer = [kernel.shape[a] for a in unfolding.each]
    matrices = kernel.transpose(unfolding.order).reshape(-1, rows, columns)
    if not outer:
        return Spectrum(*_svd(matrices[0]))
    # jaxlib's CPU kernel hands the matrices of a batch to the pool of threads that it
    # runs in and waits: two batches at once on two threads wait forever. One by one.
    parts = jax.lax.platform_dependent(
        matrices, cpu=partial(jax.lax.map, _svd), default=_svd
    )
    return Spectrum(*(x.reshape(*outer, *x.shape[1:]) for x in parts))


def _svd(matrices: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.linalg.svd(matrices, full_matrices=False))


def places(s: jax.Array) -> jax.Array:
    """The place of each singular value in its matrix's order, [*each, q] int32."""
    return jax.lax.broadcasted_iota(jnp.int32, s.shape, s.ndim - 1)


def first_values(s: jax.Array, rank: Any) -> jax.Array:
    """The first `rank` of the singular values, [*each, q] bool; all where it is 0."""
    rank = jnp.broadcast_to(jnp.asarray(rank)[..., None], s.shape)
    return (places(s) < rank) | (rank == 0)


def folded(matrices: jax.Array, unfolding: Unfolding, like: Any) -> jax.Array:
    """The kernel of these matrices, in shape, dtype and sharding as `like`."""
    shape = [like.shape[a] for a in unfolding.order]
    kernel = matrices.reshape(shape).transpose(np.argsort(unfolding.order))
    kernel = kernel.astype(like.dtype)
    if isinstance(like, jax.ShapeDtypeStruct):
        return kernel
    placed = jax.typeof(like).sharding
    if kernel.ndim and any(name is not None for name in placed.spec):
        return placed_as(kernel, like)
    return kernel
