"""DenseNet, plain and BC: every layer reads the concatenation of all before it.

References:
  Huang et al., Densely Connected Convolutional Networks, CVPR 2017 (Table 1).
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


class DenseNet(nn.Module):
    """Dense blocks, joined by transitions.

    Attributes:
      blocks: layers in each dense block.
      growth: channels that each layer adds.
      stem: channels of the first convolution.
      classes: number of logits.
      large: 7x7 stride 2 stem with max pooling (True), or one 3x3.
      bottleneck: a 1x1 convolution before each 3x3, transitions of half the width (the
        BC form); without it transitions keep the width.
    """

    blocks: Sequence[int] = (6, 12, 24, 16)
    growth: int = 32
    stem: int = 64
    classes: int = 1000
    large: bool = True
    bottleneck: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        conv = partial(nn.Conv, use_bias=False)
        if self.large:
            x = nn.relu(norm()(conv(self.stem, (7, 7), 2)(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        else:
            x = conv(self.stem, (3, 3))(x)
        for index, layers in enumerate(self.blocks):
            if index:
                width = x.shape[-1] // (2 if self.bottleneck else 1)
                x = conv(width, (1, 1))(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(layers):
                y = nn.relu(norm()(x))
                if self.bottleneck:
                    y = nn.relu(norm()(conv(4 * self.growth, (1, 1))(y)))
                y = conv(self.growth, (3, 3))(y)
                x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(self.classes)(nn.relu(norm()(x)).mean((1, 2)))


densenet121 = DenseNet


def densenet40(classes: int) -> DenseNet:
    """DenseNet-40 for 32 x 32 images, growth 12: 1,001,616 kernel weights."""
    return DenseNet((12, 12, 12), 12, 16, classes, large=False, bottleneck=False)
