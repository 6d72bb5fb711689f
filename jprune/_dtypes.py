"""In which precision scores are computed, and what NumPy can read in place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, or in its own dtype if that is wider."""
    dtype = jnp.result_type(x)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.asarray(x, dtype if is_wide else jnp.float32)


def in_host_memory(x: Any) -> bool:
    """Whether NumPy reads an array in place: it lies on one device, the processor."""
    if isinstance(x, np.ndarray):
        return True
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
        return False
    devices = x.devices()
    plain = isinstance(x.dtype, np.dtype) and len(devices) == 1
    return plain and x.is_fully_addressable and next(iter(devices)).platform == "cpu"
