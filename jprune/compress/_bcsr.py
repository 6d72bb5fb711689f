"""Sparse storage that pays on a CPU: compressed rows of the transposed kernel.

A product `y = x W` with W [in, out] becomes `y^T = W^T x^T`, and each row of the stored
`W^T` holds the weights of one output. XLA has a CPU kernel for that form; the rows of W
itself, and coordinate lists, are slower than the dense product at any sparsity.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import sparse

from jprune._errors import type_error, value_error


def to_bcsr(kernel: jax.Array) -> sparse.BCSR:
    """A kernel's transpose in compressed rows, for `sparse_dot`.

    Args:
      kernel: [in, out], with zeros where weights were removed; a concrete array.

    Returns:
      A `BCSR` of shape [out, in]: a pytree of `data` (the non-zero values), `indices`
      and `indptr`, which takes 8 bytes a kept weight in float32.

    Raises:
      ValueError: if the kernel has not two axes.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import compress
      >>> rows = compress.to_bcsr(jnp.array([[0.0, 2.0], [0.0, 3.0]]))
      >>> rows.nse, compress.sparse_dot(jnp.array([[1.0, 10.0]]), rows)
      (2, Array([[ 0., 32.]], dtype=float32))
    """
    if kernel.ndim != 2:
        raise value_error(
            f"`kernel` must be [in, out], got shape {tuple(kernel.shape)}: reshape it."
        )
    return sparse.BCSR.fromdense(jnp.asarray(kernel).T)


def sparse_dot(x: jax.Array, rows: Any) -> jax.Array:
    """The product `x @ kernel` with the kernel as `to_bcsr` stores it.

    Args:
      x: [..., in].
      rows: what `to_bcsr` returned.

    Returns:
      [..., out].

    Raises:
      TypeError: if `rows` is no `BCSR`.
      ValueError: if the widths do not agree.
    """
    if not isinstance(rows, sparse.BCSR):
        raise type_error(
            f"`rows` must be what `to_bcsr` returns, got {type(rows).__name__}."
        )
    if x.shape[-1] != rows.shape[1]:
        raise value_error(
            f"`x` must end in the kernel's {rows.shape[1]} inputs, got shape "
            f"{tuple(x.shape)}."
        )
    flat = x.reshape(-1, x.shape[-1])
    return (rows @ flat.T).T.reshape(*x.shape[:-1], rows.shape[0])
