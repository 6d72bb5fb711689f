"""FBNetV3: compact networks found by search, exactly as published, and a tiny one.

Every block is an inverted residual: 1 x 1 expansion, depthwise convolution, perhaps
squeeze-and-excitation, 1 x 1 projection. Paddings are symmetric, as in the published
weights: k // 2, but for three stages of stride 2 that override it.

References:
  Dai et al., FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining,
  CVPR 2021; the architecture definitions and the model zoo of its authors' repository
  facebookresearch/mobile-vision.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax


class Stage(NamedTuple):
    """One row of the definition: `repeats` blocks, the first of this stride.

    Attributes:
      kernel: side of the depthwise kernels.
      out: channels the blocks end with.
      stride: of the first block.
      repeats: how many blocks.
      expand: inner channels, as a multiple of the input's.
      excite: whether the blocks have squeeze-and-excitation.
      pad: padding of the first block, where it is not kernel // 2.
    """

    kernel: int
    out: int
    stride: int
    repeats: int
    expand: int
    excite: bool = False
    pad: int | None = None


class Definition(NamedTuple):
    """A member of the family.

    Attributes:
      stem: channels of the first convolution.
      stages: the rows.
      image: side of the images it was made for.
      head: channels of the last 1 x 1 convolution, as a multiple of its input's.
      features: channels after the pooling.
      stem_stride: 2, or 1 for small images.
    """

    stem: int
    stages: Sequence[Stage]
    image: int
    head: int = 6
    features: int = 1984
    stem_stride: int = 2


A = Definition(
    16,
    (
        Stage(3, 16, 1, 2, 1),
        Stage(5, 24, 2, 1, 4),
        Stage(5, 24, 1, 3, 2),
        Stage(5, 40, 2, 1, 5, True),
        Stage(5, 40, 1, 4, 3, True),
        Stage(5, 72, 2, 1, 5, pad=1),
        Stage(3, 72, 1, 4, 3),
        Stage(3, 120, 1, 1, 5, True),
        Stage(5, 120, 1, 5, 3, True),
        Stage(3, 184, 2, 1, 6, True, 0),
        Stage(5, 184, 1, 5, 4, True),
        Stage(5, 224, 1, 1, 6, True),
    ),
    224,
)
C = Definition(
    16,
    (
        Stage(3, 16, 1, 2, 1),
        Stage(5, 24, 2, 1, 5),
        Stage(3, 24, 1, 4, 3),
        Stage(5, 48, 2, 1, 5, True),
        Stage(5, 48, 1, 4, 2, True),
        Stage(5, 88, 2, 1, 4, pad=1),
        Stage(3, 88, 1, 4, 3),
        Stage(3, 120, 1, 1, 4, True),
        Stage(5, 120, 1, 5, 3, True),
        Stage(5, 216, 2, 1, 5, True, 1),
        Stage(5, 216, 1, 5, 5, True),
        Stage(5, 216, 1, 1, 6, True),
    ),
    248,
)
E = Definition(
    24,
    (
        Stage(3, 16, 1, 3, 1),
        Stage(5, 24, 2, 1, 4),
        Stage(5, 24, 1, 4, 2),
        Stage(5, 48, 2, 1, 4, True),
        Stage(5, 48, 1, 4, 3, True),
        Stage(5, 80, 2, 1, 5, pad=1),
        Stage(3, 80, 1, 4, 3),
        Stage(3, 128, 1, 1, 5, True),
        Stage(5, 128, 1, 7, 3, True),
        Stage(3, 216, 2, 1, 6, True),
        Stage(5, 216, 1, 5, 5, True),
        Stage(5, 240, 1, 1, 6, True),
    ),
    264,
)
G = Definition(
    32,
    (
        Stage(3, 24, 1, 3, 1),
        Stage(5, 40, 2, 1, 4),
        Stage(5, 40, 1, 4, 2),
        Stage(5, 56, 2, 1, 4, True),
        Stage(5, 56, 1, 4, 3, True),
        Stage(5, 104, 2, 1, 5),
        Stage(3, 104, 1, 4, 3),
        Stage(3, 160, 1, 1, 5, True),
        Stage(5, 160, 1, 8, 3, True),
        Stage(3, 264, 2, 1, 6, True),
        Stage(5, 264, 1, 6, 5, True),
        Stage(5, 288, 1, 2, 6, True),
    ),
    320,
)
TINY = Definition(
    16,
    (
        Stage(3, 16, 1, 1, 1),
        Stage(5, 24, 2, 1, 4),
        Stage(5, 24, 1, 1, 2),
        Stage(5, 40, 2, 1, 5, True),
        Stage(5, 40, 1, 1, 3, True),
        Stage(3, 72, 1, 1, 5),
        Stage(3, 72, 1, 1, 3),
        Stage(5, 96, 1, 1, 3, True),
        Stage(3, 120, 2, 1, 4, True),
        Stage(5, 120, 1, 1, 3, True),
    ),
    32,
    head=4,
    features=256,
    stem_stride=1,
)
SMALLER = Definition(
    8,
    (
        Stage(3, 8, 1, 1, 1),
        Stage(5, 16, 2, 1, 4),
        Stage(5, 16, 1, 1, 2),
        Stage(5, 24, 2, 1, 5, True),
        Stage(5, 24, 1, 1, 3, True),
        Stage(3, 40, 1, 1, 5),
        Stage(3, 40, 1, 1, 3),
        Stage(5, 56, 1, 1, 3, True),
        Stage(3, 72, 2, 1, 4, True),
        Stage(5, 72, 1, 1, 3, True),
    ),
    32,
    head=4,
    features=256,
    stem_stride=1,
)
"""The tiny one at about half its width: the smaller member of the small comparison."""


def by_eight(number: float) -> int:
    """The nearest multiple of 8, at least 8, never more than 5 % below.

    A whole number that 8 divides stays. The published rule, kept to the digit.
    """
    if number % 8 == 0:
        return int(number)
    near = 8 * max(int(number / 8 + 0.5), 1)
    return near + 8 if near < 0.95 * number else near


class FBNetV3(nn.Module):
    """The network of a definition.

    Attributes:
      definition: which member.
      classes: number of logits.
      zero_last: whether the last scale of a residual block starts at 0, as published;
        for pruning at initialization it should not.
    """

    definition: Definition = A
    classes: int = 1000
    zero_last: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[batch, height, width, colors] -> [batch, classes]."""
        of, norm = self.definition, partial(_norm, train)
        x = _conv(of.stem, 3, of.stem_stride, name="stem")(x)
        x = nn.hard_swish(norm("stem_norm")(x))
        for row, stage in enumerate(of.stages):
            for at in range(stage.repeats):
                first = stage if at == 0 else stage._replace(stride=1, pad=None)
                x = Block(first, self.zero_last, name=f"stage{row}_{at}")(x, train)
        wide = by_eight(x.shape[-1] * of.head)
        x = nn.hard_swish(norm("head_norm")(_conv(wide, 1, name="head")(x)))
        x = x.mean((1, 2), keepdims=True)
        x = nn.hard_swish(_conv(of.features, 1, name="features")(x))
        logits = _conv(self.classes, 1, bias=True, name="classifier")(x)
        return logits.reshape(len(x), -1)


