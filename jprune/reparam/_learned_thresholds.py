r"""Adaptive Sparsity Loss: a learned threshold per layer, and a loss on the budget.

Layer l prunes what is smaller than $r_l$ standard deviations,

$$ \tilde W = W \odot 1[\,|W| > b_l\,], \qquad b_l = r_l \sigma_l + \epsilon, $$

straight-through: $\partial L / \partial W := \partial L / \partial \tilde W$ for pruned
weights too, so that the dense weights stay roughly a centered Gaussian. Then the
layer's density is $d_l = 1 - \operatorname{erf}(r_l / \sqrt 2)$, differentiable in
$r_l$, and the thresholds are learned from

$$ L + \lambda \left( \frac{\sum_l c_l n_l d_l}{\sum_l c_l n_l} - (1 - s^*)
   \right)^2 $$

with $c_l$ the cost of one weight (1: parameters; its multiply-adds: FLOPs). The network
finds its own allocation, the total meets the budget. Through the task loss a threshold
sees $\partial L/\partial r = \sigma \sum_{pruned} (-W_i / b)\, G_i$ with
$G = \partial L / \partial \tilde W$.

Predicted and measured sparsity differ as far as the weights are not Gaussian (uniform
initializations give 0.95 for a predicted 0.90): log both, and for an exact count end
with a magnitude top-k of the exported parameters.

Retsinas et al., "Weight Pruning via Adaptive Sparsity Loss", arXiv 2006.02768.
"""

from collections.abc import Mapping
from functools import partial
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jprune._errors import value_error
from jprune._stacks import Axes, layer_axes, stack_shape
from jprune._typing import Mask, Params, PyTree
from jprune.reparam._named import (
    as_mask,
    chosen,
    clip,
    copied,
    cost_each,
    layer_size,
    replaced,
    scalar,
    size,
    spread,
    stacks,
)
from jprune.reparam._reparam import Reparam, no_penalty

Budget = Literal["global", "leaf"]

HIGHEST = 5.0
"""Largest threshold in standard deviations; a predicted sparsity of 0.99999943."""


class ThresholdTheta(NamedTuple):
    """Theta of `learned_thresholds`.

    Attributes:
      weights: the dense parameters.
      thresholds: a dict by path of the kernel, in standard deviations, 0-d floats in
        [0, 5]; for a stack of layers one for each, of the shape of the stack. They want
        a hundredth of the weights' learning rate and no weight decay.
    """

    weights: Params
    thresholds: PyTree


def learned_thresholds(
    target: float,
    *,
    weight: float = 10.0,
    budget: Budget = "global",
    one_sided: bool = False,
    costs: PyTree | None = None,
    min_size: int = 1000,
    start: float = 0.6,
    center: bool = True,
    eps: float = 1e-6,
    scope: Any = None,
    stacked: Any = None,
) -> Reparam:
    r"""A learned threshold for each kernel in scope (ASL), and each layer of a stack.

    Args:
      target: $s^*$, the sparsity wanted, in [0, 1).
      weight: $\lambda$.
      budget: "global", one budget that layers share, or "leaf", the same in each
        (its penalty is the mean over layers).
      one_sided: only exceeding the budget costs, $\lambda \max(0, d - (1 - s^*))$.
      costs: $c_l$, a tree of numbers structured as the parameters (one for all layers
        of a stack); None counts parameters. For FLOPs give the output positions of
        each convolution.
      min_size: leaves, or layers, that are smaller stay dense and are not counted, nor
        are those without weights.
      start: the thresholds begin at the predicted sparsity `start * target`.
      center: subtract each layer's mean (in the forward pass, not differentiated, and
        in `project`), as the authors' code does in place.
      eps: $\epsilon$.
      scope: which leaves; None for `masks.prunable`.
      stacked: which leaves are stacks of layers, each with a threshold, a mean, a
        deviation and a budget of its own; see `masks.unstructured`.

    Returns:
      A `Reparam` whose theta is a `ThresholdTheta`. `project` keeps thresholds in
      [0, 5]; `export` gives exactly what the last forward pass used.

    Raises:
      ValueError: arguments out of range; from `init`, no leaf of `min_size`, a
        `stacked` that does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import reparam
      >>> r = reparam.learned_thresholds(0.5, min_size=1)
      >>> theta = r.init({"kernel": jnp.array([[-1.5, -0.5, 0.5, 1.5]])})
      >>> theta = theta._replace(thresholds={"kernel": jnp.float32(0.5)})
      >>> r.apply(theta)["kernel"]
      Array([[-1.5,  0. ,  0. ,  1.5]], dtype=float32)

    References:
      Retsinas et al., arXiv 2006.02768; defaults of the authors' code. Deviations: the
      largest weight of a layer is never pruned; kept weights pass bit for bit (there
      they are divided by the threshold and multiplied again); the one-sided loss takes
      the whole budget, there the first layer's only.
    """
    if not (0 <= target < 1 and 0 <= start <= 1 and weight >= 0 and eps >= 0):
        raise value_error(
            "Needed: `target` in [0, 1), `start` in [0, 1], `weight`, `eps` >= 0; got "
            f"target={target}, start={start}, weight={weight}, eps={eps}."
        )
    if budget not in ("global", "leaf"):
        raise value_error(f"`budget` must be 'global' or 'leaf', got {budget!r}.")

    loss = _Loss(
        target,
        weight,
        budget,
        one_sided,
        costs,
        max(min_size, 1),
        start,
        center,
        eps,
        scope,
        stacked,
    )
    return Reparam(
        partial(_init, loss),
        partial(_apply, loss),
        partial(_export, loss),
        partial(_penalty, loss),
        partial(_project, loss),
    )


