"""Networks in Haiku: one with state and dropout, one of several functions."""

import haiku as hk
import jax
import jax.numpy as jnp


@hk.transform_with_state
def conv_net(x, is_training: bool = False, *, scale: float = 1.0):
    """Convolution, batch norm, dense layers, dropout."""
    h = hk.Conv2D(8, 3)(x)
    h = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(h, is_training)).mean((1, 2))
    h = jax.nn.relu(hk.Linear(12)(h))
    if is_training:
        h = hk.dropout(hk.next_rng_key(), 0.5, h)
    return scale * hk.Linear(4)(h)


def _both():
    up, down = hk.Linear(16), hk.Linear(4)

    def init(x):
        return down(jax.nn.relu(up(x)))

    return init, (init, lambda x: jnp.mean(init(x) ** 2))


two_functions = hk.without_apply_rng(hk.multi_transform(_both))
