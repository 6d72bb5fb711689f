"""Fixed masks: keep removed weights at zero, or keep gradients from reaching them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._typing import Mask, Params, PyTree
from jprune.masks._fit import require_fit
from jprune.transforms._build import transformation
from jprune.transforms._projection import checkerboard, project


class KeepMaskedState(NamedTuple):
    """State of `keep_masked`.

    Attributes:
      mask: True = keep; a 0-d True for leaves out of scope.
    """

    mask: Mask

    def probe(self) -> tuple["KeepMaskedState", Mask]:
        """A state that drops half of what is kept, and its mask; see `check`."""
        mask = checkerboard(self.mask)
        return KeepMaskedState(mask), mask


class MaskUpdatesState(NamedTuple):
    """State of `mask_updates`.

    Attributes:
      mask: True = the update passes.
    """

    mask: Mask


def keep_masked(
    mask: Mask | Callable[[Params], Mask],
) -> optax.GradientTransformationExtraArgs:
    """Holds removed weights at exactly zero (a projection: place it last).

    Whatever the chain before it does (momentum, decay, adaptive scaling), after plain
    `optax.apply_updates` every weight the mask removes is 0 and every other weight has
    moved by its update, bit for bit. (A removed weight that is infinite or NaN stays
    NaN, whatever is added to it: `masks.apply` the mask to the parameters first.)

    Args:
      mask: a mask, or a function of the parameters called once by `init`, e.g.
        `masks.from_zeros` to fine-tune a network that is already pruned.

    Returns:
      A `GradientTransformationExtraArgs`; the mask travels in its state.

    Raises:
      ValueError: from `init`, a mask of another structure or shape than the parameters;
        from `update`, no `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import masks, transforms
      >>> tx = optax.chain(optax.sgd(0.1), transforms.keep_masked(masks.from_zeros))
      >>> params = {"w": jnp.array([[0.0, 2.0]])}
      >>> grads = {"w": jnp.array([[1.0, 1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"]
      Array([[0. , 1.9]], dtype=float32)
    """

    def init(params: Params) -> KeepMaskedState:
        return KeepMaskedState(_initial(mask, params))

    def update(
        updates: PyTree, state: KeepMaskedState, params: Params
    ) -> tuple[PyTree, KeepMaskedState]:
        return project(updates, params, state.mask), state

    return transformation(init, update, "keep_masked")


def mask_updates(
    mask: Mask | Callable[[Params], Mask],
) -> optax.GradientTransformationExtraArgs:
    """Zeroes the updates of masked weights (a gradient map: place it first).

    Placed before decay and momentum it freezes weights that are zero: with no gradient
    and a zero value nothing later in the chain moves them. It does not make a weight
    zero; `keep_masked` does.

    Args:
      mask: a mask, or a function of the parameters called once by `init`.

    Returns:
      A `GradientTransformationExtraArgs`; the mask travels in its state.

    Raises:
      ValueError: from `init`, a mask of another structure or shape than the parameters.
    """

    def init(params: Params) -> MaskUpdatesState:
        return MaskUpdatesState(_initial(mask, params))

    def update(
        updates: PyTree, state: MaskUpdatesState, params: Params
    ) -> tuple[PyTree, MaskUpdatesState]:
        passed = jax.tree.map(
            lambda u, m: jnp.where(m, u, jnp.zeros((), jnp.result_type(u))),
            updates,
            state.mask,
        )
        return passed, state

    return transformation(init, update)


def _initial(mask: Mask | Callable[[Params], Mask], params: Params) -> Mask:
    if not jax.tree.leaves(params):
        return params
    given = mask(params) if callable(mask) else mask
    require_fit(given, params)
    return jax.tree.map(lambda m: jnp.asarray(m, bool), given)
