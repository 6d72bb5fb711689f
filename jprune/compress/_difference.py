"""One measure of how far two outputs are apart."""

import jax
import numpy as np

from jprune._typing import PyTree


def relative_difference(tree: PyTree, reference: PyTree) -> float:
    """Largest absolute difference over the largest absolute reference value.

    Taken leaf by leaf; the worst leaf counts. Integer and bool leaves must be equal. A
    shape that differs, or a value that is not finite on one side only, gives infinity.
    """
    worst = 0.0
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    for leaf, expected in jax.device_get(list(pairs)):
        leaf, expected = np.asarray(leaf), np.asarray(expected)
        if leaf.shape != expected.shape:
            return float("inf")
        finite = np.isfinite(expected)
        if not np.array_equal(finite, np.isfinite(leaf)):
            return float("inf")
        gap = np.abs(np.where(finite, leaf, 0) - np.where(finite, expected, 0))
        top = np.abs(np.where(finite, expected, 0)).max(initial=0)
        worst = max(worst, float(gap.max(initial=0) / max(top, 1e-30)))
    return worst
