"""SNIP and GraSP against NumPy: a network with its derivatives written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import at_init, masks
from tests.at_init import twins

W = jnp.array([[1.0, -2.0], [0.5, 0.0]])
BATCH = (jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0]))


def half_square(w, batch):
    x, target = batch
    return 0.5 * jnp.sum((x @ w - target) ** 2)


def cross_entropy(params, batch):
    x, one_hot = batch
    y = jnp.tanh(x @ params["a"]) @ params["b"] + params["bias"][None]
    return -jnp.mean(jnp.sum(one_hot * jax.nn.log_softmax(y), axis=-1))


def problem(seed, n=12):
    """Parameters and a batch in float64; the bias is 0, as the twin has none."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(6, 8)), rng.normal(size=(8, 4))
    x, one_hot = rng.normal(size=(n, 6)), np.eye(4)[rng.integers(4, size=n)]
    return {"a": a, "b": b, "bias": np.zeros(4)}, (x, one_hot)


@jax.jit
def both(params, batch, scale=1.0):
    """The two scores of a scaled loss, and the masks that keep 20 of the 80 weights."""

    def loss(params, batch):
        return scale * cross_entropy(params, batch)

    found = (at_init.snip(loss, params, batch), at_init.grasp(loss, params, batch))
    snip, grasp = found
    kept = (
        masks.unstructured(snip, keep=20),
        masks.unstructured(grasp, keep=20, signed=True),
    )
    return found, kept


def test_robust_init_g2():
    """S = -score = [[-10,-30],[-10,0]]: (1,1) goes first, (0,1) last."""
    got = jax.jit(lambda w: at_init.grasp(half_square, w, BATCH))(W)
    np.testing.assert_array_equal(got, [[10, 30], [10, 0]])
    first = masks.unstructured(got, keep=3, signed=True)
    assert first.tolist() == [[True, True], [True, False]]
    last = masks.unstructured(got, keep=1, signed=True)
    assert last.tolist() == [[False, True], [False, False]]


@pytest.mark.slow
def test_robust_init_g10():
    """Ranks of SNIP and GraSP do not see the scale of the loss."""
    with jax.enable_x64(True):
        params, batch = problem(0)
        one, want = both(params, batch)
        three, got = both(params, batch, 3.0)
        ratios = [np.asarray(t["a"] / o["a"]) for t, o in zip(three, one, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, got, want)
    np.testing.assert_allclose(ratios[0], 3, rtol=1e-9)
    np.testing.assert_allclose(ratios[1], 9, rtol=1e-9)


def test_scores_and_masks_are_those_of_the_twin():
    """24 networks: scores to rounding, masks exactly."""
    with jax.enable_x64(True):
        for seed in range(24):
            params, batch = problem(seed)
            a, b = params["a"], params["b"]
            ga, gb = twins.gradient(a, b, *batch)
            ha, hb = twins.hessian_product(a, b, *batch, ga, gb)
            want = [[abs(a * ga), abs(b * gb)], [a * ha, b * hb]]
            found, kept = both(params, batch)
            for score, mask, twin in zip(found, kept, want, strict=True):
                np.testing.assert_allclose(score["a"], twin[0], rtol=1e-9, atol=1e-13)
                np.testing.assert_allclose(score["b"], twin[1], rtol=1e-9, atol=1e-13)
                assert not np.any(score["bias"]) and mask["bias"].ndim == 0
                ka, kb = twins.keep_largest(twin, 20)
                np.testing.assert_array_equal(mask["a"], ka)
                np.testing.assert_array_equal(mask["b"], kb)


def test_hessian_product_is_that_of_finite_differences():
    """w * (g(w + t g) - g(w - t g)) / 2t, gradients from JAX alone."""
    with jax.enable_x64(True):
        params, batch = problem(3)
        gradient = jax.jit(jax.grad(cross_entropy))
        g, t = gradient(params, batch), 1e-5
        g["bias"] = 0 * g["bias"]  # out of scope: it has no part in the product
        ahead, behind = (
            gradient(jax.tree.map(lambda p, d, s=s: p + s * t * d, params, g), batch)
            for s in (1, -1)
        )
        found = both(params, batch)[0][1]
        for leaf in ("a", "b"):
            want = params[leaf] * (ahead[leaf] - behind[leaf]) / (2 * t)
            np.testing.assert_allclose(found[leaf], want, rtol=1e-6, atol=1e-10)


def test_the_scope_decides_what_the_hessian_sees():
    """With the biases in scope the product mixes them in, and they are scored."""
    with jax.enable_x64(True):
        params, batch = problem(4)
        params["bias"] = np.linspace(-1, 1, 4)
        alone = both(params, batch)[0][1]
        every = jax.jit(lambda p: at_init.grasp(cross_entropy, p, batch, scope="."))(
            params
        )
    assert np.any(every["bias"]) and not np.any(alone["bias"])
    assert not np.allclose(every["b"], alone["b"], rtol=1e-3)


def test_chunks_use_one_gradient_for_all():
    """The mean over chunks of H_c g with the whole g: the whole H g for a mean loss."""
    with jax.enable_x64(True):
        params, batch = problem(5)
        whole = both(params, batch)[0][1]
        parts = jax.jit(lambda p: at_init.grasp(cross_entropy, p, batch, chunks=3))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
            parts(params),
            whole,
        )
    with pytest.raises(ValueError, match="`chunks` must divide the 12 examples, got 5"):
        at_init.grasp(cross_entropy, params, batch, chunks=5)


def test_a_chunk_has_its_own_statistics():
    """A norm over the batch sees each chunk alone, as two half batches in the paper."""

    def normed(w, batch):
        y = batch @ w
        return jnp.sum(
            ((y - y.mean(0, keepdims=True)) * jnp.arange(1.0, 3)[:, None]) ** 2
        )

    w, x = jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 0], [3, 1], [0, 2], [1, 1]])
    got = at_init.snip(normed, w, x, chunks=2)
    by_hand = sum(np.asarray(jax.grad(normed)(w, x[i : i + 2])) for i in (0, 2)) / 2
    np.testing.assert_allclose(got, np.abs(w * by_hand), rtol=1e-6)
