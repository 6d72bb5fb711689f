"""A network in Flax Linen with batch norm, dropout and a second method."""

import flax.linen as nn
import jax.numpy as jnp


class ConvNet(nn.Module):
    """Convolution, batch norm, dense layers, dropout."""

    def setup(self):
        self.conv = nn.Conv(8, (3, 3))
        self.norm = nn.BatchNorm(momentum=0.9)
        self.dense = nn.Dense(12)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Dense(4)

    def features(self, x, train: bool = False):
        h = self.norm(self.conv(x), use_running_average=not train)
        return nn.relu(self.dense(nn.relu(h).mean((1, 2))))

    def __call__(self, x, train: bool = False, *, scale: float = 1.0):
        h = self.drop(self.features(x, train), deterministic=not train)
        return scale * self.head(h)

    def loss(self, x):
        """Another method, of one number; it stores something on the way."""
        y = self(x)
        self.sow("losses", "size", jnp.abs(y).mean())
        return jnp.mean(y**2)
