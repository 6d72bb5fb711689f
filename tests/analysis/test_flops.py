"""FLOPs against closed forms: 2 per multiply-add, contractions only."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from experiments.models.densenet import DenseNet
from experiments.models.mobilenet import MobileNetV3
from experiments.models.resnet import resnet50
from experiments.models.transformer import ViT
from jprune import analysis

array = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def conv(x, w, **kw):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=numbers, **kw)


def test_mlp_and_its_gradient():
    def mlp(params, x):
        return jnp.tanh(x @ params[0]) @ params[1]

    params, x = [array((16, 32)), array((32, 4))], array((8, 16))
    forward = 2 * 8 * (16 * 32 + 32 * 4)
    assert analysis.flops(mlp)(params, x) == forward
    # Backward: both kernels' gradients, and the activation's for the second layer only.
    backward = forward + 2 * 8 * 32 * 4
    loss = jax.value_and_grad(lambda p, x: mlp(p, x).sum())
    assert analysis.flops(loss)(params, x) == forward + backward


def test_convolutions():
    x, side = array((2, 9, 9, 6)), 5  # stride 2, SAME
    taps = 3 * 3 * 6
    strided = partial(conv, window_strides=(2, 2), padding="SAME")
    count = analysis.flops(strided)(x, array((3, 3, 6, 8)))
    assert count == 2 * (2 * side * side * 8) * taps
    grouped = partial(strided, feature_group_count=3)
    assert analysis.flops(grouped)(x, array((3, 3, 2, 9))) == (
        2 * (2 * side * side * 9) * taps // 3
    )
    depthwise = partial(strided, feature_group_count=6)
    assert analysis.flops(depthwise)(x, array((3, 3, 1, 6))) == (
        2 * (2 * side * side * 6) * taps // 6
    )


def test_batched_and_structured():
    a, b = array((5, 3, 4)), array((5, 4, 7))
    assert analysis.flops(jnp.matmul)(a, b) == 2 * 5 * 3 * 4 * 7

    def scanned(w, x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=11)[0]

    w, x = array((4, 4)), array((2, 4))
    assert analysis.flops(jax.jit(scanned))(w, x) == 11 * 2 * 2 * 4 * 4

    def branches(w, x):
        cheap, dear = (lambda x: x @ w), (lambda x: x @ w @ w)
        return jax.lax.cond(x.sum() > 0, cheap, dear, x)

    assert analysis.flops(branches)(w, x) == 2 * (2 * 2 * 4 * 4)


def test_elementwise_work_is_free_and_keywords_pass():
    def fn(x, *, power):
        return jnp.exp(x) ** power + x.sum()

    assert analysis.flops(fn)(array((100,)), power=2.0) == 0


# Giga multiply-adds at 224 x 224 as model zoos list them (they round to three digits).
@pytest.mark.parametrize(
    "model, macs",
    [(resnet50(), 4.09), (ViT(), 17.56), (MobileNetV3(), 0.22), (DenseNet(), 2.83)],
    ids=["resnet50", "vit", "mobilenet", "densenet"],
)
def test_published_networks(model, macs):
    x = array((1, 224, 224, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert analysis.flops(model.apply)(variables, x) / 2e9 == pytest.approx(
        macs, rel=0.02
    )
