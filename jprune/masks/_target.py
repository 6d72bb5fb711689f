"""Targets: what `sparsity`, `keep` and `ranking` together mean in scalars kept."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import (
    listing,
    require_static,
    type_error,
    value_error,
)
from jprune._stacks import Axes, layer_shape, stack_shape, stacked_axes
from jprune._tree import like_variables, named_leaves, require_same_structure
from jprune._typing import PyTree, Scope, Scores
from jprune.masks._count import (
    is_traced,
    require_integer,
    require_one,
    require_sparsity,
    resolve_keep,
    share_kept,
)
from jprune.masks._rank import RankingName
from jprune.masks._scope import in_scope, in_scope_list, resolve_scope


def require_target(
    sparsity: Any = None,
    keep: Any = None,
    *,
    min_keep: int | None = None,
    ranking: str = "global",
    takes_function: bool = False,
) -> None:
    """Raises where a target is out of range whatever the leaves are.

    So that a method fails when it is made, not at the first step. What is traced, or a
    function, is not known here.

    Args:
      sparsity: a number, a tree of numbers, a function, or None.
      keep: a number kept, or None.
      min_keep: a floor, or None.
      ranking: "global", "leaf" or "output".
      takes_function: whether the sparsity may be one, a schedule or of parameters.

    Raises:
      TypeError: a sparsity that is a text, or a function where none is taken; a `keep`
        that is no integer.
      ValueError: out of range.
    """
    if hasattr(sparsity, "init") and hasattr(sparsity, "update"):
        raise type_error(
            "`sparsity` must be the fraction of zeros, got an optimizer: join the two, "
            "`optax.chain(optimizer, ...)`."
        )
    # A module of Equinox is both a tree and callable.
    function = callable(sparsity) and jax.tree_util.all_leaves([sparsity])
    if function and not takes_function:
        raise type_error(
            "`sparsity` must be a number or a tree of numbers, got a function. A "
            "schedule of it is made by `optax.inject_hyperparams`."
        )
    if sparsity is not None and not callable(sparsity):
        if _is_number(sparsity) or isinstance(sparsity, str | bytes):
            require_sparsity(sparsity)
        else:
            _require_shares(sparsity)
    if keep is not None and not is_traced(keep):
        require_integer(keep)
        if int(keep) < 0:
            raise value_error(f"`keep` must be at least 0, got {keep}.")
    require_static(min_keep=min_keep)
    if min_keep is not None and min_keep < 0:
        raise value_error(f"`min_keep` must be an integer >= 0, got {min_keep!r}.")
    _require_ranking(ranking)


_ALONE = ("local", "layer", "group", "layerwise")
"""Words of others for a ranking within each leaf."""


def _require_ranking(ranking: str) -> None:
    if ranking not in ("global", "leaf", "output"):
        raise value_error(
            f"`ranking` must be 'global', 'leaf' or 'output', got {ranking!r}."
            + (" Each leaf by itself is 'leaf'." if ranking in _ALONE else "")
        )


def _require_shares(sparsity: PyTree) -> None:
    bad = [
        f"{path}: {s} (must be one number in [0, 1])"
        for path, s in named_leaves(sparsity)
        if not _is_share(s)
    ]
    if bad:
        raise value_error(f"`sparsity` cannot be met at:{listing(bad)}")


def _is_share(s: Any) -> bool:
    """Whether a leaf of a tree may be a sparsity: `min_keep` mends a 1."""
    if is_traced(s):
        return True
    # An array holds the shares of the layers of a stack.
    return _is_number(s) and bool(np.all((0 <= np.asarray(s)) & (np.asarray(s) <= 1)))


def keep_counts(
    params: Scores,
    sparsity: Any = None,
    keep: Any = None,
    *,
    scope: Any = None,
    ranking: RankingName = "global",
    stacked: Any = None,
) -> tuple[Any, RankingName]:
    """How many scalars a target keeps: the counting rule applied to these leaves.

    Args:
      params: gives the sizes.
      sparsity: a number, possibly traced, or a tree of them (which means a ranking per
        leaf whatever `ranking` says).
      keep: the number kept over all leaves, instead.
      scope: as for `unstructured`.
      ranking: "global" or "leaf".
      stacked: see `unstructured`.

    Returns:
      The count, or a list with one for each leaf in scope, each an int or a traced
      int32, or an array of them for the layers of a stack; and the ranking it is for.

    Raises:
      ValueError: as for `unstructured`.
      TypeError: `keep` is not an integer.
    """
    scope = resolve_scope(scope, params)
    axes = in_scope_list(stacked_axes(params, stacked), scope)
    shapes = [np.shape(x) for x in in_scope(params, scope)]
    return unit_counts(
        shapes, sparsity, keep, scope=scope, ranking=ranking, stacks=axes
    )


def unit_counts(
    shapes: Sequence[tuple[int, ...]],
    sparsity: Any,
    keep: Any,
    *,
    scope: Scope,
    ranking: RankingName,
    stacks: Sequence[Axes],
) -> tuple[Any, RankingName]:
    """`keep_counts` for leaves in scope whose units to rank are arrays of `shapes`.

    Args:
      shapes: of the units of each leaf.
      sparsity: see `keep_counts`.
      keep: see `keep_counts`.
      scope: a tree of bools.
      ranking: "global", "leaf", or "output" with the output axis among `stacks`.
      stacks: the axes of each array that tell apart what is ranked by itself.

    Returns:
      As `keep_counts`.
    """
    require_one(sparsity, keep)
    _require_ranking(ranking)
    rows = [
        (prod(layer_shape(s, a)), stack_shape(s, a))
        for s, a in zip(shapes, stacks, strict=True)
    ]
    if isinstance(sparsity, str | bytes):
        require_sparsity(sparsity)
    if sparsity is not None and not _is_number(sparsity):
        shares = _tree_shares(sparsity, scope)
        own = "leaf" if ranking == "global" else ranking
        pairs = zip(rows, shares, strict=True)
        return [_each(share_kept, n, s, stack) for (n, stack), s in pairs], own
    if ranking == "global":
        return resolve_keep(sum(map(prod, shapes)), sparsity, keep), ranking
    if keep is not None and sum(prod(stack) for _, stack in rows) > 1:
        raise value_error(
            f"`keep` is one number for all leaves; with `ranking={ranking!r}` give a "
            "`sparsity`, or a tree of them."
        )
    counts = [(resolve_keep(n, sparsity, keep), stack) for n, stack in rows]
    return [_filled(k, stack) for k, stack in counts], ranking


def _each(count: Any, n: int, shares: Any, stack: tuple[int, ...]) -> Any:
    """`count(n, share)` for one share, or for an array of them over the stack."""
    if not np.ndim(shares):
        return _filled(count(n, shares), stack)
    if is_traced(shares):
        kept = count(n, shares)
    else:
        kept = np.reshape([count(n, s) for s in np.ravel(shares)], np.shape(shares))
    # Layers have shares of their own; outputs, whose axis comes after, the layer's.
    kept = kept.reshape(kept.shape + (1,) * (len(stack) - kept.ndim))
    xp: Any = jnp if is_traced(kept) else np
    return xp.broadcast_to(kept, stack)


def _filled(count: Any, stack: tuple[int, ...]) -> Any:
    if not stack:
        return count
    return jnp.broadcast_to(count, stack) if is_traced(count) else np.full(stack, count)


def _is_number(x: Any) -> bool:
    numbers = int | float | np.number | np.ndarray | jax.Array
    return is_traced(x) or isinstance(x, numbers)


def _tree_shares(sparsity: PyTree, scope: Scope) -> list[Any]:
    """The sparsity of each leaf in scope; 1 is allowed, for `min_keep` to correct."""
    sparsity = like_variables(sparsity, scope)
    require_same_structure("sparsity", sparsity, scope)
    bad = []
    for (path, s), taken in zip(
        named_leaves(sparsity), jax.tree.leaves(scope), strict=True
    ):
        if is_traced(s):
            continue
        if not _is_share(s):
            bad.append(f"{path}: {s} (must be one number in [0, 1])")
        elif not taken and np.any(np.asarray(s) != 0):
            bad.append(f"{path}: {s} (the leaf is out of `scope`)")
    if bad:
        raise value_error(f"`sparsity` cannot be met at:{listing(bad)}")
    return in_scope(sparsity, scope)
