"""A residual network without norms: what depth does to its signal is not hidden."""

import flax.linen as nn
import jax


class ResidualMLP(nn.Module):
    """A dense layer, residual blocks y + s W relu(y), and a linear head.

    Attributes:
      classes: number of logits.
      blocks: residual blocks.
      width: units of the stream.
      branch_scale: s; `blocks**-0.5` for a Stable ResNet (Hayou et al., Robust Pruning
        at Initialization, ICLR 2021).
    """

    classes: int = 10
    blocks: int = 10
    width: int = 100
    branch_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        y = nn.Dense(self.width)(x.reshape(len(x), -1))
        for _ in range(self.blocks):
            y = y + self.branch_scale * nn.Dense(self.width)(nn.relu(y))
        return nn.Dense(self.classes)(nn.relu(y))
