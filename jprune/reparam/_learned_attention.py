r"""ASWL: one learned attention per layer scales its output and sets its sparsity.

Layer l has a scalar attention $a_l \in (0, 1]$. It prunes the fraction

$$ p_l = (1 - a_l)^\alpha $$

of the layer's smallest weights and multiplies what is left:
$y_l = a_l\, f_l(x; \tilde W_l, b_l)$. The loss pushes attentions up where a layer
matters, a penalty on the fraction that remains pushes them down,

$$ J = L + \gamma\, (S - r)^2 + \lambda \sum \tilde W^2, \qquad
   S = \sum_l (1 - p_l) n_l \Big/ \sum_l n_l, $$

and the layers' sparsities are learned with the weights, from the initialization. Dense
weights are kept: the pruned copy is used, its gradient reaches all of them
(straight-through), and the set is chosen anew at each step. $a_l$ learns through the
scale and through S alone; the derivative of the mask is ignored.

**A norm behind the layer cancels the scale.** Batch or layer norm right after it makes
the loss independent of $a_l$ (up to epsilon), so that only the penalty acts on it and
it drifts to its floor, however much the layer matters. In such networks set `target` to
the density wanted, keep `gamma` small, or give a `scope` without those layers.

He, Shi, Dong, "Learning Pruned Structure and Weights Simultaneously from Scratch: an
Attention based Approach", arXiv 2111.02399, eqs. (1) to (3). The published code sorts
signed weights and never assigns the pruned ones; this is what the text intends.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._stacks import Axes, stack_shape
from jprune._tree import leaf_name, named_leaves
from jprune._typing import Mask, Params, PyTree
from jprune.masks._rank import rank
from jprune.reparam._named import (
    as_mask,
    chosen,
    clip,
    copied,
    layer_size,
    replaced,
    scalar,
    size,
    spread,
    stacks,
)
from jprune.reparam._reparam import Reparam, no_penalty
from jprune.reparam._straight_through import pass_through

LEAST, MOST = 0.01, 0.99
"""Least attention and largest sparsity of a layer (the published code's clips)."""

_BIAS_NAMES = ("bias", "b")


class AttentionTheta(NamedTuple):
    """Theta of `learned_attention`.

    Attributes:
      weights: the dense parameters.
      attention: a dict by path of the kernel, of 0-d float arrays in [0.01, 1]; for a
        stack of layers one for each, of the shape of the stack.
    """

    weights: Params
    attention: PyTree


def learned_attention(
    *,
    gamma: float = 5.0,
    alpha: float = 1.0,
    target: float = 0.0,
    decay: float = 1e-4,
    start: float = 0.5,
    scope: Any = None,
    biases: Mapping[str, str] | None = None,
    stacked: Any = None,
) -> Reparam:
    r"""A learned attention for each kernel in scope (ASWL), and each layer of a stack.

    Args:
      gamma: $\gamma$, weight of the penalty on the remaining fraction; 5 in the
        authors' code.
      alpha: $\alpha$; above 1 prunes milder for the same attention, below 1 harder.
      target: r, the remaining fraction (density) at which the penalty is least. The
        paper's 0 sets no target; r is the simplest way to a budget.
      decay: $\lambda$, of the squared pruned weights.
      start: attention of every layer at first, in [0.01, 1]. At 1 nothing is scaled or
        pruned.
      scope: which leaves are kernels; None for `masks.prunable`.
      biases: path of the bias for the path of a kernel, which the attention scales too.
        None: the leaf called `bias` or `b` beside the only kernel of its level.
      stacked: which leaves are stacks of layers, each with an attention and a sparsity
        of its own; see `masks.unstructured`. The bias of a stack has its layers along
        the same axes, if `stacked` names no others for it.

    Returns:
      A `Reparam` whose theta is an `AttentionTheta`. `project` keeps attentions in
      [0.01, 1]; `export` folds them into kernels and biases.

    Raises:
      ValueError: arguments out of range; from `init`, two kernels with one bias, or
        `biases` from what is no kernel in scope, or to one, a bias without the layers
        of its stacked kernel.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import reparam
      >>> r = reparam.learned_attention(start=0.5)
      >>> theta = r.init({"kernel": jnp.array([[0.5, -0.1, 0.3, -0.05]])})
      >>> r.apply(theta)["kernel"]
      Array([[0.25, 0.  , 0.15, 0.  ]], dtype=float32)

    References:
      He et al., arXiv 2111.02399. Exactly $\lfloor n_l p_l \rfloor$ weights are pruned,
      ties by position, where the paper's threshold keeps all ties.
    """
    if not LEAST <= start <= 1:
        raise value_error(f"`start` must be in [{LEAST}, 1], got {start}.")
    if not (alpha > 0 and gamma >= 0 and decay >= 0 and 0 <= target <= 1):
        raise value_error(
            "Needed: `alpha` > 0, `gamma` >= 0, `decay` >= 0, `target` in [0, 1]; got "
            f"alpha={alpha}, gamma={gamma}, decay={decay}, target={target}."
        )

    rule = _Rule(gamma, alpha, target, decay, start, scope, biases, stacked)
    return Reparam(
        partial(_init, rule),
        partial(_apply, rule),
        partial(_export, rule),
        partial(_penalty, rule),
        _project,
    )


class _Rule(NamedTuple):
    """The arguments of `learned_attention`."""

    gamma: float
    alpha: float
    target: float
    decay: float
    start: float
    scope: Any
    biases: Mapping[str, str] | None
    stacked: Any

    def masks(self, theta: AttentionTheta) -> dict[str, jax.Array]:
        """What is kept now, by path."""
        axes = stacks(theta.weights, self.stacked)
        kernels = chosen(theta.weights, self.scope)
        return _kept(kernels, theta.attention, self.alpha, axes)

    def pruned(self, theta: AttentionTheta) -> dict[str, jax.Array]:
        """The pruned kernels by path, straight-through, not yet scaled."""
        kept, kernels = self.masks(theta), chosen(theta.weights, self.scope)
        return {
            name: pass_through(jnp.where(kept[name], w, jnp.zeros_like(w)), w)
            for name, w in kernels.items()
        }


def _init(rule: _Rule, params: Params) -> AttentionTheta:
    kernels, axes = chosen(params, rule.scope), stacks(params, rule.stacked)
    attention = {
        name: scalar(rule.start, stack_shape(w.shape, axes[name]))
        for name, w in kernels.items()
    }
    _biases(rule, params, attention)  # a bad one fails here
    return AttentionTheta(copied(params), attention)


def _apply(rule: _Rule, theta: AttentionTheta, key: Any = None) -> Params:
    del key
    used = rule.pruned(theta)
    leaves = dict(named_leaves(theta.weights))
    axes, a = stacks(theta.weights, rule.stacked), theta.attention
    used = {name: _scaled(w, a[name], axes[name]) for name, w in used.items()}
    for bias, (kernel, at) in _biases(rule, theta.weights, a).items():
        used[bias] = _scaled(leaves[bias], a[kernel], at)
    return replaced(theta.weights, used)


def _penalty(rule: _Rule, theta: AttentionTheta) -> jax.Array:
    kernels = chosen(theta.weights, rule.scope)
    axes = stacks(theta.weights, rule.stacked)
    sizes = {n: layer_size(w, axes[n]) for n, w in kernels.items()}
    if not any(map(size, kernels.values())):
        return no_penalty(theta)
    left = remaining(theta.attention, sizes, alpha=rule.alpha)
    price = rule.gamma * (left - rule.target) ** 2
    if rule.decay == 0:
        return price
    return price + rule.decay * sum(jnp.sum(w**2) for w in rule.pruned(theta).values())


def _project(
    new: AttentionTheta, old: AttentionTheta, step: jax.Array
) -> AttentionTheta:
    del old, step
    held = {n: jnp.clip(a, LEAST, 1) for n, a in new.attention.items()}
    return AttentionTheta(new.weights, held)


def _export(rule: _Rule, theta: AttentionTheta) -> tuple[Params, Mask]:
    return copied(_apply(rule, theta)), as_mask(theta.weights, rule.masks(theta))


def pruning_ratio(attention: jax.Array, alpha: float = 1.0) -> jax.Array:
    r"""$p = \operatorname{clip}((1 - a)^\alpha, 0, 0.99)$, differentiable.

    Args:
      attention: a, any shape.
      alpha: $\alpha$.

    Returns:
      The fraction pruned. At a = 1 with $\alpha < 1$, where the derivative is infinite,
      it is taken as 0.
    """
    rest = 1 - clip(attention, LEAST, 1)
    if alpha < 1:
        safe = jnp.where(rest > 0, rest, 1)
        return clip(jnp.where(rest > 0, safe**alpha, 0), 0, MOST)
    return clip(rest ** (int(alpha) if alpha == int(alpha) else alpha), 0, MOST)


def remaining(
    attention: Mapping[str, jax.Array], sizes: Mapping[str, int], alpha: float = 1.0
) -> jax.Array:
    r"""$S = \sum_l (1 - p_l) n_l / \sum_l n_l$, the fraction of weights that remains.

    Args:
      attention: $a_l$ by path; for a stack an array with one for each layer.
      sizes: $n_l$ by path, of one layer.
      alpha: $\alpha$.

    Returns:
      A 0-d array in [0.01, 1].
    """
    left = [
        jnp.sum(1 - pruning_ratio(a, alpha)) * sizes[n] for n, a in attention.items()
    ]
    return sum(left[1:], left[0]) / sum(
        sizes[n] * size(a) for n, a in attention.items()
    )


def _kept(
    kernels: Mapping[str, jax.Array],
    attention: Mapping[str, jax.Array],
    alpha: float,
    axes: Mapping[str, Axes],
) -> dict[str, jax.Array]:
    """The masks of now: all but the floor(n p) smallest of each layer."""
    if not kernels:
        return {}
    counts = []
    for name, w in kernels.items():
        share = jax.lax.stop_gradient(pruning_ratio(attention[name], alpha))
        n = layer_size(w, axes[name])
        removed = jnp.floor(share * n).astype(jnp.int32)
        counts.append(n - jnp.clip(removed, 0, max(n - 1, 0)))
    leaves = [jax.lax.stop_gradient(w) for w in kernels.values()]
    how: Any = {"ranking": "leaf", "min_keep": 0}
    kept, _ = rank(leaves, counts, stacks=[axes[name] for name in kernels], **how)
    return dict(zip(kernels, kept, strict=True))


def _scaled(x: jax.Array, a: jax.Array, axes: Axes) -> jax.Array:
    """`x` times the attention of its layer; one number scales all of it."""
    a = a.astype(x.dtype)
    return (spread(a, x, axes) if axes else a) * x


def _biases(
    rule: _Rule, params: Params, attention: Mapping[str, jax.Array]
) -> dict[str, tuple[str, Axes]]:
    """Of each bias that is scaled its kernel, and the axes of its layers, by path."""
    leaves, axes = dict(named_leaves(params)), stacks(params, rule.stacked)
    found = {}
    for kernel, bias in _bias_of(params, attention, rule.biases).items():
        at = axes[kernel] and (axes[bias] or axes[kernel])
        shape, layers = np.shape(leaves[bias]), np.shape(attention[kernel])
        if at and (max(at) >= len(shape) or stack_shape(shape, at) != layers):
            raise value_error(
                f"The bias {bias} of shape {shape} must have the layers of its kernel "
                f"{kernel}, {layers} along axes {at}: say where they lie with "
                "`stacked`, or which bias the kernel has with `biases`."
            )
        found[bias] = kernel, at
    return found


def _bias_of(
    params: Params, kernels: Mapping[str, Any], given: Mapping[str, str] | None
) -> dict[str, str]:
    """Which bias goes with which kernel, by path."""
    others = [name for name, _ in named_leaves(params) if name not in kernels]
    if given is None:
        named = (name for name in others if leaf_name(name) in _BIAS_NAMES)
        beside = {_level(name): name for name in named}
        given = {k: beside[_level(k)] for k in kernels if _level(k) in beside}
    wrong = [f"{k}: {b}" for k, b in given.items() if k not in kernels]
    wrong += [f"{k}: {b}" for k, b in given.items() if b not in others]
    if wrong:
        raise value_error(
            "`biases` must lead from a kernel in scope to a leaf that is none: "
            f"{wrong[0]!r}."
        )
    biases = [*given.values()]
    twice = [bias for bias in biases if biases.count(bias) > 1]
    if twice:
        raise value_error(
            f"Two kernels share the bias {twice[0]}: say which it belongs to with "
            "`biases={kernel path: bias path}`."
        )
    return dict(given)


def _level(path: str) -> str:
    """Where a leaf lies, without its name; see `leaf_name`."""
    return path.removesuffix("/value").rpartition("/")[0]
