"""Of leaves: precision, what is zero, what NumPy reads in place, whose buffer it is."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, or in its own dtype if that is wider."""
    dtype = jnp.result_type(x)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.asarray(x, dtype if is_wide else jnp.float32)


def divisible(x: jax.Array, largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both by a power of two smaller where `1 / largest` is below the float range.

    XLA may divide by multiplying with the inverse, which a processor flushes to 0. The
    ratio stays what it is; elsewhere both pass. A `largest` of 0 becomes 1.
    """
    largest = jnp.where(largest > 0, largest, 1)
    near_end, part = largest > jnp.finfo(largest.dtype).max / 256, 2.0**-16
    smaller = jnp.where(near_end, largest * part, largest)
    return jnp.where(near_end, x * part, x), smaller


def is_weight(x: Any) -> bool:
    """Whether a leaf is floating point: no counter, flag, key, function or string."""
    try:
        return jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    except (TypeError, ValueError):
        return False


def not_zero(x: Any) -> Any:
    """`x != 0`, true of subnormal numbers too, on every device.

    Hardware that flushes subnormals to zero also compares them as zero; their bits tell
    them apart, so that a mask and a report count alike.
    """
    if isinstance(x, np.ndarray | np.generic) or x.dtype == bool:
        return x != 0
    if not jnp.issubdtype(x.dtype, jnp.floating) or jnp.finfo(x.dtype).bits < 16:
        return x != 0
    whole = np.dtype(f"int{jnp.finfo(x.dtype).bits}")
    return jax.lax.bitcast_convert_type(x, whole) << 1 != 0


def in_host_memory(x: Any) -> bool:
    """Whether NumPy reads an array in place: it lies on one device, the processor."""
    if isinstance(x, np.ndarray):
        return True
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
        return False
    devices = x.devices()
    plain = isinstance(x.dtype, np.dtype) and len(devices) == 1
    return plain and x.is_fully_addressable and next(iter(devices)).platform == "cpu"


def owned(tree: Any, given: Any = None) -> Any:
    """The tree in buffers of its own, so that either may be donated.

    Args:
      tree: arrays of JAX and NumPy are copied; what is traced, or no array, passes.
      given: copies only leaves that are those of this tree; None copies all.
    """
    theirs = None if given is None else {id(x) for x in jax.tree.leaves(given)}

    def leaf(x: Any) -> Any:
        return _copy(x) if theirs is None or id(x) in theirs else x

    return jax.tree.map(leaf, tree)


def _copy(x: Any) -> Any:
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array | np.ndarray):
        return x
    if not in_host_memory(x):
        return x.copy()
    own = np.array(x, order="C")  # nothing to compile
    if isinstance(x, np.ndarray):
        return own
    return jax.device_put(own, x.sharding if getattr(x, "committed", True) else None)
