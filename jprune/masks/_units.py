"""Coarse patterns: whole channels, or blocks, of each leaf.

The scores of a unit are reduced to one, the units are ranked, and the decision is
spread back over the unit's scalars. Counts are in units. Axes that a block spans are
made whole where they are sharded.
"""

import functools
from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune._axes import Axes, axis_list, output_axis
from jprune._dtypes import wide
from jprune._errors import value_error
from jprune._stacks import stacked_axes
from jprune._tiles import Shape, block_shape, tiles, untiled, within_tiles
from jprune._typing import Mask, PyTree, Scope, Scores
from jprune.masks._rank import RankingName, rank
from jprune.masks._scope import (
    from_scope,
    in_scope,
    in_scope_list,
    inside,
    resolve_scope,
    scoped_names,
)
from jprune.masks._target import unit_counts

Reduce = Literal["sum", "mean", "max"]


def channels(
    scores: Scores,
    sparsity: Any = None,
    *,
    keep: Any = None,
    axis: int | PyTree | None = None,
    reduce: Reduce = "sum",
    ranking: RankingName = "leaf",
    within: Mask | None = None,
    scope: Any = None,
    min_keep: int = 1,
    signed: bool = False,
    stacked: Any = None,
) -> Mask:
    """Keeps whole channels: slices along one axis, scored by their reduced scores.

    This zeroes slices of each leaf by itself. To remove channels of a network, use
    `jprune.surgery`, which ties a channel's producers and consumers together.

    Args:
      scores: non-negative scores, or weights, which count by their magnitude; with
        `signed`, scores of either sign.
      sparsity: fraction of channels removed; see `unstructured`.
      keep: number of channels kept, over all leaves of a global ranking.
      axis: the channel axis: a number, a tree of numbers, or None for the output axis
        (the last) of leaves named `kernel` or `w` of rank 2 or 4, stacks aside.
      reduce: how a slice's scores make the channel's. Use "mean" to compare leaves of
        unlike sizes in a global ranking.
      ranking: "leaf" (default) or "global".
      within: a mask; only channels it keeps something of can be kept.
      scope: see `unstructured`.
      min_keep: the fewest channels each leaf keeps.
      signed: add scores up with their signs and rank by value (movement, GraSP).
      stacked: see `unstructured`; each layer of a stack has channels of its own.

    Returns:
      A mask; constant within a channel, of one layer.

    Raises:
      ValueError: no axis given for a leaf that has no default; "max" of signed scores;
        as `unstructured`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks
      >>> masks.channels({"kernel": jnp.array([[3.0, 1.0], [3.0, 1.0]])}, 0.5)["kernel"]
      Array([[ True, False],
             [ True, False]], dtype=bool)
    """
    scope = resolve_scope(scope, scores)
    names, leaves = scoped_names(scores, scope), in_scope(scores, scope)
    given = in_scope_list(axis_list(axis, scores), scope)
    stacks = in_scope_list(stacked_axes(scores, stacked), scope)
    others = [_others(*row) for row in zip(names, leaves, given, stacks, strict=True)]
    units = [
        _reduced(x, other, reduce, prod(x.shape[i] for i in other), signed)
        for x, other in zip(leaves, others, strict=True)
    ]
    # What is left of a leaf has its stack first or last, as before.
    stacks = [
        tuple(sum(j not in other for j in range(a)) for a in stack)
        for other, stack in zip(others, stacks, strict=True)
    ]
    masked = inside(within, scores, scope)
    if masked is not None:
        masked = [
            m if m.ndim == 0 else m.any(other)
            for m, other in zip(masked, others, strict=True)
        ]
    how: Any = {"scope": scope, "min_keep": min_keep, "signed": signed}
    kept = _rank_units(units, sparsity, keep, ranking, masked, stacks, **how)
    spread = [
        jnp.broadcast_to(jnp.expand_dims(k, other), x.shape)
        for k, other, x in zip(kept, others, leaves, strict=True)
    ]
    return from_scope(scope, spread)


