"""VGG-16 with batch norm, in the form that pruning papers train on CIFAR-10.

References:
  Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
  Recognition, ICLR 2015 (Table 1, column D).
"""

import flax.linen as nn
import jax

from experiments.models.lenet import max_of_fours


class VGG16(nn.Module):
    """13 convolutions of 3 x 3, four poolings, a mean and one dense layer.

    14,715,584 kernel weights with 10 classes, on images whose sides 16 divides.
    """

    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for stage, count in enumerate((2, 2, 3, 3, 3)):
            x = max_of_fours(x) if stage else x
            for _ in range(count):
                x = nn.Conv(min(64 * 2**stage, 512), (3, 3), use_bias=False)(x)
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
                x = nn.relu(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))
