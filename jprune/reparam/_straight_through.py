r"""Straight-through masks: pruned weights in the forward pass, dense weights trained.

$$ \tilde w = m(w) \odot w, \qquad
   \frac{\partial L}{\partial w} := \frac{\partial L}{\partial \tilde w}. $$

The mask is chosen anew from the dense weights at every step and its derivative is
ignored; the gradient of the pruned network reaches *all* weights, so that a pruned one
goes on moving and may return. Nothing is pruned for good until `export`.

Lin et al., "Dynamic Model Pruning with Feedback", ICLR 2020 (arXiv 2006.07253), with
magnitudes; Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks
From Scratch", ICLR 2021 (arXiv 2102.04010), with N:M masks and a further decay of the
pruned weights (SR-STE); Jayakumar et al., "Top-KAST: Top-K Always Sparse Training",
NeurIPS 2020 (arXiv 2106.03517), with a gradient for the larger of the pruned ones only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune import masks
from jprune._errors import value_error
from jprune._typing import Mask, Params
from jprune.masks._count import require_sparsity
from jprune.masks._rank import RankingName
from jprune.reparam._named import copied
from jprune.reparam._reparam import Reparam, no_penalty


@jax.custom_jvp
def pass_through(value: jax.Array, through: jax.Array) -> jax.Array:
    """`value`, with the derivative of `through`: the straight-through estimator.

    Args:
      value: what the forward pass uses; its own derivative is ignored.
      through: what the backward pass sees; same shape and dtype.

    Returns:
      `value`, bit for bit.

    References:
      Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons",
      arXiv 1308.3432.
    """
    del through
    return value


@pass_through.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[1]


def straight_through(select: Callable[[Params], Mask]) -> Reparam:
    """Trains dense weights through the mask that `select` draws from them now.

    Args:
      select: pure function of the parameters to a mask, the same that
        `transforms.finish` takes, e.g. `lambda p: masks.unstructured(p, 0.9)`; with
        `lambda p: masks.n_of_m(p, 2, 4)` it is the forward half of SR-STE, whose other
        half is `transforms.sr_ste`. It is called at every step.

    Returns:
      A `Reparam` whose theta is the dense weights, structured as the parameters.
      With a mask that keeps everything it is the identity.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import masks, reparam
      >>> r = reparam.straight_through(lambda p: masks.unstructured(p, 0.5))
      >>> w = jnp.array([[1.0, 0.2]])
      >>> r.apply(w), jax.grad(lambda w: jnp.sum(r.apply(w)))(w)
      (Array([[1., 0.]], dtype=float32), Array([[1., 1.]], dtype=float32))

    References:
      Lin et al., arXiv 2006.07253, eq. (DPF), there with a mask renewed every 16 steps;
      here at each one; Zhou et al., arXiv 2102.04010, section 4.
    """

    def apply(theta: Params, key: Any = None) -> Params:
        del key
        pruned = masks.apply(select(jax.lax.stop_gradient(theta)), theta)
        return jax.tree.map(pass_through, pruned, theta)

    def export(theta: Params) -> tuple[Params, Mask]:
        mask = select(theta)
        return masks.apply(mask, theta), mask

    return Reparam(copied, apply, export)


def top_kast(
    sparsity: float,
    backward_sparsity: float,
    *,
    decay: float = 0.0,
    scope: Any = None,
    ranking: RankingName = "leaf",
    min_keep: int = 1,
    stacked: Any = None,
) -> Reparam:
    r"""Top-KAST: a sparse forward pass, gradients for a larger set around it.

    With A the largest $1 - s$ of the weights and $B \supseteq A$ the largest
    $1 - s_b$, the forward pass uses $w_A$ and the gradient reaches $w_B$; the rest
    rests. The penalty is
    $\frac{\lambda}{2} \left( \lVert w_A \rVert^2 + \frac{1}{D} \lVert w_{B \setminus A}
    \rVert^2 \right)$ with D the forward density: the harder pull on $B \setminus A$
    makes a weight earn its place.

    Args:
      sparsity: s, of the forward pass.
      backward_sparsity: $s_b \le s$, of the gradient.
      decay: $\lambda$.
      scope: which leaves; see `masks.unstructured`.
      ranking: "leaf" (the paper's) or "global".
      min_keep: see `masks.unstructured`.
      stacked: see `masks.unstructured`.

    Returns:
      A `Reparam` whose theta is the dense weights.

    Raises:
      ValueError: `backward_sparsity` above `sparsity`, or one outside [0, 1).

    References:
      Jayakumar et al., arXiv 2106.03517, section 2. The form of the penalty is
      `[inferred]`: a decay of A, divided by D on the rest of B.
    """
    require_sparsity(sparsity)
    require_sparsity(backward_sparsity)
    if backward_sparsity > sparsity:
        raise value_error(
            "`backward_sparsity` must not exceed `sparsity` (the gradient reaches more "
            f"weights than the forward pass uses): {backward_sparsity} > {sparsity}."
        )

    def largest(theta: Params, share: float) -> Mask:
        theta = jax.lax.stop_gradient(theta)
        return masks.unstructured(
            theta,
            share,
            ranking=ranking,
            scope=scope,
            min_keep=min_keep,
            stacked=stacked,
        )

    def apply(theta: Params, key: Any = None) -> Params:
        del key
        forward = masks.apply(largest(theta, sparsity), theta)
        backward = masks.apply(largest(theta, backward_sparsity), theta)
        return jax.tree.map(pass_through, forward, backward)

    def penalty(theta: Params) -> jax.Array:
        if decay == 0:
            return no_penalty(theta)

        def leaf(w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
            if a.ndim == 0:  # out of scope
                return jnp.zeros((), w.dtype)
            near = jnp.where(b & ~a, w, 0)
            held = jnp.sum(jnp.where(a, w, 0) ** 2)
            return held + jnp.sum(near**2) / (1 - sparsity)

        forward = largest(theta, sparsity)
        backward = largest(theta, backward_sparsity)
        squares = jax.tree.map(leaf, theta, forward, backward)
        return 0.5 * decay * sum(jax.tree.leaves(squares), jnp.zeros(()))

    def export(theta: Params) -> tuple[Params, Mask]:
        mask = largest(theta, sparsity)
        return masks.apply(mask, theta), mask

    return Reparam(copied, apply, export, penalty)
