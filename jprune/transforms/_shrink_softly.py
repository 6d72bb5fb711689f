r"""ISS-P: the smallest weights shrink by a factor instead of being zeroed.

Training starts from the initialization and is sparse-minded from the first step. After
every step of the optimizer, with $c = \theta + u$ and L the low set of c (in each layer
the smallest fraction s by magnitude),

$$ \theta \leftarrow \alpha\, c \;\text{ on } L, \qquad \theta \leftarrow c
   \;\text{ elsewhere}. $$

A weight that matters grows out of L again; one that does not decays geometrically (its
half-life is 13.5 steps at $\alpha = 0.95$), while gradients flow through a network that
is still nearly dense. The L of the last shrinking step is then frozen, set to zero, and
the sparse network trains on. With $\alpha = 0$ this is iterative hard thresholding.

Under a steady update d a low weight settles at $\alpha d / (1 - \alpha)$, 19 d at 0.95.

Wang et al., "Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution",
ICCV 2023 (arXiv 2303.09650); the formulas are those of the authors' code.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import selection
from jprune._errors import require_functions, require_static, value_error
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule
from jprune.masks._count import is_traced
from jprune.masks._rank import RankingName
from jprune.masks._target import require_target
from jprune.transforms._build import (
    end_within,
    exactly_one,
    next_step,
    renewed,
    require_rate,
    transformation,
    value_at,
)
from jprune.transforms._low_set import LowSet
from jprune.transforms._projection import checkerboard


class ShrinkSoftlyState(NamedTuple):
    """State of `shrink_softly`.

    Attributes:
      count: steps taken, 0-d int32.
      mask: False = in the last low set; a 0-d True for leaves out of scope.
      warm: where the last threshold was.
      passes: passes over the weights the last threshold took (read-only, for logs).
    """

    count: jax.Array
    mask: Mask
    warm: selection.WarmStart
    passes: jax.Array

    def probe(self) -> tuple["ShrinkSoftlyState", Mask]:
        """A state past the end that drops half of what is kept; see `check`."""
        mask = checkerboard(self.mask)
        return self._replace(count=jnp.full_like(self.count, 2**30), mask=mask), mask


def shrink_softly(
    sparsity: Any = None,
    *,
    end: int,
    factor: ScalarOrSchedule = 0.95,
    scope: Any = None,
    ranking: RankingName = "leaf",
    stacked: Any = None,
    select: Callable[[Params], Mask] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shrinks the smallest weights, later removes them (a projection: place it last).

    At the steps 0 to `end - 1` the weights are ranked as they are *after* the update
    (alone among jprune's projections: the authors shrink between two steps of the
    optimizer), and the low ones are multiplied by `factor`. The low set of step
    `end - 1` is frozen: from step `end` on it is exactly zero and the rest takes its
    updates bit for bit. Moments of the optimizer are left alone.

    Args:
      sparsity: s. In each leaf of n weights $\min(\lceil s n \rceil, \lfloor 0.995 n
        \rfloor)$ are low, the authors' rule; a number, or a tree from `masks.erk` and
        the like.
      end: the step that removes; the authors' settings amount to 100,020.
      factor: $\alpha$ in [0, 1], a number or a schedule; 0.95 in the paper.
      scope: which leaves; see `masks.unstructured`.
      ranking: "leaf", as in the paper; or "global", one low set over all leaves.
      stacked: which leaves are stacks of layers, each with a low set of its own; see
        `masks.unstructured`.
      select: any other choice of what is kept, in place of `sparsity`, `scope` and
        `ranking`. For N:M: `lambda p: masks.n_of_m(p, 2, 4)`, groups along the
        contracted axis. (The authors cut the flattened OIHW kernel, so that their
        groups straddle kernel positions; no hardware reads that.)

    Returns:
      A `GradientTransformationExtraArgs`. With sparsity 0 it is the identity, with
      factor 1 it is until `end`.

    Raises:
      ValueError: `end` below 1, a `factor` outside [0, 1], both or neither of
        `sparsity` and `select`; from `init`, a sparsity or a scope that cannot be
        met; from `update`, no `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import transforms
      >>> tx = transforms.shrink_softly(0.5, end=2)
      >>> params, zero = {"w": jnp.array([[2.0, -1.0]])}, {"w": jnp.zeros((1, 2))}
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(zero, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["w"].round(4))
      [[ 2.   -0.95]]
      [[ 2.     -0.9025]]
      [[2. 0.]]

    References:
      Wang et al., arXiv 2303.09650, section 3.
    """
    exactly_one(sparsity=sparsity, select=select)
    require_functions(select=select)
    require_target(sparsity, ranking=ranking)
    low = LowSet(sparsity, select, scope, ranking, stacked)
    require_static(end=end)
    if end < 1:
        raise value_error(f"`end` must be at least 1, got {end}: no step would shrink.")
    _require_factor(factor)

    def init(params: Params) -> ShrinkSoftlyState:
        zero = jnp.int32(0)
        return ShrinkSoftlyState(zero, low.everything(params), low.cold(params), zero)

    def update(
        updates: PyTree, state: ShrinkSoftlyState, params: Params
    ) -> tuple[PyTree, ShrinkSoftlyState]:
        shrinks = state.count < end
        moved = optax.apply_updates(params, updates)
        kept, warm, passes = renewed(
            shrinks,
            lambda now: low.refresh(moved, now[1]),
            (state.mask, state.warm, state.passes),
        )
        a = value_at(factor, state.count)
        count = next_step(state.count)
        following = ShrinkSoftlyState(count, kept, warm, passes)
        return _shrunk(updates, params, kept, a, shrinks), following

    return transformation(init, update, "shrink_softly")


