"""The small residual network of the digits experiments: 77,072 kernel weights.

Batch norm's epsilon is 1e-3, not 1e-5: a filter whose weights are all small keeps its
full effect until its output variance is below epsilon, so that a large epsilon is what
lets a decayed filter vanish before it is removed.
"""

from functools import partial

import flax.linen as nn
import jax


class DigitsResNet(nn.Module):
    """Stem and three residual blocks of `width`, 2 and 4 times `width`, then a head.

    Attributes:
      classes: number of logits.
      width: channels of the first block, at 8 x 8; then 4 x 4 and 2 x 2.
    """

    classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-3
        )
        x = nn.relu(norm()(conv(self.width, (3, 3))(x)))
        for block in range(3):
            width, stride = self.width * 2**block, 2 if block else 1
            y = nn.relu(norm()(conv(width, (3, 3), stride)(x)))
            y = norm()(conv(width, (3, 3))(y))
            if block:
                x = norm()(conv(width, (1, 1), stride)(x))
            x = nn.relu(x + y)
        return nn.Dense(self.classes)(x.mean((1, 2)))
