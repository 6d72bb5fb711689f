"""EDSR: a residual network without norms that enlarges an image at its very end.

References:
  Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPR
  Workshops 2017, figure 3 and section 3 (16 blocks of 64 channels in its baseline).
"""

from functools import partial

import flax.linen as nn
import jax


class EDSR(nn.Module):
    """Head, residual blocks, one long skip, pixel shuffle, tail.

    Attributes:
      channels: of every hidden layer.
      blocks: residual blocks of two convolutions.
      scale: by how much it enlarges.
      colors: channels of the image; 1 for luma.
    """

    channels: int = 16
    blocks: int = 4
    scale: int = 2
    colors: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, colors] -> `scale` times the height and width."""
        conv = partial(nn.Conv, kernel_size=(3, 3))
        x = head = conv(self.channels, name="head")(x - 0.5)
        for block in range(self.blocks):
            y = nn.relu(conv(self.channels, name=f"block{block}_first")(x))
            x = x + conv(self.channels, name=f"block{block}_second")(y)
        x = head + conv(self.channels, name="body")(x)
        x = shuffle(conv(self.channels * self.scale**2, name="enlarge")(x), self.scale)
        return conv(self.colors, name="tail")(x) + 0.5


def shuffle(x: jax.Array, scale: int) -> jax.Array:
    """[n, h, w, c s^2] -> [n, h s, w s, c]: groups of channels become pixels."""
    batch, height, width, depth = x.shape
    x = x.reshape(batch, height, width, scale, scale, depth // scale**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * scale, width * scale, -1)
