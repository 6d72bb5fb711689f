"""Uniform numbers for arrays of many shapes, drawn by one small program.

A generator is a long program, and XLA compiles one for each shape: for the kernels of a
ResNet-50 that takes 10 seconds. Here all arrays are drawn in rows of one length, a few
at a time, so that it is compiled once and no more memory is taken than the numbers
need.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WIDTH = 4_096
HEIGHT = 16
_THREEFRY = "threefry2x32"


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def uniform(
    key: jax.Array, places: Sequence[int], sizes: Sequence[int], each: int = 1
) -> list[jax.Array]:
    """Uniform float32 numbers in [0, 1) for arrays at some places of a tree.

    Args:
      key: a PRNG key. Of another generator than Threefry, a key of that is drawn from
        it first: only there is every number a hash of the key and its place.
      places: the number of each array, folded into the key.
      sizes: how many numbers each takes. A tuple, as `places`
      each: how many numbers one hash of two words gives: 1, the two mixed, as in JAX,
        or 2, one from each word, so that half as many hashes are made.

    Returns:
      A vector for each array. With JAX's default generator and `each=1` it is what
      `jax.random.uniform(jax.random.fold_in(key, place), (size,))` draws.
    """
    if str(jax.random.key_impl(key)) != _THREEFRY:
        words = jax.random.bits(key, (2,), jnp.uint32)
        key = jax.random.wrap_key_data(words, impl=_THREEFRY)
    width = min(WIDTH, max(*sizes, each) // each * each)
    counts = [-(-size // width) for size in sizes]
    first = np.cumsum([0, *counts]).tolist()
    height = max(min(HEIGHT, first[-1]), 1)
    blocks = -(-first[-1] // height)

    def rows(values: np.ndarray) -> jax.Array:
        padded = np.pad(values, (0, blocks * height - len(values)))
        return jnp.asarray(padded.reshape(blocks, height), jnp.uint32)

    def draw(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        place, start = row
        own = jax.vmap(functools.partial(jax.random.fold_in, key))(place)
        shape = (1, width // each)
        entries = start[:, None] + lax.broadcasted_iota(jnp.uint32, shape, 1)
        # The i-th number of a key comes from what folding i into it gives.
        words = jax.random.key_data(_folded(own, entries))
        if each == 2:
            bits = words.reshape(-1, width)
        else:
            bits = functools.reduce(jnp.bitwise_xor, jnp.moveaxis(words, -1, 0))
        ones = lax.bitcast_convert_type(bits >> 9 | 0x3F800000, jnp.float32)
        return ones - 1

    starts = [np.arange(count) * (width // each) for count in counts]
    numbered = rows(np.repeat(places, counts)), rows(np.concatenate(starts))
    table = lax.map(draw, numbered).reshape(-1, width)
    drawn = []
    for row, count, size in zip(first, counts, sizes, strict=False):
        # No constant: arrays of one size are then cut out by one kernel.
        corner = lax.optimization_barrier(jnp.asarray([row, 0], jnp.uint32))
        part = lax.dynamic_slice(table, (corner[0], corner[1]), (count, width))
        drawn.append(part.reshape(-1)[:size])
    return drawn


_folded = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
