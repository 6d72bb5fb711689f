r"""SNIP: what the loss would lose with a connection, told at initialization.

Give every weight a gate m = 1. The gate's gradient at one batch, before any training,

$$ \frac{\partial L(m \odot w)}{\partial m} \Big|_{m = 1}
   = w \cdot \frac{\partial L}{\partial w}, $$

is the first-order effect of closing it, and its magnitude the score. One ranking over
all kernels decides. "Robust Pruning at Initialization" calls it SBP, sensitivity-based
pruning, and shows when it empties whole layers.

Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR
2019 (arXiv 1810.02340).
"""

from typing import Any

import jax

from jprune import scores
from jprune._typing import Params, PyTree, Scores
from jprune.at_init._gradients import LossFn, loss_of_weights, mean_over_chunks, scored
from jprune.masks._scope import in_scope, resolve_scope


def snip(
    loss_fn: LossFn,
    params: Params,
    batch: PyTree,
    key: jax.Array | None = None,
    *,
    chunks: int = 1,
    scope: Any = None,
) -> Scores:
    r"""$|w \cdot \partial L/\partial w|$ on one batch, at initialization.

    Args:
      loss_fn: `loss_fn(params, batch)` -> a scalar, the loss that training uses; called
        as `loss_fn(params, batch, key)` if a key is given. Turn dropout off. Batch norm
        is best in train mode: the running statistics of a fresh network mean nothing.
        (Synaptic-Flow's code scores in eval mode.)
      params: the parameters, as initialized.
      batch: what the loss takes; ten examples of each class are usual.
      key: a PRNG key, for a loss that wants one.
      chunks: the batch is cut into so many, along its first axis, and gradients are
        averaged, signs and all, before the absolute value.
      scope: the leaves scored; see `masks.unstructured`.

    Returns:
      Non-negative scores of the shapes of `params`, float32 or wider; 0 for leaves out
      of scope. `masks.unstructured(scores, 0.9)` is SNIP's mask; `min_keep=0` lets it
      empty a layer, as the paper does.

    Raises:
      ValueError: `chunks` that do not divide the batch; as `masks.unstructured` for
        `scope`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import at_init
      >>> def loss(w, batch):
      ...     x, t = batch
      ...     return 0.5 * jnp.sum((x @ w - t) ** 2)
      >>> w = jnp.array([[1.0, -2.0], [0.5, 0.0]])
      >>> at_init.snip(loss, w, (jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])))
      Array([[2., 6.],
             [2., 0.]], dtype=float32)

    References:
      Lee et al., arXiv 1810.02340, eq. (6), without its normalization by the sum, which
      no ranking sees.
    """
    scope = resolve_scope(scope, params)
    weights, loss = (
        in_scope(params, scope),
        loss_of_weights(loss_fn, params, scope),
    )

    def gradient(part: PyTree, own: Any) -> list[jax.Array]:
        return jax.grad(loss)(weights, part, own)

    grads = mean_over_chunks(gradient, weights, batch, key, chunks)
    return scored(scores.saliency(weights, grads), params, scope)
