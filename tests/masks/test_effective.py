"""Effective masks against reachability."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import masks


def mlp(weights):
    """Layers in the order of their keys, inputs all ones, each layer a mean."""
    x = jnp.ones(jax.tree.leaves(weights)[0].shape[0])
    for key in sorted(weights):
        x = x @ weights[key] / weights[key].shape[0]
    return x


def reachable(mask):
    """Forward from every input and backward from every output, in NumPy."""
    layers = [np.asarray(mask[key]) for key in sorted(mask)]
    forward: list[Any] = [np.ones(layers[0].shape[0], bool)]
    for m in layers:
        forward.append(np.any(m & forward[-1][:, None], axis=0))
    backward: list[Any] = [np.ones(layers[-1].shape[1], bool)]
    for m in layers[::-1]:
        backward.append(np.any(m & backward[-1][None], axis=1))
    backward.reverse()
    return {
        key: m & forward[i][:, None] & backward[i + 1][None]
        for i, (key, m) in enumerate(zip(sorted(mask), layers, strict=True))
    }


@jax.jit
def effective(mask):
    return masks.effective(mask, mlp)


def test_robust_init_g8():
    mask = {
        "a": jnp.array([[1, 0], [0, 0], [0, 1]], bool),
        "b": jnp.array([[1, 0], [0, 0]], bool),
    }
    active = effective(mask)
    assert float(masks.sparsity(mask)) == np.float32(0.7)
    assert float(masks.sparsity(active)) == np.float32(0.8)
    np.testing.assert_array_equal(active["a"], [[1, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(active["b"], mask["b"])


def test_gradient_and_reachability_agree():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shapes = {"a": (6, 7), "b": (7, 5), "c": (5, 3)}
        mask = {k: rng.random(v) < 0.25 for k, v in shapes.items()}
        jax.tree.map(np.testing.assert_array_equal, effective(mask), reachable(mask))


def test_leaves_out_of_scope_pass():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}
    mask = {"a": jnp.array([[True, False]] * 3), "b": jnp.array(True)}
    whole = masks.intersect(mask, masks.full(params))
    active = effective(whole)
    np.testing.assert_array_equal(active["a"], mask["a"])
    np.testing.assert_array_equal(active["b"], [[1, 1], [0, 0]])
    passed = masks.effective(mask, lambda w: w["a"] * w["b"])
    assert passed["b"].shape == () and bool(passed["b"])


def test_overflow_is_an_error():
    mask = {k: jnp.ones((8, 8), bool) for k in "abc"}

    def steep(weights):
        return 1e30 * weights["a"] @ (1e30 * weights["b"]) @ weights["c"]

    with pytest.raises(ValueError, match="overflowed float32.*\n  a"):
        masks.effective(mask, steep)
