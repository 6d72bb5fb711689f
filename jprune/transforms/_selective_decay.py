r"""SWD: an extra decay for exactly the weights a magnitude pruner would remove now.

At step t let $m_t$ keep the largest magnitudes at the final sparsity. The loss gets
$\frac{\mu a_t}{2} \lVert (1 - m_t) \odot w \rVert^2$, with $m_t$ a constant, so that

$$ g \leftarrow g + \mu\, a_t\, (1 - m_t) \odot w. $$

$a_t$ grows exponentially over training: at first the set may change freely, at the end
the targeted weights are practically zero, and removing them changes nothing.

Tessier et al., "Rethinking Weight Decay for Efficient Neural Network Pruning", Journal
of Imaging 2022 (arXiv 2011.10520), section 3.2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import selection
from jprune._errors import require_functions, require_static, value_error, warn
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule
from jprune.masks._count import is_traced
from jprune.masks._rank import RankingName
from jprune.masks._target import require_target
from jprune.selection._pack import laid_flat
from jprune.transforms._build import (
    added,
    decay,
    exactly_one,
    next_step,
    renewed,
    require_rate,
    require_strengths,
    transformation,
    value_at,
)
from jprune.transforms._finish import PruneOnceState, remove_at_end, removed_count
from jprune.transforms._ranking import Ranking


class AddSelectiveDecayState(NamedTuple):
    """State of `add_selective_decay`: a few scalars, and a mask only if `every` > 1.

    Attributes:
      count: steps taken, 0-d int32.
      warm: where the last threshold was, the start of the next search.
      mask: the mask in force between refreshes; `()` when every step ranks.
      passes: passes over the weights the last threshold took (read-only, for logs).
    """

    count: jax.Array
    warm: selection.WarmStart
    mask: Mask
    passes: jax.Array


def add_selective_decay(
    mu: float | jax.Array,
    strength: ScalarOrSchedule,
    *,
    sparsity: Any = None,
    keep: Any = None,
    scope: Any = None,
    ranking: RankingName = "global",
    every: int = 1,
    min_keep: int = 1,
    stacked: Any = None,
    select: Callable[[Params], Mask] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds $\mu\, a_t\, w$ to the updates of the weights now targeted (a penalty).

    Where it stands decides what it means. *Coupled*, before momentum, it is the
    paper's: `chain(add_decayed_weights(mu), add_selective_decay(mu, a, ...), sgd(lr,
    momentum))`. *Decoupled*, between an adaptive preconditioner and the learning rate,
    it is the form for Adam, which would otherwise normalize the penalty away:
    `chain(scale_by_adam(), add_selective_decay(...), scale_by_learning_rate(lr))`.

    The set is chosen from the parameters before the update of the same step. It never
    becomes exactly zero by decay alone: end with `prune_once`, or `finish`.

    Args:
      mu: $\mu$, the base weight decay it multiplies (give one even without base decay).
      strength: $a$, a number or a schedule of the step. At the end learning rate * mu
        * a should be about 1. Far below, Adam's steps hold the targeted weights near
        1 / (mu a) and the removal hurts; from 2 on (2 (1 + momentum) with momentum
        behind it) the decay is unstable. `diagnostics` shows the largest that is left.
      sparsity: target fraction of zeros over the scope; a number, possibly traced, or a
        tree from `masks.erk` and the like.
      keep: number of scalars kept instead, an int or a traced int32.
      scope: which leaves are ranked and decayed: None for `masks.prunable`, a regular
        expression, a function of the parameters, or a tree of bools.
      ranking: one "global" ranking, or each "leaf" by itself.
      every: refresh the set every so many steps (1 in the paper's own code); the mask
        is then part of the state.
      min_keep: the fewest weights of a leaf that are never targeted.
      stacked: which leaves are stacks of layers, each ranked and floored as a leaf of
        its own; see `masks.unstructured`.
      select: any other choice of the set, a pure function of the parameters to a mask,
        in place of all the keywords above. For channels:
        `lambda p: masks.from_groups(p, groups, keeps(p), roles=("scale", "bias"))`.

    Returns:
      A `GradientTransformationExtraArgs`. With sparsity 0 it is the identity.

    Raises:
      ValueError: a target out of range, a negative `mu` or `strength`; from `init`, a
        target that cannot be met or a scope that matches nothing; from `update`, no
        `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import transforms
      >>> tx = transforms.add_selective_decay(0.01, 10.0, sparsity=0.5)
      >>> params = {"w": jnp.array([[0.5, -0.1]])}
      >>> zero = {"w": jnp.zeros((1, 2))}
      >>> updates, _ = tx.update(zero, tx.init(params), params)
      >>> updates["w"].round(4)
      Array([[ 0.  , -0.01]], dtype=float32)

    References:
      Tessier et al., arXiv 2011.10520, section 3.2. The authors' threshold
      `sorted[int(tau n)]` keeps all ties; ours keeps exactly
      `n - floor(tau n + 1/2)`, ties by position. Their code also decays batch-norm
      leaves and biases; here only the scope is.
    """
    exactly_one(sparsity=sparsity, keep=keep, select=select)
    require_functions(select=select)
    require_target(sparsity, keep, min_keep=min_keep, ranking=ranking)
    chosen = Ranking(sparsity, keep, scope, ranking, min_keep, stacked)
    require_static(every=every, min_keep=min_keep)
    _require_every(every)
    require_strengths(mu=mu, strength=strength)
    penalty = _Penalty(mu, strength, chosen, select, every)

    def update(
        updates: PyTree, state: AddSelectiveDecayState, params: Params
    ) -> tuple[PyTree, AddSelectiveDecayState]:
        return penalty.update(updates, state, params)[:2]

    return transformation(penalty.init, update, "add_selective_decay")


