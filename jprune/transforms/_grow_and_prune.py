r"""Scheduled grow-and-prune, cyclic (C-GaP): one part dense at a time, in turn.

The layers are split into $\kappa$ parts. A network that has never been dense starts
with random masks, part 0 without any. After E epochs the dense part is pruned back to
its sparsity by magnitude, and the next one is grown: its mask is all ones, its new
weights start at zero. After the last step every part is sparse, and the network is
fine-tuned with its masks fixed:

$$ \text{step } k \ge 1:\quad
   M_l \leftarrow \mathrm{top}_{n_l - \lfloor s_l n_l + 1/2 \rfloor} |W_l|
   \ (l \in P_{(k-1) \bmod \kappa}), \qquad
   M_l \leftarrow 1 \ (l \in P_{k \bmod \kappa}). $$

With every step the optimizer begins anew. Over a round of $\kappa$ steps the share of
weights that is there is on average $1/\kappa + (1 - 1/\kappa)(1 - s)$.

Ma et al., "Effective Model Sparsification by Scheduled Grow-and-Prune Methods", ICLR
2022 (arXiv 2106.09857). The form in which the parts are grown at once by several
workers is `grow_in_parallel`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks, scores, selection
from jprune._axes import Axes
from jprune._errors import require_static, value_error
from jprune._stacks import as_said
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule, Scope, Scores
from jprune.masks._scope import in_scope, resolve_scope
from jprune.masks._target import keep_counts, require_target
from jprune.masks._unstructured import ranked
from jprune.transforms._build import (
    around,
    decay_all,
    next_step,
    renewed,
    require_rate,
    require_strengths,
    seeded,
    transformation,
    value_at,
)
from jprune.transforms._inner_state import renew
from jprune.transforms._keep_masked import keep_masked
from jprune.transforms._partitions import Partitions, resolve_partitions
from jprune.transforms._projection import checkerboard, project


class GrowAndPruneState(NamedTuple):
    """State of `grow_and_prune`.

    Attributes:
      count: steps taken, 0-d int32.
      mask: what is kept now; a 0-d True for leaves out of scope.
      passes: passes over the weights the last mask took (read-only, for logs).
      inner: state of the optimizer inside.
    """

    count: jax.Array
    mask: Mask
    passes: jax.Array
    inner: PyTree

    def probe(self) -> tuple["GrowAndPruneState", Mask]:
        """A state past the end that drops half of what is kept; see `check`."""
        mask = checkerboard(self.mask)
        return self._replace(count=jnp.full_like(self.count, 2**30), mask=mask), mask


def grow_and_prune(
    inner: optax.GradientTransformation,
    sparsity: Any,
    *,
    partitions: Partitions,
    period: int,
    steps: int,
    mask: Mask | Callable[[Params], Mask] | None = None,
    restart: bool = True,
    rate: ScalarOrSchedule | None = None,
    scope: Any = None,
    min_keep: int = 1,
    stacked: Any = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Grows one part after the other to dense and prunes it back (a wrapper).

    Step k of the method takes the updates from `k * period` on. The first of them (but
    not the very first) hands over: it ranks what step k - 1 has left and prunes the
    part that was dense, but does not train, since its gradient is that of the network
    before. The second grows the next part and trains. From update `steps * period` on
    everything is sparse and stays so. Removed weights are exactly zero throughout.

    Update 0 makes the weights sparse, with the gradient of the dense network it was
    given. For a sparse first gradient apply the first mask before:
    `masks.apply(tx.init(params).mask, params)`.

    Args:
      inner: the optimizer, learning rate included. It is given the gradient of the kept
        weights, zeros elsewhere. What rescales updates must stand in it, or be `rate`,
        and not behind the wrapper: a removed weight would miss zero (`check` tells).
      sparsity: of each leaf: a number, a tree, e.g. from `masks.erk`, or a function of
        the parameters that gives one.
      partitions: the parts: how many, contiguous and of about the same number of
        weights; regular expressions on leaf paths, one for each part, the first that
        matches wins; or a tree of ints, or a function of the parameters to one.
      period: updates in one step, E epochs of them; at least 2.
      steps: how many; whole rounds are multiples of the number of parts. 28 of 30
        epochs for the paper's ResNet-50, then 150 of fine-tuning [recalled].
      mask: the first masks, or a function of the parameters; None draws them at random.
        Part 0 is dense at first whatever its mask.
      restart: with each step of GaP `inner` begins anew, its counters and schedules
        too, as in the authors' code. False: only the moments of weights that went or
        have just grown do; the others take in the gradient of the hand-over.
      rate: multiplies the updates of `inner`; a number or a schedule of the updates of
        the whole run, which no restart takes back: the authors' outer schedule.
      scope: which leaves are pruned; see `masks.unstructured`. The paper keeps the
        first and the last layer dense: leave them out here.
      min_keep: the fewest weights any leaf keeps.
      stacked: which leaves are stacks of layers, each as sparse as a leaf; see
        `masks.unstructured`.
      key: a PRNG key or a seed, for the first masks.

    Returns:
      A `GradientTransformationExtraArgs`. With sparsity 0 it is `inner` until the first
      hand-over.

    Raises:
      ValueError: `period` or `steps` too small, a target out of range; from `init`, a
        target that cannot be met, parts that leave out a pruned leaf or are empty, a
        scope that matches nothing; from `update`, no `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import transforms
      >>> tx = transforms.grow_and_prune(
      ...     optax.sgd(0.1), 0.5, partitions=["a", "b"], period=2, steps=1)
      >>> params = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[2.0, 4.0]])}
      >>> grads = {"a": jnp.zeros((1, 2)), "b": jnp.ones((1, 2))}
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["a"], jnp.sum(params["b"] != 0))
      [[3. 1.]] 1
      [[3. 1.]] 1
      [[3. 0.]] 1

    References:
      Ma et al., arXiv 2106.09857, figure 4, and the authors' code. It prunes to a
      percentile, which misses the count where weights are equal; ours is exact.
    """
    require_static(period=period, steps=steps, min_keep=min_keep)
    if period < 2 or steps < 1:
        raise value_error(
            "`period` must be at least 2, an update to hand over and one to train, and "
            f"`steps` at least 1; got {period}, {steps}."
        )
    require_target(sparsity, min_keep=min_keep, takes_function=True)
    require_strengths(rate=rate)
    inner = around(inner)
    given = (sparsity, partitions, scope, min_keep, stacked)

    def init(params: Params) -> GrowAndPruneState:
        zero, first = jnp.int32(0), params
        if jax.tree.leaves(params):
            first = Growth.of(params, *given).first(mask, key, params)
        return GrowAndPruneState(zero, first, zero, inner.init(params))

    def update(
        updates: PyTree, state: GrowAndPruneState, params: Params, **extra: Any
    ) -> tuple[PyTree, GrowAndPruneState]:
        if not jax.tree.leaves(params):
            final, after = inner.update(updates, state.inner, params, **extra)
            return final, state._replace(count=next_step(state.count), inner=after)
        plan = Growth.of(params, *given)
        step, place = jnp.divmod(state.count, period)
        running = (step >= 1) & (step <= steps)
        hands_over, begins = running & (place == 0), running & (place == 1)

        def change(stays: tuple[Mask, jax.Array]) -> tuple[Mask, jax.Array]:
            kept, passes = renewed(
                hands_over, lambda now: plan.pruned(params, now[0]), stays
            )
            return plan.grown(kept, step % plan.parts, begins & (step < steps)), passes

        stays = (state.mask, state.passes)
        now, passes = renewed(hands_over | begins, change, stays)
        began = _begun(inner, state, params, begins, restart)
        final, after = inner.update(masks.apply(now, updates), began, params, **extra)
        final = _scaled(final, rate, state.count)
        final = jax.tree.map(lambda u: jnp.where(hands_over, 0, u), final)
        following = GrowAndPruneState(next_step(state.count), now, passes, after)
        return project(final, params, now), following

    return transformation(init, update, "grow_and_prune", wrapper=True)


