"""NumPy's answer to "keep the k largest": a stable sort in float64, nothing else."""

import numpy as np


def top(leaves, keep, *, signed=False, within=None, floors=None):
    """Bool arrays that keep the `keep` largest of all leaves, ties by position.

    With `floors`, the best of each leaf are taken first.
    """
    leaves = [np.asarray(x, np.float64) for x in leaves]
    allowed = [np.ones(x.shape, bool) for x in leaves]
    if within is not None:
        allowed = [
            np.broadcast_to(w, x.shape) for w, x in zip(within, leaves, strict=True)
        ]
    first = [np.zeros(x.shape, bool) for x in leaves]
    if floors is not None:
        first = [
            _top_of(x, floor, signed, a)
            for x, a, floor in zip(leaves, allowed, floors, strict=True)
        ]
    flat = np.concatenate([x.ravel() for x in leaves])
    rest = np.concatenate(
        [(a & ~f).ravel() for a, f in zip(allowed, first, strict=True)]
    )
    taken = sum(int(f.sum()) for f in first)
    others = _top_of(flat, keep - taken, signed, rest)
    split = np.split(others, np.cumsum([x.size for x in leaves])[:-1])
    return [f | o.reshape(f.shape) for f, o in zip(first, split, strict=True)]


def _top_of(x, keep, signed, allowed):
    key = x.ravel() if signed else np.abs(x.ravel())
    order = np.lexsort((np.arange(key.size), -key))
    order = order[allowed.ravel()[order]]
    kept = np.zeros(key.size, bool)
    kept[order[: max(keep, 0)]] = True
    return kept.reshape(x.shape)
