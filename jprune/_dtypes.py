"""The precision in which scores are computed."""

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, or in its own dtype if that is wider."""
    dtype = jnp.result_type(x)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.asarray(x, dtype if is_wide else jnp.float32)
