"""Residual networks: ResNet-50, ResNeXt, and the 6n+2 networks for 32 x 32 images.

References:
  He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (blocks: Fig. 5;
  option A shortcuts: section 3.3).
  Xie et al., Aggregated Residual Transformations, CVPR 2017 (`groups`: Fig. 3c).
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp


class ResNet(nn.Module):
    """A residual network with batch norm after each convolution.

    Attributes:
      stages: number of blocks in each stage; the width doubles from stage to stage.
      width: inner width of the blocks of the first stage.
      classes: number of logits.
      bottleneck: 1x1, 3x3, 1x1 with a four times wider stream (True), or 3x3, 3x3.
      groups: groups of the 3x3 convolution of a bottleneck (ResNeXt).
      expansion: width of the stream over the inner width, in bottlenecks.
      shortcut: where the stream changes, "projection" (1x1 convolution) or "pad"
        (stride, zero channels on both sides, no parameters: option A).
      stem: "large" for 7x7 stride 2 and max pooling, "small" for one 3x3.
      branch_scale: factor of every residual branch; `blocks**-0.5` for
        a Stable ResNet.
    """

    stages: Sequence[int]
    width: int = 64
    classes: int = 1000
    bottleneck: bool = True
    groups: int = 1
    expansion: int = 4
    shortcut: Literal["projection", "pad"] = "projection"
    stem: Literal["large", "small"] = "large"
    branch_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        if self.stem == "large":
            x = nn.Conv(min(self.width, 64), (7, 7), 2, use_bias=False)(x)
            x = nn.max_pool(nn.relu(norm()(x)), (3, 3), (2, 2), "SAME")
        else:
            x = nn.relu(norm()(nn.Conv(self.width, (3, 3), use_bias=False)(x)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = self._block(x, self.width * 2**stage, stride, norm)
        return nn.Dense(self.classes)(x.mean((1, 2)))

    def _block(self, x: jax.Array, width: int, stride: int, norm) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False)
        if self.bottleneck:
            y = nn.relu(norm()(conv(width, (1, 1))(x)))
            y = conv(width, (3, 3), stride, feature_group_count=self.groups)(y)
            y = norm()(conv(self.expansion * width, (1, 1))(nn.relu(norm()(y))))
        else:
            y = nn.relu(norm()(conv(width, (3, 3), stride)(x)))
            y = norm()(conv(width, (3, 3))(y))
        if x.shape != y.shape and self.shortcut == "projection":
            x = norm()(conv(y.shape[-1], (1, 1), stride)(x))
        elif x.shape != y.shape:
            extra = y.shape[-1] - x.shape[-1]
            x = x[:, ::stride, ::stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        if self.branch_scale != 1:  # the plain network has no multiplication
            y = self.branch_scale * y
        return nn.relu(x + y)


resnet50 = partial(ResNet, stages=(3, 4, 6, 3))
resnet56 = partial(
    ResNet,
    stages=(9, 9, 9),
    width=16,
    classes=10,
    bottleneck=False,
    shortcut="pad",
    stem="small",
)
