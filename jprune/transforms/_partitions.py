"""Partitions: which leaves are grown together, as a tree of Python ints.

Every leaf has a number from 0 to the number of parts less one; every part holds at
least one leaf that is pruned. A leaf that is not pruned (a bias, a norm's scale) goes
with its module: it has the number of the pruned leaves in the innermost module around
it that has any, or 0 where those do not agree.
"""

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import numpy as np

from jprune._errors import injected, listing, require_regex, value_error
from jprune._tree import (
    KeyTuple,
    keyed_leaves,
    like_variables,
    matches,
    named_leaves,
    require_same_structure,
)
from jprune._typing import Params, PyTree, Scope
from jprune.masks._scope import resolve_scope

Partitions = int | Sequence[str] | Callable[[Params], PyTree] | PyTree


def split_by_path(
    params: Params, patterns: Sequence[str], *, scope: Any = None
) -> PyTree:
    """Part i is what the i-th pattern is the first to match.

    Args:
      params: the parameters.
      patterns: regular expressions, searched in the leaf path `a/b/kernel`.
      scope: the leaves that are pruned; see `masks.unstructured`.

    Returns:
      A tree of ints. A leaf that is not pruned and that no pattern matches goes with
      its module.

    Raises:
      ValueError: a pruned leaf that no pattern matches, a pattern that is the first to
        match none of them, or one that is no regular expression.

    Examples:
      >>> import jax.numpy as jnp
      >>> layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> split_by_path({"a": layer, "b": layer}, ["a/", "b/"])
      {'a': {'bias': 0, 'kernel': 0}, 'b': {'bias': 1, 'kernel': 1}}
    """
    for pattern in patterns:
        require_regex("patterns", pattern)
    taken = jax.tree.leaves(resolve_scope(scope, params))
    first: list[int | None] = [
        next((i for i, p in enumerate(patterns) if matches(p, path)), None)
        for path, _ in named_leaves(params)
    ]
    paths = [path for path, _ in named_leaves(params)]
    lost = [
        path
        for path, i, on in zip(paths, first, taken, strict=True)
        if on and i is None
    ]
    if lost:
        raise value_error(
            f"`partitions` must cover every leaf that is pruned; no pattern of "
            f"{list(patterns)} matches:{listing(lost)}"
        )
    return _numbered(params, first, taken, len(patterns), f"{list(patterns)}")


def split_evenly(params: Params, parts: int, *, scope: Any = None) -> PyTree:
    """Contiguous parts of about the same number of weights; the largest is minimal.

    The order is that of the paths, numbers in them compared as numbers (`Conv_9` before
    `Conv_10`). Where that is not the order of the network, use `split_by_path`.

    Args:
      params: the parameters.
      parts: how many; 4 in the paper's ResNet-50.
      scope: the leaves that are pruned; see `masks.unstructured`.

    Returns:
      A tree of ints.

    Raises:
      ValueError: fewer leaves to prune than parts, or no part.
    """
    taken = jax.tree.leaves(resolve_scope(scope, params))
    leaves = named_leaves(params)
    pruned = [i for i, on in enumerate(taken) if on]
    if not 1 <= parts <= len(pruned):
        raise value_error(
            f"`partitions` must be from 1 to the number of pruned leaves, "
            f"{len(pruned)}; got {parts}."
        )
    order = sorted(pruned, key=lambda i: _natural(leaves[i][0]))
    ends = _cuts([prod(np.shape(leaves[i][1])) for i in order], parts)
    first: list[int | None] = [None] * len(leaves)
    for place, i in enumerate(order):
        first[i] = sum(place >= end for end in ends)
    return _numbered(params, first, taken, parts, str(parts))


def resolve_partitions(
    partitions: Partitions, params: Params, scope: Scope
) -> tuple[PyTree, int]:
    """The tree of ints that a `partitions` argument means, and the number of parts."""
    given: Any = partitions
    if isinstance(given, str):
        raise value_error(
            f"`partitions` must be a sequence of patterns, got the single {given!r}."
        )
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return split_evenly(params, int(given), scope=scope), int(given)
    if isinstance(given, Sequence) and given and all(isinstance(p, str) for p in given):
        return split_by_path(params, given, scope=scope), len(given)
    if isinstance(given, jax.Array):
        raise value_error(f"`partitions` cannot be an array. {injected('partitions')}")
    tree = given(params) if callable(given) else like_variables(given, params)
    require_same_structure("partitions", tree, params)
    numbers, taken = jax.tree.leaves(tree), jax.tree.leaves(scope)
    if not all(type(n) is int for n in numbers):
        raise value_error(
            "`partitions` must hold Python ints, got "
            f"{sorted({type(n).__name__ for n in numbers})}."
        )
    used = {n for n, on in zip(numbers, taken, strict=True) if on}
    if set(numbers) - used:
        raise value_error(
            "`partitions` must give each leaf the number of some pruned leaf; got "
            f"{numbers}, of which {sorted(used)} are pruned."
        )
    if used != set(range(len(used))):
        raise value_error(f"`partitions` must count from 0 up, got {sorted(used)}.")
    return tree, len(used)


def _numbered(
    params: Params, first: list[int | None], taken: list[bool], parts: int, given: str
) -> PyTree:
    """Every leaf with a number: its own, or that of its module."""
    paths = [path for path, _ in keyed_leaves(params)]
    pruned = {
        path: i
        for path, i, on in zip(paths, first, taken, strict=True)
        if on and i is not None
    }
    empty = sorted(set(range(parts)) - set(pruned.values()))
    if empty:
        raise value_error(
            f"`partitions`={given}: no leaf that is pruned falls to part {empty}. The "
            "leaves are:" + listing([path for path, _ in named_leaves(params)])
        )
    numbers = [
        _of_module(path, pruned) if i is None else i
        for path, i in zip(paths, first, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), numbers)


def _of_module(path: KeyTuple, pruned: dict[KeyTuple, int]) -> int:
    for depth in range(len(path) - 1, 0, -1):
        near = {i for other, i in pruned.items() if other[:depth] == path[:depth]}
        if near:
            return near.pop() if len(near) == 1 else 0
    return 0


def _natural(path: str) -> list[Any]:
    """Text and numbers in turn: a key that sorts 9 before 10."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path)]


def _cuts(sizes: list[int], parts: int) -> list[int]:
    """Where each part but the last ends, so that the largest part is smallest."""
    total = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    best = {i: (int(total[i]), []) for i in range(1, len(sizes) + 1)}
    for part in range(2, parts + 1):
        best = {
            i: min(
                (max(best[j][0], int(total[i] - total[j])), [*best[j][1], j])
                for j in range(part - 1, i)
            )
            for i in range(part, len(sizes) + 1)
        }
    return best[len(sizes)][1]
