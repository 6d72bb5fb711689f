"""The precision of scores, what counts as zero, and what NumPy can read in place."""

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
