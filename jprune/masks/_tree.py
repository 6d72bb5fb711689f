"""Masks as values: apply, count, combine, read off zeros."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._tree import require_same_structure
from jprune._typing import Mask, Params, Scope
from jprune.masks._scope import from_scope, in_scope, resolve_scope


def apply(mask: Mask, params: Params) -> Params:
    """`where(mask, p, 0)` leaf by leaf; a 0-d True leaves its leaf as it is.

    Args:
      mask: True = keep.
      params: same structure.

    Returns:
      Parameters with exact zeros where the mask is False (NaN and inf included).

    Raises:
      ValueError: the structures differ.
    """
    require_same_structure("mask", mask, params)
    return jax.tree.map(
        lambda m, p: jnp.where(m, p, jnp.zeros((), jnp.result_type(p))), mask, params
    )


def full(params: Params) -> Mask:
    """The mask that keeps everything, at full size. [shapes of `params`]"""
    return jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)


def from_zeros(params: Params, scope: Any = None) -> Mask:
    """Reads the mask off the parameters: what is exactly 0 is removed.

    Args:
      params: pruned parameters.
      scope: which leaves can be pruned; see `masks.unstructured`.

    Returns:
      A mask; leaves out of scope hold a 0-d True.
    """
    scope = resolve_scope(scope, params)
    return from_scope(scope, [x != 0 for x in in_scope(params, scope)])


def intersect(*masks: Mask) -> Mask:
    """Keeps what every mask keeps.

    Args:
      *masks: one or more masks of one structure.

    Returns:
      A mask. A 0-d True gives way to the other mask's leaf.

    Raises:
      ValueError: no mask, or structures that differ.
    """
    if not masks:
        raise value_error("`intersect` needs at least one mask.")
    for mask in masks[1:]:
        require_same_structure("mask", mask, masks[0])
    return jax.tree.map(
        lambda *ms: jnp.asarray(ms[0]) if len(ms) == 1 else _all(ms), *masks
    )


def _all(ms: tuple[jax.Array, ...]) -> jax.Array:
    shape = np.broadcast_shapes(*[jnp.shape(m) for m in ms])
    kept = jnp.asarray(ms[0])
    for m in ms[1:]:
        kept = kept & m
    return jnp.broadcast_to(kept, shape)


def count(mask: Mask, params: Params | None = None, scope: Scope | None = None) -> Any:
    """How many scalars the mask keeps.

    Args:
      mask: a mask.
      params: sizes for leaves whose mask is 0-d; without it such leaves do not count.
      scope: count these leaves only (a tree of bools).

    Returns:
      A 0-d int32 array.
    """
    return _kept_and_size(mask, params, scope)[0]


def size(params: Params, scope: Any = None) -> int:
    """How many scalars a ranking over `scope` ranks.

    Args:
      params: the parameters.
      scope: see `masks.unstructured`; None for `masks.prunable`.

    Returns:
      A Python int.
    """
    scope = resolve_scope(scope, params)
    return sum(int(np.prod(jnp.shape(x))) for x in in_scope(params, scope))


def sparsity(
    mask: Mask, params: Params | None = None, scope: Scope | None = None
) -> jax.Array:
    """The fraction removed of what the mask covers.

    Args:
      mask: a mask.
      params: with it, leaves out of scope (a 0-d True) count as kept; without it they
      do
        not count at all, which is the sparsity methods ask for.
      scope: count these leaves only (a tree of bools).

    Returns:
      A 0-d float32 array; 0 for an empty mask.
    """
    kept, total = _kept_and_size(mask, params, scope)
    return (total - kept) / jnp.float32(max(total, 1))


def _kept_and_size(
    mask: Mask, params: Params | None, scope: Scope | None
) -> tuple[jax.Array, int]:
    like = mask if params is None else params
    require_same_structure("mask", mask, like)
    if scope is None:
        scope = jax.tree.map(lambda m: params is not None or jnp.ndim(m) > 0, mask)
    kept, total = jnp.int32(0), 0
    for m, p in zip(in_scope(mask, scope), in_scope(like, scope), strict=True):
        n = int(np.prod(jnp.shape(p)))
        repeats = n // max(int(np.prod(jnp.shape(m))), 1)
        kept, total = kept + jnp.sum(m, dtype=jnp.int32) * repeats, total + n
    return kept, total
