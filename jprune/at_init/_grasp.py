r"""GraSP: keep what the flow of gradients needs.

After one step of gradient descent the loss has fallen by about $\lVert g \rVert^2$,
$g = \partial L / \partial w$. Removing weights changes this by
$-\,w \odot (H g)$ to first order, with H the Hessian of the loss. The paper's score is

$$ S = -\,w \odot (H g), $$

and the weights with the largest S go: without them the gradient's norm falls least, or
rises. No Hessian is formed, $H g$ is one Jacobian-vector product through the gradient.

Here, as everywhere in `jprune`, a larger score means "keep": `grasp` returns
$w \odot (H g) = -S$. It is **signed**.

Wang, Zhang and Grosse, "Picking Winning Tickets Before Training by Preserving Gradient
Flow", ICLR 2020 (arXiv 2002.07376).
"""

from typing import Any

import jax

from jprune._dtypes import wide
from jprune._typing import Params, PyTree, Scores
from jprune.at_init._gradients import LossFn, loss_of_weights, mean_over_chunks, scored
from jprune.masks._scope import in_scope, resolve_scope


def grasp(
    loss_fn: LossFn,
    params: Params,
    batch: PyTree,
    key: jax.Array | None = None,
    *,
    chunks: int = 1,
    scope: Any = None,
) -> Scores:
    r"""$w \odot (H g)$, the negative of the paper's S: keep the largest.

    The paper's loss divides the logits by a temperature of 200, which makes the softmax
    flat; do that inside `loss_fn`. Its code also draws the classifier anew for scoring
    (Xavier normal), and takes 25 examples of each class in two chunks.

    Args:
      loss_fn: as for `snip`, twice differentiable almost everywhere.
      params: the parameters, as initialized.
      batch: what the loss takes.
      key: a PRNG key, for a loss that wants one; g and H see the same noise.
      chunks: as for `snip`: g is the mean over all chunks, and H g the mean of each
        chunk's H times that g.
      scope: the leaves scored; g and H are taken with respect to them alone, as the
        paper's code does, so biases and norms have no part in the product.

    Returns:
      Signed scores of the shapes of `params`, float32 or wider; 0 for leaves out of
      scope. `masks.unstructured(scores, 0.9, signed=True)` removes the exact count (the
      paper's code keeps one too many: all at its threshold).

    Raises:
      ValueError: as `snip`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import at_init
      >>> def loss(w, batch):
      ...     x, t = batch
      ...     return 0.5 * jnp.sum((x @ w - t) ** 2)
      >>> w = jnp.array([[1.0, -2.0], [0.5, 0.0]])
      >>> at_init.grasp(loss, w, (jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])))
      Array([[10., 30.],
             [10., -0.]], dtype=float32)

    References:
      Wang, Zhang and Grosse, arXiv 2002.07376, algorithm 1.
    """
    scope = resolve_scope(scope, params)
    weights, loss = (
        in_scope(params, scope),
        loss_of_weights(loss_fn, params, scope),
    )

    def gradient(part: PyTree, own: Any, at: list[jax.Array]) -> list[jax.Array]:
        return jax.grad(loss)(at, part, own)

    def mean(fn: Any) -> list[jax.Array]:
        return mean_over_chunks(fn, weights, batch, key, chunks)

    g = mean(lambda part, own: gradient(part, own, weights))
    step = [x.astype(w.dtype) for x, w in zip(g, weights, strict=True)]

    def product(part: PyTree, own: Any) -> list[jax.Array]:
        return jax.jvp(lambda at: gradient(part, own, at), (weights,), (step,))[1]

    found = [wide(w) * h for w, h in zip(weights, mean(product), strict=True)]
    return scored(found, params, scope)
