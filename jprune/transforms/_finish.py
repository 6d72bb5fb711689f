"""The end of a run: remove once, at a step of the chain or after it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks
from jprune._errors import no_params, value_error
from jprune._typing import Mask, Params, PyTree
from jprune.transforms._projection import moved, project

Select = Callable[[Params], Mask]


class PruneOnceState(NamedTuple):
    """State of `prune_once`.

    Attributes:
      left: steps before the one that removes; -1 after it. 0-d int32.
    """

    left: jax.Array

    def probe(self) -> tuple["PruneOnceState", None]:
        """The state that removes at the next update; see `check`."""
        return PruneOnceState(jnp.zeros_like(self.left)), None


def prune_once(select: Select, *, step: int) -> optax.GradientTransformationExtraArgs:
    """Removes at one step what `select` drops (a projection: place it last).

    Before `step` it is the identity. At `step` it takes the parameters as the update
    would make them, asks `select`, and lands the removed ones on exactly zero. After
    it, weights that are zero stay zero; no mask has to be stored.

    Args:
      select: pure function of the parameters to a mask; the same as for `finish`.
      step: the 0-based step whose update removes; `total_steps - 1` for the last.

    Returns:
      A `GradientTransformationExtraArgs` whose state is one counter.

    Raises:
      ValueError: a negative `step`; from `update`, no `params`.
    """
    if step < 0:
        raise value_error(f"`step` must be at least 0, got {step}.")

    def init(params: Params) -> PruneOnceState:
        if jax.tree.leaves(params):
            jax.eval_shape(select, params)  # bad targets and scopes fail here
        return PruneOnceState(jnp.int32(step))

    def update(
        updates: PyTree, state: PruneOnceState, params: Params = None, **extra: Any
    ) -> tuple[PyTree, PruneOnceState]:
        del extra
        if params is None:
            raise no_params("prune_once")
        following = PruneOnceState(jnp.maximum(state.left - 1, -1))
        if not jax.tree.leaves(params):
            return updates, following

        # A removed weight is known by its zero. A leaf `select` never touches (0-d
        # True) is left alone: a bias may well be 0 and still train.
        def held() -> Mask:
            touched = jax.eval_shape(select, params)
            return jax.tree.map(
                lambda s, p: (p != 0) | (state.left > 0) if s.ndim else jnp.array(True),
                touched,
                params,
            )

        kept = jax.lax.cond(
            state.left == 0, lambda: select(moved(params, updates)), held
        )
        return project(updates, params, kept), following

    return optax.GradientTransformationExtraArgs(init, update)


def finish(params: Params, select: Select) -> tuple[Params, Mask]:
    """Removes now: the end of a run whose chain has no projection.

    Also for averaged weights (`optax.ema`, schedule-free evaluation parameters): an
    average of sparse iterates is not sparse until it is masked again.

    Args:
      params: trained parameters.
      select: pure function of the parameters to a mask, e.g.
        `lambda p: masks.unstructured(p, 0.9)`.

    Returns:
      The parameters with exact zeros, and the mask.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks, transforms
      >>> params = {"w": jnp.array([[0.5, -0.1]])}
      >>> transforms.finish(params, lambda p: masks.unstructured(p, 0.5))[0]["w"]
      Array([[0.5, 0. ]], dtype=float32)
    """
    mask = select(params)
    return masks.apply(mask, params), mask
