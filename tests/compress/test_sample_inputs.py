"""The sampler: equal to the kernel with zero rows, cheaper, differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import analysis, compress


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def net(p, x):
    """A stream of four channels that two layers read, then a dense layer."""
    conv = jax.jit(
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    h = x + jax.nn.relu(conv(x, p["a"]))
    h = h + jax.checkpoint(conv)(h, p["b"])
    return jnp.einsum("nhwc,oc->nho", h, p["d"])


def params():
    return {
        "a": normal(1, 3, 3, 4, 4),
        "b": normal(2, 3, 3, 4, 4),
        "d": normal(3, 2, 4),
    }


KEEP = {"b": np.array([True, False, True, False]), "d": [0, 1, 3]}


def zeroed(p):
    p = dict(p)
    p["b"] = p["b"].at[:, :, [1, 3]].set(0)
    return p | {"d": p["d"].at[:, 2].set(0)}


def test_it_equals_the_kernel_with_zero_rows():
    p, x = params(), normal(0, 2, 5, 5, 4)
    thin = compress.sample_inputs(net, p, KEEP, x)
    assert thin.params["b"].shape == (3, 3, 2, 4) and thin.params["d"].shape == (2, 3)
    np.testing.assert_allclose(
        jax.jit(thin.fn)(thin.params, x), net(zeroed(p), x), rtol=1e-4, atol=1e-5
    )
    one = normal(9, 3, 4, 6, 4)  # another shape
    np.testing.assert_allclose(
        thin.fn(thin.params, one), net(zeroed(p), one), rtol=1e-4, atol=1e-5
    )


def test_it_is_trained_as_the_zeroed_kernel():
    p, x = params(), normal(0, 2, 5, 5, 4)
    thin = compress.sample_inputs(net, p, KEEP, x)
    dense = jax.grad(lambda p: (net(p, x) ** 2).sum())(zeroed(p))
    found = jax.grad(lambda p: (thin.fn(p, x) ** 2).sum())(thin.params)
    np.testing.assert_allclose(found["a"], dense["a"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["b"], dense["b"][:, :, [0, 2]], rtol=1e-3)


def test_the_gather_and_the_saving_are_counted():
    p, x = params(), normal(0, 2, 5, 5, 4)
    thin = compress.sample_inputs(net, p, {"b": KEEP["b"]}, x)
    assert thin.gathered == {"b": 2 * 5 * 5 * 2}
    assert thin.indices["b"].tolist() == [0, 2]
    saved = analysis.flops(net)(p, x) - analysis.flops(thin.fn)(thin.params, x)
    assert saved == 2 * 2 * 25 * 9 * 2 * 4


def test_what_cannot_be_sampled_is_an_error():
    p, x = params(), normal(0, 2, 5, 5, 4)
    with pytest.raises(ValueError, match="must name kernels"):
        compress.sample_inputs(net, p, {"c": [0]}, x)
    with pytest.raises(ValueError, match="different indices"):
        compress.sample_inputs(net, p, {"b": [0, 0]}, x)
    twice = lambda p, x: x @ p["w"] @ p["w"]  # noqa: E731
    with pytest.raises(ValueError, match="several places"):
        compress.sample_inputs(twice, {"w": normal(0, 4, 4)}, {"w": [0]}, x[0, 0])
    heads = lambda p, x: jnp.einsum("nab,abc->nc", x, p["w"])  # noqa: E731
    q = {"w": normal(0, 5, 4, 3)}
    with pytest.raises(ValueError, match="`axis` is needed"):
        compress.sample_inputs(heads, q, {"w": [0]}, x[0])
    thin = compress.sample_inputs(heads, q, {"w": [0, 3]}, x[0], axis=0)
    dense = heads({"w": q["w"].at[jnp.array([1, 2, 4])].set(0)}, x[0])
    np.testing.assert_allclose(thin.fn(thin.params, x[0]), dense, rtol=1e-4, atol=1e-5)