def _require_every(every: int) -> None:
    if every < 1:
        raise value_error(f"`every` must be at least 1, got {every}.")


class _Penalty(NamedTuple):
    """The arguments of `add_selective_decay`, and what it does with them."""

    mu: Any
    strength: ScalarOrSchedule
    ranking: Ranking
    select: Callable[[Params], Mask] | None
    every: int

    def init(self, params: Params) -> AddSelectiveDecayState:
        """No step taken; with `every` above 1 everything is kept."""
        by_rank = self.select is None
        warm = self.ranking.cold(params) if by_rank else selection.WarmStart.cold()
        kept = params if self.every > 1 else ()
        if jax.tree.leaves(params):
            shapes = jax.eval_shape(self.refresh, params, warm)[0]
            if self.every > 1:
                kept = jax.tree.map(lambda s: jnp.ones(s.shape, bool), shapes)
        return AddSelectiveDecayState(jnp.int32(0), warm, kept, jnp.int32(0))

    def update(
        self,
        updates: PyTree,
        state: AddSelectiveDecayState,
        params: Params,
        last: jax.Array | None = None,
    ) -> tuple[PyTree, AddSelectiveDecayState, Mask]:
        """The step, and the mask of the parameters as they are now.

        Args:
          updates: of the chain before.
          state: of the last step.
          params: before the update.
          last: whether the mask must be of now in any case; without it the mask that
            comes back may be as old as `every` allows.
        """
        if self.every == 1:
            now, warm, passes = self.refresh(params, state.warm)
            kept, stored = now, ()
        else:
            due = state.count % self.every == 0
            now, warm, passes = renewed(
                due if last is None else due | last,
                lambda old: self.refresh(params, old[1]),
                (state.mask, state.warm, state.passes),
            )
            kept = stored = now
            if last is not None:
                old = state.mask
                kept = stored = jax.tree.map(
                    lambda a, b: jnp.where(due, a, b), now, old
                )
        rate = jnp.asarray(self.mu * value_at(self.strength, state.count))
        following = AddSelectiveDecayState(next_step(state.count), warm, stored, passes)
        return _decayed(updates, params, kept, rate), following, now

    def refresh(
        self, params: Params, warm: selection.WarmStart
    ) -> tuple[Mask, selection.WarmStart, jax.Array]:
        """The mask now, the next warm start, and the passes the threshold took."""
        if self.select is not None:
            return self.select(params), warm, jnp.int32(0)
        return self.ranking.select(params, warm)

    def dropped(self, params: Params, laid: Params) -> jax.Array:
        """How many weights that are not zero the mask of now drops. 0-d int32

        `laid` are the same weights, flat before any loop: XLA then takes leaves of one
        length for one.
        """
        if self.select is not None:
            return removed_count(self.select(params), params)
        return self.ranking.dropped(params, laid)


