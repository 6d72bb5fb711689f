"""What counts as a parameter: one definition for every table, budget and score.

A *parameter* is a scalar of a floating array that training moves. Running statistics
(of batch norms, of spectral norms), counters, flags and random keys are held beside
them and are none. Frameworks mark them in their own ways, and all of them by names: a
collection (`batch_stats`), a module that averages (`mean_ema`), or the leaf itself
(`mean`, `moving_variance`). In variables of Flax, only what lies in "params" is one.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jprune._tree import KeyTuple, keyed_leaves, keys_text, leaf_name
from jprune._typing import PyTree

_HOLDERS = frozenset("batch_stats stats mean_ema var_ema ema rng rngs".split())
_LEAVES = frozenset(
    "mean var moving_mean moving_variance moving_var running_mean running_var".split()
)


def named_as_statistic(path: KeyTuple) -> bool:
    """Whether a path says that its leaf is a running statistic, or a random key."""
    if path[:1] == ("params",):  # of Flax: what this collection holds is trained
        return False
    text = keys_text(path)  # keys of Keras and Haiku are paths themselves
    return leaf_name(text) in _LEAVES or not _HOLDERS.isdisjoint(text.split("/"))


def is_parameter(path: KeyTuple, leaf: Any) -> bool:
    """Whether a leaf of a tree holds parameters, by its type and its path."""
    dtype = getattr(leaf, "dtype", None)
    return (
        dtype is not None
        and jnp.issubdtype(dtype, jnp.inexact)
        and not named_as_statistic(path)
    )


def parameters(tree: PyTree) -> PyTree:
    """The tree with None in the place of every leaf that holds no parameters."""
    found = {
        path
        for path, leaf in keyed_leaves(tree)
        if is_parameter(path, leaf) and (path[0] == "params" or not _is_flax(tree))
    }
    paths = iter([path for path, _ in keyed_leaves(tree)])
    return jax.tree.map(lambda leaf: leaf if next(paths) in found else None, tree)


def _is_flax(tree: PyTree) -> bool:
    """Whether a tree is variables of Flax: collections, "params" among them."""
    return isinstance(tree, Mapping) and "params" in tree
