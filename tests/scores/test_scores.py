"""Element-wise scores against their formulas in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import masks, scores

PARAMS = {
    "kernel": np.array([[1.0, -2.0], [0.5, 0.0]], np.float32),
    "bias": np.array([-3.0, 0.0], np.float32),
}
GRADS = {
    "kernel": np.array([[2.0, -3.0], [4.0, -6.0]], np.float32),
    "bias": np.array([1.0, 5.0], np.float32),
}
HALVES = [jnp.bfloat16, jnp.float16]
ALL = {
    "magnitude": scores.magnitude,
    "saliency": lambda p: scores.saliency(p, p),
    "movement": lambda p: scores.movement(p, p),
    "random": lambda p: scores.random(jax.random.key(0), p),
    "channel_norm": scores.channel_norm,
    "block_norm": lambda p: scores.block_norm(p, (2, 3)),
    "relative_change": lambda p: scores.relative_change(p, p),
    "normalized": scores.normalized,
    "lamp": scores.lamp,
    "wanda": lambda p: scores.wanda(p, jax.tree.map(lambda x: jnp.float32(2), p)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, *HALVES])
def test_every_score_keeps_the_tree_and_is_finite_on_zeros(dtype, strict_promotion):
    w, none, one = jnp.zeros((3, 4), dtype), jnp.zeros(0, dtype), jnp.ones((), dtype)
    params = {"a": (w, none), "s": one}
    every = jax.jit(lambda p: {name: score(p) for name, score in ALL.items()})(params)
    for name, got in every.items():
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, params)
        for x in jax.tree.leaves(got):
            assert x.dtype == (dtype if name == "magnitude" else jnp.float32)
            assert np.all(np.isfinite(x)) and (name == "movement" or np.all(x >= 0))


def test_magnitude():
    got = scores.magnitude(PARAMS)
    np.testing.assert_array_equal(got["kernel"], [[1, 2], [0.5, 0]])
    np.testing.assert_array_equal(got["bias"], [3, 0])


def test_robust_init_g1_snip():
    """Scores [[2,6],[2,0]]: (0,1) is kept first, then (0,0) by position."""
    got = scores.saliency(PARAMS, GRADS)
    np.testing.assert_array_equal(got["kernel"], [[2, 6], [2, 0]])
    mask = masks.unstructured(got, keep=2, scope="kernel")
    assert mask["kernel"].tolist() == [[True, True], [False, False]]


def test_movement_is_signed():
    got = scores.movement(PARAMS, GRADS)
    np.testing.assert_array_equal(got["kernel"], [[-2, -6], [-2, 0]])
    # Gradient descent moves a weight away from 0 where the score is positive.
    step = jax.tree.map(lambda w, g: w - 0.01 * g, PARAMS, GRADS)
    for w, new, s in zip(*map(jax.tree.leaves, (PARAMS, step, got)), strict=True):
        moved = np.abs(new) - np.abs(w)
        np.testing.assert_array_equal(np.sign(moved)[w != 0], np.sign(s)[w != 0])


@pytest.mark.parametrize("score", [scores.saliency, scores.movement])
def test_gradients_of_another_structure(score):
    with pytest.raises(
        ValueError, match=r"(?s)`grads` must have exactly.*missing: bias"
    ):
        score(PARAMS, {"kernel": GRADS["kernel"]})


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_products_neither_underflow_nor_tie(dtype):
    w = {"w": jnp.asarray([1e-4, 1.2e-4, 1.21e-4], dtype)}
    g = {"w": jnp.asarray([1e-4, 1e-4, 1.01e-4], dtype)}
    got = np.asarray(scores.saliency(w, g)["w"])
    want = np.float64(w["w"]) * np.float64(g["w"])
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert np.all(got > 0)


def test_random_is_uniform_reproducible_and_unlike_from_leaf_to_leaf():
    params = {"a": jnp.ones((300, 100), jnp.bfloat16), "b": jnp.ones((300, 100))}
    got = scores.random(jax.random.key(1), params)
    again = scores.random(jax.random.key(1), params)
    jax.tree.map(np.testing.assert_array_equal, got, again)
    for x in jax.tree.leaves(got):
        assert 0 <= x.min() and x.max() < 1
        assert len(np.unique(x)) > 29_000  # bfloat16 would have a few hundred
        np.testing.assert_allclose(np.histogram(x, 4)[0], 7500, rtol=0.05)
    assert np.corrcoef(got["a"].ravel(), got["b"].ravel())[0, 1] < 0.02
    other = scores.random(jax.random.key(2), params)
    assert np.mean(other["a"] == got["a"]) < 0.01


def test_channel_norm_by_hand():
    params = {"w": jnp.array([[3.0, 1.0], [-4.0, 1.0]]), "b": jnp.array([-2.0, 1.0])}
    got = scores.channel_norm(params)
    np.testing.assert_allclose(got["w"], [[5, 2**0.5]] * 2, rtol=1e-6)
    np.testing.assert_array_equal(got["b"], [2, 1])
    rows = scores.channel_norm(params, axis=0, order=1)
    np.testing.assert_array_equal(rows["w"], [[4, 4], [5, 5]])
    np.testing.assert_array_equal(rows["b"], [2, 1])
    # A convolution's input channels; its bias has no such axis.
    conv = {"w": jnp.arange(24.0).reshape(1, 2, 3, 4), "b": jnp.ones(4)}
    got = scores.channel_norm(conv, axis=2, order=1)["w"]
    want = np.arange(24.0).reshape(2, 3, 4).sum((0, 2))
    np.testing.assert_array_equal(got[0, 1, :, 2], want)


@pytest.mark.parametrize("dtype", HALVES)
def test_channel_norm_does_not_overflow_or_round_in_half_precision(dtype):
    w = {"w": jnp.full((1000, 2), 300.0, dtype)}
    got = scores.channel_norm(w)["w"]
    np.testing.assert_allclose(got, 300 * 1000**0.5, rtol=1e-5)


def test_channel_norm_errors():
    params = {"a": {"w": jnp.ones((2, 3))}}
    with pytest.raises(ValueError, match="`order` must be 1 or 2, got 3"):
        scores.channel_norm(params, order=3)
    for axis in (2, -3):
        with pytest.raises(ValueError, match=rf"`axis` {axis} is out of range for a/w"):
            scores.channel_norm(params, axis=axis)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1.3e38])
def test_normalized_has_norm_one_at_any_scale(scale):
    w = np.float32(scale) * np.random.default_rng(0).normal(size=(4, 5)).astype(
        np.float32
    )
    got = scores.normalized({"w": w, "zero": jnp.zeros(3)})
    assert np.linalg.norm(got["w"]) == pytest.approx(1, rel=1e-6)
    want = np.float64(w) / np.linalg.norm(np.float64(w))
    np.testing.assert_allclose(got["w"], want, rtol=1e-5)
    np.testing.assert_array_equal(got["zero"], [0, 0, 0])
    jitted = jax.jit(scores.normalized)({"w": w})["w"]
    np.testing.assert_allclose(jitted, want, rtol=1e-5)


def test_normalized_counts_finite_entries_only():
    got = scores.normalized({"w": jnp.array([3.0, jnp.inf, -4.0, jnp.nan])})["w"]
    np.testing.assert_allclose(got, [0.6, np.inf, -0.8, np.nan], rtol=1e-6)


def test_wanda_by_hand():
    norms = {"kernel": jnp.array([10.0, 1.0]), "bias": 2.0}
    got = scores.wanda(PARAMS, norms)
    np.testing.assert_array_equal(got["kernel"], [[10, 20], [0.5, 0]])
    np.testing.assert_array_equal(got["bias"], [6, 0])
    other = {"weight": PARAMS["kernel"]}  # (out, in), as Equinox has it
    got = scores.wanda(other, {"weight": norms["kernel"]}, axis=1)
    np.testing.assert_array_equal(got["weight"], [[10, 2], [5, 0]])
    got = scores.wanda(other, {"weight": norms["kernel"]}, axis={"weight": -1})
    np.testing.assert_array_equal(got["weight"], [[10, 2], [5, 0]])


def test_wanda_of_a_convolution():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(3, 3, 4, 5)), rng.random(4)
    got = scores.wanda({"w": jnp.float32(w)}, {"w": jnp.float32(x)})["w"]
    np.testing.assert_allclose(got, np.abs(w) * x[:, None], rtol=1e-6)


def test_wanda_over_two_contracted_axes():
    """An attention output kernel (heads, head_dim, d): its inputs are two axes."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(4, 3, 5)), rng.random((4, 3))
    got = scores.wanda({"o": jnp.float32(w)}, {"o": jnp.float32(x)}, axis=(0, 1))["o"]
    np.testing.assert_allclose(got, np.abs(w) * x[..., None], rtol=1e-6)
    turned = scores.wanda({"o": jnp.float32(w)}, {"o": jnp.float32(x.T)}, axis=(1, 0))
    np.testing.assert_array_equal(turned["o"], got)
    tree = scores.wanda({"o": jnp.float32(w)}, {"o": jnp.float32(x)}, {"o": (0, 1)})
    np.testing.assert_array_equal(tree["o"], got)
    mask = masks.unstructured({"o": got}, 0.5, ranking="output", axis=(0, 1))["o"]
    assert mask.sum((0, 1)).tolist() == [6] * 5


