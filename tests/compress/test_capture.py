"""Capture: matrices of any contraction, against NumPy and the contraction itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import compress
from jprune._jaxpr._flat import flatten, run
from jprune._jaxpr._matrix import matrix_form
from jprune._jaxpr._trace import trace


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def conv(x, w, **options):
    return lax.conv_general_dilated(
        x, w, **options, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


CONVS = {
    "same": ((6, 5, 3), (3, 3, 3, 4), {"window_strides": (1, 1), "padding": "SAME"}),
    "stride": ((7, 6, 3), (3, 3, 3, 4), {"window_strides": (2, 2), "padding": "SAME"}),
    "groups": (
        (6, 6, 4),
        (3, 1, 2, 6),
        {"window_strides": (1, 2), "padding": "VALID", "feature_group_count": 2},
    ),
    "depthwise": (
        (6, 6, 4),
        (3, 3, 1, 4),
        {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 4},
    ),
    "dilated": (
        (9, 9, 2),
        (3, 2, 2, 3),
        {"window_strides": (1, 1), "padding": ((1, 2), (0, 1)), "rhs_dilation": (2, 3)},
    ),
    "transposed": (
        (4, 4, 2),
        (3, 3, 2, 3),
        {"window_strides": (1, 1), "padding": ((2, 2), (1, 2)), "lhs_dilation": (2, 2)},
    ),
}

DOTS = {
    "dense": ("nk,km->nm", (5, 3), (3, 4)),
    "left": ("mk,nk->mn", (5, 3), (4, 3)),
    "heads": ("bshd,hdm->bsm", (2, 3, 2, 4), (2, 4, 5)),
    "into heads": ("bsk,khd->bshd", (2, 3, 6), (6, 2, 4)),
    "experts": ("bek,ekm->bem", (5, 2, 3), (2, 3, 4)),
}


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_is_the_product_of_its_matrices(name):
    """Also lasso (g) 6: patches at positions times the kernel equal the convolution."""
    image, kernel, options = CONVS[name]
    check(lambda p, x: conv(x, p["w"], **options), normal(0, 2, *image), kernel)


@pytest.mark.parametrize("name", DOTS)
def test_a_dot_product_is_the_product_of_its_matrices(name):
    spec, x, kernel = DOTS[name]
    check(lambda p, x: jnp.einsum(spec, x, p["w"]), normal(0, *x), kernel)


def check(fn, x, kernel):
    params = {"w": normal(1, *kernel)}
    (found,) = compress.capture(fn, params, [x], keep="rows").values()
    w = np.asarray(found.form.weights(found.form.as_operand(params["w"])))
    np.testing.assert_allclose(found.inputs @ w, found.outputs, rtol=1e-4, atol=1e-5)
    assert found.rows * found.form.shape[0] * found.form.shape[2] == fn(params, x).size
    back = found.form.as_param(found.form.operand(w), params["w"])
    np.testing.assert_array_equal(back, params["w"])


@pytest.mark.parametrize("name", ["same", "stride"])
def test_sampled_positions_are_rows_of_the_whole(name):
    image, kernel, options = CONVS[name]
    fn = lambda p, x: conv(x, p["w"], **options)  # noqa: E731
    params, x = {"w": normal(1, *kernel)}, normal(0, 2, *image)
    (few,) = compress.capture(fn, params, [x], keep="rows", samples=4).values()
    (all_of,) = compress.capture(fn, params, [x], keep="rows").values()
    assert few.rows == 8
    whole = np.concatenate([all_of.inputs, all_of.outputs], -1)[0]
    for row in np.concatenate([few.inputs, few.outputs], -1)[0]:
        assert np.isclose(whole, row, atol=1e-5).all(1).any()


def mlp(p, x):
    h = jax.jit(jax.nn.relu)(x @ p["a"])
    return jax.checkpoint(lambda h: jax.nn.silu(h @ p["b"]))(h) @ p["c"].T


def mlp_params():
    return {"a": normal(1, 3, 5), "b": normal(2, 5, 4), "c": normal(3, 2, 4)}


def test_sums_over_batches_are_those_of_numpy():
    p, batches = mlp_params(), [normal(4, 6, 3), normal(5, 6, 3)]
    gram = compress.capture(mlp, p, batches, keep="gram")
    x = np.concatenate(batches).astype(np.float64)
    a, b, c = (np.asarray(p[n], np.float64) for n in "abc")
    h = np.maximum(x @ a, 0)
    g = h @ b / (1 + np.exp(-(h @ b)))
    assert list(gram) == ["a", "b", "c"]
    for name, u, v in (("a", x, x @ a), ("b", h, h @ b), ("c", g, g @ c.T)):
        found = gram[name]
        assert found.rows == 12
        np.testing.assert_allclose(found.gram[0], u.T @ u, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.cross[0], u.T @ v, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.input_sum[0], u.sum(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.output_sum[0], v.sum(0), rtol=1e-4, atol=1e-4)
        moments = compress.capture(mlp, p, batches, keep="moments")[name]
        assert moments.gram is None and moments.inputs is None
        np.testing.assert_allclose(
            moments.output_squares[0], (v * v).sum(0), rtol=1e-4, atol=1e-4
        )


def test_norms_are_shaped_to_the_kernel():
    p = {"o": normal(1, 2, 4, 5), "t": normal(2, 3, 5)}
    fn = lambda p, x: jnp.einsum("bshd,hdm->bsm", x, p["o"]) @ p["t"].T  # noqa: E731
    x = normal(0, 2, 3, 2, 4)
    found = compress.capture(fn, p, [x], keep="moments")
    assert found["o"].norms.shape == (2, 4, 1) and found["t"].norms.shape == (1, 5)
    np.testing.assert_allclose(
        found["o"].norms[..., 0], np.sqrt((np.asarray(x) ** 2).sum((0, 1))), rtol=1e-5
    )


def test_layers_of_a_loop_are_told_apart():
    p = {"ws": normal(1, 3, 4, 4), "u": normal(2, 4, 4)}

    def scanned(p, x):
        step = lambda h, w: (jnp.tanh(h @ w + h @ p["u"]), None)  # noqa: E731
        return lax.scan(step, x, p["ws"])[0]

    def written_out(p, x):
        for w in p["ws"]:
            x = jnp.tanh(x @ w + x @ p["u"])
        return x

    batches = [normal(3, 5, 4)]
    loop, plain = (compress.capture(f, p, batches) for f in (scanned, written_out))
    assert sorted(loop) == ["u", "ws[0]", "ws[1]", "ws[2]"] == sorted(plain)
    assert loop["u"].rows == 15  # one kernel, read in every round
    for name, found in loop.items():
        np.testing.assert_allclose(found.gram, plain[name].gram, rtol=1e-5)
    layer = loop["ws[2]"].form.as_operand(p["ws"][2])
    np.testing.assert_array_equal(layer, p["ws"][2])


def test_sharded_batches_give_the_same_sums():
    mesh = jax.make_mesh((4,), ("batch",), (jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    image, kernel, options = CONVS["stride"]
    fn = lambda p, x: conv(x, p["w"], **options)  # noqa: E731
    p, x = {"w": normal(1, *kernel)}, normal(0, 8, *image)
    one = compress.capture(fn, p, [x], samples=3)["w"]
    four = compress.capture(
        fn, jax.device_put(p, whole), [jax.device_put(x, split)], samples=3
    )["w"]
    np.testing.assert_allclose(four.gram, one.gram, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_captured_is_an_error():
    p = {"w": normal(0, 3, 3), "b": normal(1, 3, 3)}

    def loops(p, x):
        x = lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ p["w"], x)
        return x + p["b"].sum()

    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="`while` that cannot be opened"):
        compress.capture(loops, p, [x])
    with pytest.raises(ValueError, match="b: no contraction reads it"):
        compress.capture(lambda p, x: x @ p["w"] + p["b"].sum(), p, [x], scope="b")
    with pytest.raises(ValueError, match="`batches` is empty"):
        compress.capture(loops, p, [])
    with pytest.raises(ValueError, match="`keep` must be"):
        compress.capture(loops, p, [x], keep="all")


def test_a_flat_program_computes_the_same():
    p, x = mlp_params(), normal(4, 6, 3)
    flat = flatten(trace(mlp)(p, x))
    assert [matrix_form(flat, s).path for s in flat.sites] == [("a",), ("b",), ("c",)]
    leaves = [*jax.tree.leaves(p), x]
    jaxpr = flat.jaxpr.jaxpr
    env = dict(zip(jaxpr.invars, leaves, strict=True))
    env |= zip(jaxpr.constvars, flat.jaxpr.consts, strict=True)
    run(jaxpr, env, 0, len(flat.eqns))
    (out,) = (env[v] for v in jaxpr.outvars)
    np.testing.assert_allclose(out, mlp(p, x), rtol=1e-6)
