r"""The gradient summed over a window of steps, for those who judge weights by it.

$$ a_t = \sum_{s = T \lfloor t/T \rfloor}^{t} g_s \qquad\text{or}\qquad \sum |g_s| . $$

K-starts rates its candidates by the magnitude of this sum; see `at_init.k_starts`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._dtypes import wide
from jprune._errors import require_static, value_error
from jprune._typing import Params, PyTree
from jprune.transforms._build import next_step, transformation


class AccumulateGradientState(NamedTuple):
    """State of `accumulate_gradient`.

    Attributes:
      count: steps taken, 0-d int32.
      total: the sum over the window so far, structured as the gradient, float32 or
        wider.
    """

    count: jax.Array
    total: PyTree


def accumulate_gradient(
    window: int, *, magnitudes: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Sums the gradient that passes, unchanged (place it first, on the raw gradient).

    After `window`, `2 window`, ... steps the state holds the sum of a whole window; the
    step after that starts anew. The sum is taken in float32: late small gradients would
    be lost in half precision. Entries that are not finite are left out.

    Args:
      window: T, steps in a window, an epoch for K-starts.
      magnitudes: sum $|g|$ instead of g. The magnitude of $\sum g$ tells where training
        pulls, $\sum |g|$ how much it pulls to either side.

    Returns:
      A `GradientTransformationExtraArgs`.

    Raises:
      ValueError: a `window` that is no integer of at least 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import transforms
      >>> tx = transforms.accumulate_gradient(2)
      >>> state = tx.init(jnp.zeros(2))
      >>> _, state = tx.update(jnp.array([1.0, -1.0]), state)
      >>> _, state = tx.update(jnp.array([-1.0, -1.0]), state)
      >>> state.total
      Array([ 0., -2.], dtype=float32)

    References:
      Haroon, arXiv 2209.02201, abstract ("gradient accumulation"); both readings are
      `[inferred]`.
    """
    require_static(window=window)
    if window < 1:
        raise value_error(f"`window` must be at least 1, got {window}.")

    def init(params: Params) -> AccumulateGradientState:
        total = jax.tree.map(lambda p: wide(jnp.zeros_like(p)), params)
        return AccumulateGradientState(jnp.int32(0), total)

    def update(
        updates: PyTree, state: AccumulateGradientState, params: Params
    ) -> tuple[PyTree, AccumulateGradientState]:
        fresh = state.count % window == 0

        def add(total: jax.Array, g: jax.Array) -> jax.Array:
            g = jnp.asarray(jnp.abs(g) if magnitudes else g, total.dtype)
            g = jnp.where(jnp.isfinite(g), g, 0)
            return jnp.where(fresh, g, total + g)

        total = jax.tree.map(add, state.total, updates)
        return updates, AccumulateGradientState(next_step(state.count), total)

    return transformation(init, update)
