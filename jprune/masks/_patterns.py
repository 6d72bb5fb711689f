"""Patterns of whole-tensor granularity: single scalars, and channels or blocks of them.

Scores are computed for every unit, the units are ranked by `rank`, and the decision is
spread back over the scalars of the unit. Counts are in units of the pattern.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._axes import axis_list, output_axis
from jprune._errors import value_error
from jprune._tree import require_same_structure
from jprune._typing import Mask, PyTree, Scope, Scores
from jprune.masks._count import (
    is_traced,
    kept_count,
    require_sparsity,
    resolve_keep,
    traced_kept_count,
)
from jprune.masks._rank import Ranking, rank
from jprune.masks._scope import (
    from_scope,
    in_scope,
    in_scope_list,
    resolve_scope,
    scoped_names,
)

Reduce = Literal["sum", "mean", "max"]
REDUCE = {"sum": jnp.sum, "mean": jnp.mean, "max": jnp.max}


def unstructured(
    scores: Scores,
    sparsity: Any = None,
    *,
    keep: Any = None,
    ranking: Ranking = "global",
    within: Mask | None = None,
    scope: Any = None,
    min_keep: int = 1,
    signed: bool = False,
) -> Mask:
    r"""Keeps the scalars with the largest scores, exactly as many as asked.

    Args:
      scores: non-negative scores (or signed ones with `signed=True`). Weights may be
        passed as they are: without `signed` a negative number ranks by its magnitude.
      sparsity: fraction of zeros over the scope, in [0, 1): a float, a traced scalar,
      or a
        tree of floats from `masks.uniform`, `masks.erdos_renyi` or `masks.erk` (each
        leaf is then ranked by itself).
      keep: number kept instead, an int or a traced int32.
      ranking: "global", one ranking over all leaves, or "leaf", the same sparsity in
      each.
      within: a mask; only what it keeps can be kept (monotone pruning).
      scope: which leaves take part: None for `masks.prunable`, a regular expression, a
        function of the tree, or a tree of bools.
      min_keep: the fewest scalars any leaf in scope keeps. It moves budget between
      leaves,
        never the total.
      signed: rank by value instead of magnitude (movement, GraSP).

    Returns:
      A mask with the structure of `scores`; True = keep. Leaves out of scope hold a 0-d
      True. Ties are broken by position, so the count is exact even for constant scores.

    Raises:
      ValueError: sparsity outside [0, 1), both or neither of `sparsity` and `keep`, a
        budget smaller than the floors, a mask or scope of another structure.
      TypeError: an integer or complex leaf in scope.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks
      >>> masks.unstructured({"w": jnp.array([[3.0, -1.0], [0.5, 2.0]])}, 0.5)["w"]
      Array([[ True, False],
             [False,  True]], dtype=bool)
    """
    scope = resolve_scope(scope, scores)
    leaves = in_scope(scores, scope)
    if not leaves:
        return from_scope(scope, [])
    counts, ranking = keep_counts(scores, sparsity, keep, scope=scope, ranking=ranking)
    inside = _inside(within, scores, scope)
    kept, _ = rank(
        leaves, counts, ranking=ranking, within=inside, min_keep=min_keep, signed=signed
    )
    return from_scope(scope, kept)


def channels(
    scores: Scores,
    sparsity: Any = None,
    *,
    keep: Any = None,
    axis: int | PyTree | None = None,
    reduce: Reduce = "sum",
    ranking: Ranking = "leaf",
    scope: Any = None,
    min_keep: int = 1,
) -> Mask:
    """Keeps whole channels: slices along one axis, scored by their reduced scores.

    This zeroes slices of each leaf by itself. To remove channels of a network, use
    `jprune.surgery`, which ties a channel's producers and consumers together.

    Args:
      scores: non-negative scores.
      sparsity: fraction of channels removed; see `unstructured`.
      keep: number of channels kept.
      axis: the channel axis: a number, a tree of numbers, or None for the output axis
        (the last) of leaves named `kernel` or `w` of rank 2 or 4.
      reduce: how a slice's scores make the channel's. Use "mean" to compare leaves of
        unlike sizes in a global ranking.
      ranking: "leaf" (default) or "global".
      scope: see `unstructured`.
      min_keep: fewest channels each leaf keeps.

    Returns:
      A mask; constant within a channel.

    Raises:
      ValueError: no axis given for a leaf that has no default.
    """
    scope = resolve_scope(scope, scores)
    names, leaves = scoped_names(scores, scope), in_scope(scores, scope)
    given = in_scope_list(axis_list(axis, scores), scope)
    axes = [output_axis(n, x, a) for n, x, a in zip(names, leaves, given, strict=True)]
    units = [
        REDUCE[reduce](x, axis=tuple(i for i in range(x.ndim) if i != a))
        for x, a in zip(leaves, axes, strict=True)
    ]

    def spread(kept: jax.Array, x: jax.Array, a: int) -> jax.Array:
        shape = [1] * x.ndim
        shape[a] = -1
        return jnp.broadcast_to(kept.reshape(shape), x.shape)

    kept = _rank_units(units, sparsity, keep, ranking, min_keep, scope)
    return from_scope(
        scope, [spread(k, x, a) for k, x, a in zip(kept, leaves, axes, strict=True)]
    )


def blocks(
    scores: Scores,
    block: Sequence[int],
    sparsity: Any = None,
    *,
    keep: Any = None,
    reduce: Reduce = "sum",
    ranking: Ranking = "leaf",
    scope: Any = None,
    min_keep: int = 1,
) -> Mask:
    """Keeps whole blocks of the trailing axes, e.g. `(4, 4)` tiles of a matrix.

    Args:
      scores: non-negative scores.
      block: the block's shape over the last `len(block)` axes of every leaf. Where it
        does not divide an axis the last block is smaller.
      sparsity: fraction of blocks removed; see `unstructured`.
      keep: number of blocks kept.
      reduce: how a block's scores make its own; "mean" divides by its true size.
      ranking: "leaf" (default) or "global".
      scope: see `unstructured`.
      min_keep: fewest blocks each leaf keeps.

    Returns:
      A mask; constant within a block.

    Raises:
      ValueError: a block with more axes than a leaf, or not of positive integers.
    """
    block = tuple(block)
    if not block or any(not isinstance(b, int) or b < 1 for b in block):
        raise value_error(f"`block` must be positive integers, got {block}.")
    scope = resolve_scope(scope, scores)
    leaves = in_scope(scores, scope)
    for name, x in zip(scoped_names(scores, scope), leaves, strict=True):
        if x.ndim < len(block):
            raise value_error(
                f"`block` {block} has more axes than {name} of shape {x.shape}; leave "
                "that leaf out of `scope`."
            )
    units = [_tile(x, block, reduce) for x in leaves]
    kept = _rank_units(units, sparsity, keep, ranking, min_keep, scope)
    return from_scope(
        scope, [_untile(k, x.shape, block) for k, x in zip(kept, leaves, strict=True)]
    )


def _tile(x: jax.Array, block: tuple[int, ...], reduce: Reduce) -> jax.Array:
    """Scores of the blocks; ragged edges are filled with zeros."""
    lead = x.ndim - len(block)
    pads = [(0, -n % b) for n, b in zip(x.shape[lead:], block, strict=True)]
    x = jnp.pad(x, [(0, 0)] * lead + pads)
    shape = list(x.shape[:lead])
    for n, b in zip(x.shape[lead:], block, strict=True):
        shape += [n // b, b]
    inner = tuple(range(lead + 1, len(shape), 2))
    tiled = x.reshape(shape)
    if reduce != "mean":
        return REDUCE[reduce](tiled, axis=inner)
    true = [n - p for n, (_, p) in zip(x.shape[lead:], pads, strict=True)]
    ones = np.pad(np.ones(true), pads)
    sizes = ones.reshape(shape[lead:]).sum(tuple(i - lead for i in inner))
    return jnp.sum(tiled, axis=inner) / jnp.asarray(sizes, x.dtype)


def _untile(
    kept: jax.Array, shape: tuple[int, ...], block: tuple[int, ...]
) -> jax.Array:
    lead = len(shape) - len(block)
    for i, b in enumerate(block):
        kept = jnp.repeat(kept, b, axis=lead + i)
    return kept[tuple(slice(0, n) for n in shape)]


def _rank_units(
    units: list[jax.Array],
    sparsity: Any,
    keep: Any,
    ranking: Ranking,
    min_keep: int,
    scope: Any,
) -> list[jax.Array]:
    if not units:
        return []
    sizes = [u.size for u in units]
    keep, ranking = _unit_counts(sparsity, keep, sizes, ranking, scope)
    return rank(units, keep, ranking=ranking, min_keep=min_keep)[0]


def keep_counts(
    params: Scores,
    sparsity: Any = None,
    keep: Any = None,
    *,
    scope: Any = None,
    ranking: Ranking = "global",
) -> tuple[Any, Ranking]:
    """How many scalars a target keeps: the counting rule applied to these leaves.

    Args:
      params: gives the sizes.
      sparsity: a number, possibly traced, or a tree of them (which means a ranking per
        leaf whatever `ranking` says).
      keep: the number kept over all leaves, instead.
      scope: as for `unstructured`.
      ranking: "global" or "leaf".

    Returns:
      The count, or a list with one for each leaf in scope, each an int or a traced
      int32; and the ranking it is for.

    Raises:
      ValueError: as for `unstructured`.
      TypeError: `keep` is not an integer.
    """
    scope = resolve_scope(scope, params)
    sizes = [int(np.prod(jnp.shape(x))) for x in in_scope(params, scope)]
    return _unit_counts(sparsity, keep, sizes, ranking, scope)


def _unit_counts(
    sparsity: Any, keep: Any, sizes: Sequence[int], ranking: Ranking, scope: Scope
) -> tuple[Any, Ranking]:
    if sparsity is not None and keep is None and not _is_number(sparsity):
        require_same_structure("sparsity", sparsity, scope)
        each = in_scope(sparsity, scope)
        return [_one_count(n, s) for n, s in zip(sizes, each, strict=True)], "leaf"
    if ranking == "leaf":
        if keep is not None:
            raise value_error(
                "`keep` is one number for all leaves; with `ranking='leaf'` give a "
                "`sparsity`, or a tree of them."
            )
        return [_one_count(n, sparsity) for n in sizes], "leaf"
    return resolve_keep(sum(sizes), sparsity, keep), ranking


def _is_number(x: Any) -> bool:
    return is_traced(x) or isinstance(
        x, int | float | np.number | np.ndarray | jax.Array
    )


def _one_count(n: int, sparsity: Any) -> Any:
    require_sparsity(sparsity)
    if is_traced(sparsity):
        return traced_kept_count(n, sparsity)
    return kept_count(n, sparsity)


def _inside(within: Mask | None, scores: Scores, scope: Any) -> list[jax.Array] | None:
    if within is None:
        return None
    require_same_structure("within", within, scores)
    return in_scope(within, scope)


def ranked(
    scores: Scores,
    counts: Any,
    *,
    ranking: Ranking = "global",
    scope: Any = None,
    min_keep: int = 1,
    within: Mask | None = None,
    init: selection.WarmStart,
) -> tuple[Mask, selection.WarmStart, jax.Array]:
    """`unstructured`, for a caller that ranks at every step and carries a warm start.

    Args:
      scores: as for `unstructured`.
      counts: what `keep_counts` gave: a number, or one for each leaf in scope.
      ranking: what `keep_counts` gave.
      scope: as for `unstructured`.
      min_keep: as for `unstructured`.
      within: as for `unstructured`.
      init: the warm start of the step before (`selection.cold()` at first).

    Returns:
      The mask, the warm start of the next step, and the passes over the weights that
      the threshold took (0-d int32).
    """
    scope = resolve_scope(scope, scores)
    leaves = in_scope(scores, scope)
    if not leaves:
        return from_scope(scope, []), init, jnp.int32(0)
    start = init if ranking == "global" else None
    kept, found = rank(
        leaves,
        counts,
        ranking=ranking,
        within=_inside(within, scores, scope),
        min_keep=min_keep,
        init=start,
    )
    following = selection.warm_start(init, found) if ranking == "global" else init
    return from_scope(scope, kept), following, jnp.max(found.passes).astype(jnp.int32)
