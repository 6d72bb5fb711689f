"""The k largest entries of a tree: their threshold, and the mask that keeps them."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jprune._errors import type_error, value_error
from jprune._typing import Mask, PyTree
from jprune.selection._bracket import around, search, start
from jprune.selection._image import ImageKind
from jprune.selection._leaves import Table, read
from jprune.selection._pack import pack
from jprune.selection._sample import sampled_guess, worth_sampling
from jprune.selection._sweep import (
    all_strides,
    available,
    entry,
    split_at,
    sweep_images,
    sweep_positions,
)
from jprune.selection._threshold import (
    Ranking,
    Threshold,
    WarmStart,
    first_guess,
    require_ranking,
)

PIVOTS = 3
"""Pivots of a pass. Three are free on a CPU (the sweep is bound by memory)."""


def kth_magnitude(
    tree: PyTree,
    k: ArrayLike | Sequence[ArrayLike],
    *,
    init: WarmStart | None = None,
    image: ImageKind = "magnitude",
    ranking: Ranking = "global",
    within: Mask | None = None,
    times: PyTree | None = None,
    snap: bool = False,
    pivots: int = PIVOTS,
    axis_name: str | Sequence[str] | None = None,
    specs: PyTree | None = None,
) -> Threshold:
    r"""The threshold of the k largest entries of a tree, exactly.

    The k-th largest is found by counting, in a few sweeps over the leaves: no sort, no
    concatenation, no copy of the tree, nothing gathered from a sharded leaf. It works
    under `jit`, `vmap`, `scan` and `cond`, and no gradient flows through it.

    Values: -0 and +0 are equal. Infinities and NaN never rank: they tie with 0, or in
    the signed image lie below every number, and go first. Subnormal numbers are ordered
    exactly, whatever the hardware flushes (but a float32 subnormal in a tree that also
    has float64 leaves may count as 0).

    Args:
      tree: pytree of floating leaves of any shapes, dtypes and shardings. Leaves may be
        empty or 0-d, and the tree may have none.
      k: how many to keep, an integer or a traced int array; for `ranking="leaf"` one
        for each leaf, in flattening order. More than take part means all of them.
      init: where to begin, a `WarmStart`; None begins at typical weights or, for a
        large unsharded tree, at a sample. It changes `passes`, never which are kept.
      image: `"magnitude"` ranks by absolute value, `"signed"` by signed value.
      ranking: `"global"` ranks all entries together, `"leaf"` each leaf by itself (all
        in one loop).
      within: tree of bool like `tree`, each leaf of its leaf's shape or 0-d: only
        entries marked True take part.
      times: tree like `tree` that it is multiplied by, entry by entry and in float32
        (float64 if any leaf is), inside each sweep. The ranking is that of the product,
        which is never stored: on a CPU a new array of the model's size costs as much as
        several sweeps. A subnormal product may count as 0.
      snap: also find the entries next to the outer pivots. Worth its 20 % a sweep on
        quantized or heavily tied scores.
      pivots: thresholds tried in one sweep, at least 2.
      axis_name: inside `jax.shard_map`, the mesh axes that split the leaves. Arrays
        that are sharded under plain `jit` need nothing.
      specs: with `axis_name`, a pytree prefix of `PartitionSpec` as given to
        `shard_map`: a leaf is counted once over the axes its spec does not name. By
        default every leaf is split along its first dimension by all of `axis_name`.

    Returns:
      The `Threshold`: 0-d, or one entry per leaf. For k = 0 the count is 0.

    Raises:
      TypeError: leaves that are not floating (with their paths), or a `k` that is not
        an integer.
      ValueError: a concrete `k` below 0 or above the size, an `init`, `within`,
        `times` or `specs` that does not fit, or 2**31 - 1 entries or more.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import selection
      >>> tree = {"a": jnp.array([0.5, -3.0]), "b": jnp.array([[1.0], [-0.1]])}
      >>> threshold = selection.kth_magnitude(tree, 2)
      >>> int(threshold.count)
      2
      >>> selection.keep_mask(tree, threshold, 2)["a"].tolist()
      [False, True]
    """
    require_ranking(ranking)
    if pivots < 2:
        raise value_error(f"`pivots` must be at least 2, got {pivots}.")
    table = read(tree, image, within, axis_name, specs, times)
    per_leaf = ranking == "leaf"
    wanted = _kept_count(k, table, per_leaf)
    if init is not None and init.bits.shape not in ((), wanted.shape):
        raise value_error(
            f"`init` must be of shape {wanted.shape}, got {init.bits.shape}: make it "
            "by `WarmStart.cold(tree, ranking=...)` for the same tree and ranking."
        )
    if not table.leaves:
        none = jnp.zeros_like(wanted)
        return Threshold(none.astype(table.image.dtype), none, none)
    return _find(table, wanted, init, pivots, snap)


@functools.partial(jax.jit, static_argnames=("pivots", "snap"))
def _find(
    table: Table, k: jax.Array, init: WarmStart | None, pivots: int, snap: bool
) -> Threshold:
    """The search, for a checked count, 0-d or [leaves]."""
    per_leaf = k.ndim == 1
    total = available(table, per_leaf)
    k = jnp.clip(k, 0, total)
    if init is None and not per_leaf and worth_sampling(table):
        guess, spread = sampled_guess(table, k)
    else:
        guess, spread = first_guess(table.image, init)
    guess, spread = jnp.broadcast_to(guess, k.shape), jnp.broadcast_to(spread, k.shape)

    kind = table.image
    top = jnp.full(k.shape, kind.top, kind.dtype)
    # Nothing wanted: `top` is the answer, and its count of 0 ends the search at once.
    lo = jnp.where(k > 0, jnp.asarray(kind.lowest, kind.dtype), top)
    bracket = start(lo, top, jnp.where(k > 0, total, 0), spread)
    first = around(guess, spread, bracket, pivots)
    swept = table if per_leaf else pack(table)
    count = sweep_images(swept, per_leaf)
    found = search(count, k, bracket, first, guess, 2.0**kind.mantissa, snap)
    return Threshold(found.lo, found.at_lo, found.passes)


def keep_mask(
    tree: PyTree,
    threshold: Threshold,
    k: ArrayLike | Sequence[ArrayLike],
    *,
    ties: Literal["first", "all"] = "first",
    image: ImageKind = "magnitude",
    within: Mask | None = None,
    times: PyTree | None = None,
    axis_name: str | Sequence[str] | None = None,
    specs: PyTree | None = None,
) -> Mask:
    """The mask of the k largest entries.

    Comparisons are of integer images, never of floats with a float threshold. Ties at
    the threshold are broken by position, in flattening order and row-major within a
    leaf, by a second search: it counts how many ties lie before a position. It makes no
    pass unless ties straddle k.

    Args:
      tree: the tree that `kth_magnitude` saw.
      threshold: what it returned; its shape says how the leaves were ranked.
      k: the same count.
      ties: `"first"` keeps exactly k, `"all"` every entry that reaches the threshold.
      image: the same as there.
      within: the same as there; entries outside it are not kept.
      times: the same as there.
      axis_name: the same as there.
      specs: the same as there.

    Returns:
      A pytree of bool with the structure and shapes of `tree` and the leaves'
      shardings; True = keep.

    Raises:
      TypeError: as `kth_magnitude`.
      ValueError: as `kth_magnitude`; another `ties`; a threshold of another tree.
    """
    if ties not in ("first", "all"):
        raise value_error(f'`ties` must be "first" or "all", got {ties!r}.')
    table = read(tree, image, within, axis_name, specs, times)
    per_leaf = jnp.ndim(threshold.bits) == 1
    _require_fit(threshold, table, per_leaf)
    wanted = _kept_count(k, table, per_leaf)
    if not table.leaves:
        return tree
    masks = _masks(table, threshold, wanted, ties == "first")
    return jax.tree.unflatten(jax.tree.structure(tree), masks)


@functools.partial(jax.jit, static_argnames="exactly")
def _masks(
    table: Table, threshold: Threshold, k: jax.Array, exactly: bool
) -> list[jax.Array]:
    """One mask for each leaf; all ties unless `exactly` k are kept."""
    per_leaf = k.ndim == 1
    last = _last_tie(table, threshold, k) if exactly else k
    strides = all_strides(table, per_leaf) if exactly else []
    masks = []
    for i, leaf in enumerate(table.leaves):
        rows = (threshold.bits, last, k)
        bits, end, kept = (entry(row, i) for row in rows) if per_leaf else rows
        above, tied = split_at(table, table.image.of(*leaf.swept), bits)
        if exactly:
            total = leaf.size if per_leaf else sum(table.sizes)
            tied &= leaf.from_end(strides[i], total) >= end
        masks.append((above | tied) & (kept > 0))
    return masks


def _last_tie(table: Table, threshold: Threshold, k: jax.Array) -> jax.Array:
    """The place from the end of the last tie that is kept; 0 where all ties are."""
    per_leaf = k.ndim == 1
    n = jnp.asarray(table.sizes if per_leaf else sum(table.sizes), jnp.int32)
    lo = jnp.zeros(k.shape, jnp.int32)
    # No tie to break: nothing is left between the ends.
    hi = jnp.where((threshold.count > k) & (k > 0), n + 1, 1)
    bracket = start(lo, hi, threshold.count, jnp.zeros(k.shape))
    # The place n counts the entries above the threshold; the others split the rest.
    first = [j * (n // PIVOTS) for j in range(1, PIVOTS)] + [n]
    swept = table if per_leaf else pack(table)
    count = sweep_positions(swept, threshold.bits, per_leaf)
    return search(count, k, bracket, first, lo, float("inf")).lo


def _kept_count(k: Any, table: Table, per_leaf: bool) -> jax.Array:
    """`k` as int32, 0-d or [leaves], checked where it is concrete."""
    limits = np.array(table.sizes if per_leaf else sum(table.sizes), np.int64)
    parts = k if isinstance(k, (list, tuple)) else [k]
    concrete = not any(isinstance(part, Tracer) for part in parts)
    value = np.asarray(k) if concrete else jnp.asarray(k)
    if concrete and value.size == 0:
        value = value.astype(np.int32)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise type_error(
            "`k` must be an integer count of entries to keep, got "
            f"{value.dtype}: turn a fraction into a count first."
        )
    if value.shape != limits.shape:
        raise value_error(
            f"`k` must have one entry for each of the {len(table.sizes)} leaves, got "
            f"shape {value.shape}."
            if per_leaf
            else f"`k` must be one integer, got shape {value.shape}."
        )
    if concrete and (np.any(value < 0) or np.any(value > limits)):
        raise value_error(
            f"`k` must lie between 0 and the number of entries, got {value.tolist()} "
            f"of {limits.tolist()}."
        )
    return jnp.asarray(value, jnp.int32)


def _require_fit(threshold: Threshold, table: Table, per_leaf: bool) -> None:
    bits = threshold.bits
    if per_leaf and bits.shape != (len(table.leaves),):
        raise value_error(
            f"`threshold` is of {operator.index(bits.shape[0])} leaves, `tree` has "
            f"{len(table.leaves)}: pass the tree that `kth_magnitude` saw."
        )
    if bits.dtype != table.image.dtype:
        raise value_error(
            f"`threshold` has {bits.dtype} images, `tree` has {table.image.dtype}: "
            "pass the tree that `kth_magnitude` saw."
        )
