"""Convolutional networks in Flax Linen, with the minima derived beside each."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.densenet import DenseNet
from experiments.models.mobilenet import MobileNetV3, Row
from experiments.models.resnet import ResNet
from tests.surgery.nets import Case, Net, fill, images


def linen(model: nn.Module, inputs) -> "partial[Case]":
    """`make` of a Linen module: `inputs(batch)` gives its first argument."""
    return partial(_linen, model, inputs)


def _linen(model, inputs, train: bool = False, batch: int = 2) -> Case:
    x = inputs(batch)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(lambda: model.init(rngs, jnp.asarray(x)))
    variables = fill(shapes)
    if not train:
        return Case(model.apply, variables, (x,))
    stats = "batch_stats" in variables

    def apply(variables, x, key):
        out = model.apply(
            variables,
            x,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"] if stats else False,
        )
        return (out[0], out[1]["batch_stats"]) if stats else out

    key = jax.random.key(7)
    return Case(apply, variables, (x, key), "batch_stats" if stats else None)


# Streams: the stem and one per stage (the projection, both adds). Each block has two
# inner widths. 1 + 2 stages + 2 * 3 blocks. Out of reach: the bias of the 5 logits.
RESNET = Net(
    "ResNet bottleneck",
    linen(ResNet((2, 1), 4, 5), partial(images, side=16)),
    groups=1 + 2 + 2 * 3,
    fixed=5,
    train=True,
)

# As above, but the inner widths of a block are three atoms: the number of groups G (on
# both sides of the 3x3), the channels in and the channels out of one group.
RESNEXT = Net(
    "ResNeXt",
    linen(ResNet((1, 1), 16, 5, groups=4, expansion=2), partial(images, side=16)),
    groups=1 + 2 + 3 * 2,
    fixed=5,
    train=True,
)

# Streams: stem (16, kept by the first block's residual), 12, 20 (residual). Expanded
# widths 24 and 40, 40 (the first block expands to its own input: no group of its own).
# Squeeze widths of two blocks. Last convolution, hidden layer of the classifier.
# Depthwise kernels (k, k, 1, C) follow their input. 3 + 3 + 2 + 2.
MOBILENET = Net(
    "MobileNetV3 (depthwise, SE)",
    linen(
        MobileNetV3(
            rows=(
                Row(3, 16, 16, False, False, 1),
                Row(3, 24, 12, False, False, 2),
                Row(5, 40, 20, True, True, 2),
                Row(5, 40, 20, True, True, 1),
            ),
            stem=16,
            last=32,
            hidden=24,
            classes=5,
        ),
        partial(images, side=16),
    ),
    groups=3 + 3 + 2 + 2,
    fixed=5,
    train=True,
)

# The stem, two widths per layer (bottleneck and growth), one transition.
DENSENET = Net(
    "DenseNet",
    linen(DenseNet((2, 2), 4, 8, 5, large=False), partial(images, side=8)),
    groups=1 + 2 * 4 + 1,
    fixed=5,
    train=True,
)

# Option A pads the stream of stage 1 (C) to low + C + high, twice: five pieces of one
# stream, of sizes 4, 2, 2, 4, 4. One inner width per basic block.
OPTION_A = Net(
    "ResNet option A",
    linen(
        ResNet((1, 1, 1), 4, 5, False, shortcut="pad", stem="small"),
        partial(images, side=8),
    ),
    groups=5 + 3,
    fixed=5,
    train=True,
)


class UNet(nn.Module):
    """Two levels; skips by concatenation, one upsampling learned and one by resize."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        def double(x, width):
            x = nn.silu(nn.GroupNorm(4)(nn.Conv(width, (3, 3))(x)))
            return nn.silu(nn.GroupNorm(4)(nn.Conv(width, (3, 3))(x)))

        top = double(x, self.width)
        mid = double(nn.max_pool(top, (2, 2), (2, 2)), 2 * self.width)
        low = double(nn.max_pool(mid, (2, 2), (2, 2)), 4 * self.width)
        up = nn.ConvTranspose(2 * self.width, (2, 2), (2, 2))(low)
        y = double(jnp.concatenate([mid, up], -1), 2 * self.width)
        batch, height, wide, channels = y.shape
        up = jax.image.resize(y, (batch, 2 * height, 2 * wide, channels), "bilinear")
        y = double(jnp.concatenate([top, up], -1), self.width)
        return nn.Conv(2, (1, 1))(y)


# Ten widths are normalized by GroupNorm(4): each is (4 groups) x (channels per group),
# two atoms. The transposed convolution's width is one more. Groups of one width are not
# tied to another's. Out of reach: the bias of the 2 output channels.
UNET = Net(
    "U-Net (GroupNorm, ConvTranspose, resize)",
    linen(UNet(), partial(images, side=8)),
    groups=2 * 10 + 1,
    fixed=2,
)


