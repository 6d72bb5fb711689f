r"""Pruning by a weight's history: what was large for long survives one bad step.

Inspired by the abstract of WeightMom, and no more than that: only the abstract could be
read. It says that weights are pruned gradually, by their magnitude in the previous
iterations, and that each layer has an importance from its relative sparsity. Everything
below is one reading of those words [inferred]; do not report it as a reproduction.

With $m_l$ the mask of layer l and $M_l$ the running average of its magnitudes,

$$ M_l \leftarrow \beta M_l + (1 - \beta) |w_l|, \qquad
   I_l = 1 + \gamma (s_l - \bar s), \qquad q = I_l M_l , $$

where $s_l$ is the sparsity of the layer and $\bar s$ that of all of them: a layer that
is sparser than the rest is worth more. At every pruning step the lowest q over all
layers go, until the count of the schedule is reached. $\beta = \gamma = 0$ is gradual
magnitude pruning (`prune_gradually`).

Johnson, Samudrala and Tang, "WeightMom: Learning Sparse Networks using Iterative
Momentum-based pruning", arXiv 2208.05970 (2022).
"""

from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import selection
from jprune._dtypes import wide
from jprune._errors import value_error
from jprune._stacks import Axes, layer_axes, layer_shape, stacked_axes
from jprune._tree import require_same_structure
from jprune._typing import Mask, Params, PyTree, Scalar, ScalarOrSchedule, Scope, Scores
from jprune.masks._count import is_traced
from jprune.selection._count_true import counts_true
from jprune.selection._sweep import entry
from jprune.transforms._build import (
    finite,
    next_step,
    renewed,
    transformation,
)
from jprune.transforms._growing_sparsity import GrowingSparsity, Selected
from jprune.transforms._projection import checkerboard, project
from jprune.transforms._ranking import Ranking

Signal = Literal["weight_ema", "grad_momentum", "product"]


class PruneByWeightHistoryState(NamedTuple):
    """State of `prune_by_weight_history`.

    Attributes:
      count: steps taken, 0-d int32.
      mask: what is kept now; a 0-d True for leaves out of scope.
      history: the running average, float32 or wider; 0-d for leaves out of scope.
      warm: where the last threshold was.
      passes: passes over the scores the last threshold took (read-only, for logs).
    """

    count: jax.Array
    mask: Mask
    history: PyTree
    warm: selection.WarmStart
    passes: jax.Array

    def probe(self) -> tuple["PruneByWeightHistoryState", Mask]:
        """A state past the end that drops half of what is kept; see `check`."""
        mask = checkerboard(self.mask)
        return self._replace(count=jnp.full_like(self.count, 2**30), mask=mask), mask