def blocks(
    scores: Scores,
    block: Sequence[int],
    sparsity: Any = None,
    *,
    keep: Any = None,
    reduce: Reduce = "sum",
    ranking: RankingName = "leaf",
    within: Mask | None = None,
    scope: Any = None,
    min_keep: int = 1,
    signed: bool = False,
    stacked: Any = None,
) -> Mask:
    """Keeps whole blocks of the trailing axes, e.g. `(4, 4)` tiles of a matrix.

    Args:
      scores: non-negative scores, or weights, which count by their magnitude; with
        `signed`, scores of either sign.
      block: the block's shape over the last `len(block)` axes of every leaf; 1 along
        the others. Where it does not divide an axis the last block is smaller.
      sparsity: fraction of blocks removed; see `unstructured`.
      keep: number of blocks kept, over all leaves of a global ranking.
      reduce: how a block's scores make its own; "mean" divides by its true size.
      ranking: "leaf" (default) or "global".
      within: a mask; only blocks it keeps something of can be kept.
      scope: see `unstructured`.
      min_keep: the fewest blocks each leaf keeps.
      signed: add scores up with their signs and rank by value (movement, GraSP).
      stacked: see `unstructured`. A stack is expected before the axes of the block.

    Returns:
      A mask; constant within a block.

    Raises:
      ValueError: a block with more axes than a leaf, or not of positive integers; "max"
        of signed scores; as `unstructured`.

    References:
      Narang, Undersander and Diamos, "Block-Sparse Recurrent Neural Networks", arXiv
      1711.02782 (which reduces with "max").
    """
    if not isinstance(block, Sequence) or isinstance(block, str):
        raise value_error(
            f"`block` must be a tuple of lengths, such as (4, 4), got {block!r}."
        )
    scope = resolve_scope(scope, scores)
    leaves, names = in_scope(scores, scope), scoped_names(scores, scope)
    stacks = in_scope_list(stacked_axes(scores, stacked), scope)
    for name, x, stack in zip(names, leaves, stacks, strict=True):
        if any(a >= x.ndim - len(block) for a in stack):
            raise value_error(
                f"`block` {tuple(block)} spans the stack {stack} of {name}, shape "
                f"{x.shape}: move that axis to the front, or pass `stacked={{}}`."
            )
    shapes = [block_shape(block, n, x) for n, x in zip(names, leaves, strict=True)]
    units = [
        _reduced(tiles(x, b), within_tiles(b), reduce, _tile_sizes(x.shape, b), signed)
        for x, b in zip(leaves, shapes, strict=True)
    ]
    masked = inside(within, scores, scope)
    if masked is not None:
        masked = [
            m if m.ndim == 0 else tiles(m, b).any(within_tiles(b))
            for m, b in zip(masked, shapes, strict=True)
        ]
    how: Any = {"scope": scope, "min_keep": min_keep, "signed": signed}
    kept = _rank_units(units, sparsity, keep, ranking, masked, stacks, **how)
    spread = [
        untiled(k, x.shape, b) for k, x, b in zip(kept, leaves, shapes, strict=True)
    ]
    return from_scope(scope, spread)


def _rank_units(
    units: list[jax.Array],
    sparsity: Any,
    keep: Any,
    ranking: RankingName,
    within: list[jax.Array] | None,
    stacks: list[Axes],
    *,
    scope: Scope,
    min_keep: int,
    signed: bool,
) -> list[jax.Array]:
    if not units:
        return []
    if ranking == "output":
        raise value_error("`ranking='output'` ranks single weights, no whole units.")
    shapes, how = [u.shape for u in units], {"ranking": ranking, "stacks": stacks}
    counts, how["ranking"] = unit_counts(shapes, sparsity, keep, scope=scope, **how)
    how |= {"within": within, "min_keep": min_keep, "signed": signed}
    return rank(units, counts, **how)[0]


def _others(name: str, x: jax.Array, given: int | None, stack: Axes) -> Axes:
    """The axes that a channel of one layer spans."""
    at = output_axis(name, x, given, stack=stack)
    return tuple(i for i in range(x.ndim) if i != at and i not in stack)


def _reduced(
    x: jax.Array, axes: tuple[int, ...], reduce: Reduce, sizes: Any, signed: bool
) -> jax.Array:
    """One score for each unit, at least in float32; `sizes` counts its scalars."""
    if reduce not in ("sum", "mean", "max"):
        raise value_error(f"`reduce` must be 'sum', 'mean' or 'max', got {reduce!r}.")
    if signed and reduce == "max":
        raise value_error("Signed scores need `reduce` 'sum' or 'mean', got 'max'.")
    size = wide(x) if signed else jnp.abs(wide(x))
    if reduce == "max":
        return jnp.max(size, axis=axes, initial=0)
    total = jnp.sum(size, axis=axes)
    return total if reduce == "sum" else total / jnp.asarray(sizes, total.dtype)


def _tile_sizes(shape: Shape, block: Shape) -> np.ndarray:
    """How many scalars each block has. [blocks along each axis]"""
    lengths = [
        np.minimum(b, n - b * np.arange(-(-n // b)))
        for n, b in zip(shape, block, strict=True)
    ]
    return functools.reduce(np.multiply.outer, lengths)
