r"""The largest of each row: many rankings of one length, without a sort.

Layers of a stack, or the outputs of a kernel, each rank their own weights: a *row* is
what lies at one index of some axes. The threshold of every row is found bit by bit from
the top: with c(t) the entries whose integer image reaches t, the k-th largest image is
the last t with c(t) >= k. That is one counting pass for each bit, for all rows at once;
where equal entries at the threshold are more than are wanted, the first of them are
found by place in the same way. The leaf stays as it lies on its devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._axes import placed_as


def largest_of_rows(images: jax.Array, keep: Any, axes: Sequence[int]) -> jax.Array:
    """Which entries are among the largest of their row; ties go to the first.

    Args:
      images: integer images that order as the scores do; an entry that takes no part
        has the smallest integer of the dtype.
      keep: how many of each row, ints of the shape of `axes`, or a number; where fewer
        take part, those.
      axes: whose indices tell the rows apart.

    Returns:
      A bool array of the shape of `images`.
    """
    others = tuple(i for i in range(images.ndim) if i not in axes)

    def count(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=others, dtype=jnp.int32, keepdims=True)

    part = images > jnp.iinfo(images.dtype).min
    wanted = jnp.asarray(keep, jnp.int32)
    wanted = jnp.expand_dims(wanted, others) if wanted.ndim else wanted
    wanted = jnp.minimum(wanted, count(part))
    order = _unsigned(images)
    bits = jnp.iinfo(order.dtype).bits
    at = _last(lambda t: count(order >= t) >= wanted, bits, order.dtype, wanted)
    above, equal = order > at, (order == at) & part
    room = wanted - count(above)

    def first() -> jax.Array:
        """What lies before the last place before which at most `room` are equal."""
        place = _places(images.shape, others)
        length = max(images.size, 1).bit_length()
        enough = lambda p: count(equal & (place < p)) <= room  # noqa: E731
        # Both branches of the `cond` lie on the devices of an Explicit mesh alike.
        return placed_as(place < _last(enough, length, jnp.uint32, wanted), equal)

    tied = jnp.any(count(equal) > room)
    chosen = jax.lax.cond(tied, first, lambda: jnp.ones_like(equal))
    return above | (equal & chosen)


def _unsigned(images: jax.Array) -> jax.Array:
    """Unsigned integers that order as the signed ones do: the top bit is flipped."""
    unsigned = np.dtype("uint64" if images.dtype == jnp.int64 else "uint32")
    top = unsigned.type(1 << (unsigned.itemsize * 8 - 1))
    return jax.lax.bitcast_convert_type(images, unsigned) ^ top


def _places(shape: Sequence[int], others: Sequence[int]) -> jax.Array:
    """The place of each entry in its row, row-major. [shape] uint32"""
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(others):
        index = jax.lax.broadcasted_iota(jnp.uint32, tuple(shape), axis)
        place, stride = place + index * np.uint32(stride), stride * shape[axis]
    return jnp.broadcast_to(place, tuple(shape))


def _last(
    holds: Callable[[jax.Array], jax.Array], bits: int, dtype: Any, like: jax.Array
) -> jax.Array:
    """For each row the last x of 0..2**bits - 1 with `holds(x)`, true up to it."""

    def bit(i: jax.Array, x: jax.Array) -> jax.Array:
        one = jnp.ones((), dtype) << jnp.asarray(bits - 1 - i, dtype)
        return jnp.where(holds(x | one), x | one, x)

    return jax.lax.fori_loop(0, bits, bit, jnp.zeros_like(like, dtype))
