"""N:M sparsity: of every M consecutive weights along an axis, at most N are kept.

The axis is the contracted one (the weights that meet in one dot product), since that is
what sparse matrix units read. The ranking is local: each weight counts how many of its
M fellows beat it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune import selection
from jprune._axes import axis_list, contraction_axis
from jprune._errors import value_error
from jprune._typing import Mask, PyTree, Scores
from jprune.masks._scope import (
    from_scope,
    in_scope,
    in_scope_list,
    resolve_scope,
    scoped_names,
)


def n_of_m(
    scores: Scores,
    n: int,
    m: int,
    axis: int | PyTree | None = None,
    *,
    scope: Any = None,
    signed: bool = False,
) -> Mask:
    """Keeps the `n` largest of every `m` consecutive scores along `axis`.

    Args:
      scores: non-negative scores (or signed ones with `signed=True`).
      n: kept of each m, 1 <= n <= m.
      m: group length; must divide the axis.
      axis: the contracted axis: a number, a tree of numbers, or None for the default of
        leaves named `kernel` or `w` of rank 2 (axis 0) or 4 (axis 2).
      scope: see `masks.unstructured`.
      signed: rank by value instead of magnitude.

    Returns:
      A mask that keeps exactly `n` of each group; ties go to the lower index.

    Raises:
      ValueError: `m` does not divide the axis of a leaf, no axis is known for it, or
      not
        1 <= n <= m.

    References:
      Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
      Scratch", ICLR 2021, section 2.
    """
    _require_n_m(n, m)
    scope = resolve_scope(scope, scores)
    names, leaves = scoped_names(scores, scope), in_scope(scores, scope)
    given = in_scope_list(axis_list(axis, scores), scope)
    kept = [
        _leaf(name, x, n, m, a, signed)
        for name, x, a in zip(names, leaves, given, strict=True)
    ]
    return from_scope(scope, kept)


def is_n_of_m(
    mask: Mask, n: int, m: int, axis: int | PyTree | None = None, *, scope: Any = None
) -> jax.Array:
    """Whether every group of `m` along `axis` keeps at most `n`.

    Args:
      mask: a mask or any tree of arrays (non-zero = kept).
      n: most kept in a group.
      m: group length; must divide the axis.
      axis: see `n_of_m`.
      scope: leaves to check; None for those with two or more axes.

    Returns:
      A 0-d bool array.

    Raises:
      ValueError: as `n_of_m`.
    """
    _require_n_m(n, m)
    if scope is None:
        scope = jax.tree.map(lambda x: jnp.ndim(x) >= 2, mask)
    names, leaves = scoped_names(mask, scope), in_scope(mask, scope)
    given = in_scope_list(axis_list(axis, mask), scope)
    held = [
        jnp.all(jnp.sum(_grouped(name, x != 0, m, a), axis=-1) <= n)
        for name, x, a in zip(names, leaves, given, strict=True)
    ]
    return jnp.all(jnp.stack(held)) if held else jnp.array(True)


def _require_n_m(n: int, m: int) -> None:
    if not 1 <= n <= m:
        raise value_error(f"N:M needs 1 <= n <= m, got n={n}, m={m}.")


def _grouped(name: str, x: jax.Array, m: int, axis: int | None) -> jax.Array:
    """`x` with the axis moved last and split. [..., axis length / m, m]"""
    at = contraction_axis(name, x, axis)
    if x.shape[at] % m:
        raise value_error(
            f"m={m} does not divide axis {at} of {name}, shape {x.shape}. Choose "
            "another `axis` or leave the leaf out of `scope`."
        )
    moved = jnp.moveaxis(x, at, -1)
    return moved.reshape(*moved.shape[:-1], -1, m)


def _leaf(
    name: str, x: jax.Array, n: int, m: int, axis: int | None, signed: bool
) -> jax.Array:
    # The integer image orders as the scores do and gives NaN a place (the top).
    bits = selection.image_of(x, "signed" if signed else "magnitude")
    groups = _grouped(name, bits, m, axis)
    mine, other = groups[..., :, None], groups[..., None, :]
    before = jnp.arange(m) < jnp.arange(m)[:, None]  # [mine, other]: other comes first
    beaten_by = jnp.sum((other > mine) | ((other == mine) & before), axis=-1)
    at = contraction_axis(name, x, axis)
    kept = (beaten_by < n).reshape(jnp.moveaxis(x, at, -1).shape)
    return jnp.moveaxis(kept, -1, at)