class Block(nn.Module):
    """One inverted residual.

    Attributes:
      stage: its row; `repeats` is not looked at.
      zero_last: see `FBNetV3`.
    """

    stage: Stage
    zero_last: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] -> the same with `stage.out` channels."""
        row, wide = self.stage, by_eight(x.shape[-1] * self.stage.expand)
        norm, y = partial(_norm, train), x
        if wide != x.shape[-1]:
            y = nn.hard_swish(norm("expand_norm")(_conv(wide, 1, name="expand")(y)))
        depthwise = _conv(
            wide, row.kernel, row.stride, row.pad, groups=wide, name="depthwise"
        )
        y = nn.hard_swish(norm("depthwise_norm")(depthwise(y)))
        if row.excite:
            squeezed = by_eight(int(wide * 0.25 / row.expand))
            gate = y.mean((1, 2), keepdims=True)
            gate = nn.hard_swish(_conv(squeezed, 1, bias=True, name="squeeze")(gate))
            y = y * nn.hard_sigmoid(_conv(wide, 1, bias=True, name="excite")(gate))
        y = _conv(row.out, 1, name="project")(y)
        residual = row.stride == 1 and x.shape[-1] == row.out
        y = norm("project_norm", zero=residual and self.zero_last)(y)
        return x + y if residual else y


def _conv(
    width: int,
    kernel: int,
    stride: int = 1,
    pad: int | None = None,
    *,
    groups: int = 1,
    bias: bool = False,
    name: str,
) -> nn.Conv:
    pad = kernel // 2 if pad is None else pad
    return nn.Conv(
        width,
        (kernel, kernel),
        stride,
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
    )


def _norm(train: bool, name: str, zero: bool = False) -> nn.BatchNorm:
    scale: Any = nn.initializers.zeros if zero else nn.initializers.ones
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, scale_init=scale, name=name
    )


def pooled(definition: Definition, height: int, width: int) -> int:
    """Elements that the average pools read: the zoo's FLOPs count one for each.

    Args:
      definition: which member.
      height: of the image.
      width: of the image.
    """

    def after(side: int, kernel: int, stride: int, pad: int | None) -> int:
        pad = kernel // 2 if pad is None else pad
        return (side + 2 * pad - kernel) // stride + 1

    sides = [after(side, 3, definition.stem_stride, 1) for side in (height, width)]
    channels, total = definition.stem, definition.features
    for stage in definition.stages:
        for at in range(stage.repeats):
            stride, pad = (stage.stride, stage.pad) if at == 0 else (1, None)
            wide = by_eight(channels * stage.expand)
            sides = [after(side, stage.kernel, stride, pad) for side in sides]
            total += wide * sides[0] * sides[1] if stage.excite else 0
            channels = stage.out
    return total + by_eight(channels * definition.head) * sides[0] * sides[1]


MEMBERS: dict[str, Definition] = {
    "fbnetv3_a": A,
    "fbnetv3_c": C,
    "fbnetv3_e": E,
    "fbnetv3_g": G,
    "fbnetv3_smaller": SMALLER,
    "fbnetv3_tiny": TINY,
}


def weight_costs(model: nn.Module, variables: Any, image: Any) -> Any:
    """Multiply-adds of one weight of each kernel: the positions its layer works on.

    Args:
      model: a module whose kernels are all of `nn.Conv`.
      variables: of it, or their shapes.
      image: the input for one example, or its shape.

    Returns:
      A tree like `variables["params"]`, ints; 0 at leaves that are no kernel.
    """

    def convolutions(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv) and name == "__call__"

    def maps(variables: Any, image: Any) -> Any:
        return model.apply(
            variables,
            image,
            capture_intermediates=convolutions,
            mutable=["intermediates"],
        )[1]

    found = jax.eval_shape(maps, variables, image)["intermediates"]

    def cost(path: Any, leaf: Any) -> int:
        if path[-1].key != "kernel":
            return 0
        layer = found
        for key in path[:-1]:
            layer = layer[key.key]
        _, height, width, _ = layer["__call__"][0].shape
        return height * width

    return jax.tree_util.tree_map_with_path(cost, variables["params"])
