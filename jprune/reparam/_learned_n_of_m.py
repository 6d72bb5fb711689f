r"""SLS: every layer learns its own N of N:M, until the network meets a cost budget.

In each group of M weights along the contracted axis let unit n be the n-th largest.
Unit 1 is always there. A layer has $M - 1$ priorities k, all 1 at first, and

$$ c_n = \prod_{i \le n} \operatorname{clip}(k_i, 0, 1.03), \qquad b_n = 1[c_n > 0.5],
   \qquad W \odot \Big( U_1 + \sum_n \hat b_n U_{n+1} \Big) $$

with $\hat b_n$ straight-through: $b_n$ forward, $\partial \hat b_n / \partial c_n = 1$
backward. So $N = 1 + \sum_n b_n$. Weights that are masked get no gradient. The loss
gets $\lambda\, a\, C / C_0$, where $C = \sum_l \frac{N_l}{M} C_l$ is the cost and $C_0$
that of the dense network. At the first step whose cost is below `target * C_0` the
priorities stop; the weights train on. Until then $a$ grows by a factor when two
successive epochs have not raised the push ratio $C_0 / C$ by a threshold.

**The product may rise again**, since the clip is above 1: k = (0.49, 1.03, 1.03) gives
c = (0.49, 0.5047, 0.5198), unit 2 dropped while 3 and 4 are kept. By default a unit
needs all earlier ones (`strict=True`), so that the mask is the N largest.

Oh et al., "Attentive Fine-Grained Structured Sparsity for Image Restoration", CVPR 2022
(arXiv 2204.12266).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._axes import Axes, axis_list, contraction_axis, placed_as, whole_along
from jprune._errors import listing, require_static, value_error
from jprune._stacks import stack_shape
from jprune._tree import named_leaves
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
    spread,
    stacks,
)
from jprune.reparam._reparam import Reparam
from jprune.reparam._straight_through import pass_through

CEILING, CUT = 1.03, 0.5
"""Largest factor of a priority, and the product above which a unit is kept."""


class NOfMTheta(NamedTuple):
    """Theta of `learned_n_of_m`.

    Attributes:
      weights: the parameters.
      priorities: a dict by path of the kernel, k. [M - 1]; for a stack of layers those
        of each, [layers, M - 1].
      strength: a, the annealing coefficient, 0-d; moved by `project` alone.
      ratio: the push ratio at the end of the last odd epoch, 0-d; likewise.
      ranks: with `rank_every` the place of each weight in its group, by path; likewise.
    """

    weights: Params
    priorities: PyTree
    strength: jax.Array
    ratio: jax.Array
    ranks: PyTree = ()


def learned_n_of_m(
    m: int,
    *,
    target: float,
    weight: float,
    costs: PyTree | None = None,
    axis: int | PyTree | None = None,
    scope: Any = None,
    strict: bool = True,
    pad: bool = False,
    steps_per_epoch: int | None = None,
    anneal_below: float = 0.2,
    anneal_by: float = 1.2,
    rank_every: int | None = None,
    stacked: Any = None,
) -> Reparam:
    r"""A search for the N of every layer's N:M (SLS).

    Args:
      m: M, the group length.
      target: cost at which the search stops, as a fraction of the dense cost of the
        leaves in scope; in (1/M, 1].
      weight: $\lambda$, of the cost relative to the dense one. The paper's
        $\lambda = 10^{-10}$ multiplies raw multiply-adds: this one is
        $\lambda C_0$.
      costs: of one weight of each leaf, a tree of numbers structured as the parameters;
        the output positions of each convolution give multiply-adds. None counts
        parameters.
      axis: the contracted axis; see `masks.n_of_m`.
      scope: which leaves; None for `masks.prunable`. The paper leaves the first and the
        last layer dense.
      strict: a unit needs all earlier ones; False is the authors' code.
      pad: an axis that M does not divide is filled with zeros. Without it, an error.
      steps_per_epoch: of the annealing; None leaves a at 1.
      anneal_below: a grows when two epochs raised the push ratio by less than this.
      anneal_by: the factor.
      rank_every: steps between two rankings of the units, kept in theta between them;
        the authors rank once an epoch, `steps_per_epoch`. None ranks at every step.
      stacked: which leaves are stacks of layers, each with an N of its own; see
        `masks.unstructured`.

    Returns:
      A `Reparam` whose theta is an `NOfMTheta`. `project` stops the priorities and
      anneals; `export` keeps exactly the N largest of each group.

    Raises:
      ValueError: `target` not in (1/M, 1], m below 2, a negative `weight`,
        `steps_per_epoch` no integer of at least 1; from `init`, an axis that M does not
        divide, with the leaf's name, or a `stacked` that does not fit.

    References:
      Oh et al., arXiv 2204.12266; the authors' code for the clip, the cut and the
      annealing. Deviations: units are ranked at every step, there at the start of each
      epoch (`rank_every`); `strict`; the cost is relative; the priorities stop before
      the update of the step that meets the target, there after it.
    """
    if m < 2:
        raise value_error(f"`m` must be at least 2, got {m}.")
    if not 1 / m < target <= 1:
        raise value_error(
            f"`target` must be in (1/m, 1] = ({1 / m:.4g}, 1]: one weight of each {m} "
            f"always stays, got {target}."
        )
    if not weight >= 0:
        raise value_error(f"`weight` must not be negative, got {weight}.")
    steps = 1 if steps_per_epoch is None else steps_per_epoch
    require_static(steps_per_epoch=steps_per_epoch, rank_every=rank_every)
    if steps < 1:
        raise value_error(f"`steps_per_epoch` must be at least 1, got {steps}.")
    if rank_every is not None and rank_every < 1:
        raise value_error(f"`rank_every` must be at least 1, got {rank_every}.")

    search = _Search(
        m,
        target,
        weight,
        costs,
        axis,
        scope,
        strict,
        pad,
        steps_per_epoch,
        anneal_below,
        anneal_by,
        rank_every,
        stacked,
    )
    return Reparam(
        partial(_init, search),
        partial(_apply, search),
        partial(_export, search),
        partial(_penalty, search),
        partial(_project, search),
    )


class _Search(NamedTuple):
    """The arguments of `learned_n_of_m`."""

    m: int
    target: float
    weight: float
    costs: PyTree | None
    axis: int | PyTree | None
    scope: Any
    strict: bool
    pad: bool
    steps_per_epoch: int | None
    anneal_below: float
    anneal_by: float
    rank_every: int | None
    stacked: Any

    def stored(self, params: Params) -> PyTree:
        """The ranks as theta holds them, in floats; nothing if taken at every step."""
        if self.rank_every is None:
            return ()
        ranks = self.ranks(params)
        return {n: r.astype(jnp.result_type(float)) for n, r in ranks.items()}

    def ranks_of(self, theta: NOfMTheta) -> dict[str, jax.Array]:
        """The ranks that are used now."""
        if self.rank_every is None:
            return self.ranks(theta.weights)
        return {n: r.astype(jnp.int32) for n, r in theta.ranks.items()}

    def ranks(self, params: Params) -> dict[str, jax.Array]:
        """Place of every weight in its group, by path: 0 the largest."""
        fixed = jax.lax.stop_gradient(params)
        return _unit_ranks(
            fixed, self.m, self.axis, self.scope, self.pad, stacks(params, self.stacked)
        )

    def factors(self, theta: NOfMTheta) -> dict[str, jax.Array]:
        """1 for each weight that is kept, 0 for the others, by path."""
        axes, found = stacks(theta.weights, self.stacked), {}
        for name, rank in self.ranks_of(theta).items():
            kept = units(theta.priorities[name], strict=self.strict)
            kept = jnp.concatenate([jnp.ones_like(kept[..., :1]), kept], axis=-1)
            # Not `kept[rank]`: where ranks lie on a mesh a gather wants to be told.
            each = [spread(kept[..., i], rank, axes[name]) for i in range(self.m)]
            found[name] = sum(
                (jnp.where(rank == i, x, 0) for i, x in enumerate(each)),
                jnp.zeros((), kept.dtype),
            )
        return found

    def relative_cost(self, theta: NOfMTheta) -> jax.Array:
        """$C / C_0$, 0 without weights."""
        each = cost_each(self.costs, theta.weights)
        leaves = chosen(theta.weights, self.scope)
        axes = stacks(theta.weights, self.stacked)
        layers = {n: each(n) * layer_size(w, axes[n]) for n, w in leaves.items()}
        total = cost(theta.priorities, layers, strict=self.strict)
        dense = sum(
            price * (theta.priorities[n].size // (self.m - 1))
            for n, price in layers.items()
        )
        return total / (dense or 1)


def _init(search: _Search, params: Params) -> NOfMTheta:
    cost_each(search.costs, params)
    ranks = jax.eval_shape(search.ranks, params)  # a bad axis fails here
    axes = stacks(params, search.stacked)
    priorities = {
        name: scalar(1.0, (*stack_shape(rank.shape, axes[name]), search.m - 1))
        for name, rank in ranks.items()
    }
    one, ranks = scalar(1.0), search.stored(params)
    return NOfMTheta(copied(params), priorities, one, scalar(1.0), ranks)


def _apply(search: _Search, theta: NOfMTheta, key: Any = None) -> Params:
    del key
    leaves = chosen(theta.weights, search.scope)
    used = {
        name: leaves[name] * factor.astype(leaves[name].dtype)
        for name, factor in search.factors(theta).items()
    }
    return replaced(theta.weights, used)


def _penalty(search: _Search, theta: NOfMTheta) -> jax.Array:
    strength = jax.lax.stop_gradient(theta.strength)
    return search.weight * strength * search.relative_cost(theta)


def _project(
    search: _Search, new: NOfMTheta, old: NOfMTheta, step: jax.Array
) -> NOfMTheta:
    # Stopped priorities keep the cost below the target, so nothing else has to
    # remember that they are stopped.
    c = search.relative_cost(old)
    stop = c < search.target
    priorities = jax.tree.map(
        lambda o, n: jnp.where(stop, o, n), old.priorities, new.priorities
    )
    ranks = old.ranks
    if search.rank_every is not None:
        due = (step + 1) % search.rank_every == 0
        ranks = jax.lax.cond(due, search.stored, lambda _: old.ranks, new.weights)
    if search.steps_per_epoch is None:
        return NOfMTheta(new.weights, priorities, old.strength, old.ratio, ranks)
    epoch, rest = jnp.divmod(step + 1, search.steps_per_epoch)
    ended = (rest == 0) & ~stop
    grown = anneal(
        old.strength,
        old.ratio,
        1 / c,
        threshold=search.anneal_below,
        factor=search.anneal_by,
    )
    strength = jnp.where(ended & (epoch % 2 == 0), grown, old.strength)
    ratio = jnp.where(ended & (epoch % 2 == 1), 1 / c, old.ratio)
    return NOfMTheta(new.weights, priorities, strength, ratio, ranks)


def _export(search: _Search, theta: NOfMTheta) -> tuple[Params, Mask]:
    leaves = chosen(theta.weights, search.scope)
    kept = {name: factor > 0 for name, factor in search.factors(theta).items()}
    cut = {n: jnp.where(kept[n], w, jnp.zeros_like(w)) for n, w in leaves.items()}
    return copied(replaced(theta.weights, cut)), as_mask(theta.weights, kept)


def units(priorities: jax.Array, *, strict: bool = True) -> jax.Array:
    r"""$\hat b$: which units beyond the first are kept, straight-through.

    Args:
      priorities: k. [..., M - 1]
      strict: a unit needs all earlier ones.

    Returns:
      Zeros and ones with the derivative of the products c. [..., M - 1] A priority
      outside the bounds of the clip gets no gradient, one at them does.
    """
    c = jnp.cumprod(clip(priorities, 0, CEILING), axis=-1)
    b = (c > CUT).astype(c.dtype)
    return pass_through(jnp.cumprod(b, axis=-1) if strict else b, c)


def cost(
    priorities: Mapping[str, jax.Array],
    prices: Mapping[str, float],
    *,
    strict: bool = True,
) -> jax.Array:
    r"""$C = \sum_l \frac{1 + \sum_n \hat b_n}{M} C_l$.

    Args:
      priorities: k by path; of a stack those of each layer, [layers, M - 1].
      prices: $C_l$ by path, the cost of the dense layer (of one layer of a stack).
      strict: see `units`.

    Returns:
      A 0-d array.
    """
    each = [
        jnp.sum(1 + jnp.sum(units(k, strict=strict), -1))
        / (k.shape[-1] + 1)
        * prices[name]
        for name, k in priorities.items()
    ]
    return sum(each, jnp.zeros(()))


def anneal(
    strength: Any, before: Any, now: Any, *, threshold: float = 0.2, factor: float = 1.2
) -> jax.Array:
    """The next annealing coefficient, from the push ratios of two successive epochs.

    Args:
      strength: the coefficient now.
      before: ratio at the end of the epoch before.
      now: ratio at the end of this one.
      threshold: least rise that leaves the coefficient alone.
      factor: growth otherwise.

    Returns:
      A 0-d array.
    """
    return jnp.where(now - before < threshold, strength * factor, strength)


def _unit_ranks(
    params: Params,
    m: int,
    axis: Any,
    scope: Any,
    pad: bool,
    axes: Mapping[str, Axes],
) -> dict[str, jax.Array]:
    """Place of every weight in its group: 0 the largest, ties by position."""
    names = [name for name, _ in named_leaves(params)]
    given = dict(zip(names, axis_list(axis, params), strict=True))
    leaves = chosen(params, scope)
    at = {
        name: contraction_axis(name, w, given[name], axes[name])
        for name, w in leaves.items()
    }
    uneven = [
        f"{name}: axis {at[name]} of {w.shape}"
        for name, w in leaves.items()
        if w.shape[at[name]] % m
    ]
    if uneven and not pad:
        raise value_error(
            f"m={m} does not divide the contracted axis of these leaves. Leave them "
            f"out of `scope`, or pass `pad=True`.{listing(uneven)}"
        )
    return {name: _ranks(w, m, at[name]) for name, w in leaves.items()}


def _ranks(w: jax.Array, m: int, axis: int) -> jax.Array:
    moved = jnp.moveaxis(jnp.abs(whole_along(w, (axis,))), axis, -1)
    length = moved.shape[-1]
    filled = jnp.pad(moved, [(0, 0)] * (w.ndim - 1) + [(0, -length % m)])
    groups = filled.reshape(*filled.shape[:-1], -1, m)
    mine, other = groups[..., :, None], groups[..., None, :]
    shape = (*groups.shape, m)  # [..., mine, other]
    place = [
        jax.lax.broadcasted_iota(jnp.int32, shape, d)
        for d in (groups.ndim - 1, groups.ndim)
    ]
    beaten_by = (other > mine) | ((other == mine) & (place[1] < place[0]))
    ranks = jnp.sum(beaten_by, axis=-1, dtype=jnp.int32)
    ranks = ranks.reshape(filled.shape)[..., :length]
    return placed_as(jnp.moveaxis(ranks, -1, axis), w)
