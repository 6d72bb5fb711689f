r"""ISS-R: every weight has a decay of its own, which grows while the weight is low.

Each weight has a coefficient $r_i$, 0 at first. Every so many steps the low set L (in
each layer the smallest fraction s by magnitude) is picked again and
$r_i \leftarrow r_i + \delta$ on it; at every step

$$ g \leftarrow g + r \odot \theta. $$

A weight that has left L keeps its coefficient. Once a layer's largest coefficient has
passed a limit, its coefficients and its low set stand still; once all layers are there
the low sets are removed, and the sparse network trains on. Here $r = \delta h$ with h
the times a weight was found low, an integer, so that no sum is rounded: at
$\delta = 10^{-4}$ and limit 0.5 a weight that is always low gets there with 5,001.

Wang et al., "Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution",
ICCV 2023 (arXiv 2303.09650), the variant with regularization; the formulas are those of
the authors' code. The growth is that of Wang et al., "Neural Pruning via Growing
Regularization", ICLR 2021 (arXiv 2012.09243).
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import selection
from jprune._errors import require_functions, require_static, value_error
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule
from jprune.masks._rank import RankingName
from jprune.masks._target import require_target
from jprune.selection._count_true import count_true
from jprune.transforms._build import (
    added,
    end_within,
    exactly_one,
    next_step,
    renewed,
    require_strengths,
    transformation,
)
from jprune.transforms._low_set import LowSet
from jprune.transforms._projection import checkerboard, project

Optimizer = Callable[[ScalarOrSchedule], optax.GradientTransformation]


class AddGrowingDecayState(NamedTuple):
    """State of `add_growing_decay`.

    Attributes:
      count: steps taken, 0-d int32.
      hits: times each weight was found low, int32; a 0-d 0 for leaves out of scope.
      mask: False = in the last low set; a 0-d True for leaves out of scope.
      full: which leaves have passed the limit, 0-d bools.
      warm: where the last threshold was.
      passes: passes over the weights the last threshold took (read-only, for logs).
    """

    count: jax.Array
    hits: PyTree
    mask: Mask
    full: PyTree
    warm: selection.WarmStart
    passes: jax.Array

    def done(self) -> jax.Array:
        """Whether all leaves have passed the limit, 0-d."""
        leaves = jax.tree.leaves(self.full)
        return jnp.all(jnp.stack(leaves)) if leaves else jnp.array(False)


class IssrState(NamedTuple):
    """State of `issr`.

    Attributes:
      penalty: of `add_growing_decay`.
      inner: of the optimizer.
    """

    penalty: AddGrowingDecayState
    inner: PyTree

    def probe(self) -> tuple["IssrState", Mask]:
        """A state past the end that drops half of what is kept; see `check`."""
        mask = checkerboard(self.penalty.mask)
        full = jax.tree.map(jnp.ones_like, self.penalty.full)
        return self._replace(penalty=self.penalty._replace(mask=mask, full=full)), mask


def add_growing_decay(
    increment: float | jax.Array,
    sparsity: Any = None,
    *,
    every: int = 20,
    begin: int = 0,
    limit: float | jax.Array = 0.5,
    scope: Any = None,
    ranking: RankingName = "leaf",
    stacked: Any = None,
    select: Callable[[Params], Mask] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds $r \odot w$ to the updates, r growing where w is low (a penalty).

    Place it first, before momentum and adaptive scaling, as the authors do. It removes
    nothing: `issr` does, or `prune_once`, or `keep_masked` with the mask of its state.

    Args:
      increment: $\delta$, 1e-4 in the paper's runs.
      sparsity: s; see `shrink_softly`, whose counts these are.
      every: steps between two growths.
      begin: the step of the first one.
      limit: a leaf whose largest coefficient is above it grows no more and keeps its
        low set.
      scope: see `shrink_softly`.
      ranking: see `shrink_softly`.
      stacked: see `shrink_softly`.
      select: see `shrink_softly`.

    Returns:
      A `GradientTransformationExtraArgs`. With increment 0 it is the identity.

    Raises:
      ValueError: `every` below 1, a negative `increment` or `limit`, both or neither
        of `sparsity` and `select`; from `init`, a sparsity or a scope that cannot be
        met; from `update`, no `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import transforms
      >>> tx = transforms.add_growing_decay(0.1, 0.5, every=1)
      >>> params, zero = {"w": jnp.array([[2.0, -1.0]])}, {"w": jnp.zeros((1, 2))}
      >>> updates, state = tx.update(zero, tx.init(params), params)
      >>> updates, state = tx.update(zero, state, params)
      >>> updates["w"]
      Array([[ 0. , -0.2]], dtype=float32)

    References:
      Wang et al., arXiv 2303.09650; the authors' code.
    """
    exactly_one(sparsity=sparsity, select=select)
    require_functions(select=select)
    require_target(sparsity, ranking=ranking)
    low = LowSet(sparsity, select, scope, ranking, stacked)
    require_static(every=every, begin=begin)
    require_strengths(increment=increment, limit=limit)
    if every < 1 or begin < 0:
        raise value_error(
            f"`every` must be at least 1 and `begin` at least 0, got {every}, {begin}."
        )

    def init(params: Params) -> AddGrowingDecayState:
        mask, zero = low.everything(params), jnp.int32(0)
        hits, full = mask, mask
        if jax.tree.leaves(params):
            hits = jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.int32), mask)
            full = jax.tree.map(lambda m: jnp.array(m.ndim == 0), mask)
        return AddGrowingDecayState(zero, hits, mask, full, low.cold(params), zero)

    def grow(state: AddGrowingDecayState, params: Params) -> AddGrowingDecayState:
        found, warm, passes = low.refresh(params, state.warm)
        mask = jax.tree.map(jnp.where, state.full, state.mask, found)
        hits = jax.tree.map(
            lambda full, h, keep: jnp.where(full, h, h + ~keep),
            state.full,
            state.hits,
            found,
        )
        full = jax.tree.map(
            lambda full, h: full | (count_true(h * increment > limit) > 0),
            state.full,
            hits,
        )
        return AddGrowingDecayState(state.count, hits, mask, full, warm, passes)

    def update(
        updates: PyTree, state: AddGrowingDecayState, params: Params
    ) -> tuple[PyTree, AddGrowingDecayState]:
        since = state.count - begin
        due = (since >= 0) & (since % every == 0)
        state = renewed(due, lambda now: grow(now, params), state)
        moved = _decayed(updates, params, state.hits, increment)
        return moved, state._replace(count=next_step(state.count))

    return transformation(init, update, "add_growing_decay")