def _shrunk(
    updates: PyTree, params: Params, mask: Mask, factor: Any, shrinks: jax.Array
) -> PyTree:
    """To `factor * (p + u)` where low, to 0 there once it no longer shrinks.

    Written `a u - (1 - a) p`, it is u bit for bit at a = 1 and -p at a = 0.
    """

    def leaf(u: jax.Array, p: jax.Array, keep: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(jnp.result_type(u), jnp.result_type(p))
        u, p = jnp.asarray(u, dtype), jnp.asarray(p, dtype)
        a, rest = jnp.asarray(factor, dtype), jnp.asarray(1 - factor, dtype)
        return jnp.where(keep, u, jnp.where(shrinks, a * u - rest * p, -p))

    return jax.tree.map(leaf, updates, params, mask)


def issp(
    learning_rate: ScalarOrSchedule,
    *,
    sparsity: Any = None,
    total_steps: int | None = None,
    end: int | None = None,
    factor: ScalarOrSchedule = 0.95,
    b1: float = 0.9,
    b2: float = 0.99,
    scope: Any = None,
    ranking: RankingName = "leaf",
    stacked: Any = None,
    select: Callable[[Params], Mask] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with iterative soft shrinkage (ISS-P): from the initialization to sparse.

    The paper's run is one chain: constant learning rate while it shrinks, then
    fine-tuning of the sparse network with drops of the rate; give a schedule for that.
    With another optimizer: `optax.chain(optimizer, shrink_softly(...))`.

    Args:
      learning_rate: a number or a schedule; 2e-4 in the paper's SwinIR runs.
      sparsity: see `shrink_softly`; 0.9, 0.95 and 0.99 in the paper.
      total_steps: length of the run.
      end: the step that removes, after which the sparse network trains on; by default a
        third of `total_steps` (100,020 of 300,020 for the paper's SwinIR x4).
      factor: see `shrink_softly`.
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
        `shrink_softly`.

    References:
      Wang et al., arXiv 2303.09650; settings of the authors' code.
    """
    require_rate(learning_rate, "issp", "chain it and `shrink_softly`")
    end = end_within(total_steps, end, Fraction(1, 3), removes=True)
    last = shrink_softly(
        sparsity,
        end=end,
        factor=factor,
        scope=scope,
        ranking=ranking,
        stacked=stacked,
        select=select,
    )
    return optax.chain(optax.adam(learning_rate, b1, b2), last)


def _require_factor(factor: Any) -> None:
    if callable(factor) or is_traced(factor):
        return
    if not 0 <= float(factor) <= 1:
        raise value_error(f"`factor` must be in [0, 1], got {factor}.")