class UnevenNorm(nn.Module):
    """GroupNorm over a concatenation whose seam is inside a group (12 + 8 in 4 x 5)."""

    @nn.compact
    def __call__(self, x):
        left = nn.Conv(12, (3, 3))(x)
        right = nn.Conv(8, (3, 3))(x)
        y = nn.GroupNorm(4)(jnp.concatenate([left, right], -1))
        return nn.Dense(3)(nn.relu(y).mean((1, 2)))


# The seam at 12 = 2 * 5 + 2 cuts the 5 places of a group into 2 + 3; every group then
# has the same places: two atoms (places 0-1 and 2-4), the number of groups is fixed.
UNEVEN = Net(
    "GroupNorm over an uneven concatenation",
    linen(UnevenNorm(), partial(images, side=6)),
    groups=2,
    fixed=3,
)


class VGG(nn.Module):
    """Convolutions, pooling, flatten, two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(12, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        return nn.Dense(5)(x)


# Two convolutions and the hidden layer; rows of the dense kernel are (h, w, channel).
VGG_NET = Net("VGG with flatten", linen(VGG(), partial(images, side=8)), 3, 5)


class Shuffle(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise, grouped 1x1, residual (version 1)."""

    groups: int = 4

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(nn.Conv(32, (3, 3), use_bias=False)(x)))
        for _ in range(2):
            y = nn.Conv(32, (1, 1), feature_group_count=self.groups)(x)
            y = nn.relu(norm()(y))
            y = y.reshape(*y.shape[:3], self.groups, -1).swapaxes(3, 4)
            y = y.reshape(*y.shape[:3], -1)
            y = norm()(nn.Conv(32, (3, 3), feature_group_count=32)(y))
            y = norm()(nn.Conv(32, (1, 1), feature_group_count=self.groups)(y))
            x = nn.relu(x + y)
        return nn.Dense(5)(x.mean((1, 2)))


# The stream is G.c (4 groups of 8), and the residual ties the output groups of the
# second grouped convolution to it. Inside a unit 32 = G.k is shuffled to k.G and read
# in 4 groups of 8, so k = 8 is G.m: the width is G.G.m, and m = 2 is the unit's own. G,
# c, two m.
SHUFFLENET = Net(
    "ShuffleNet",
    linen(Shuffle(), partial(images, side=8)),
    groups=2 + 2,
    fixed=5,
    train=True,
)


class Inception(nn.Module):
    """Two mixed blocks: 1x1, 1x1-3x3, 1x1-5x5 and pooled-1x1 branches, concatenated."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        for _ in range(2):
            pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME")
            three = nn.relu(nn.Conv(4, (1, 1))(x))
            five = nn.relu(nn.Conv(4, (1, 1))(x))
            branches = [
                nn.Conv(6, (1, 1))(x),
                nn.Conv(8, (3, 3))(three),
                nn.Conv(6, (5, 5))(five),
                nn.Conv(4, (1, 1))(pooled),
            ]
            x = nn.relu(jnp.concatenate(branches, -1))
        return nn.Dense(5)(x.mean((1, 2)))


# The stem; per block four branch outputs and two inner widths.
INCEPTION = Net(
    "Inception", linen(Inception(), partial(images, side=8)), 1 + 2 * (4 + 2), 5
)


class ScannedMLP(nn.Module):
    """Residual blocks with stacked parameters, each rematerialized."""

    layers: int = 3
    width: int = 12
    hidden: int = 20

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            width: int
            hidden: int

            @nn.compact
            def __call__(self, x, _):
                y = nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
                return x + nn.Dense(self.width)(y), None

        x = nn.Dense(self.width)(x)
        scanned = nn.scan(
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, _ = scanned(self.width, self.hidden)(x, None)
        return nn.Dense(4)(nn.LayerNorm()(x))


def vectors(batch: int, width: int, seed: int = 1) -> np.ndarray:
    """A batch of random vectors. [batch, width]"""
    return np.random.default_rng(seed).standard_normal((batch, width))


# The residual width and one hidden width, both shared by all layers of the scan.
SCAN = Net("scan + remat MLP", linen(ScannedMLP(), partial(vectors, width=6)), 2, 4)

FLAX_NETS = (
    RESNET,
    RESNEXT,
    MOBILENET,
    DENSENET,
    UNET,
    UNEVEN,
    SCAN,
    VGG_NET,
    SHUFFLENET,
    OPTION_A,
    INCEPTION,
)