def test_wanda_errors():
    with pytest.raises(ValueError, match=r"`norms` at kernel must be \[2\].*\(3,\)"):
        scores.wanda(PARAMS, {"kernel": jnp.ones(3), "bias": 1.0})
    with pytest.raises(
        ValueError,
        match="No default contracted axis for bias.*surgery.contraction_axes",
    ):
        scores.wanda(PARAMS, {"kernel": jnp.ones(2), "bias": jnp.ones(2)})
    with pytest.raises(ValueError, match="`norms` must have exactly the structure"):
        scores.wanda(PARAMS, {"kernel": jnp.ones(2)})
    with pytest.raises(ValueError, match="`axis` must be a number or a tree"):
        scores.wanda(PARAMS, GRADS, axis={"kernel": 0})


@pytest.mark.parametrize("order", [1, 2])
def test_block_norm(order):
    w = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    got = scores.block_norm({"w": jnp.asarray(w), "b": jnp.ones(4)}, (2, 3), order)
    want = np.empty_like(w)
    for i in range(3):
        for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
            for columns in (slice(0, 3), slice(3, 4)):
                tile = (i, rows, columns)
                want[tile] = np.linalg.norm(w[tile].ravel(), order)
    np.testing.assert_allclose(got["w"], want, rtol=1e-6)
    np.testing.assert_array_equal(got["b"], 1)
    with pytest.raises(ValueError, match="`block` must be positive integers"):
        scores.block_norm(jnp.ones((2, 2)), (0,))
    with pytest.raises(ValueError, match="`order` must be 1 or 2, got 3"):
        scores.block_norm(jnp.ones((2, 2)), (1,), order=3)


