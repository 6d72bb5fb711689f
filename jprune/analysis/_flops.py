"""Floating-point operations of a function, counted from its jaxpr.

A multiply-add is 2 operations and only contractions count: `surgery._cost` states the
whole convention. Papers that report multiply-adds (MACs) give half of these figures:
ResNet-50 at 224 x 224 is 8.2e9 operations, "4.1 GMACs".
"""

from collections.abc import Callable
from typing import Any

from jprune._jaxpr import _compat
from jprune._jaxpr._trace import arrays_apart
from jprune.surgery import _flops
from jprune.surgery._callable import as_function


def flops(fn: Callable[..., Any]) -> Callable[..., int]:
    """Operations of one call: `flops(fn)(params, *args)`; nothing is computed.

    Args:
      fn: any function that JAX can trace: an apply function, a loss, a gradient. Or a
        model object, called with what `groups` of its framework takes after it:
        `flops(model)(x)`, in Linen `flops(model)(variables, x)`.

    Returns:
      A function with the signature of `fn` that takes arrays, or
      `jax.ShapeDtypeStruct`s in their place, and returns the number of floating-point
      operations, 2 per multiply-add, as a Python int. Leaves that are no arrays (flags,
      the functions of an Equinox module) are passed on as they are. An axis name that
      no `vmap` binds (a batch norm of Equinox in training) has one position.

    A convolution counts the taps of every output, on padding too, as papers do; a
    transposed one (a dilated image, or padding as wide as the kernel on both sides)
    only the taps that meet an element. Loops: a `scan` counts its body `length` times,
    a `cond` its dearest branch, a `while` its body once, a `shard_map` its body on
    every device of the mesh axes that it maps over: a product that all of them repeat
    counts for each.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
      >>> w = jax.ShapeDtypeStruct((16, 32), jnp.float32)
      >>> flops(jnp.dot)(x, w)
      8192
    """

    def count(*args: Any, **kwargs: Any) -> int:
        call, arrays = arrays_apart(*as_function(fn, args, kwargs))
        return _flops.count(_compat.make_jaxpr(call, arrays))

    return count