def gap(
    learning_rate: ScalarOrSchedule,
    sparsity: Any,
    *,
    partitions: Partitions,
    steps: int,
    total_steps: int | None = None,
    period: int | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    momentum: float = 0.9,
    nesterov: bool = False,
    scope: Any = None,
    min_keep: int = 1,
    stacked: Any = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    """C-GaP around SGD, momentum cleared at every step.

    Args:
      learning_rate: a number, or a schedule of the updates of the whole run. One that
        starts again with every step is `optax.join_schedules([one] * steps + [tune],
        [k * period for k in range(1, steps + 1)])`.
      sparsity: see `grow_and_prune`.
      partitions: see `grow_and_prune`.
      steps: see `grow_and_prune`.
      total_steps: length of the run, fine-tuning included.
      period: see `grow_and_prune`; by default such that the steps take 28/33 of
        `total_steps`, as for the paper's ResNet-50 [recalled].
      weight_decay: of all leaves.
      momentum: its coefficient.
      nesterov: Nesterov's form of momentum.
      scope: see `grow_and_prune`.
      min_keep: see `grow_and_prune`.
      stacked: see `grow_and_prune`.
      key: see `grow_and_prune`.

    Returns:
      An Optax transformation. It is sparse from update `steps * period` on, and goes on
      as fine-tuning.

    Raises:
      ValueError: neither `total_steps` nor `period`, or steps that end after the run;
        as `grow_and_prune`.

    References:
      Ma et al., arXiv 2106.09857.
    """
    require_rate(learning_rate, "gap", "wrap it: `grow_and_prune(optimizer, ...)`")
    require_strengths(learning_rate=learning_rate)
    require_static(total_steps=total_steps, period=period, steps=steps)
    if period is None and total_steps is not None:
        period = 28 * total_steps // (33 * max(steps, 1))
    if period is None or (total_steps is not None and period * steps >= total_steps):
        raise value_error(
            "Give `total_steps`, the length of the run, or a `period` whose `steps` "
            "fit into it and leave an update, which prunes the last part; got "
            f"total_steps={total_steps}, period={period}, steps={steps}."
        )
    inner = optax.chain(
        decay_all(weight_decay, None), optax.sgd(1.0, momentum, nesterov)
    )
    return grow_and_prune(
        inner,
        sparsity,
        partitions=partitions,
        period=period,
        steps=steps,
        rate=learning_rate,
        scope=scope,
        min_keep=min_keep,
        stacked=stacked,
        key=key,
    )


class Growth(NamedTuple):
    """What is grown and pruned, for given parameters.

    Attributes:
      sparsity: of each leaf; a number or a tree.
      partition: the part of each leaf, a tree of Python ints.
      parts: how many parts.
      scope: the leaves that are pruned, a tree of bools.
      min_keep: the fewest weights any of them keeps.
      stacked: axes of the layers of stacks, by expression.
    """

    sparsity: Any
    partition: PyTree
    parts: int
    scope: Scope
    min_keep: int
    stacked: Mapping[str, Axes]

    @classmethod
    def of(
        cls,
        params: Params,
        sparsity: Any,
        partitions: Partitions,
        scope: Any,
        min_keep: int,
        stacked: Any,
    ) -> "Growth":
        """From the arguments of `grow_and_prune`."""
        taken = resolve_scope(scope, params)
        target = sparsity(params) if callable(sparsity) else sparsity
        partition, parts = resolve_partitions(partitions, params, taken)
        said = as_said(params, stacked)
        return cls(target, partition, parts, taken, min_keep, said)

    def counts(self, params: Params) -> Any:
        """How many each leaf keeps when sparse."""
        how: Any = {"scope": self.scope, "ranking": "leaf", "stacked": self.stacked}
        return keep_counts(params, self.sparsity, **how)[0]

    def start(self, key: jax.Array, params: Params) -> Mask:
        """Random masks, every leaf sparse."""
        return masks.unstructured(
            scores.random(key, params),
            self.sparsity,
            ranking="leaf",
            scope=self.scope,
            min_keep=self.min_keep,
            stacked=self.stacked,
        )

    def first(self, given: Any, key: Any, params: Params) -> Mask:
        """The masks before the first step: given or random, but part 0 is dense."""
        if given is None:
            return self.grown(self.start(seeded(key), params), 0)
        held: Any = keep_masked(given).init(params)
        return self.grown(held.mask, 0)

    def pruned(self, weights: Scores, within: Mask | None) -> tuple[Mask, jax.Array]:
        """The largest of each leaf: a leaf that is already sparse keeps its mask."""
        leaves = in_scope(weights, self.scope)
        mask, _, passes = ranked(
            weights,
            self.counts(weights),
            ranking="leaf",
            scope=self.scope,
            min_keep=self.min_keep,
            within=within,
            stacked=self.stacked,
            init=selection.WarmStart.cold(leaves, ranking="leaf"),
        )
        return mask, passes

    def grown(self, mask: Mask, part: Any, now: Any = True) -> Mask:
        """All ones in the leaves of one part; both numbers may be traced."""

        def leaf(m: jax.Array, at: int) -> jax.Array:
            return m | ((jnp.asarray(part) == at) & now) if m.ndim else m

        return jax.tree.map(leaf, mask, self.partition)


def _begun(
    inner: optax.GradientTransformation,
    state: GrowAndPruneState,
    params: Params,
    begins: jax.Array,
    restart: bool,
) -> PyTree:
    """The inner state as a step of GaP begins with it; otherwise as it is.

    Handed to `inner.update`, it is computed in the kernels of the update; after it, it
    would cost a copy of the moments.
    """
    if restart:
        fresh = inner.init(params)
        return jax.tree.map(lambda f, s: jnp.where(begins, f, s), fresh, state.inner)
    # What went, and what grows now, is zero.
    goes_on = jax.tree.map(
        lambda m, p: (p != 0) | ~begins if m.ndim else m, state.mask, params
    )
    return renew(inner, state.inner, params, _unless_begun, goes_on)


def _unless_begun(now: jax.Array, first: jax.Array, goes_on: jax.Array) -> jax.Array:
    return jnp.where(goes_on, now, first)


def _scaled(updates: PyTree, rate: ScalarOrSchedule | None, count: jax.Array) -> PyTree:
    if rate is None:
        return updates
    factor = value_at(rate, count)
    return jax.tree.map(lambda u: u * jnp.asarray(factor, u.dtype), updates)
