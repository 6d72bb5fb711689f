"""FLOPs against closed forms: 2 per multiply-add, contractions only."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from experiments.models.densenet import DenseNet
from experiments.models.mobilenet import MobileNetV3
from experiments.models.resnet import resnet50
from experiments.models.transformer import ViT
from jprune import analysis, surgery

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


@pytest.mark.parametrize(
    ("spec", "names", "times"),
    [
        (P("d"), {"d", "e"}, 2),  # split over d, repeated over e
        (P(("d", "e")), {"d", "e"}, 1),
        (P("d"), {"d"}, 1),  # e is left to the compiler
        (P(), {"d", "e"}, 4),
    ],
)
def test_what_is_mapped_over_a_mesh_counts_for_all_devices(spec, names, times):
    """By hand: 8 rows through (16, 6), on `times` devices each; then (6, 4) once."""
    mesh = jax.make_mesh((2, 2), ("d", "e"), axis_types=(AxisType.Auto,) * 2)
    first = jax.shard_map(
        lambda x, w: jnp.tanh(x @ w),
        mesh=mesh,
        in_specs=(spec, P()),
        out_specs=spec,
        axis_names=names,
    )

    @jax.jit
    def net(p, x):
        return first(x, p["a"]) @ p["b"]

    p, x = {"a": array((16, 6)), "b": array((6, 4))}, array((8, 16))
    want = times * 2 * 8 * 16 * 6 + 2 * 8 * 6 * 4
    assert analysis.flops(net)(p, x) == want
    deps = surgery.groups(net)(p, x)
    assert deps.flops() == want
    half = times * 2 * 8 * 16 * 3 + 2 * 8 * 3 * 4
    assert deps.flops({"a:1": 3}) == half  # the factor is not an axis that shrinks


def test_maps_inside_maps_and_loops():
    mesh = jax.make_mesh((2, 2), ("d", "e"), axis_types=(AxisType.Auto,) * 2)

    def map_over(fn, name):
        return jax.shard_map(
            fn, mesh=mesh, in_specs=P(), out_specs=P(), axis_names={name}
        )

    def net(w, x):
        body = lambda c, _: (map_over(lambda c: c @ w, "d")(c), None)  # noqa: E731
        return jax.lax.scan(body, x, length=5)[0]

    assert analysis.flops(net)(array((4, 4)), array((2, 4))) == 2 * 5 * 2 * 2 * 4 * 4


def test_a_solve_does_not_count_what_its_derivative_reads():
    assert analysis.flops(jnp.linalg.solve)(array((8, 8)), array((8, 3))) == 0

    def fn(a, b):
        return jax.lax.custom_linear_solve(
            lambda x: a @ x, b, lambda _, b: b @ jnp.ones((3, 3)), symmetric=True
        )

    assert analysis.flops(fn)(array((8, 8)), array((8, 3))) == 2 * 8 * 3 * 3