def layer_importance(mask: Mask, gamma: Any = 1.0, *, stacked: Any = None) -> PyTree:
    r"""$I_l = \max(1 + \gamma (s_l - \bar s),\ 0.1)$ of a leaf, or a layer of a stack.

    Args:
      mask: what is kept.
      gamma: weight of the relative sparsity; 0 makes all layers alike.
      stacked: which leaves are stacks of layers; see `masks.unstructured`.

    Returns:
      A tree of 0-d arrays, for a stack an array that broadcasts against it; 1 for
      leaves out of scope. The floor of 0.1 keeps the order within a layer; it is
      reached only where gamma exceeds 0.9.

    Examples:
      >>> import jax.numpy as jnp
      >>> mask = {"a": jnp.array([True, False, True, False]), "b": jnp.ones(4, bool)}
      >>> layer_importance(mask)
      {'a': Array(1.25, dtype=float32), 'b': Array(0.75, dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(mask)
    axes = stacked_axes(mask, stacked)
    deep = [i for i, m in enumerate(leaves) if m.ndim and axes[i]]
    plain = [i for i, m in enumerate(leaves) if m.ndim and not axes[i]]
    found = [jnp.float32(1)] * len(leaves)
    gone = [_gone(leaves[i], axes[i]) for i in deep]
    each: list[Any] = [prod(layer_shape(leaves[i].shape, axes[i])) for i in deep]
    if plain:  # counted together, and stacks one by one
        gone.append(counts_true([~leaves[i] for i in plain]).astype(jnp.float32))
        each.append(np.array([leaves[i].size for i in plain], np.float32))
    total = np.float32(max(sum(leaves[i].size for i in deep + plain), 1))
    mean = sum(map(jnp.sum, gone), jnp.float32(0)) / total
    weight = jnp.asarray(gamma, mean.dtype)
    factors = [
        jnp.maximum(1 + weight * (n / np.maximum(size, 1) - mean), 0.1)
        for n, size in zip(gone, each, strict=True)
    ]
    for i, factor in zip(deep, factors, strict=False):
        found[i] = factor
    for place, i in enumerate(plain):
        found[i] = entry(factors[-1], place)
    return jax.tree.unflatten(treedef, found)


def _gone(mask: jax.Array, axes: Axes) -> jax.Array:
    """How many each layer of a stack has lost; it broadcasts against the mask."""
    within = layer_axes(mask.ndim, axes)
    lost = jnp.sum(~mask, axis=within, keepdims=True, dtype=jnp.int32)
    return lost.astype(jnp.float32)


def prune_by_weight_history(
    sparsity: ScalarOrSchedule,
    *,
    end: int,
    begin: int = 0,
    every: int = 100,
    beta: Scalar = 0.9,
    gamma: Scalar = 1.0,
    signal: Signal = "weight_ema",
    layer_norm: bool = False,
    regrow: bool = False,
    scope: Any = None,
    min_keep: int = 1,
    stacked: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes what has been small for long, step by step (a projection: last).

    Inspired by the abstract of WeightMom; see the module. The average runs from the
    first step, with $M = |w_0|$ before it. At `begin, begin + every, ...` and at `end`
    the scores are ranked over all leaves; the rest of the time the mask stands still.

    Args:
      sparsity: the final sparsity, reached along the cubic schedule from 0; or an Optax
        schedule of the step. See `prune_gradually`.
      end: last step that prunes, 0-based; three quarters of the run [inferred].
      begin: first step that prunes; a tenth of the run [inferred].
      every: steps between two rankings.
      beta: memory of the average in [0, 1); 0.99 for more than 10,000 steps.
      gamma: weight of a layer's relative sparsity, at least 0.
      signal: what is averaged and ranked. "weight_ema", the magnitudes;
        "grad_momentum", the gradients, ranked by $|\mu|$ as in sparse momentum
        (Dettmers and Zettlemoyer, arXiv 1907.04840, another method); "product", ranked
        by $|w| |\mu|$. The last two need the gradient: `update(updates, state, params,
        grad=grads)`; through `optax.MultiSteps` that is the last micro-batch's, see
        docs/chain.md for the accumulated one.
      layer_norm: divide each layer's scores by their mean over what it keeps, for
        layers of different scale.
      regrow: every weight competes at each ranking, also those removed; one that is
        back starts at what the optimizer would make of it now. False: masks nest.
      scope: which leaves are pruned; see `masks.unstructured`. Leave the first and the
        last layer out here, if they are to stay (the paper's choice is not known).
      min_keep: the fewest weights any leaf keeps.
      stacked: which leaves are stacks of layers, each with an importance, a mean and a
        floor of its own; see `masks.unstructured`.

    Returns:
      A `GradientTransformationExtraArgs`. With sparsity 0 it is the identity.

    Raises:
      ValueError: steps out of order, a sparsity or `beta` outside [0, 1), a negative
        `gamma`, an unknown `signal`; from `init`, a target that cannot be met or a
        scope that matches nothing; from `update`, no `params`, or no `grad` where the
        signal needs it.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import transforms
      >>> prune = transforms.prune_by_weight_history(1 / 3, begin=1, end=1)
      >>> params = {"w": jnp.array([[1.0, 0.5, 0.2]])}
      >>> state = prune.init(params)
      >>> for step in ([-0.999, 0.0, 0.1], [0.0, 0.0, 0.0]):
      ...     updates, state = prune.update({"w": jnp.array([step])}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params["w"] != 0  # 0.001 has been 1 for long, 0.3 has always been small
      Array([[ True,  True, False]], dtype=bool)

    References:
      Johnson et al., arXiv 2208.05970, the abstract. Ours ranks the parameters before
      the update, as every jprune transformation does.
    """
    _require(beta, gamma, signal)
    ranked = Ranking(None, None, scope, "global", min_keep, stacked)
    target = GrowingSparsity.of(sparsity, begin, end, every, ranked)

    def init(params: Params) -> PruneByWeightHistoryState:
        kept, zero = target.all_kept(params), jnp.int32(0)
        if not jax.tree.leaves(params):
            return PruneByWeightHistoryState(
                zero, kept, params, selection.WarmStart.cold(), zero
            )
        scope = target.final.leaves(params)
        history = jax.tree.map(lambda p, t: _first(p, t, signal), params, scope)
        warm = target.scoped(params).final.cold(history)
        return PruneByWeightHistoryState(zero, kept, history, warm, zero)

    def update(
        updates: PyTree,
        state: PruneByWeightHistoryState,
        params: Params,
        *,
        grad: PyTree = None,
        **extra: Any,
    ) -> tuple[PyTree, PruneByWeightHistoryState]:
        del extra
        if not jax.tree.leaves(params):
            return updates, state
        seen = _seen(signal, updates, params, grad, state.mask if regrow else None)
        history = _averages(state.history, seen, beta, target.final.leaves(params))

        def select(now: Selected) -> Selected:
            mask, warm, _ = now
            sizes = finite(_sizes(signal, history, params))
            own = target.scoped(params)
            scores = _weighted(sizes, mask, gamma, layer_norm, own.final.stacked)
            return own.select(scores, state.count, None if regrow else mask, warm)

        kept, warm, passes = renewed(
            target.due(state.count), select, (state.mask, state.warm, state.passes)
        )
        following = PruneByWeightHistoryState(
            next_step(state.count), kept, history, warm, passes
        )
        return project(updates, params, kept), following

    return transformation(init, update, "prune_by_weight_history", wrapper=True)


