"""The small networks that `first_call` trains: stock layers, nothing made for pruning.

Images are the digits that ship with scikit-learn, some enlarged to 16 x 16; the text is
the source code of Python's own standard library.
"""

import argparse
import decimal
import inspect
import textwrap
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.digits import load_digits
from experiments.models.digits_resnet import DigitsResNet
from experiments.models.mobilenet import MobileNetV3, Row
from experiments.models.transformer import GPT, ViT

CONTEXT = 64


class Data(NamedTuple):
    """Examples in random order and what is to be predicted of each."""

    train: np.ndarray
    wanted: np.ndarray
    test: np.ndarray
    test_wanted: np.ndarray


class Net(NamedTuple):
    """One network of the table.

    Attributes:
      model: a Flax module; `train=True` is its training mode.
      data: makes the examples.
      steps: of training.
      batch: examples in a step.
      rate: peak of the learning rate (AdamW, cosine).
    """

    model: nn.Module
    data: Callable[[], Data]
    steps: int
    batch: int
    rate: float


class SmallCNN(nn.Module):
    """Two convolutions, batch norm, a hidden layer: Flax's MNIST example."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in (32, 64):
            x = nn.Conv(width, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.avg_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


class VGG(nn.Module):
    """Six convolutions with biases and no norm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        he = nn.initializers.he_normal()
        for i, width in enumerate((16, 16, 32, 32, 64, 64)):
            stride = 2 if i in (2, 4) else 1
            x = nn.relu(nn.Conv(width, (3, 3), stride, kernel_init=he)(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Mixer(nn.Module):
    """Patches, then blocks that mix tokens and channels: MLP-Mixer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = nn.Conv(48, (2, 2), (2, 2))(x)
        x = x.reshape(len(x), -1, 48)
        for _ in range(3):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            y = nn.Dense(16)(nn.gelu(nn.Dense(32)(y)))
            x = x + y.swapaxes(1, 2)
            x = x + nn.Dense(48)(nn.gelu(nn.Dense(96)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


class ResMLP(nn.Module):
    """A residual network of dense layers, no norm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        for _ in range(4):
            x = x + nn.Dense(64)(nn.relu(nn.Dense(96)(x)))
        return nn.Dense(10)(x)


class SmallDenseNet(nn.Module):
    """Layers that read all maps before them, side by side: DenseNet."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        conv = partial(nn.Conv, use_bias=False)
        x = conv(24, (3, 3))(x)
        for stage in range(2):
            for _ in range(3):
                y = conv(32, (1, 1))(nn.relu(norm()(x)))
                y = conv(12, (3, 3))(nn.relu(norm()(y)))
                x = jnp.concatenate([x, y], -1)
            if stage == 0:
                x = conv(30, (1, 1))(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(nn.relu(norm()(x)).mean((1, 2)))


INVERTED = (
    Row(3, 16, 16, True, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(3, 96, 40, True, True, 2),
    Row(3, 120, 40, True, True, 1),
)


def digits(side: int) -> Data:
    """The digits, `side` x `side` (each pixel repeated), standardized."""
    found = load_digits()
    raw = np.asarray(found.inputs, np.float32)
    images = (raw - found.mean) / found.std
    times = side // images.shape[1]
    images = images.repeat(times, axis=1).repeat(times, axis=2)
    train, test = found.train, found.test
    return Data(images[train], found.labels[train], images[test], found.labels[test])


def source_code() -> Data:
    """Windows of Python source, character by character; the last tenth is the test."""
    text = "".join(map(inspect.getsource, (argparse, textwrap, decimal, typing)))
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    codes = np.clip(codes - 31, 0, 95)  # newlines and the like are 0
    rows = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
    cut = len(rows) * 9 // 10
    x, y = rows[:, :-1], rows[:, 1:]
    return Data(x[:cut], y[:cut], x[cut:][:128], y[cut:][:128])


NETS: dict[str, Net] = {
    "CNN": Net(SmallCNN(), lambda: digits(16), 150, 64, 2e-3),
    "ResNet": Net(DigitsResNet(), lambda: digits(8), 250, 64, 3e-3),
    "VGG": Net(VGG(), lambda: digits(8), 250, 64, 2e-3),
    "MobileNet": Net(
        MobileNetV3(INVERTED, 16, 120, 64, 10), lambda: digits(16), 250, 64, 3e-3
    ),
    "ViT": Net(ViT(4, 48, 4, 96, 2, 10), lambda: digits(8), 300, 64, 2e-3),
    "GPT": Net(GPT(2, 64, 4, 256, 96, CONTEXT), source_code, 500, 16, 3e-3),
}


HELD_OUT: dict[str, Net] = {  # never looked at while a default is chosen
    "Mixer": Net(Mixer(), lambda: digits(8), 300, 64, 2e-3),
    "ResMLP": Net(ResMLP(), lambda: digits(8), 250, 64, 2e-3),
    "DenseNet": Net(SmallDenseNet(), lambda: digits(8), 250, 64, 3e-3),
}


def loss(net: Net, variables: Any, x: Any, y: Any, key: Any) -> tuple[jax.Array, Any]:
    """Mean cross-entropy in training mode, and the new statistics."""
    rest = {name: v for name, v in variables.items() if name != "params"}
    logits, new = net.model.apply(
        variables, x, train=True, mutable=list(rest), rngs={"dropout": key}
    )
    each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.mean(each), new


def trained(net: Net, data: Data, seed: int) -> Any:
    """The network's variables after training."""
    keys = jax.random.split(jax.random.key(seed), 3)
    variables = jax.jit(net.model.init)(keys[0], data.train[:1])
    tx = optax.adamw(
        optax.cosine_decay_schedule(net.rate, net.steps), weight_decay=1e-3
    )
    examples, wanted = jnp.asarray(data.train), jnp.asarray(data.wanted)

    def step(carry: Any, key: Any) -> tuple[Any, None]:
        variables, state = carry
        pick = jax.random.randint(key, (net.batch,), 0, len(examples))
        rest = {name: v for name, v in variables.items() if name != "params"}

        def objective(params: Any) -> tuple[jax.Array, Any]:
            whole = {"params": params, **rest}
            return loss(net, whole, examples[pick], wanted[pick], key)

        grads, new = jax.grad(objective, has_aux=True)(variables["params"])
        updates, state = tx.update(grads, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, **new}, state), None

    carry = (variables, tx.init(variables["params"]))
    one = jax.jit(step, donate_argnums=0)  # a convolution in a scan is slow on a CPU
    for key in jax.random.split(keys[1], net.steps):
        carry, _ = one(carry, key)
    return carry[0]