def _decayed(updates: PyTree, params: Params, hits: PyTree, increment: Any) -> PyTree:
    """`u + increment * hits * w`; u bit for bit where it was never low."""

    def leaf(u: jax.Array, p: jax.Array, h: jax.Array) -> jax.Array:
        if h.ndim == 0:
            return u
        decay = h.astype(p.dtype) * jnp.asarray(increment, p.dtype)
        return jnp.where(h == 0, u, added(u, decay * p))

    return jax.tree.map(leaf, updates, params, hits)


def issr(
    learning_rate: ScalarOrSchedule,
    *,
    sparsity: Any = None,
    total_steps: int | None = None,
    end: int | None = None,
    increment: float | jax.Array = 1e-4,
    every: int = 20,
    begin: int = 0,
    limit: float | jax.Array = 0.5,
    optimizer: Optimizer | None = None,
    b1: float = 0.9,
    b2: float = 0.99,
    scope: Any = None,
    ranking: RankingName = "leaf",
    stacked: Any = None,
    select: Callable[[Params], Mask] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with growing decays (ISS-R): from the initialization to sparse.

    The low sets are removed at the first step at which every leaf has passed the limit,
    as the authors do, and at step `end` whether or not. Removed are the sets the decay
    last acted on: the optimizer stands inside, between the penalty and the removal.

    Args:
      learning_rate: a number or a schedule; 2e-4 in the paper's SwinIR runs.
      sparsity: see `shrink_softly`.
      total_steps: length of the run.
      end: the step that removes at the latest; by default a third of `total_steps`, as
        for `issp`. A weight that is always low passes the limit after `every * limit /
        increment` steps: 100,020 with the paper's settings.
      increment: see `add_growing_decay`.
      every: see `add_growing_decay`.
      begin: see `add_growing_decay`.
      limit: see `add_growing_decay`.
      optimizer: in place of Adam, a function of the learning rate: `optax.sgd`, or
        `lambda rate: optax.sgd(rate, 0.9)`.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      scope: see `shrink_softly`.
      ranking: see `shrink_softly`.
      stacked: see `shrink_softly`.
      select: see `shrink_softly`.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: neither `total_steps` nor `end`, or an `end` outside the run; as
        `add_growing_decay`.

    References:
      Wang et al., arXiv 2303.09650; settings of the authors' code.
    """
    last = end_within(total_steps, end, Fraction(1, 3), removes=True)
    require_static(begin=begin)
    if begin >= last:
        raise value_error(
            f"`begin` must lie before the removal at step `end`={last}, got {begin}: "
            "nothing would be known to be low, and nothing removed."
        )
    penalty = add_growing_decay(
        increment,
        sparsity,
        every=every,
        begin=begin,
        limit=limit,
        scope=scope,
        ranking=ranking,
        stacked=stacked,
        select=select,
    )
    require_functions(optimizer=optimizer)
    inside = (optimizer or partial(optax.adam, b1=b1, b2=b2))(learning_rate)

    def init(params: Params) -> IssrState:
        grown: Any = penalty.init(params)
        return IssrState(grown, inside.init(params))

    def update(
        updates: PyTree, state: IssrState, params: Params
    ) -> tuple[PyTree, IssrState]:
        before = state.penalty
        over = before.count >= last
        before = before._replace(full=jax.tree.map(lambda f: f | over, before.full))
        after: Any
        pulled, after = penalty.update(updates, before, params)
        # What was full before this step is removed in it: one step to settle. From
        # then on what is kept decays no more.
        done = before.done()
        pulled = jax.tree.map(lambda a, u: jnp.where(done, u, a), pulled, updates)
        moved, inner = inside.update(pulled, state.inner, params)
        kept = jax.tree.map(lambda m: m | ~done, before.mask)
        return project(moved, params, kept), IssrState(after, inner)

    return transformation(init, update, "issr")
