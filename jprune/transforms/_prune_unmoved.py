r"""Dissipating gradients: what training leaves where it started is removed.

After each of the first epochs, of the weights still kept,

$$ M \leftarrow M \wedge \left( |w - w_0| > f\, |w_0| \right), $$

with $w_0$ the value at initialization, whatever the magnitude. Nothing regrows, and how
sparse the network becomes is an outcome of f and of the number of epochs.

Three cautions, derived, not from the paper. *Adam* moves every weight by about the
learning rate per step early on, so that $|w - w_0|$ hardly differs between weights and
the test removes the largest $|w_0|$: use SGD. *Weight decay* moves weights too: keep
$\eta \lambda T$ well below f over T steps, or nothing is ever still. And a large f
after few steps would empty whole layers: the floor `min_keep` then keeps those that
moved most.

Haroon, "What to Prune and What Not to Prune at Initialization", arXiv 2209.02201; only
its abstract could be read, the formula is `[inferred]`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks, scores
from jprune._errors import require_functions, require_static, value_error
from jprune._stacks import as_said
from jprune._typing import Mask, Params, PyTree, Scores
from jprune.masks._count import is_traced
from jprune.masks._scope import resolve_scope
from jprune.transforms._build import next_step, renewed, transformation
from jprune.transforms._projection import checkerboard, project


class PruneUnmovedState(NamedTuple):
    """State of `prune_unmoved`.

    Attributes:
      count: steps taken, 0-d int32.
      initial: a copy of the parameters at `init`; 0-d for leaves out of scope.
      mask: what is kept now; a 0-d True for leaves out of scope.
    """

    count: jax.Array
    initial: Params
    mask: Mask

    def probe(self) -> tuple["PruneUnmovedState", Mask]:
        """A state past the end that drops half of what is kept; see `check`."""
        mask = checkerboard(self.mask)
        return self._replace(count=jnp.full_like(self.count, 2**30), mask=mask), mask


def prune_unmoved(
    fraction: float | jax.Array = 0.1,
    *,
    every: int,
    end: int,
    unit: Callable[[Params], Scores] | None = None,
    scope: Any = None,
    min_keep: int | None = None,
    stacked: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes what stayed near its initial value (a projection: place it last).

    At the steps `every, 2 every, ..., end` (before the update, when as many updates
    have been taken) the weights still kept that lie within the fraction of their
    initial value land on zero; the others take their update. Between those steps and
    after `end` the mask stands still. The initial values are those given to `init`.

    Args:
      fraction: f, at least 0; may be traced.
      every: steps between two tests, an epoch in the paper.
      end: the last step that tests, a multiple of `every`; two epochs are a start, more
        give more sparsity.
      unit: what is judged together; None for `scores.magnitude`, see
        `scores.relative_change`.
      scope: which leaves are pruned; see `masks.unstructured`. Leave out leaves that
        start at zero: they are still only as long as they get no gradient.
      min_keep: the fewest weights any leaf keeps; None for one for each output, see
        `masks.above`.
      stacked: see `masks.unstructured`; a floor is that of each layer of a stack.

    Returns:
      A `GradientTransformationExtraArgs`. Its state holds a copy of the parameters.

    Raises:
      ValueError: a negative `fraction`, steps out of order or no integers, a negative
        `min_keep`; from `init`, a scope that matches nothing; from `update`, no
        `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import transforms
      >>> still = transforms.prune_unmoved(0.1, every=1, end=1, min_keep=0)
      >>> tx = optax.chain(optax.sgd(1.0), still)
      >>> params = {"w": jnp.array([[4.0, -1.0]])}
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = {"w": jnp.array([[0.1, 0.5]])}
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params["w"]  # 4 moved by 2.5 % in the first step, -1 by 50 %
      Array([[ 0., -2.]], dtype=float32)

    References:
      Haroon, arXiv 2209.02201, abstract; the formula is `[inferred]`.
    """
    require_static(every=every, end=end, min_keep=min_keep)
    require_functions(unit=unit)
    if not 1 <= every <= end or end % every:
        raise value_error(
            "`every` and `end` need 1 <= every <= end, with `end` a multiple of "
            f"`every`; got {every}, {end}."
        )
    if not is_traced(fraction) and not 0 <= float(fraction) < float("inf"):
        raise value_error(f"`fraction` must be finite and >= 0, got {fraction}.")

    def select(params: Params, initial: Params, mask: Mask) -> Mask:
        change = scores.relative_change(params, initial, unit or scores.magnitude)
        return masks.above(
            change,
            fraction,
            within=mask,
            scope=scope,
            min_keep=min_keep,
            stacked=as_said(params, stacked),
        )

    def init(params: Params) -> PruneUnmovedState:
        taken = resolve_scope(scope, params)
        initial = jax.tree.map(
            lambda p, t: jnp.copy(p) if t else jnp.zeros((), jnp.result_type(p)),
            params,
            taken,
        )
        mask = jax.tree.map(
            lambda p, t: jnp.ones(jnp.shape(p) if t else (), bool), params, taken
        )
        if jax.tree.leaves(params):
            jax.eval_shape(select, params, initial, mask)  # bad settings fail here
        return PruneUnmovedState(jnp.int32(0), initial, mask)

    def update(
        updates: PyTree, state: PruneUnmovedState, params: Params
    ) -> tuple[PyTree, PruneUnmovedState]:
        t = state.count
        kept = renewed(
            (t > 0) & (t <= end) & (t % every == 0),
            lambda now: select(params, state.initial, now),
            state.mask,
        )
        following = PruneUnmovedState(next_step(t), state.initial, kept)
        return project(updates, params, kept), following

    return transformation(init, update, "prune_unmoved")
