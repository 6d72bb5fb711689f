r"""LAMP: layer-adaptive magnitude, comparable across layers under one global ranking.

With the weights of a leaf in ascending order of magnitude,

$$ \mathrm{score}(u) = \frac{w_u^2}{\sum_{v \ge u} w_v^2}. $$

The largest weight of every leaf scores 1, so no leaf empties before all others are down
to one weight. This is the one score that sorts (each leaf by itself).
"""

import jax
import jax.numpy as jnp

from jprune._typing import Params, Scores


def lamp(params: Params) -> Scores:
    """Layer-adaptive magnitude scores in [0, 1]; equal weights rank by position.

    Args:
      params: parameters; every leaf is scored by itself.

    Returns:
      Scores, float32 or the leaf's wider dtype. A leaf of zeros scores 0.

    References:
      Lee et al., "Layer-Adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021,
      eq. (1).
    """
    return jax.tree.map(_lamp_leaf, params)


def _lamp_leaf(w: jax.Array) -> jax.Array:
    size = jnp.abs(jnp.ravel(w)).astype(jnp.promote_types(w.dtype, jnp.float32))
    order = jnp.argsort(size, stable=True)
    # Dividing by the largest keeps the squares inside the float range; ratios stay.
    largest = jnp.max(size, initial=0)
    square = jnp.square(size[order] / jnp.where(largest > 0, largest, 1))
    tail = jnp.cumsum(square[::-1])[::-1]
    score = jnp.where(tail > 0, square / jnp.where(tail > 0, tail, 1), 0)
    return jnp.zeros_like(size).at[order].set(score).reshape(w.shape)
