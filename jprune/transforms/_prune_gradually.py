r"""Gradual magnitude pruning: the sparsity grows along a schedule, masks nest.

The schedule of Zhu and Gupta (2017, eq. 1) from 0 to s over steps b to e is

$$ s_t = s - s \left(1 - \frac{t - b}{e - b}\right)^3, $$

which is `optax.polynomial_schedule(0, s, 3, e - b, b)`; any other Optax schedule will
do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import masks, selection
from jprune._errors import no_params, value_error
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule
from jprune.transforms._build import next_step, transformation
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
    ranking: masks.Ranking = "global",
    min_keep: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Removes the smallest weights step by step (a projection: place it last).

    At the steps `begin, begin + every, ...` and at `end`, whatever the period, the
    weights still kept are ranked (before the update, as every jprune transformation
    ranks), the smallest land on zero and the others take their update: what is removed
    stays removed. Between those steps and after `end` the mask stands still.

    Args:
      sparsity: the final sparsity, reached along the cubic schedule from 0 (a number,
        or a tree from `masks.erk` and the like); or an Optax schedule of the step. At
        `end` the count is the host's exact integer for the number (or for the
        schedule's value at `end`, read as a decimal).
      end: last step that prunes, 0-based.
      begin: first step that prunes.
      every: steps between two rankings.
      scope: which leaves are pruned; see `masks.unstructured`.
      ranking: "global" or "leaf".
      min_keep: the fewest weights any leaf keeps.

    Returns:
      A `GradientTransformationExtraArgs`. With sparsity 0 it is the identity.

    Raises:
      ValueError: steps out of order, a sparsity outside [0, 1); from `init`, a target
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
    if not 0 <= begin <= end or every < 1:
        raise value_error(
            "`begin`, `end`, `every` need 0 <= begin <= end and every >= 1; got "
            f"{begin}, {end}, {every}."
        )
    ranked = Ranking(None, None, scope, ranking, min_keep)
    chosen = _Gradual.of(sparsity, begin, end, ranked)

    def init(params: Params) -> PruneGraduallyState:
        kept, last = params, chosen.final
        if jax.tree.leaves(params):
            shapes = jax.eval_shape(last.mask, params)
            kept = jax.tree.map(lambda s: jnp.ones(s.shape, bool), shapes)
        zero = jnp.int32(0)
        return PruneGraduallyState(zero, kept, last.cold(params), zero)

    def update(
        updates: PyTree,
        state: PruneGraduallyState,
        params: Params = None,
        **extra: Any,
    ) -> tuple[PyTree, PruneGraduallyState]:
        del extra
        if params is None:
            raise no_params("prune_gradually")
        if not jax.tree.leaves(params):
            return updates, state
        t = state.count
        due = (t >= begin) & (t < end) & ((t - begin) % every == 0)
        kept, warm, passes = jax.lax.cond(
            due | (t == end),
            lambda: chosen.select(params, state),
            lambda: (state.mask, state.warm, state.passes),
        )
        following = PruneGraduallyState(next_step(t), kept, warm, passes)
        return project(updates, params, kept), following

    return transformation(init, update)


class _Gradual(NamedTuple):
    """The target at every step: a schedule, and the exact numbers at its end."""

    schedule: Callable[[jax.Array], Any]
    final: Ranking
    end: int

    @classmethod
    def of(cls, sparsity: Any, begin: int, end: int, ranking: Ranking) -> "_Gradual":
        if callable(sparsity):
            last = _value_at(sparsity, end)
            return cls(sparsity, ranking._replace(sparsity=last), end)
        schedule = _cubic(sparsity, begin, end)
        return cls(schedule, ranking._replace(sparsity=sparsity), end)

    def select(
        self, params: Params, state: PruneGraduallyState
    ) -> tuple[Mask, selection.WarmStart, jax.Array]:
        """The mask of this step, within the one in force."""
        now = self.final._replace(sparsity=self.schedule(state.count))
        (traced, _), (exact, ranking) = now.counts(params), self.final.counts(params)
        return masks.ranked(
            params,
            jax.tree.map(
                lambda a, b: jnp.where(state.count == self.end, b, a), traced, exact
            ),
            ranking=ranking,
            scope=self.final.scope,
            min_keep=self.final.min_keep,
            within=state.mask,
            init=state.warm,
        )


def _cubic(sparsity: Any, begin: int, end: int) -> Callable[[jax.Array], Any]:
    """Zhu and Gupta's eq. (1) from 0 to each number of `sparsity` (one, or a tree)."""

    def schedule(t: jax.Array) -> Any:
        length = max(end - begin, 1)
        return jax.tree.map(
            lambda s: optax.polynomial_schedule(0.0, s, 3, length, begin)(t), sparsity
        )

    return schedule


def _value_at(schedule: Callable[[Any], Any], step: int) -> Any:
    """The schedule's value on the host, as the decimal its float32 text names."""
    with jax.ensure_compile_time_eval():
        return np.asarray(schedule(jnp.int32(step)))[()]