def test_relative_change():
    w0 = {"w": jnp.array([[2.0, -1.0], [0.0, 0.0]])}
    w = {"w": jnp.array([[3.0, -1.0], [0.0, 1e9]])}
    got = np.asarray(scores.relative_change(w, w0)["w"])
    np.testing.assert_allclose(got[0], [0.5, 0])
    # From zero: still there scores 0, gone scores beyond all others, finite.
    assert got[1, 0] == 0 and got[1, 1] == np.finfo(np.float32).max
    unit = partial(scores.channel_norm, order=1)
    columns = np.asarray(scores.relative_change(w, w0, unit)["w"])
    np.testing.assert_allclose(columns, [[0.5, 1e9], [0.5, 1e9]])
    with pytest.raises(ValueError, match="`initial` must have exactly the structure"):
        scores.relative_change(w, {"v": w0["w"]})


def test_what_is_no_weight_comes_back_as_it_is():
    """Dropout keys, counters, flags; and masks of such scores leave them whole."""
    keys = jax.random.split(jax.random.key(0), 4).reshape(2, 2)
    p = {"w": jnp.ones((4, 4)), "keys": keys, "n": jnp.int32([[-3]]), "f": jax.nn.relu}
    block = partial(scores.block_norm, block=(2, 2))
    one = jax.tree.map(lambda _: jnp.ones(()), p)
    found = [f(p) for f in (scores.magnitude, scores.lamp, scores.channel_norm, block)]
    found += [scores.normalized(p), scores.random(jax.random.key(1), p)]
    found += [f(p, p) for f in (scores.saliency, scores.movement, scores.second_order)]
    found += [scores.relative_change(p, p), scores.wanda(p, one)]
    for tree in found:
        assert tree["w"].shape == (4, 4)
        assert all(tree[name] is p[name] for name in ("keys", "n", "f"))
    mask = masks.unstructured({k: v for k, v in found[0].items() if k != "f"}, 0.5)
    assert [m.shape for m in jax.tree.leaves(mask)] == [(), (), (4, 4)]
