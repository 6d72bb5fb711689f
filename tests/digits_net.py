"""A network of two hidden layers on the 8 x 8 digits, trained in a second or two.

Small enough for the default run, real enough that a wrong step shows: methods are
chained on it, cut, merged and trained on.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

STEPS = 300


def net(p, x):
    """Two scaled hidden layers, the second added to the first; ten logits."""
    h = jax.nn.relu((x @ p["a"]["kernel"]) * row(p["a"]["scale"]) + row(p["a"]["bias"]))
    y = jax.nn.relu((h @ p["b"]["kernel"]) * row(p["b"]["scale"]) + row(p["b"]["bias"]))
    h = h + y @ p["c"]["kernel"]
    return h @ p["d"]["kernel"] + row(p["d"]["bias"])


def row(vector):
    return vector[None]


@functools.cache
def digits() -> tuple[jax.Array, jax.Array]:
    """Images [600, 64] and labels."""
    data = load_digits()
    x = (data.images[:600].reshape(600, -1) - 4.9) / 6.0
    with jax.ensure_compile_time_eval():  # the first call may come from within a trace
        return jnp.asarray(x, jnp.float32), jnp.asarray(data.target[:600])


@functools.cache
def start() -> dict[str, Any]:
    """Parameters at initialization."""
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = [(64, 16), (16, 24), (24, 16), (16, 10)]
    kernels = [
        jax.random.normal(k, s) * np.sqrt(1 / s[0])
        for k, s in zip(keys, sizes, strict=True)
    ]
    params = {n: {"kernel": w} for n, w in zip("abcd", kernels, strict=True)}
    for name, width in (("a", 16), ("b", 24)):
        params[name] |= {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    params["d"] |= {"bias": jnp.zeros(10)}
    return params


def loss(p, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(net(p, x), y).mean()


def train(tx, params, steps=STEPS, objective=loss):
    """The parameters after full-batch steps of a transformation."""
    return run(tx, params, steps, objective)[0]


def run(tx, params, steps=STEPS, objective=loss):
    """Parameters and state after full-batch steps of a transformation."""

    @jax.jit
    def scanned(params, state):
        def body(carry, _):
            grads = jax.grad(objective)(carry[0], *digits())
            updates, state = tx.update(grads, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(body, (params, state), length=steps)[0]

    return scanned(params, tx.init(params))


def accuracy(params, fn=net):
    """On the training images."""
    x, y = digits()
    return float(jnp.mean(fn(params, x).argmax(-1) == y))
