"""The k largest by a stable sort on the host, and trees that are hard to rank.

Nothing here looks at jprune: entries are ordered by NumPy in float64, what is not
finite last, ties by flattening order and row-major position.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {"a": (3, 5, 2), "b": [(0, 4), ()], "c": (7,), "d": (4, 4)}
SIZE = 30 + 0 + 1 + 7 + 16
COUNTS = (0, 1, SIZE // 3, SIZE // 2, SIZE - 1, SIZE)


def flat(tree) -> np.ndarray:
    """All leaves, one after another, in float64 (or bool)."""
    leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)]
    if all(leaf.dtype == bool for leaf in leaves):
        return np.concatenate(leaves)
    with np.errstate(invalid="ignore"):  # a signaling NaN may say so when it is cast
        return np.concatenate([leaf.astype(np.float64) for leaf in leaves])


def top(tree, k: int, signed: bool = False, within=None) -> np.ndarray:
    """The flat mask of the k largest entries, first ones first among ties."""
    x = flat(tree)
    key = np.where(np.isfinite(x), x if signed else np.abs(x), -np.inf if signed else 0)
    order = np.lexsort((np.arange(x.size), -key))
    if within is not None:
        order = order[within[order]]
    mask = np.zeros(x.size, bool)
    mask[order[:k]] = True
    return mask


def hard_trees(dtypes: Sequence, seed: int) -> list[tuple[str, dict]]:
    """Trees of `SHAPES`: smooth, tied, zero, of a huge range, tiny, not finite."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(SIZE)
    special = np.where(rng.random(SIZE) < 0.3, np.nan, x)
    special = np.where(rng.random(SIZE) < 0.3, np.inf, special)
    special = np.where(rng.random(SIZE) < 0.3, -np.inf, special)
    # A NaN of the other sign, as 0 / 0 makes on some hardware.
    special = np.where(rng.random(SIZE) < 0.5, np.copysign(special, -1.0), special)
    small = float(jnp.finfo(dtypes[0]).smallest_subnormal)
    rows = {
        "normal": x,
        "tied": np.round(2 * x),
        "equal": np.full(SIZE, 0.5),
        "zeros": np.where(rng.random(SIZE) < 0.9, np.copysign(0.0, x), x),
        "range": x * 10.0 ** rng.integers(-4, 5, SIZE),
        "subnormal": np.round(3 * x) * small,
        "not finite": special,
    }
    return [(name, build(row, dtypes)) for name, row in rows.items()]


def build(row: np.ndarray, dtypes: Sequence) -> dict:
    """A tree of `SHAPES` filled in flattening order, the dtypes taken in turn."""
    shapes, treedef = jax.tree.flatten(SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    leaves, at = [], 0
    for i, shape in enumerate(shapes):
        size = int(np.prod(shape))
        part = row[at : at + size].reshape(shape).astype(dtypes[i % len(dtypes)])
        leaves.append(jnp.asarray(part))
        at += size
    return jax.tree.unflatten(treedef, leaves)
