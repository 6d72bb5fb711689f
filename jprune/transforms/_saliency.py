r"""GSM: only the Q most salient weights follow their gradient; the others just decay.

With $T = |w \cdot \partial L/\partial w|$ over the whole model, $B = 1[T \ge T_{(Q)}]$:

$$ z \leftarrow \beta z + \eta w + B \odot \partial L/\partial w, \qquad
   w \leftarrow w - \alpha z. $$

Passive weights shrink by about $1 - \alpha\eta/(1-\beta)$ a step, which is why the
method asks for high momentum. The set is chosen anew from every batch, so weights can
return.

Ding et al., "Global Sparse Momentum SGD for Pruning Very Deep Neural Networks", NeurIPS
2019 (arXiv 1909.12778), eq. (6)-(8).
"""

from math import floor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks, selection
from jprune._errors import require_static, value_error
from jprune._tree import require_same_structure
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule
from jprune.masks._count import exact, is_traced, require_sparsity
from jprune.masks._target import keep_counts, require_target
from jprune.masks._unstructured import ranked
from jprune.transforms._build import (
    decay,
    exactly_one,
    require_rate,
    transformation,
)
from jprune.transforms._finish import prune_once
from jprune.transforms._ranking import Ranking


class MaskBySaliencyState(NamedTuple):
    """State of `mask_by_saliency`: a few scalars.

    Attributes:
      warm: where the last threshold was, the start of the next search.
      passes: passes over the weights the last threshold took (read-only, for logs).
    """

    warm: selection.WarmStart
    passes: jax.Array


def mask_by_saliency(
    *, sparsity: Any = None, keep: Any = None, scope: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Passes the gradient of the most salient weights only (a gradient map).

    Place it first, on the raw mean gradient of the global batch (after clipping),
    before weight decay and momentum: masking after the decay would stop the shrinking.
    Entries that are not finite pass and take no weight's place, so that an
    `optax.apply_if_finite` behind it sees them.

    Args:
      sparsity: fraction s of passive weights over the scope; of n weights
        $\lfloor (1-s) n \rfloor$ are active, the paper's rule.
      keep: Q, the number of active weights, instead; an int or a traced int32.
      scope: the leaves that are ranked and masked; the others pass. See
        `masks.unstructured`.

    Returns:
      A `GradientTransformationExtraArgs`. With sparsity 0 it is the identity.

    Raises:
      ValueError: a target out of range; from `init`, a bad count or scope; from
        `update`, no `params`.

    References:
      Ding et al., arXiv 1909.12778, eq. (6). The authors keep all ties at the
      threshold; here exactly Q are active, ties by position.
    """
    exactly_one(sparsity=sparsity, keep=keep)
    require_target(sparsity, keep)

    def choose(
        params: Params, grads: PyTree, warm: selection.WarmStart
    ) -> tuple[Mask, selection.WarmStart, jax.Array]:
        active = _active(masks.size(params, scope), sparsity, keep)
        counts, _ = keep_counts(params, keep=active, scope=scope)
        return ranked(params, counts, scope=scope, min_keep=0, init=warm, times=grads)

    def init(params: Params) -> MaskBySaliencyState:
        warm = Ranking(None, 0, scope).cold(params)
        if jax.tree.leaves(params):
            jax.eval_shape(choose, params, params, warm)
        return MaskBySaliencyState(warm, jnp.int32(0))

    def update(
        updates: PyTree, state: MaskBySaliencyState, params: Params
    ) -> tuple[PyTree, MaskBySaliencyState]:
        require_same_structure("updates", updates, params)
        active, warm, passes = choose(params, updates, state.warm)
        # What is not finite ranks nowhere and passes: the optimizer may refuse it.
        seen = jax.tree.map(lambda m, u: m | ~jnp.isfinite(u), active, updates)
        return masks.apply(seen, updates), MaskBySaliencyState(warm, passes)

    return transformation(init, update, "mask_by_saliency")


def gsm(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: float,
    sparsity: Any = None,
    keep: Any = None,
    final_keep: int | None = None,
    momentum: float = 0.98,
    nesterov: bool = False,
    scope: Any = None,
    total_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Global sparse momentum SGD, from a trained network to a pruned one.

    Give `total_steps`, the length of the run: its last step removes the passive
    weights. Without it they only shrink, and nothing is zero until `finish`.

    A weight that is passive all along shrinks by $e^{-T\alpha\eta/(1-\beta)}$ in T
    steps. Let the exponent be 2 or more: with less the weights are still there when
    they are removed, and the network is hardly better than one pruned at once. A run of
    200 steps takes a rate of 0.02 and a decay of 0.01.

    The paper's two counting rules are kept apart: with `sparsity` s over n weights,
    $\lfloor (1-s) n \rfloor$ are active at each step and $n - \lfloor s n \rfloor$ stay
    at the end (LeNet-300-100 at 60x: 4,436 and 4,437).

    Args:
      learning_rate: $\alpha$, a number or a schedule.
      weight_decay: $\eta$, on the scope only; must be positive, or nothing shrinks.
      sparsity: s, in place of `keep`.
      keep: Q, active weights at each step.
      final_keep: weights kept at the end; by default `keep`.
      momentum: $\beta$; 0.98 to 0.99 in the paper.
      nesterov: Nesterov's form of momentum.
      scope: the kernels; see `masks.unstructured`. Other leaves get their full gradient
        and no decay.
      total_steps: the length of the run: the chain ends with `prune_once` at step
        `total_steps - 1`, which a shorter run never reaches. None: nothing is removed,
        call `finish` (with `masks.unstructured(params, ..., min_keep=0)`).

    Returns:
      An Optax transformation.

    Raises:
      ValueError: no positive `weight_decay`; both or neither of `sparsity` and `keep`,
        or one out of range.

    References:
      Ding et al., arXiv 1909.12778, eq. (8); counts of the authors' code.
    """
    require_rate(learning_rate, "gsm", "chain `mask_by_saliency` and it")
    require_static(total_steps=total_steps, final_keep=final_keep)
    if not is_traced(weight_decay) and not weight_decay > 0:
        raise value_error(
            f"`weight_decay` must be positive, got {weight_decay}: passive weights "
            "move by it alone."
        )
    exactly_one(sparsity=sparsity, keep=keep)
    require_target(sparsity, keep)
    require_target(keep=final_keep)

    def final(params: Params) -> Mask:
        kept = final_keep
        if kept is None:
            kept = _kept(masks.size(params, scope), sparsity, keep)
        return masks.unstructured(params, keep=kept, scope=scope, min_keep=0)

    steps = [
        mask_by_saliency(sparsity=sparsity, keep=keep, scope=scope),
        decay(weight_decay, scope),
        optax.sgd(learning_rate, momentum, nesterov),
    ]
    if total_steps is not None:
        steps.append(prune_once(final, step=total_steps - 1))
    return optax.chain(*steps)


def _active(n: int, sparsity: Any, keep: Any) -> Any:
    """Q, the paper's rule: floor((1 - s) n)."""
    if keep is not None:
        return keep
    require_sparsity(sparsity)
    if is_traced(sparsity):
        return jnp.floor((1 - sparsity) * n).astype(jnp.int32)
    return floor((1 - exact(sparsity)) * n)


def _kept(n: int, sparsity: Any, keep: Any) -> Any:
    """What the final cut keeps, the authors' rule: n - floor(s n)."""
    if keep is not None:
        return keep
    require_sparsity(sparsity)
    if is_traced(sparsity):
        return n - jnp.floor(sparsity * n).astype(jnp.int32)
    return n - floor(exact(sparsity) * n)
