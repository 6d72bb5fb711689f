"""Targets: what `sparsity`, `keep` and `ranking` together mean in scalars kept."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import listing, value_error
from jprune._tree import named_leaves, require_same_structure
from jprune._typing import PyTree, Scope, Scores
from jprune.masks._count import (
    is_traced,
    require_one,
    resolve_keep,
    share_kept,
)
from jprune.masks._rank import RankingName
from jprune.masks._scope import in_scope, resolve_scope


def keep_counts(
    params: Scores,
    sparsity: Any = None,
    keep: Any = None,
    *,
    scope: Any = None,
    ranking: RankingName = "global",
) -> tuple[Any, RankingName]:
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
    sizes = [prod(np.shape(x)) for x in in_scope(params, scope)]
    return unit_counts(sizes, sparsity, keep, scope=scope, ranking=ranking)


def unit_counts(
    sizes: Sequence[int],
    sparsity: Any,
    keep: Any,
    *,
    scope: Scope,
    ranking: RankingName,
) -> tuple[Any, RankingName]:
    """`keep_counts` for leaves in scope that have `sizes` units to rank."""
    require_one(sparsity, keep)
    if sparsity is not None and not _is_number(sparsity):
        shares = _tree_shares(sparsity, scope)
        return [share_kept(n, s) for n, s in zip(sizes, shares, strict=True)], "leaf"
    if ranking == "global":
        return resolve_keep(sum(sizes), sparsity, keep), ranking
    if ranking != "leaf":
        raise value_error(f"`ranking` must be 'global' or 'leaf', got {ranking!r}.")
    if keep is not None and len(sizes) > 1:
        raise value_error(
            "`keep` is one number for all leaves; with `ranking='leaf'` give a "
            "`sparsity`, or a tree of them."
        )
    return [resolve_keep(n, sparsity, keep) for n in sizes], ranking


def _is_number(x: Any) -> bool:
    numbers = int | float | np.number | np.ndarray | jax.Array
    return is_traced(x) or isinstance(x, numbers)


def _tree_shares(sparsity: PyTree, scope: Scope) -> list[Any]:
    """The sparsity of each leaf in scope; 1 is allowed, for `min_keep` to correct."""
    require_same_structure("sparsity", sparsity, scope)
    bad = []
    for (path, s), taken in zip(
        named_leaves(sparsity), jax.tree.leaves(scope), strict=True
    ):
        if is_traced(s):
            continue
        if jnp.ndim(s) != 0 or not 0 <= float(s) <= 1:
            bad.append(f"{path}: {s} (must be one number in [0, 1])")
        elif not taken and float(s) != 0:
            bad.append(f"{path}: {s} (the leaf is out of `scope`)")
    if bad:
        raise value_error(f"`sparsity` cannot be met at:{listing(bad)}")
    return in_scope(sparsity, scope)