class _Loss(NamedTuple):
    """The arguments of `learned_thresholds`."""

    target: float
    weight: float
    budget: Budget
    one_sided: bool
    costs: PyTree | None
    min_size: int
    start: float
    center: bool
    eps: float
    scope: Any
    stacked: Any

    def kernels(self, params: Params) -> dict[str, tuple[jax.Array, Axes]]:
        """The leaves with thresholds, and the axes of their layers, by path."""
        taken, axes = chosen(params, self.scope), stacks(params, self.stacked)
        found = {
            name: (w, axes[name])
            for name, w in taken.items()
            if size(w) and layer_size(w, axes[name]) >= self.min_size
        }
        if not found and any(map(size, jax.tree.leaves(params))):
            raise value_error(
                f"No leaf in scope has `min_size`={self.min_size} weights; lower it."
            )
        return found

    def pruned(self, theta: ThresholdTheta) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Each kernel as the forward pass uses it, and its mask."""
        return {
            name: soft_prune(
                _centered(w, axes) if self.center else w,
                theta.thresholds[name],
                eps=self.eps,
                axes=axes,
            )
            for name, (w, axes) in self.kernels(theta.weights).items()
        }


def _init(loss: _Loss, params: Params) -> ThresholdTheta:
    cost_each(loss.costs, params)
    # sqrt(2) erfinv(s), the threshold at which a Gaussian loses the fraction s.
    first = NormalDist().inv_cdf((1 + loss.start * loss.target) / 2)
    thresholds = {
        name: scalar(first, stack_shape(w.shape, axes))
        for name, (w, axes) in loss.kernels(params).items()
    }
    return ThresholdTheta(copied(params), thresholds)


def _apply(loss: _Loss, theta: ThresholdTheta, key: Any = None) -> Params:
    del key
    used = {name: w for name, (w, _) in loss.pruned(theta).items()}
    return replaced(theta.weights, used)


def _penalty(loss: _Loss, theta: ThresholdTheta) -> jax.Array:
    each = cost_each(loss.costs, theta.weights)
    kernels = loss.kernels(theta.weights)
    if not kernels:
        return no_penalty(theta)
    return budget_penalty(
        theta.thresholds,
        {name: each(name) * layer_size(*kernel) for name, kernel in kernels.items()},
        target=loss.target,
        weight=loss.weight,
        budget=loss.budget,
        one_sided=loss.one_sided,
    )


def _project(
    loss: _Loss, new: ThresholdTheta, old: ThresholdTheta, step: jax.Array
) -> ThresholdTheta:
    del old, step
    held = {n: jnp.clip(r, 0, HIGHEST) for n, r in new.thresholds.items()}
    if not loss.center:
        return ThresholdTheta(new.weights, held)
    moved = {n: _centered(*kernel) for n, kernel in loss.kernels(new.weights).items()}
    return ThresholdTheta(replaced(new.weights, moved), held)


def _export(loss: _Loss, theta: ThresholdTheta) -> tuple[Params, Mask]:
    kept = {name: keep for name, (_, keep) in loss.pruned(theta).items()}
    return copied(_apply(loss, theta)), as_mask(theta.weights, kept)


def soft_prune(
    w: jax.Array, r: jax.Array, *, eps: float = 1e-6, axes: Axes = ()
) -> tuple[jax.Array, jax.Array]:
    r"""Prunes what is within $r \sigma + \epsilon$, differentiable in w and r.

    Args:
      w: a kernel.
      r: the threshold in standard deviations of `w` (with Bessel's correction, not
        differentiated), 0-d; for a stack one for each layer, of the shape of the stack;
        clipped to [0, 5].
      eps: $\epsilon$.
      axes: those along which `w` is a stack of layers.

    Returns:
      The pruned kernel and its mask. Kept weights are bit for bit those of `w`; the
      largest magnitude of a layer is always kept.
    """
    within, fixed = layer_axes(w.ndim, axes), jax.lax.stop_gradient(w)
    magnitude, how = jnp.abs(fixed), {"axis": within, "keepdims": True}
    many = layer_size(w, axes) > 1
    sigma = jnp.std(fixed, ddof=1, **how) if many else magnitude
    bound = spread(clip(r, 0, HIGHEST).astype(w.dtype), w, axes) * sigma + eps
    keep = (magnitude > bound) | (magnitude == jnp.max(magnitude, **how))
    return _hard(w, bound, keep), keep


@jax.custom_jvp
def _hard(w: jax.Array, bound: jax.Array, keep: jax.Array) -> jax.Array:
    del bound
    return jnp.where(keep, w, jnp.zeros_like(w))


@_hard.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # With v = w / bound and s = v where kept, else 0, the pruned kernel is bound * s.
    # Straight-through (ds := dv) leaves dw + (s - v) dbound.
    w, bound, keep = primals
    dw, dbound, _ = tangents
    safe = jnp.where(bound > 0, bound, jnp.ones_like(bound))
    slope = jnp.where(keep, jnp.zeros_like(w), -w / safe)
    return _hard(w, bound, keep), dw + slope * dbound


def predicted_density(r: jax.Array) -> jax.Array:
    r"""$d = 1 - \operatorname{erf}(r / \sqrt 2)$: what a Gaussian has beyond r sigma.

    Args:
      r: thresholds in standard deviations, any shape.

    Returns:
      Densities; derivative $-\sqrt{2 / \pi}\, e^{-r^2 / 2}$.
    """
    return jax.lax.erfc(r / jnp.sqrt(jnp.asarray(2.0, jnp.result_type(r))))


def budget_penalty(
    thresholds: Mapping[str, jax.Array],
    prices: Mapping[str, float],
    *,
    target: float,
    weight: float,
    budget: Budget = "global",
    one_sided: bool = False,
) -> jax.Array:
    r"""The sparsity loss of the thresholds.

    Args:
      thresholds: $r_l$ by path; for a stack an array with one for each layer.
      prices: $c_l n_l$ by path, of one layer.
      target: $s^*$.
      weight: $\lambda$.
      budget: "global" or "leaf".
      one_sided: see `learned_thresholds`.

    Returns:
      A 0-d array.
    """
    densities = {name: predicted_density(thresholds[name]) for name in prices}

    def price(density: jax.Array) -> jax.Array:
        over = density - (1 - target)
        return weight * (jax.nn.relu(over) if one_sided else over**2)

    if budget == "leaf":
        each = [jnp.ravel(price(d)) for d in densities.values()]
        return jnp.mean(jnp.concatenate(each))
    total = sum(prices[n] * size(d) for n, d in densities.items())
    shares = [prices[n] / total * jnp.sum(d) for n, d in densities.items()]
    return price(sum(shares[1:], shares[0]))


def _centered(w: jax.Array, axes: Axes) -> jax.Array:
    within = layer_axes(w.ndim, axes)
    return w - jax.lax.stop_gradient(jnp.mean(w, axis=within, keepdims=True))
