"""MobileNetV3: inverted residuals with depthwise convolutions and squeeze-excitation.

References:
  Howard et al., Searching for MobileNetV3, ICCV 2019 (Table 1: the large network).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax


class Row(NamedTuple):
    """One inverted residual: a row of Table 1."""

    kernel: int
    expand: int
    out: int
    excite: bool
    swish: bool
    stride: int


LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)


class MobileNetV3(nn.Module):
    """Stem, inverted residuals, last convolution, pooled two-layer classifier.

    Attributes:
      rows: the inverted residuals, in order.
      stem: channels of the first convolution.
      last: channels of the last convolution.
      hidden: units of the classifier's hidden layer.
      classes: number of logits.
    """

    rows: Sequence[Row] = LARGE
    stem: int = 16
    last: int = 960
    hidden: int = 1280
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        conv = partial(nn.Conv, use_bias=False)
        x = nn.hard_swish(norm()(conv(self.stem, (3, 3), 2)(x)))
        for row in self.rows:
            x = _inverted_residual(x, row, conv, norm)
        x = nn.hard_swish(norm()(conv(self.last, (1, 1))(x))).mean((1, 2))
        x = nn.hard_swish(nn.Dense(self.hidden)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


def _inverted_residual(x: jax.Array, row: Row, conv: Callable, norm: Callable):
    act = nn.hard_swish if row.swish else nn.relu
    y = x
    if row.expand != x.shape[-1]:
        y = act(norm()(conv(row.expand, (1, 1))(y)))
    depthwise = conv(
        row.expand, (row.kernel,) * 2, row.stride, feature_group_count=row.expand
    )
    y = act(norm()(depthwise(y)))
    if row.excite:
        gate = nn.relu(nn.Dense(max(row.expand // 4, 2))(y.mean((1, 2))))
        gate = nn.hard_sigmoid(nn.Dense(row.expand)(gate))
        y = y * gate[:, None, None, :]
    y = norm()(conv(row.out, (1, 1))(y))
    return x + y if x.shape == y.shape else y
