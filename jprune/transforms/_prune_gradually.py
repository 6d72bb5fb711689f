r"""Gradual magnitude pruning: the sparsity grows along a schedule, masks nest.

The schedule of Zhu and Gupta (2017, eq. 1) from 0 to s over steps b to e is

$$ s_t = s - s \left(1 - \frac{t - b}{e - b}\right)^3, $$

which is `optax.polynomial_schedule(0, s, 3, e - b, b)`; any other Optax schedule will
do.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import selection
from jprune._errors import PREFIX, require_functions
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule, Scores
from jprune.masks._rank import RankingName
from jprune.transforms._build import (
    finite,
    next_step,
    renewed,
    transformation,
)
from jprune.transforms._growing_sparsity import GrowingSparsity, Selected
from jprune.transforms._projection import checkerboard, project
from jprune.transforms._ranking import Ranking


class PruneGraduallyState(NamedTuple):
    """State of `prune_gradually`.

    Attributes:
      count: steps taken, 0-d int32.
      mask: what is kept now; a 0-d True for leaves out of scope.
      warm: where the last threshold was.
      passes: passes over the weights the last threshold took (read-only, for logs).
    """

    count: jax.Array
    mask: Mask
    warm: selection.WarmStart
    passes: jax.Array

    def probe(self) -> tuple["PruneGraduallyState", Mask]:
        """A state past the end that drops half of what is kept; see `check`."""
        mask = checkerboard(self.mask)
        return self._replace(count=jnp.full_like(self.count, 2**30), mask=mask), mask


def prune_gradually(
    sparsity: ScalarOrSchedule,
    *,
    end: int,
    begin: int = 0,
    every: int = 1,
    scope: Any = None,
    ranking: RankingName = "global",
    min_keep: int = 1,
    stacked: Any = None,
    score: Callable[[Params, PyTree], Scores] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Removes the smallest weights step by step (a projection: place it last).

    At the steps `begin, begin + every, ...` and at `end`, whatever the period, the
    weights still kept are ranked (before the update, as every jprune transformation
    ranks), the smallest land on zero and the others take their update: what is removed
    stays removed. Between those steps and after `end` the mask stands still.

    The last cuts cost the most and are won back only by steps that train: in a short
    run whose learning rate falls to zero they are not. Leave about a third of the run
    behind `end`, at a rate that is not yet small.

    Args:
      sparsity: the final sparsity, reached along the cubic schedule from 0 (a number,
        or a tree from `masks.erk` and the like); or an Optax schedule of the step. At
        `end` the count is the host's exact integer for the number (or for the
        schedule's value at `end`, read as a decimal).
      end: last step that prunes, 0-based. It must lie within the run, whose length is
        not known here: a run that stops before it stays less sparse. Steps that a
        wrapper around this one refuses (`optax.apply_if_finite`) do not count.
      begin: first step that prunes.
      every: steps between two rankings.
      scope: which leaves are pruned; see `masks.unstructured`.
      ranking: see `masks.unstructured`.
      min_keep: the fewest weights any leaf keeps; 0 for the masks of codes that have no
        floor.
      stacked: which leaves are stacks of layers, each ranked and floored as a leaf of
        its own; see `masks.unstructured`.
      score: what is ranked in place of the magnitude: a function of the parameters and
        of the raw gradient, None unless it is handed over (`update(updates, state,
        params, grad=grads)`; through `optax.MultiSteps` that is the last micro-batch's,
        see docs/chain.md for the accumulated one). Saliency is `scores.saliency`,
        random pruning `lambda p, g: scores.random(key, p)`, magnitudes relative to
        their leaf `lambda p, g: jax.tree.map(lambda w: w / jnp.linalg.norm(w), p)`. A
        score that is not finite counts as 0.

    Returns:
      A `GradientTransformationExtraArgs`. With sparsity 0 it is the identity.

    Raises:
      ValueError: steps out of order, a sparsity outside [0, 1), a schedule that comes
        down (what is removed stays removed); from `init`, a target
        that cannot be met or a scope that matches nothing; from `update`, no `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import transforms
      >>> tx = optax.chain(optax.sgd(0.1), transforms.prune_gradually(0.5, end=1))
      >>> params = {"w": jnp.array([[4.0, -1.0, 2.0, 3.0]])}
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update({"w": jnp.zeros((1, 4))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params["w"]
      Array([[4., 0., 0., 3.]], dtype=float32)

    References:
      Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878, eq. (1).
    """
    require_functions(score=score)
    ranked = Ranking(None, None, scope, ranking, min_keep, stacked)
    target = GrowingSparsity.of(sparsity, begin, end, every, ranked)

    def init(params: Params) -> PruneGraduallyState:
        kept, zero, ranked = target.all_kept(params), jnp.int32(0), params
        if score is not None and jax.tree.leaves(params):
            call = functools.partial(_scored, score)
            ranked = jax.eval_shape(call, params, params)
        warm = target.scoped(params).final.cold(ranked)
        return PruneGraduallyState(zero, kept, warm, zero)

    def update(
        updates: PyTree,
        state: PruneGraduallyState,
        params: Params,
        *,
        grad: PyTree = None,
        **extra: Any,
    ) -> tuple[PyTree, PruneGraduallyState]:
        del extra
        if not jax.tree.leaves(params):
            return updates, state
        t = state.count

        def select(now: Selected) -> Selected:
            ranked = params if score is None else finite(_scored(score, params, grad))
            return target.scoped(params).select(ranked, t, *now[:2])

        stays = (state.mask, state.warm, state.passes)
        kept, warm, passes = renewed(target.due(t), select, stays)
        following = PruneGraduallyState(next_step(t), kept, warm, passes)
        return project(updates, params, kept), following

    return transformation(init, update, "prune_gradually", wrapper=True)


def _scored(score: Callable[..., Scores], params: Params, grad: PyTree) -> Scores:
    """The scores of a caller's function, whose errors say what it was called with."""
    try:
        return score(params, grad)
    except Exception as error:
        missing = (
            " and `grad` is None: hand the gradient over, `tx.update(updates, state, "
            "params, grad=grads)`"
        )
        error.add_note(
            f"{PREFIX}`score` is called as `score(params, grad)`"
            f"{missing if grad is None else ''}. Random pruning is `lambda params, "
            "grad: scores.random(key, params)`."
        )
        raise
