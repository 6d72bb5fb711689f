"""The end of a run: remove once, at a step of the chain or after it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks
from jprune._errors import injected, require_static, type_error, value_error
from jprune._typing import Mask, Params, PyTree
from jprune.masks._fit import require_fit
from jprune.selection._count_true import count_true
from jprune.transforms._build import renewed, total, transformation
from jprune.transforms._projection import project

Select = Callable[[Params], Mask]


class PruneOnceState(NamedTuple):
    """State of `prune_once`.

    Attributes:
      count: steps so far; -1 after the one that removes. 0-d int32.
      removed: how many weights that step removed, 0 before it (read-only, for logs).
        0-d int32.
    """

    count: jax.Array
    removed: jax.Array

    def due(self, step: int) -> jax.Array:
        """Whether this update removes: the first one at `step` or after it."""
        return self.count >= step

    def probe(self) -> tuple["PruneOnceState", None]:
        """The state that removes at the next update; see `check`."""
        return self._replace(count=jnp.full_like(self.count, _LAST)), None


_LAST = 2**31 - 1
"""No `step` is later."""


def prune_once(select: Select, *, step: int) -> optax.GradientTransformationExtraArgs:
    """Removes at one step what `select` drops (a projection: place it last).

    Before `step` it is the identity. At `step` it asks `select` about the parameters
    (before the update, as every jprune transformation does), lands the removed ones on
    exactly zero and lets the kept ones take their update. After it, weights that are
    zero stay zero; no mask has to be stored.

    A loop that ends before `step`, or does not hand the state on, removes nothing, and
    nothing can be raised inside a jitted step: look at `analysis.report(params)` after
    the run, or at `removed` in the state. `finish` removes then. Inside a wrapper that
    refuses steps (`optax.apply_if_finite`) those do not count, and the run ends before
    `step`: place it behind the wrapper.

    Args:
      select: pure function of the parameters to a mask; the same as for `finish`.
      step: the 0-based step whose update removes; `total_steps - 1` for the last. Where
        a state is restored behind it that has not removed, the next update does.

    Returns:
      A `GradientTransformationExtraArgs` whose state is two counters.

    Raises:
      TypeError: `select` is not a function.
      ValueError: a negative `step`; from `init`, a `select` that gives no mask of the
        parameters; from `update`, no `params`.
    """
    _require_function(select)
    require_static(step=step)
    if step < 0:
        raise value_error(f"`step` must be at least 0, got {step}.")

    def init(params: Params) -> PruneOnceState:
        if jax.tree.leaves(params):
            # Bad targets, bad scopes, and what is no mask fail here.
            require_fit(jax.eval_shape(select, params), params)
        return PruneOnceState(jnp.int32(0), jnp.int32(0))

    def update(
        updates: PyTree, state: PruneOnceState, params: Params
    ) -> tuple[PyTree, PruneOnceState]:
        # Only the parameters enter the `cond`: an update that did would have to be
        # written to memory at every step.
        touched = jax.eval_shape(select, params)

        def remove(_: Any) -> tuple[Mask, jax.Array]:
            mask = jax.tree.map(jnp.asarray, select(params))
            return mask, removed_count(mask, params)

        all_kept = jax.tree.map(_all_kept, touched, params)
        now = state.due(step)
        kept, removed = renewed(now, remove, (all_kept, state.removed))
        return remove_at_end(updates, state, params, now, kept, removed)

    return transformation(init, update, "prune_once")


def remove_at_end(
    updates: PyTree,
    state: PruneOnceState,
    params: Params,
    now: jax.Array,
    kept: Mask,
    removed: jax.Array,
) -> tuple[PyTree, PruneOnceState]:
    """The step of `prune_once`, given whether it removes now, and what it keeps then.

    Afterwards a removed weight is known by its zero. A leaf that the mask never touches
    (0-d True) is left alone: a bias may well be 0 and still train.
    """
    # Never negative: so that nothing is written before all is counted, for which XLA
    # would first copy the parameters.
    counted = removed >= 0
    before = (state.count >= 0) & ~now & counted
    now = now & counted

    def keeps(k: jax.Array, p: jax.Array) -> jax.Array:
        return jnp.where(now, k, before | (p != 0)) if k.ndim else k

    following = PruneOnceState(jnp.where(before, state.count + 1, -1), removed)
    return project(updates, params, jax.tree.map(keeps, kept, params)), following


def _require_function(select: Any) -> None:
    if not callable(select):
        raise type_error(
            "`select` must be a function of the parameters such as `lambda p: "
            f"masks.unstructured(p, 0.9)`, got {type(select).__name__}. For a mask you "
            f"have use `masks.apply`. {injected('select')}"
        )


def _all_kept(mask: jax.ShapeDtypeStruct, p: jax.Array) -> jax.Array:
    """All True, with the sharding of the parameter; 0-d where the mask is."""
    return ~jnp.zeros_like(p, bool) if mask.ndim else jnp.array(True)


def removed_count(mask: Mask, params: Params) -> jax.Array:
    """Weights that were not 0 and are dropped. 0-d int32"""

    def dropped(m: jax.Array, p: jax.Array) -> jax.Array:
        return count_true((p != 0) > m)

    return total(jax.tree.leaves(jax.tree.map(dropped, mask, params)))


def finish(params: Params, select: Select) -> tuple[Params, Mask]:
    """Removes now: the end of a run whose chain has no projection, or was cut short.

    One that refused steps (`optax.apply_if_finite` around a recipe) ends before its
    removal. Where the chain has removed already, the same `select` drops the same
    weights again.

    Also for averaged weights (`optax.ema`, schedule-free evaluation parameters): an
    average of sparse iterates is not sparse until it is masked again.

    Args:
      params: trained parameters.
      select: pure function of the parameters to a mask, e.g.
        `lambda p: masks.unstructured(p, 0.9)`.

    Returns:
      The parameters with exact zeros, and the mask.

    Raises:
      TypeError: `select` is not a function.
      ValueError: it gives no mask of the parameters.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks, transforms
      >>> params = {"w": jnp.array([[0.5, -0.1]])}
      >>> transforms.finish(params, lambda p: masks.unstructured(p, 0.5))[0]["w"]
      Array([[0.5, 0. ]], dtype=float32)
    """
    _require_function(select)
    mask = select(params)
    return masks.apply(mask, params), mask
