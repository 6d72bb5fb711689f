r"""A sparsity that grows along a schedule and ends at an exact count.

$$ s_t = s - s \left(1 - \frac{t - b}{e - b}\right)^3 $$

is the cubic of Zhu and Gupta (2017, eq. 1) from 0 to s over steps b to e. A count along
the way is traced; at the end it is the integer that the host computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import selection
from jprune._errors import require_static, value_error
from jprune._stacks import as_said
from jprune._typing import Mask, Params, Scores
from jprune.masks._count import require_sparsity
from jprune.masks._target import require_target
from jprune.masks._unstructured import ranked
from jprune.transforms._ranking import Ranking

Selected = tuple[Mask, selection.WarmStart, jax.Array]
"""The mask in force, the next warm start, and the passes the threshold took."""


class GrowingSparsity(NamedTuple):
    """The target at every step: a schedule, and the exact numbers at its end.

    Attributes:
      schedule: the sparsity (a number, or a tree) at a step.
      final: the ranking, with the sparsity at the end.
      begin: first step that prunes.
      end: last step that prunes.
      every: steps between two rankings.
    """

    schedule: Callable[[jax.Array], Any]
    final: Ranking
    begin: int
    end: int
    every: int

    @classmethod
    def of(
        cls, sparsity: Any, begin: int, end: int, every: int, ranking: Ranking
    ) -> "GrowingSparsity":
        """From the arguments of a transformation.

        Raises:
          ValueError: steps out of order, a target out of range, or a schedule that
            comes down.
        """
        require_static(begin=begin, end=end, every=every, min_keep=ranking.min_keep)
        if not 0 <= begin <= end or every < 1:
            raise value_error(
                "`begin`, `end`, `every` need 0 <= begin <= end and every >= 1; got "
                f"{begin}, {end}, {every}."
            )
        how: Any = {"min_keep": ranking.min_keep, "ranking": ranking.ranking}
        require_target(sparsity, **how, takes_function=True)
        schedule, last = sparsity, sparsity
        if callable(sparsity):
            last = _value_at(sparsity, end)
            _require_growth(sparsity, begin, end, every)
            if np.ndim(last) == 0:
                require_sparsity(last)
        else:
            schedule = _cubic(sparsity, begin, end)
        return cls(schedule, ranking._replace(sparsity=last), begin, end, every)

    def due(self, t: jax.Array) -> jax.Array:
        """Whether step `t` prunes: every so often, and at the end in any case."""
        period = (
            (t >= self.begin) & (t < self.end) & ((t - self.begin) % self.every == 0)
        )
        return period | (t == self.end)

    def scoped(self, params: Params) -> "GrowingSparsity":
        """With the scope and the stacks of `params`: to rank another tree."""
        final = self.final
        own = {"scope": final.leaves(params), "stacked": as_said(params, final.stacked)}
        return self._replace(final=final._replace(**own))

    def all_kept(self, params: Params) -> Mask:
        """The mask before the first removal; a bad scope or target fails here."""
        if not jax.tree.leaves(params):
            return params
        shapes = jax.eval_shape(self.final.mask, params)
        return jax.tree.map(lambda s: jnp.ones(s.shape, bool), shapes)

    def select(
        self,
        scores: Scores,
        t: jax.Array,
        within: Mask | None,
        init: selection.WarmStart,
    ) -> tuple[Mask, selection.WarmStart, jax.Array]:
        """The mask of step `t`, the next warm start, and the passes it took."""
        now = self.final._replace(sparsity=self.schedule(t))
        (traced, _), (exact, ranking) = now.counts(scores), self.final.counts(scores)
        return ranked(
            scores,
            jax.tree.map(lambda a, b: jnp.where(t == self.end, b, a), traced, exact),
            ranking=ranking,
            scope=self.final.scope,
            min_keep=self.final.min_keep,
            within=within,
            init=init,
            stacked=self.final.stacked,
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


_LOOKED_AT = 1_024
"""The most steps at which a schedule is evaluated beforehand."""


def _require_growth(schedule: Callable[[Any], Any], begin: int, end: int, every: int):
    """Raises if the schedule comes down between two rankings: zeros would stay zero."""
    count = min((end - begin) // every + 1, _LOOKED_AT)
    places = np.linspace(0, (end - begin) // every, count).astype(np.int64)
    steps = np.append(begin + places * every, end)
    with jax.ensure_compile_time_eval():
        values = [np.max(np.asarray(schedule(jnp.int32(t)))) for t in steps]
    falls = np.flatnonzero(np.diff(values) < -1e-6)
    if falls.size:
        i = int(falls[0])
        raise value_error(
            f"`sparsity` must not decrease, since what is removed stays removed: the "
            f"schedule is {values[i]:.4g} at step {steps[i]} and {values[i + 1]:.4g} "
            f"at step {steps[i + 1]}. To let weights return use `drop_and_grow` or "
            "`grow_and_prune`."
        )