def _decayed(updates: PyTree, params: Params, keep: Mask, rate: jax.Array) -> PyTree:
    """`u + rate * w` where the weight is targeted, `u` bit for bit elsewhere."""

    def leaf(u: jax.Array, p: jax.Array, m: jax.Array) -> jax.Array:
        return jnp.where(m, u, added(u, rate.astype(p.dtype) * p))

    return jax.tree.map(leaf, updates, params, keep)


def swd(
    learning_rate: ScalarOrSchedule,
    *,
    mu: float,
    total_steps: int,
    a_min: float = 0.1,
    a_max: float = 1e5,
    sparsity: Any = None,
    keep: Any = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    scope: Any = None,
    ranking: RankingName = "global",
    every: int = 1,
    min_keep: int = 1,
    stacked: Any = None,
    select: Callable[[Params], Mask] | None = None,
    remove: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with selective weight decay: the paper's recipe, ending pruned.

    Base decay $\mu$ on the scope, selective decay $\mu a_t$ with
    $a_t = a_{min} (a_{max}/a_{min})^{t/T}$, heavy-ball momentum, and at the last of
    `total_steps` updates the removal itself.

    Args:
      learning_rate: a number or a schedule.
      mu: base weight decay; 5e-4 in the authors' code.
      total_steps: T, the steps of the run; a shorter one never reaches the removal
        (`analysis.report(params)` shows it, `finish` removes).
      a_min: strength at step 0.
      a_max: strength the exponential reaches at step T. Learning rate * mu * a_max
        should be about 1 there, see `add_selective_decay`.
      sparsity: target fraction of zeros over the scope.
      keep: number kept instead.
      momentum: heavy-ball coefficient.
      nesterov: Nesterov's form of momentum.
      scope: see `add_selective_decay`; base decay falls on the same leaves. With
        `select` give the leaves that carry base decay.
      ranking: see `add_selective_decay`.
      every: see `add_selective_decay`.
      min_keep: see `add_selective_decay`.
      stacked: see `add_selective_decay`.
      select: see `add_selective_decay`.
      remove: end with `prune_once` at step `total_steps - 1`, so that
        `masks.from_zeros(params)` reads the result. Without it use `finish`.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: a target out of range, `a_min`, `a_max` that are not positive, a
        negative `mu`, no steps.
      TypeError: `learning_rate` is an optimizer.

    Warns:
      UserWarning: when $\eta_t \mu (1 + a_t) \ge 2 (1 + \beta)$ at some step, the bound
        beyond which the decay of a targeted weight is unstable.

    References:
      Tessier et al., arXiv 2011.10520, section 3.2 and 4; defaults of the authors'
      code.
    """
    require_static(total_steps=total_steps, every=every, min_keep=min_keep)
    _require_every(every)
    require_strengths(mu=mu, a_max=a_max)
    exactly_one(sparsity=sparsity, keep=keep, select=select)
    require_functions(select=select)
    require_target(sparsity, keep, min_keep=min_keep, ranking=ranking)
    if total_steps < 1:
        raise value_error(f"`total_steps` must be at least 1, got {total_steps}.")
    require_rate(learning_rate, "swd", "chain `add_selective_decay` and it")
    bounds_known = not (is_traced(a_min) or is_traced(a_max))
    if bounds_known and not 0 < a_min <= a_max:
        raise value_error(
            f"`a_min`, `a_max` need 0 < a_min <= a_max: {a_min}, {a_max}."
        )

    def strength(t: Any) -> Any:
        return a_min * (a_max / a_min) ** (t / total_steps)

    if bounds_known:
        _warn_if_unstable(learning_rate, mu, strength, momentum, total_steps)
    chosen = Ranking(sparsity, keep, scope, ranking, min_keep, stacked)
    before, after = decay(mu, scope), optax.sgd(learning_rate, momentum, nesterov)
    if remove:
        penalty = _Penalty(mu, strength, chosen, select, every)
        return _with_removal(before, penalty, after, total_steps - 1)
    penalty = add_selective_decay(
        mu,
        strength,
        sparsity=sparsity,
        keep=keep,
        scope=scope,
        ranking=ranking,
        every=every,
        min_keep=min_keep,
        stacked=stacked,
        select=select,
    )
    return optax.chain(before, penalty, after)


def _with_removal(
    before: optax.GradientTransformation,
    penalty: _Penalty,
    after: optax.GradientTransformation,
    step: int,
) -> optax.GradientTransformationExtraArgs:
    """`chain(before, penalty, after, prune_once(...))`, which ranks once a step.

    The set that decays and the set that goes are one: those low before the update.
    """

    def init(params: Params) -> tuple[PyTree, ...]:
        parts = (before.init(params), penalty.init(params), after.init(params))
        return *parts, PruneOnceState(jnp.int32(0), jnp.int32(0))

    def update(
        updates: PyTree, state: tuple[PyTree, ...], params: Params
    ) -> tuple[PyTree, tuple[PyTree, ...]]:
        one, two, three, end = state
        now = end.due(step)
        updates, one = before.update(updates, one, params)
        updates, two, kept = penalty.update(updates, two, params, now)
        updates, three = after.update(updates, three, params)
        laid = jax.tree.map(laid_flat, params)
        removed = renewed(now, lambda _: penalty.dropped(params, laid), end.removed)
        updates, end = remove_at_end(updates, end, params, now, kept, removed)
        return updates, (one, two, three, end)

    return transformation(init, update, "swd")


_LOOKED_AT = 2**18
"""The most steps at which the rates are evaluated beforehand."""


def _warn_if_unstable(
    learning_rate: ScalarOrSchedule,
    mu: float,
    strength: optax.Schedule,
    momentum: float,
    total_steps: int,
) -> None:
    r"""Warns at the worst step of $\eta_t \mu (1 + a_t)$, the two taken together."""
    values = (learning_rate, mu, momentum)
    if any(is_traced(x) for x in values):
        return
    with jax.ensure_compile_time_eval():
        some = np.linspace(0, total_steps - 1, min(total_steps, _LOOKED_AT))
        steps = jnp.asarray(some.round(), jnp.int32)
        lr = (
            np.asarray(jax.vmap(learning_rate)(steps), np.float64)
            if callable(learning_rate)
            else np.full(len(steps), float(learning_rate))
        )
        a = np.asarray(jax.vmap(strength)(steps), np.float64)
    rate = lr * float(mu) * (1 + a)
    worst = int(np.argmax(rate))
    bound = 2 * (1 + float(momentum))
    if rate[worst] >= bound:
        warn(
            f"SWD is unstable at step {steps[worst]}: learning rate {lr[worst]:.3g} * "
            f"mu {mu:.3g} * (1 + a) {1 + a[worst]:.3g} = {rate[worst]:.3g} >= "
            f"{bound:.3g} = 2 (1 + momentum). Lower `a_max` or decay the learning rate "
            "faster.",
        )
