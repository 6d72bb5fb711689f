"""Two dense layers in NumPy float64, all derivatives written out.

Network: h = tanh(x A), y = h B, softmax cross-entropy, mean over examples. With p the
softmax, n examples and Y one-hot,

    dL/dy = (p - Y) / n,   gB = h' dy,   dh = dy B',   gA = x' (dh * (1 - h^2)).

The product of the Hessian with (U, V) is the derivative of (gA, gB) along A + t U,
B + t V at t = 0, by the product rule, line by line.
"""

from typing import Any

import numpy as np

Array = Any


def forward(a: Array, b: Array, x: Array) -> tuple[Array, Array]:
    h = np.tanh(x @ a)
    y = h @ b
    e = np.exp(y - y.max(1, keepdims=True))
    return h, e / e.sum(1, keepdims=True)


def gradient(a: Array, b: Array, x: Array, one_hot: Array) -> tuple[Array, Array]:
    h, p = forward(a, b, x)
    dy = (p - one_hot) / len(x)
    return x.T @ (dy @ b.T * (1 - h**2)), h.T @ dy


def hessian_product(
    a: Array, b: Array, x: Array, one_hot: Array, u: Array, v: Array
) -> tuple[Array, Array]:
    h, p = forward(a, b, x)
    dy = (p - one_hot) / len(x)
    rh = (1 - h**2) * (x @ u)
    ry = rh @ b + h @ v
    rdy = p * (ry - (p * ry).sum(1, keepdims=True)) / len(x)
    dh, rdh = dy @ b.T, rdy @ b.T + dy @ v.T
    return x.T @ (rdh * (1 - h**2) - 2 * dh * h * rh), rh.T @ dy + h.T @ rdy


def keep_largest(scores: list[Array], keep: int) -> list[Array]:
    """The mask of the `keep` largest, ties to the first leaf and position."""
    flat = np.concatenate([s.ravel() for s in scores])
    order = np.argsort(-flat, kind="stable")
    mask = np.zeros(flat.size, bool)
    mask[order[:keep]] = True
    ends = np.cumsum([s.size for s in scores])[:-1]
    parts = zip(np.split(mask, ends), scores, strict=True)
    return [part.reshape(s.shape) for part, s in parts]


def synflow_scores(weights: list[Array]) -> tuple[list[Array], float]:
    """Flow from ones through magnitudes, forward and backward; and R."""
    ins, w = [np.ones(weights[0].shape[0])], [np.abs(x) for x in weights]
    for x in w:
        ins.append(ins[-1] @ x)
    outs = [np.ones(w[-1].shape[1])]
    for x in w[::-1]:
        outs.append(x @ outs[-1])
    outs.reverse()
    found = [x * np.outer(i, o) for x, i, o in zip(w, ins, outs[1:], strict=False)]
    return found, float(ins[-1].sum())


def synflow_round(
    weights: list[Array], mask: list[Array], keep: int
) -> tuple[list[Array], list[Array]]:
    """One round of SynFlow: the scores of what is left, and the new mask."""
    left = [np.where(m, w, 0.0) for m, w in zip(mask, weights, strict=True)]
    found = synflow_scores(left)[0]
    ranked = [np.where(m, s, -1.0) for m, s in zip(mask, found, strict=True)]
    return found, keep_largest(ranked, keep)
