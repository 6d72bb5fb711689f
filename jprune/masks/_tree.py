"""Masks as values: apply, count, combine, read off zeros."""

import functools
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jprune._dtypes import not_zero
from jprune._errors import value_error
from jprune._tree import require_same_structure
from jprune._typing import Mask, Params, Scope
from jprune.masks._fit import require_fit
from jprune.masks._scope import from_scope, in_scope, resolve_scope
from jprune.selection._count_true import count_true


def apply(mask: Mask, params: Params) -> Params:
    """`where(mask, p, 0)` leaf by leaf; a 0-d True leaves its leaf as it is.

    Args:
      mask: True = keep.
      params: same structure; a leaf has the shape of its mask, unless that is 0-d.

    Returns:
      Parameters with exact zeros where the mask is False (NaN and inf included).

    Raises:
      ValueError: structures or shapes that differ, or no mask.
    """
    require_fit(mask, params)

    def leaf(m: Any, p: Any) -> Any:
        if not np.ndim(m) and not isinstance(p, ArrayLike):
            return p  # a function or a text in the tree of a model
        return jnp.where(m, p, jnp.zeros((), jnp.result_type(p)))

    return jax.tree.map(leaf, mask, params)


def full(params: Params) -> Mask:
    """The mask that keeps everything, at full size.

    Args:
      params: gives structure and shapes.

    Returns:
      A mask of True, every leaf of the shape of its parameter.
    """
    return jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)


def from_zeros(params: Params, scope: Any = None) -> Mask:
    """Reads the mask off the parameters: what is exactly 0 is removed.

    A subnormal number is not 0, whether or not the hardware flushes it.

    Args:
      params: pruned parameters.
      scope: which leaves can be pruned; see `masks.unstructured`.

    Returns:
      A mask; leaves out of scope hold a 0-d True.
    """
    scope = resolve_scope(scope, params)
    return from_scope(scope, [not_zero(x) for x in in_scope(params, scope)])


def intersect(*masks: Mask) -> Mask:
    """Keeps what every mask keeps.

    Args:
      *masks: one or more masks of one structure.

    Returns:
      A mask. A 0-d leaf gives way to the shape of the other mask's.

    Raises:
      ValueError: no mask, or structures or shapes that differ.
    """
    if not masks:
        raise value_error("`intersect` needs at least one mask.")
    for mask in masks[1:]:
        require_same_structure("mask", mask, masks[0])
    largest = jax.tree.map(lambda *ms: max(ms, key=jnp.ndim), *masks)
    for mask in masks:
        require_fit(mask, largest)
    return jax.tree.map(lambda *ms: functools.reduce(jnp.logical_and, ms, True), *masks)


def count(
    mask: Mask, params: Params | None = None, scope: Scope | None = None
) -> jax.Array:
    """How many scalars the mask keeps.

    Args:
      mask: a mask.
      params: sizes for leaves whose mask is 0-d; without it such leaves do not count.
      scope: count these leaves only (a tree of bools).

    Returns:
      A 0-d int32 array.

    Raises:
      ValueError: structures or shapes that differ, or 2**31 scalars or more.
    """
    removed, total = _removed_and_size(mask, params, scope)
    if total >= 2**31:
        raise value_error(f"{total} scalars do not fit an int32 count; use `scope`.")
    return total - sum((n * times for n, times in removed), jnp.int32(0))


def size(params: Params, scope: Any = None) -> int:
    """How many scalars a ranking over `scope` ranks.

    Args:
      params: the parameters.
      scope: see `masks.unstructured`; None for `masks.prunable`.

    Returns:
      A Python int.
    """
    scope = resolve_scope(scope, params)
    return sum(prod(np.shape(x)) for x in in_scope(params, scope))


def sparsity(
    mask: Mask, params: Params | None = None, scope: Scope | None = None
) -> jax.Array:
    """The fraction removed of what the mask covers.

    Args:
      mask: a mask.
      params: with it, leaves out of scope (a 0-d True) count as kept; without it they
        do not count at all, which is the sparsity methods ask for.
      scope: count these leaves only (a tree of bools).

    Returns:
      A 0-d float32 array; 0 for an empty mask.

    Raises:
      ValueError: structures or shapes that differ.
    """
    removed, total = _removed_and_size(mask, params, scope)
    counts = (n.astype(jnp.float32) * float(times) for n, times in removed)
    return sum(counts, jnp.float32(0)) / float(max(total, 1))


def _removed_and_size(
    mask: Mask, params: Params | None, scope: Scope | None
) -> tuple[list[tuple[jax.Array, int]], int]:
    """What is removed of each leaf, as count and factor, and how many there are."""
    like = mask if params is None else params
    require_fit(mask, like)
    if scope is None:
        scope = jax.tree.map(lambda m: params is not None or jnp.ndim(m) > 0, mask)
    require_same_structure("scope", scope, like)
    removed, total = [], 0
    for m, p in zip(in_scope(mask, scope), in_scope(like, scope), strict=True):
        n = prod(np.shape(p))
        gone = count_true(~jnp.asarray(m, bool))
        removed.append((gone, 1 if jnp.ndim(m) else n))
        total += n
    return removed, total