def _first(p: jax.Array, taken: bool, signal: Signal) -> jax.Array:
    """The average before the first step; a 0-d zero out of scope."""
    if not taken:
        return jnp.zeros((), wide(jnp.zeros((), p.dtype)).dtype)
    size = jnp.abs(wide(p))
    # Momentum starts at 0. The bias this leaves is one factor for all weights.
    return size if signal == "weight_ema" else jnp.zeros_like(size)


def _seen(
    signal: Signal, updates: PyTree, params: Params, grad: PyTree, mask: Mask | None
) -> PyTree:
    """What enters the average at this step."""
    if signal != "weight_ema":
        if grad is None:
            raise value_error(
                f"`signal`={signal!r} ranks gradients: call `update(updates, state, "
                "params, grad=grads)`, got no `grad`."
            )
        require_same_structure("grad", grad, params)
        return jax.tree.map(wide, grad)
    sizes = jax.tree.map(lambda p: jnp.abs(wide(p)), params)
    if mask is None:
        return sizes
    # A removed weight is 0 and so has no size of its own; it competes with what the
    # optimizer would make of it: the average stays dense [inferred].
    return jax.tree.map(
        lambda s, u, m: jnp.where(m, s, jnp.abs(wide(u))),
        sizes,
        updates,
        mask,
    )


def _averages(history: PyTree, seen: PyTree, beta: Any, scope: Scope) -> PyTree:
    def leaf(h: jax.Array, x: jax.Array, taken: bool) -> jax.Array:
        if not taken:
            return h
        b, x = jnp.asarray(beta, h.dtype), x.astype(h.dtype)
        # One gradient that is not finite would stay in the average for good.
        return jnp.where(jnp.isfinite(x), b * h + (1 - b) * x, h)

    return jax.tree.map(leaf, history, seen, scope)


def _sizes(signal: Signal, history: PyTree, params: Params) -> Scores:
    """The average as a magnitude, for "product" times that of the weight."""
    sizes = jax.tree.map(jnp.abs, history)
    if signal != "product":
        return sizes
    return jax.tree.map(lambda h, p: h * jnp.abs(wide(p)), sizes, params)


def _weighted(
    sizes: PyTree, mask: Mask, gamma: Any, layer_norm: bool, stacked: Any
) -> Scores:
    """Importance times history; out of scope, whatever stands there."""

    def leaf(
        size: jax.Array, m: jax.Array, importance: jax.Array, axes: Axes
    ) -> jax.Array:
        if layer_norm:
            how: Any = {}
            if axes:
                how = {"axis": layer_axes(m.ndim, axes), "keepdims": True}
            total = jnp.sum(jnp.where(m, size, 0), **how)
            mean = total / jnp.maximum(jnp.sum(m, **how), 1).astype(size.dtype)
            size = size / jnp.where(mean > 0, mean, 1)
        return size * importance.astype(size.dtype)

    importance = layer_importance(mask, gamma, stacked=stacked)
    trees = map(jax.tree.leaves, (sizes, mask, importance))
    rows = zip(*trees, stacked_axes(mask, stacked), strict=True)
    return jax.tree.unflatten(jax.tree.structure(mask), [leaf(*row) for row in rows])


def _require(beta: Any, gamma: Any, signal: str) -> None:
    if not is_traced(beta) and not 0 <= beta < 1:
        raise value_error(f"`beta` must be in [0, 1), got {beta}.")
    if not is_traced(gamma) and not gamma >= 0:
        raise value_error(f"`gamma` must be at least 0, got {gamma}.")
    if signal not in ("weight_ema", "grad_momentum", "product"):
        raise value_error(
            "`signal` must be 'weight_ema', 'grad_momentum' or 'product', got "
            f"{signal!r}."
        )
