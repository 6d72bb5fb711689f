"""A deep, plain chain: what initialization does to depth is not hidden by norms."""

import flax.linen as nn
import jax


class DeepTanh(nn.Module):
    """Dense layers with tanh, then a linear head.

    Attributes:
      classes: number of logits.
      depth: hidden layers.
      width: units of each.
    """

    classes: int = 10
    depth: int = 20
    width: int = 128

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = x.reshape(len(x), -1)
        for _ in range(self.depth):
            x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.classes)(x)
