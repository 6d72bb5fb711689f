r"""Stacks of layers: one leaf that holds the same weight of many layers.

Scan-over-layers (`flax.linen.scan`, `nnx.scan`, Haiku's `layer_stack`, `vmap` over
modules) keeps the kernels of L layers as one leaf `[L, in, out]`. What is said "per
leaf" must then be done per layer: rankings per leaf, floors, allocations, norms.

By its shape alone such a leaf looks like an attention kernel `(d, heads, head_dim)` or
a one-dimensional convolution. What tells is the tree around it. A leaf is taken for a
stack along its first axis when

1. an entry of its path names a collection: `layers`, `blocks`, `scan`, `stack`,
   `stacked`, one that holds `layer_stack`, or one that Flax's lifted transforms name
   (`ScanBlock_0`, `VmapDense_0`), with no index after it (`layers/0/kernel` is a list);
2. all leaves below that entry have one first axis, of the same length, and another axis
   beside it. With a leaf of just two axes among them (the biases of a stack), some may
   have no other: a gate of one number for each layer; and counters and random keys,
   which are not floating, always may;
3. the leaf has three axes or more.

Anything else is said by hand: `stacked=r"decoder/"` (the first axis of what matches),
`stacked={"decoder/": 1}` (MaxText stacks along axis 1), `stacked={}` (nothing).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune._axes import Axes
from jprune._errors import require_regex, type_error, value_error
from jprune._tree import matches, named_leaves
from jprune._typing import PyTree

COLLECTION = re.compile(
    r"(?:^|/)(?:layers|blocks|scan|stack|stacked|[^/]*layer_?stack[^/]*"
    r"|(?:Scan|Vmap)[A-Z][^/]*)/(?!\d+(?:/|$))"
)
"""A path entry that names a collection of layers, not followed by an index."""


def stacked_axes(tree: PyTree, stacked: Any = None) -> list[Axes]:
    """The axes along which each leaf is a stack of layers, in flattening order.

    Args:
      tree: parameters, or scores; gives paths and shapes.
      stacked: None for the rule above; a regular expression for leaf paths, whose first
        axis is the stack; or a mapping from expressions to an axis or a tuple of axes
        (the first that matches counts; `{}` for no stacks).

    Returns:
      A tuple of axes for each leaf; empty for one layer.

    Raises:
      ValueError: an expression that matches no leaf or is none, an axis out of range, a
        leaf with no other axis.
      TypeError: another kind of `stacked`.
    """
    named = named_leaves(tree)
    leaves = [(path, np.shape(x)) for path, x in named]
    if stacked is None:
        return _recognized(leaves, [_is_number(x) for _, x in named])
    if isinstance(stacked, str):
        stacked = {stacked: 0}
    if not isinstance(stacked, Mapping):
        raise type_error(
            "`stacked` must be a regular expression for leaf paths, a mapping from "
            f"such to axes, or None; got {type(stacked).__name__}."
        )
    for pattern in stacked:
        require_regex("stacked", pattern)
        if leaves and not any(matches(pattern, path) for path, _ in leaves):
            raise value_error(f"`stacked`: {pattern!r} matches no leaf path.")
    return [_given(path, shape, stacked) for path, shape in leaves]


def _recognized(
    leaves: Sequence[tuple[str, tuple[int, ...]]], floating: Sequence[bool]
) -> list[Axes]:
    """By the rule of this module."""
    below: dict[str, list[tuple[int, int]]] = {}  # first axis and rank of each leaf
    for (path, shape), number in zip(leaves, floating, strict=True):
        for found in COLLECTION.finditer(path):
            if shape:
                rank = len(shape) if number else 0
                below.setdefault(path[: found.end()], []).append((shape[0], rank))
    stacks = {name for name, seen in below.items() if _is_stack(seen)}

    def in_stack(path: str) -> bool:
        return any(path[: x.end()] in stacks for x in COLLECTION.finditer(path))

    return [(0,) if len(s) > 2 and in_stack(path) else () for path, s in leaves]


def _is_stack(seen: Sequence[tuple[int, int]]) -> bool:
    """Whether leaves of these first axes and ranks are those of one stack."""
    ranks = {rank for _, rank in seen}
    return len({first for first, _ in seen}) == 1 and (1 not in ranks or 2 in ranks)


def _is_number(leaf: Any) -> bool:
    """Whether a leaf is a weight or its mask, no counter and no random key."""
    dtype = getattr(leaf, "dtype", np.dtype(float))
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.inexact, jnp.bool_))


def _given(path: str, shape: tuple[int, ...], stacked: Mapping[str, Any]) -> Axes:
    for pattern, axes in stacked.items():
        if not matches(pattern, path) or not shape:
            continue
        axes = (axes,) if isinstance(axes, int | np.integer) else tuple(axes)
        rank = len(shape)
        if not all(-rank <= a < rank for a in axes) or len(axes) >= rank:
            raise value_error(
                f"`stacked` axes {axes} do not fit {path} of shape {shape}: they must "
                "be axes of it, and leave it one."
            )
        return tuple(sorted(int(a) % rank for a in axes))
    return ()


def as_said(tree: PyTree, stacked: Any = None) -> dict[str, Axes]:
    """`stacked` that says of any tree of these paths what it means for this one.

    Another tree may have 0-d leaves where this has weights, so that the rule would see
    another collection.
    """
    pairs = zip(named_leaves(tree), stacked_axes(tree, stacked), strict=True)
    return {f"^{re.escape(path)}$": axes for (path, _), axes in pairs if axes}


def layer_shape(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """The shape of one layer."""
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def layer_axes(rank: int, axes: Axes) -> Axes:
    """The axes of one layer: all of a leaf's `rank` but those of the stack."""
    return tuple(i for i in range(rank) if i not in axes)


def stack_shape(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """The shape of the stack; () for a single layer."""
    return tuple(shape[i] for i in axes)
