"""The two MNIST networks of the pruning literature.

References:
  LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proc. IEEE
  1998.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class LeNet300(nn.Module):
    """LeNet-300-100: dense 784-300-100-10, 266,200 kernel weights."""

    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(300)(x))
        x = nn.relu(nn.Dense(100)(x))
        return nn.Dense(self.classes)(x)


def max_of_fours(x: jax.Array) -> jax.Array:
    """The largest of each square of 2 x 2, [n, h, w, c] -> [n, h / 2, w / 2, c].

    As `nn.max_pool`, but XLA runs the gradient of its window many times slower on CPU.
    Of equal values each gets its part of the gradient; there the first gets it all.
    """
    n, h, w, c = x.shape
    squares = x.reshape(n, h // 2, 2, w // 2, 2, c)
    upper, lower = squares[:, :, 0], squares[:, :, 1]
    larger = jnp.maximum(upper, lower)
    return jnp.maximum(larger[:, :, :, 0], larger[:, :, :, 1])


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's form: 20 and 50 filters of 5 x 5, dense 800-500-10.

    430,500 kernel weights on 28 x 28 images.
    """

    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        for width in (20, 50):
            x = nn.Conv(width, (5, 5), padding="VALID")(x)
            x = max_of_fours(x)
        x = nn.relu(nn.Dense(500)(x.reshape(len(x), -1)))
        return nn.Dense(self.classes)(x)
