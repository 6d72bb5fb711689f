r"""LAMP: layer-adaptive magnitude, comparable across layers under one global ranking.

With the weights of a leaf in order of magnitude, `u` counted from the largest,

$$ \mathrm{score}(u) = \frac{w_u^2}{\sum_{v \le u} w_v^2} . $$

The largest weight of every leaf scores 1, so no leaf empties before all others are down
to one weight. Within a leaf the order is that of the magnitudes; among equal weights
the first comes first, as everywhere in jprune. This is the one score that sorts: each
leaf by itself, and a sharded leaf as a whole on every device.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._axes import Axes, whole_along
from jprune._dtypes import divisible, is_weight, wide
from jprune._stacks import stacked_axes
from jprune._typing import Params, Scores


def lamp(params: Params, *, stacked: Any = None) -> Scores:
    """Layer-adaptive magnitude scores in [0, 1].

    Args:
      params: parameters; every leaf is scored by itself.
      stacked: see `masks.unstructured`; every layer of a stack is scored by itself.

    Returns:
      Scores, float32 or the leaf's wider dtype. A leaf of zeros scores 0. A weight that
      is not finite scores NaN, which never ranks, and counts in no other's score.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import scores
      >>> scores.lamp(jnp.array([1.0, 1.0]))
      Array([1. , 0.5], dtype=float32)

    References:
      Lee et al., "Layer-Adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021,
      eq. (1).
    """
    leaves, treedef = jax.tree.flatten(params)
    pairs = zip(leaves, stacked_axes(params, stacked), strict=True)
    scored = [_lamp_leaf(w, stack) if is_weight(w) else w for w, stack in pairs]
    return jax.tree.unflatten(treedef, scored)


def _lamp_leaf(w: jax.Array, stack: Axes) -> jax.Array:
    w = whole_along(w, range(jnp.ndim(w)))
    if not stack:
        return _lamp_layer(w)
    rows = jnp.moveaxis(w, stack, range(len(stack)))
    layers = rows.reshape(-1, *rows.shape[len(stack) :])
    scored = jax.vmap(_lamp_layer)(layers).reshape(rows.shape)
    return jnp.moveaxis(scored, range(len(stack)), stack)


def _lamp_layer(w: jax.Array) -> jax.Array:
    given = jnp.abs(jnp.ravel(wide(w)))
    size = jnp.where(jnp.isfinite(given), given, 0)
    order = jnp.argsort(-size, stable=True)
    # Dividing by the largest keeps the squares inside the float range; ratios stay.
    scaled, largest = divisible(size[order], jnp.max(size, initial=0))
    square = jnp.square(scaled / largest)
    score = square / jnp.maximum(jnp.cumsum(square), jnp.finfo(size.dtype).tiny)
    # The sum is rounded; the minimum so far keeps the order of the magnitudes exact.
    score = jax.lax.cummin(score)
    score = jnp.zeros_like(size).at[order].set(score)
    return jnp.where(jnp.isfinite(given), score, jnp.nan).reshape(w.shape)
