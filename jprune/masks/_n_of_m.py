"""N:M sparsity: of every M consecutive weights along an axis, at most N are kept.

The axis is the contracted one (the weights that meet in one dot product), since that is
what sparse matrix units read. The ranking is local: each weight counts how many of its
M fellows beat it, M comparisons a weight. Where the axis is sharded it is made whole
first; the mask is split again as the scores are.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._axes import axis_list, contraction_axis, placed_as, whole_along
from jprune._dtypes import not_zero
from jprune._errors import is_integer, listing, value_error
from jprune._stacks import stacked_axes
from jprune._tree import leaf_name, map_named, named_leaves
from jprune._typing import Mask, PyTree, Scores
from jprune.masks._count import is_traced
from jprune.masks._scope import (
    NOT_WEIGHTS,
    from_scope,
    in_scope,
    in_scope_list,
    inside,
    resolve_scope,
    scoped_names,
)
from jprune.selection._image import image_of


def n_of_m(
    scores: Scores,
    n: int | jax.Array,
    m: int,
    axis: int | PyTree | None = None,
    *,
    within: Mask | None = None,
    scope: Any = None,
    signed: bool = False,
    stacked: Any = None,
) -> Mask:
    """Keeps the `n` largest of every `m` consecutive scores along `axis`.

    Args:
      scores: non-negative scores, or weights (or signed scores with `signed=True`).
      n: kept of each m, 1 <= n <= m; may be traced.
      m: group length; must divide the axis.
      axis: the contracted axis: a number, a tree of numbers, or None for the default of
        leaves named `kernel` or `w` of rank 2 (axis 0) or 4 (axis 2), stacks aside.
      within: a mask; only what it keeps can be kept (a group then may keep fewer).
      scope: see `masks.unstructured`.
      signed: rank by value instead of magnitude.
      stacked: see `masks.unstructured`; it only tells the default of `axis`.

    Returns:
      A mask that keeps exactly `n` of each group; ties go to the lower index, and NaN
      and infinities are the first to go.

    Raises:
      ValueError: `m` does not divide the axis of a leaf, no axis is known for it, not 1
        <= n <= m, or a group has fewer than `n` finite scores (where they are known).

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks
      >>> masks.n_of_m({"w": jnp.array([[1.0], [-4.0], [3.0], [2.0]])}, 2, 4)["w"].T
      Array([[False,  True,  True, False]], dtype=bool)

    References:
      Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
      Scratch", ICLR 2021, section 2.
    """
    _require_n_m(n, m)
    scope = resolve_scope(scope, scores)
    names, leaves = scoped_names(scores, scope), in_scope(scores, scope)
    given = in_scope_list(axis_list(axis, scores), scope)
    masked = inside(within, scores, scope) or [None] * len(leaves)
    stacks = in_scope_list(stacked_axes(scores, stacked), scope)
    kept = []
    for name, x, a, allowed, stack in zip(
        names, leaves, given, masked, stacks, strict=True
    ):
        at = contraction_axis(name, x, a, stack)
        # The integer image orders as the scores do and gives NaN a place (the lowest).
        bits = image_of(x, "signed" if signed else "magnitude")
        if allowed is not None:
            bits = jnp.where(allowed, bits, jnp.iinfo(bits.dtype).min)
        first = _first_n(_grouped(name, bits, m, at), n)
        if allowed is None:
            _require_numbers(name, _grouped(name, x, m, at), first)
        whole = jnp.moveaxis(first.reshape(jnp.moveaxis(x, at, -1).shape), -1, at)
        whole = placed_as(whole, x)
        kept.append(whole if allowed is None else whole & allowed)
    return from_scope(scope, kept)


def is_n_of_m(
    mask: Mask,
    n: int | jax.Array,
    m: int,
    axis: int | PyTree | None = None,
    *,
    scope: Any = None,
    stacked: Any = None,
) -> jax.Array:
    """Whether every group of `m` along `axis` keeps at most `n`.

    Args:
      mask: a mask, or any tree of arrays (non-zero = kept).
      n: the most kept in a group.
      m: group length; must divide the axis.
      axis: see `n_of_m`.
      scope: leaves to check, as `n_of_m` takes it; None for those with two or more
        axes that are no biases, embeddings and the like by name (`masks.prunable`). A
        0-d leaf, as a mask has out of its scope, keeps everything and is passed over,
        as is one without entries.
      stacked: see `n_of_m`.

    Returns:
      A 0-d bool array.

    Raises:
      ValueError: as `n_of_m`, or no leaf is left to check.
    """
    _require_n_m(n, m)
    if scope is None:
        scope = map_named(
            lambda path, x: (
                jnp.ndim(x) >= 2 and jnp.size(x) and leaf_name(path) not in NOT_WEIGHTS
            ),
            mask,
        )
    else:
        # A scope is of floating leaves; these may be bools.
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.float32), mask
        )
        taken = resolve_scope(scope, like)
        scope = jax.tree.map(
            lambda t, x: t and jnp.ndim(x) > 0 < jnp.size(x), taken, mask
        )
    names, leaves = scoped_names(mask, scope), in_scope(mask, scope)
    given = in_scope_list(axis_list(axis, mask), scope)
    stacks = in_scope_list(stacked_axes(mask, stacked), scope)
    rows = zip(names, leaves, given, stacks, strict=True)
    at = [(name, x, contraction_axis(name, x, a, stack)) for name, x, a, stack in rows]
    held = [
        jnp.all(jnp.sum(_grouped(name, not_zero(x), m, axis), axis=-1) <= n)
        for name, x, axis in at
    ]
    if not held and jax.tree.leaves(mask):
        raise value_error(
            "`is_n_of_m` finds no leaf to check: expected leaves of two axes or more "
            "in `scope`, got only leaves that are out of it, 0-d, empty, biases "
            f"or embeddings.{listing([path for path, _ in named_leaves(mask)])}"
        )
    return jnp.all(jnp.stack(held)) if held else jnp.array(True)


def _require_n_m(n: int | jax.Array, m: int) -> None:
    for name, x in (("n", n), ("m", m)):
        if not is_traced(x) and not is_integer(x):
            raise value_error(f"`{name}` must be an integer, got {x!r}.")
    if not is_traced(n) and not 1 <= n <= m:
        raise value_error(f"N:M needs integers 1 <= n <= m, got n={n}, m={m}.")


def _grouped(name: str, x: jax.Array, m: int, at: int) -> jax.Array:
    """`x` with the axis moved last and split. [..., axis length / m, m]"""
    if x.shape[at] % m:
        raise value_error(
            f"m={m} does not divide axis {at} of {name}, shape {x.shape}. Choose "
            "another `axis` or leave the leaf out of `scope`."
        )
    moved = jnp.moveaxis(whole_along(x, [at]), at, -1)
    return moved.reshape(*moved.shape[:-1], x.shape[at] // m, m)


def _require_numbers(name: str, groups: jax.Array, kept: jax.Array) -> None:
    """Raises where a group keeps what is no number: it was kept by its position."""
    if is_traced(groups) or is_traced(kept):
        return
    wrong = int(jnp.sum(kept & ~jnp.isfinite(groups)))
    if wrong:
        raise value_error(
            f"`scores` must be finite where something is kept: {wrong} at {name} would "
            "be kept by their position alone. Look for NaN or infinities in the "
            "weights, or in the loss and gradients that the scores were made of."
        )


def _first_n(groups: jax.Array, n: int | jax.Array) -> jax.Array:
    """Which of the last axis are beaten by fewer than `n` others."""
    position = np.arange(groups.shape[-1])
    mine, other = groups[..., :, None], groups[..., None, :]
    before = jnp.asarray(position < position[:, None])  # [mine, other]: other is first
    before = jnp.broadcast_to(before, (*groups.shape, groups.shape[-1]))
    beaten_by = jnp.sum((other > mine) | ((other == mine) & before), axis=-1)
    return beaten_by < n
