"""How many entries of a mask are True, in one read and without a copy."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def count_true(mask: jax.Array) -> jax.Array:
    """How many are True. 0-d int32"""
    true, false = count_both(mask)
    return jnp.minimum(true, mask.size - false)


def counts_true(masks: Sequence[jax.Array]) -> jax.Array:
    """How many are True of each of at least one mask. [masks] int32"""
    pairs = [count_both(m) for m in masks]
    columns = [jnp.stack(column) for column in zip(*pairs, strict=True)]
    # Or XLA would write a sum of them as a chain, in every kernel that reads it.
    true, false = lax.optimization_barrier(columns)
    return jnp.minimum(true, np.array([m.size for m in masks], np.int32) - false)


def count_both(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many are True and how many False, by one variadic reduction. 0-d int32

    Both are to be used, or XLA would go back to the plain reduction (on a CPU some 20
    times slower, of a copy of the mask in int32).
    """
    operands = (mask.astype(jnp.int32), (~mask).astype(jnp.int32))
    starts = (jnp.int32(0), jnp.int32(0))
    axes = tuple(range(mask.ndim))
    return lax.reduce(operands, starts, _add_pairs, axes)


def _add_pairs(x: tuple, y: tuple) -> tuple:
    return x[0] + y[0], x[1] + y[1]
