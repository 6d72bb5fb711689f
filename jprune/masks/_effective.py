"""Effective masks: weights that lie on no path from input to output do not count.

A kept weight into a unit all of whose outgoing weights are removed does nothing. Let
the network run with its weights replaced by the mask (0 or 1), activations linear,
norms and biases left out and pooling a sum; call the summed output R. Every path then
adds to R, and an entry lies on a path exactly when dR/dm > 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jprune._errors import listing, value_error
from jprune._tree import named_leaves
from jprune._typing import Mask, Params
from jprune.masks._count import is_traced
from jprune.masks._fit import require_fit


def effective(mask: Mask, flow: Callable[[Params], jax.Array]) -> Mask:
    """What of `mask` lies on an unmasked path from an input to an output.

    Args:
      mask: a mask. A leaf out of scope passes as it is, and `flow` sees it as a 0-d 1;
        where it needs the full shape, give `masks.intersect(mask, masks.full(params))`.
      flow: the linear form of the network: weights (a tree of float32 zeros and ones
        with the structure of `mask`) to outputs for an all-ones input. For an MLP,
        `lambda w: jnp.ones(d) @ w["a"] @ w["b"]`. In a deep network divide by the
        fan-in inside `flow`, so that the number of paths stays inside the float range.

    Returns:
      A mask that keeps a subset of `mask`; its sparsity is the effective sparsity.

    Raises:
      ValueError: no mask, or `flow` overflowed (not checked under `jit`).

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks
      >>> mask = {"a": jnp.array([[True, True]]), "b": jnp.array([[True], [False]])}
      >>> masks.effective(mask, lambda w: jnp.ones(1) @ w["a"] @ w["b"])["a"]
      Array([[ True, False]], dtype=bool)

    References:
      Vysogorets and Kempe, "Connectivity Matters: Neural Network Pruning Through the
      Lens of Effective Sparsity", JMLR 2023.
    """
    require_fit(mask, mask)
    weights = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), mask)
    paths = jax.grad(lambda w: jnp.sum(flow(w)))(weights)
    _require_finite(paths)
    return jax.tree.map(
        lambda m, g: m if jnp.ndim(m) == 0 else (m != 0) & (g > 0), mask, paths
    )


def _require_finite(paths: Params) -> None:
    bad = [
        path
        for path, g in named_leaves(paths)
        if not is_traced(g) and not jnp.all(jnp.isfinite(g))
    ]
    if bad:
        raise value_error(
            "`flow` overflowed float32: divide by the fan-in at each layer inside it. "
            f"Not finite at:{listing(bad)}"
        )
