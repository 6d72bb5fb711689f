"""Networks in Equinox: one with state and dropout, one without."""

import equinox as eqx
import jax
import jax.numpy as jnp


class ConvNet(eqx.Module):
    """Convolution, batch norm, dense layers, dropout; written for one example."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dense: eqx.nn.Linear
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=keys[0])
        self.norm = eqx.nn.BatchNorm(8, "batch", momentum=0.9, mode="ema")
        self.dense = eqx.nn.Linear(8, 12, key=keys[1])
        self.drop = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(12, 4, key=keys[2])

    def __call__(self, x, state, key=None, *, scale: float = 1.0):
        h, state = self.norm(self.conv(x), state)
        h = jax.nn.relu(self.dense(jax.nn.relu(h).mean((1, 2))))
        return scale * self.head(self.drop(h, key=key)), state


class MLP(eqx.Module):
    """Layers in a list, functions among them, and a second method."""

    layers: list

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.layers = [
            eqx.nn.Linear(8, 32, key=a),
            eqx.nn.RMSNorm(32),
            jax.nn.relu,
            eqx.nn.Linear(32, 4, key=b),
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def loss(self, xs):
        return jnp.mean(jax.vmap(self)(xs) ** 2)
