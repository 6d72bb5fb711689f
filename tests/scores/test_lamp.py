"""LAMP against its formula in float64, and what a ranking needs of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import scores

lamp = jax.jit(scores.lamp)


def formula(w):
    """w_u^2 over the sum of its own and all larger (or earlier equal) squares."""
    flat = np.float64(w).ravel()
    out = np.zeros_like(flat)
    for i, x in enumerate(flat):
        larger = np.abs(flat) > abs(x)
        equal = (np.abs(flat) == abs(x)) & (np.arange(flat.size) <= i)
        out[i] = x**2 / np.sum(flat[larger | equal] ** 2) if x else 0
    return out.reshape(np.shape(w))


def test_allocation_g6_values():
    got = lamp({"a": jnp.array([1.0, 2.0, 3.0]), "b": jnp.array([0.1, 0.2])})
    np.testing.assert_allclose(got["a"], [1 / 14, 4 / 13, 1], rtol=1e-6)
    np.testing.assert_allclose(got["b"], [0.2, 1], rtol=1e-6)


def test_equal_weights_rank_by_position():
    """The first of equals comes first, as in every mask."""
    got = lamp(jnp.full(4, -0.7))
    np.testing.assert_allclose(got, [1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_against_the_formula(dtype):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 3)), dtype)
    got = lamp(w)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, formula(np.float64(w)), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_monotone_in_magnitude(seed):
    """Exactly, though the sums are rounded."""
    w = np.random.default_rng(seed).normal(size=997).astype(np.float32)
    got = np.asarray(lamp(w))
    ordered = got[np.argsort(-np.abs(w), kind="stable")]
    assert np.all(np.diff(ordered) <= 0) and ordered[0] == 1


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale):
    w = np.random.default_rng(1).normal(size=997).astype(np.float32)
    np.testing.assert_allclose(lamp(w * np.float32(scale)), lamp(w), rtol=1e-5)


@pytest.mark.parametrize("part", [1.0, 0.3, 0.01])
def test_up_to_the_largest_float(part):
    """1 / largest is below the float range there, where a processor has only 0."""
    w = np.random.default_rng(2).normal(size=997).astype(np.float32)
    w = w / np.abs(w).max() * np.float32(part) * np.finfo(np.float32).max
    for got in map(np.asarray, (lamp(w), scores.lamp(w))):
        np.testing.assert_allclose(got, formula(np.float64(w)), rtol=1e-5)
        ordered = got[np.argsort(-np.abs(w), kind="stable")]
        assert np.all(np.diff(ordered) <= 0)


def test_zeros_and_nan():
    np.testing.assert_array_equal(lamp(jnp.zeros(4)), np.zeros(4))
    np.testing.assert_array_equal(lamp(jnp.array([0.0, -0.0, 2.0, 0.0])), [0, 0, 1, 0])
    got = np.asarray(lamp(jnp.array([1.0, jnp.nan, 2.0, 0.0])))
    assert np.isnan(got[1])  # where a mask keeps it and it can be seen
    np.testing.assert_allclose(got[[0, 2, 3]], [0.2, 1, 0], rtol=1e-6)
    got = np.asarray(lamp(jnp.array([1.0, -jnp.inf, 2.0, jnp.nan])))
    np.testing.assert_allclose(got, [0.2, np.nan, 1, np.nan], rtol=1e-6)
