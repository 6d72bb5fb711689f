"""The small network of the NumPy twins: its loss in JAX, its gradients in NumPy.

`h = tanh(x a + c)`, `y = h b`, mean squared error. Nothing here imports jprune.
"""

import jax.numpy as jnp
import numpy as np

_RNG = np.random.default_rng(7)
X = _RNG.normal(size=(20, 8))
Y = _RNG.normal(size=(20, 4))


def start():
    """Parameters of the network, float64."""
    rng = np.random.default_rng(1)
    return {
        "a": {"kernel": rng.normal(size=(8, 12)) * 0.5, "bias": rng.normal(size=12)},
        "b": {"kernel": rng.normal(size=(12, 4)) * 0.5},
    }


def loss(p):
    x, y = (jnp.asarray(v, p["a"]["kernel"].dtype) for v in (X, Y))
    h = jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"][None])
    return jnp.mean((h @ p["b"]["kernel"] - y) ** 2)


def gradients(a, c, b):
    """Of the loss with respect to the three parameters."""
    h = np.tanh(X @ a + c)
    e = 2 * (h @ b - Y) / Y.size
    d = (e @ b.T) * (1 - h**2)
    return X.T @ d, d.sum(0), h.T @ e


def smallest_out(leaves, keep):
    """The masks of the `keep` largest magnitudes over all leaves, ties by position."""
    flat = np.concatenate([np.abs(x).ravel() for x in leaves])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:keep]] = True
    parts = np.split(mask, np.cumsum([x.size for x in leaves])[:-1])
    return [m.reshape(x.shape) for m, x in zip(parts, leaves, strict=True)]


def unit_places(w, m):
    """Place of each weight in its group of m along axis 0: 0 the largest."""
    groups = np.abs(w).reshape(-1, m, w.shape[1])
    order = np.argsort(-groups, axis=1, kind="stable")
    return np.argsort(order, axis=1, kind="stable").reshape(w.shape)
