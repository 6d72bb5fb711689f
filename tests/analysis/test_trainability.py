"""Jacobian singular values: TPP's numbers by hand (g8), and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import analysis

K1 = jnp.diag(jnp.array([3.0, 1.0]))
K2 = jnp.array([[0.0, 1.0], [2.0, 0.0]])


def linear(p, x):
    return x @ p[0] @ p[1]


def test_tpp_g8_singular_values():
    found = analysis.trainability(linear, (K1, K2), jnp.ones((3, 2)))
    np.testing.assert_allclose(found.values, [[3, 2]] * 3, rtol=1e-6)
    np.testing.assert_allclose(found.mean, 2.5, rtol=1e-6)
    np.testing.assert_allclose(found.std, 0.5, rtol=1e-6)
    np.testing.assert_allclose(found.condition, 1.5, rtol=1e-6)
    np.testing.assert_allclose(found.isometry, (4 + 1) / 2, rtol=1e-6)
    cut = (K1 * jnp.array([[1.0, 0.0]]), K2)  # without hidden unit 1
    found = analysis.trainability(linear, cut, jnp.ones((1, 2)))
    np.testing.assert_allclose(found.values, [[3, 0]], atol=1e-6)
    np.testing.assert_allclose(found.mean, 1.5, rtol=1e-6)
    assert found.condition > 1e6  # inf, up to the rounding of the zero


def test_nonlinear_network_against_numpy():
    keys = jax.random.split(jax.random.key(0), 3)
    p = (jax.random.normal(keys[0], (12, 7)), jax.random.normal(keys[1], (7, 5)))
    x = jax.random.normal(keys[2], (4, 2, 6))

    def net(p, x):
        return jnp.tanh(x.reshape(len(x), -1) @ p[0]) @ p[1]

    found = analysis.trainability(net, p, x)
    a, b = np.asarray(p[0], np.float64), np.asarray(p[1], np.float64)
    for one, values in zip(np.asarray(x, np.float64), found.values, strict=True):
        slope = 1 - np.tanh(one.reshape(-1) @ a) ** 2
        want = np.linalg.svd((a * slope) @ b, compute_uv=False)
        np.testing.assert_allclose(values, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("x", [jnp.ones((0, 2)), jnp.ones((1, 2), int), jnp.ones(())])
def test_bad_inputs(x):
    with pytest.raises(ValueError, match="`x` must be a batch of floating inputs"):
        analysis.trainability(linear, (K1, K2), x)


def test_a_dead_network_has_an_infinite_condition():
    found = analysis.trainability(
        lambda p, x: x @ p, jnp.zeros((3, 3)), jnp.ones((2, 3))
    )
    assert float(found.mean) == 0 and np.isinf(float(found.condition))


def test_a_model_with_functions_in_its_tree():
    model = {"act": jnp.tanh, "w": jnp.eye(2)}
    x = jnp.zeros((1, 2))
    found = analysis.trainability(lambda m, x: m["act"](x @ m["w"]), model, x)
    np.testing.assert_allclose(found.values, [[1, 1]])
