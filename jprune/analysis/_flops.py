"""Floating-point operations of a function, counted from its jaxpr.

The convention, stated once: a multiply-add is **2** operations, and only contractions
count (`dot_general`, convolutions with their groups, ragged products); element-wise
work, reductions and data movement do not. The body of a `scan` counts `length` times,
of `cond` the most expensive branch counts, and of a `while` the body counts once, since
the number of turns is not known. Papers that report multiply-adds (MACs) give half of
these
figures: ResNet-50 at 224 x 224 is 8.2e9 operations, "4.1 GMACs".
"""

from collections.abc import Callable
from typing import Any

import jax

from jprune._jaxpr import _flops


def flops(fn: Callable[..., Any]) -> Callable[..., int]:
    """Operations of one call: `flops(fn)(params, *args)`; nothing is computed.

    Args:
      fn: any function that JAX can trace: an apply function, a loss, a gradient.

    Returns:
      A function with the signature of `fn` that takes arrays, or
      `jax.ShapeDtypeStruct`s in their place, and returns the number of floating-point
      operations, 2 per multiply-add, as a Python int.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
      >>> w = jax.ShapeDtypeStruct((16, 32), jnp.float32)
      >>> flops(jnp.dot)(x, w)
      8192
    """

    def count(*args: Any, **kwargs: Any) -> int:
        return _flops.count(jax.make_jaxpr(lambda a, k: fn(*a, **k))(args, kwargs))

    return count
