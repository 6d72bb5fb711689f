"""The twins of the gates: one residual block, in NumPy. No jprune here.

`h = tanh(x a + c)`, `y = x s + h b`; a gate on each of the 12 hidden units multiplies
its row of b, one on the block multiplies b.
"""

import jax.numpy as jnp
import numpy as np

_RNG = np.random.default_rng(7)
X = _RNG.normal(size=(20, 8))
Y = _RNG.normal(size=(20, 4))
RATE, GATE_RATE = 0.1, 2.0
CHANNELS, BLOCK = np.linspace(-2.3, 1.0, 12), 1.5  # log alphas at first
TAU, LOW, HIGH = 2 / 3, -0.1, 1.1


def start():
    rng = np.random.default_rng(1)
    return {
        "a": {"kernel": rng.normal(size=(8, 12)) * 0.5, "bias": rng.normal(size=12)},
        "b": {"kernel": rng.normal(size=(12, 4)) * 0.5},
        "s": {"kernel": rng.normal(size=(8, 4)) * 0.5},
    }


def loss(p):
    h = jnp.tanh(X @ p["a"]["kernel"] + p["a"]["bias"][None])
    return jnp.mean((X @ p["s"]["kernel"] + h @ p["b"]["kernel"] - Y) ** 2)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gate(a, u):
    """The value of gates and its derivative."""
    s = sigmoid((np.log(u) - np.log(1 - u) + a) / TAU)
    z = s * (HIGH - LOW) + LOW
    inside = (z >= 0) & (z <= 1)
    return np.clip(z, 0, 1), inside * (HIGH - LOW) * s * (1 - s) / TAU


class Twin:
    """Weights and gates, trained by gradient descent."""

    def __init__(self, price, target, rate):
        p = start()
        self.w, self.c = p["a"]["kernel"], p["a"]["bias"]
        self.b, self.s = p["b"]["kernel"], p["s"]["kernel"]
        self.a, self.block = CHANNELS, BLOCK
        self.price, self.target, self.rate = price, target, rate

    def open(self):
        """Which gates are open in evaluation."""
        value = lambda a: sigmoid(a) * (HIGH - LOW) + LOW > 0  # noqa: E731
        return value(self.a), value(self.block)

    def step(self, u_block, u):
        z, dz = gate(self.a, u)
        zb, dzb = gate(self.block, u_block)
        b = self.b * z[:, None] * zb
        h = np.tanh(X @ self.w + self.c)
        e = 2 * (X @ self.s + h @ b - Y) / Y.size
        d = (e @ b.T) * (1 - h**2)
        gw, gc, gb, gs = X.T @ d, d.sum(0), h.T @ e, X.T @ e
        pull = (gb * self.b).sum(1) * zb
        pull_block = (gb * self.b * z[:, None]).sum()
        # 32 weights beside the block, and in it 8 + 1 + 4 for each open unit.
        shift = TAU * np.log(-LOW / HIGH)
        q, qb = sigmoid(self.a - shift), sigmoid(self.block - shift)
        dense = 32 + 12 * 13
        cost = (32 + qb * q.sum() * 13) / dense
        pay = self.price * 13 / dense
        pull, pull_block = pull * dz, pull_block * dzb
        pull += pay * qb * q * (1 - q)
        pull_block += pay * q.sum() * qb * (1 - qb)
        self.w, self.c = self.w - RATE * gw, self.c - RATE * gc
        self.b, self.s = self.b - RATE * gb * z[:, None] * zb, self.s - RATE * gs
        self.a = self.a - GATE_RATE * pull
        best = np.argmax(self.a)
        self.a[best] = max(self.a[best], 0)
        self.block = self.block - GATE_RATE * pull_block
        self.price = max(0, self.price + self.rate * (cost - self.target))


def scale_start():
    """`y = x s + v tanh((x a) g + c) b`: a scale g on each unit, a factor v."""
    p, rng = start(), np.random.default_rng(2)
    p["a"]["scale"] = rng.normal(size=12)
    return p


def scale_loss(p):
    a = p["a"]
    h = jnp.tanh(X @ a["kernel"] * a["scale"][None] + a["bias"][None])
    return jnp.mean((X @ p["s"]["kernel"] + h @ p["b"]["kernel"] - Y) ** 2)


def shrunk(x, amount):
    return np.sign(x) * np.maximum(np.abs(x) - amount, 0)


class ScaleTwin:
    """Gradient descent, then the proximal step of the scales and of the factor."""

    def __init__(self, price, deep):
        p = scale_start()
        self.w, self.c, self.g = p["a"]["kernel"], p["a"]["bias"], p["a"]["scale"]
        self.b, self.s, self.v = p["b"]["kernel"], p["s"]["kernel"], 1.0
        self.deep = deep
        # A unit frees 8 + 1 + 1 + 4 parameters, the block all of its 12 units.
        mean = (12 * 14 + 12 * 14) / 13 if deep else 14
        self.unit, self.whole = price * RATE * 14 / mean, price * RATE * 168 / mean

    def step(self):
        on = (self.g != 0) * (self.v != 0)
        w, c, b = self.w * on, self.c * on, self.b * on[:, None] * self.v
        h = np.tanh((X @ w) * self.g + c)
        e = 2 * (X @ self.s + h @ b - Y) / Y.size
        d = (e @ b.T) * (1 - h**2)
        gb = h.T @ e * on[:, None]
        pull = ((X @ w) * d).sum(0) * on
        pull_v = (gb * self.b).sum()
        self.w = self.w - RATE * X.T @ (d * self.g) * on
        self.c = self.c - RATE * d.sum(0) * on
        self.b, self.s = self.b - RATE * gb * self.v, self.s - RATE * X.T @ e
        moved = self.g - RATE * pull
        self.g = shrunk(moved, self.unit)
        if not self.g.any():
            best = np.argmax(np.abs(moved))
            self.g[best] = moved[best]
        if self.deep:
            self.v = shrunk(self.v - RATE * pull_v, self.whole)
