"""SynFlow and pruning in rounds: by hand, and against NumPy round by round."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import at_init, masks, scores
from jprune.at_init._iterate import iterate
from tests.at_init import twins


def chain(params, x):
    """Dense layers with a rectifier between them."""
    first, *rest = params
    x = x @ first
    for w in rest:
        x = jax.nn.relu(x) @ w
    return x


def normal(seed, shapes):
    """He normal, in float64."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=s) * np.sqrt(2 / s[0]) for s in shapes)


ONES = jax.ShapeDtypeStruct((1, 10), jnp.float32)
SQUARE = [(10, 10)] * 5


def test_robust_init_g3():
    """R = 10.5; each layer sums to R, and what enters a hidden unit leaves it."""
    params = (
        jnp.array([[1.0, -2.0], [3.0, 0.5]]),
        jnp.array([[2.0], [-1.0]]),
    )
    for normalize in (False, True):
        a, b = at_init.synflow(chain, params, jnp.zeros((1, 2)), normalize=normalize)
        scale = 10.5 / float(a.sum())
        np.testing.assert_allclose(scale * a, [[2, 2], [6, 0.5]], rtol=1e-6)
        np.testing.assert_allclose(scale * b, [[8], [2.5]], rtol=1e-6)
        assert normalize or scale == 1
        np.testing.assert_allclose(a.sum(0), b[:, 0], rtol=1e-6)


def test_robust_init_g4():
    """50 chains cut to five weights: one a layer; one shot by magnitude: never."""
    many = [
        np.stack(w) for w in zip(*(normal(s, SQUARE) for s in range(50)), strict=True)
    ]
    prune = partial(at_init.synflow_mask, chain, inputs=ONES, keep=5)
    kept = jax.jit(jax.vmap(prune))(tuple(jnp.float32(w) for w in many))
    np.testing.assert_array_equal([m.sum((1, 2)) for m in kept], np.ones((5, 50)))
    paths = np.ones((50, 10), bool)
    for m in kept:
        paths = (m & paths[:, :, None]).any(1)
    assert np.all(paths.sum(1) == 1)  # the five weights are one path
    for seed in range(50):
        one_shot = twins.keep_largest([abs(w[seed]) for w in many], 5)
        assert any(m.sum() == 0 for m in one_shot)
    ours = masks.unstructured(tuple(w[0] for w in many), keep=5, min_keep=0)
    assert at_init.emptied(ours)


SHAPES = [(7, 9), (9, 6), (6, 5), (5, 3)]
ROUNDS, LAST = 25, 20


@jax.jit
def one_round(params, mask, keep):
    left = masks.apply(mask, params)
    found = at_init.synflow(chain, left, jnp.ones((1, 7)))
    return found, masks.unstructured(found, keep=keep, within=mask, min_keep=0)


def test_every_round_is_that_of_the_twin():
    """25 rounds from 162 weights to 20: scores, conservation, and masks exactly."""
    with jax.enable_x64(True):
        params = normal(1, SHAPES)
        size = sum(w.size for w in params)
        mask = want = tuple(np.ones(w.shape, bool) for w in params)
        for k in range(1, ROUNDS + 1):
            keep = int(np.floor(size * (LAST / size) ** (k / ROUNDS) + 0.5))
            twin, kept = twins.synflow_round(params, want, keep)
            want = tuple(kept)
            found, mask = one_round(params, mask, keep)
            for got, expected in zip(found, twin, strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14)
            sums = [float(s.sum()) for s in found]
            np.testing.assert_allclose(sums, sums[0], rtol=1e-10)
            jax.tree.map(np.testing.assert_array_equal, mask, want)
        at_once = at_init.synflow_mask(
            chain, params, jnp.ones((1, 7)), keep=LAST, rounds=ROUNDS
        )
        jax.tree.map(np.testing.assert_array_equal, at_once, want)


def test_a_shortcut_may_be_emptied():
    """y = x A + x B: all of the branch with the smaller weights goes."""
    net = lambda p, x: x @ p["block"] @ p["head"] + x @ p["skip"] @ p["head"]  # noqa: E731
    params = {
        "block": jnp.full((4, 4), 2.0),
        "head": jnp.ones((4, 1)),
        "skip": jnp.full((4, 4), 0.1),
    }
    mask = at_init.synflow_mask(net, params, jnp.ones((1, 4)), keep=8, rounds=10)
    assert at_init.emptied(mask) == ("skip",)
    active = masks.effective(mask, at_init.flow(net, params, jnp.ones((1, 4))))
    assert int(masks.count(active)) > 0


def test_biases_are_made_positive_and_integers_left_alone():
    def net(p, x):
        return jax.nn.relu(x @ p["w"] + p["bias"]) * p["step"]

    params = {"w": -jnp.ones((2, 1)), "bias": jnp.array([-5.0]), "step": jnp.int32(3)}
    got = at_init.synflow(net, params, jnp.ones(2))
    # relu(2 + 5) * 3 has slope 3 in each weight; with a signed bias it would be dead.
    np.testing.assert_array_equal(got["w"], [[3], [3]])
    assert not np.any(got["bias"]) and got["step"].shape == ()


def test_an_overflow_is_an_error_and_normalize_avoids_it():
    deep = (jnp.full((40, 40), 1e3, jnp.bfloat16),) * 12
    x = jnp.ones((1, 40))
    with pytest.raises(ValueError, match="flow R overflowed.*`normalize=True`"):
        at_init.synflow(chain, deep, x)
    with pytest.raises(ValueError, match="flow R overflowed"):
        at_init.synflow_mask(chain, deep, x, 0.5, rounds=2)
    found = at_init.synflow(chain, deep, x, normalize=True)
    for s in found:
        assert s.dtype == jnp.float32
        np.testing.assert_allclose(s.sum(), found[0].sum(), rtol=1e-4)


def test_float64_is_enough_where_float32_overflows():
    """Float32 weights of twelve residual layers, R near 1e54, against NumPy."""
    rng = np.random.default_rng(3)
    deep = tuple(jnp.float32(rng.normal(size=(40, 40)) * 1e3) for _ in range(12))
    with jax.enable_x64(True):
        found = at_init.synflow(residual, deep, jnp.ones((1, 40), jnp.float32))
        mask = at_init.synflow_mask(
            residual, deep, jnp.ones((1, 40), jnp.float32), keep=200, rounds=5
        )
    before, after = [np.ones(40)], [np.ones(40)]
    for w in deep:
        before.append(before[-1] + before[-1] @ abs(np.float64(w)))
    for w in reversed(deep):
        after.append(after[-1] + abs(np.float64(w)) @ after[-1])
    for got, w, h, g in zip(found, deep, before[:-1], after[-2::-1], strict=True):
        expected = abs(np.float64(w)) * np.outer(h, g)
        assert got.dtype == jnp.float64 and expected.max() > np.finfo(np.float32).max
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert int(masks.count(mask)) == 200 and not at_init.emptied(mask)


def residual(params, x):
    for w in params:
        x = x + jax.nn.relu(x @ w)
    return x


def test_normalizing_a_chain_changes_no_rank():
    with jax.enable_x64(True):
        params = normal(2, SHAPES)
        score = lambda p: [  # noqa: E731
            at_init.synflow(chain, p, jnp.ones((1, 7)), normalize=n)
            for n in (False, True)
        ]
        plain, normed = jax.jit(score)(params)
        factor = plain[0].sum() / normed[0].sum()
        for a, b in zip(plain, normed, strict=True):
            np.testing.assert_allclose(a, factor * b, rtol=1e-10)


def test_a_disconnected_network_is_an_error():
    params = tuple(jnp.float32(w) for w in normal(3, SHAPES))
    with pytest.raises(ValueError, match="Nothing flows.*fewer weights than a path"):
        at_init.synflow_mask(chain, params, jnp.ones((1, 7)), keep=3, rounds=4)


def test_iterate_removes_the_asked_number_in_each_round():
    """What each round sees: magnitudes of what is left, with exact counts."""
    seen = []

    def watched(params):
        jax.debug.callback(lambda w: seen.append(int(np.count_nonzero(w))), params)
        return scores.magnitude(params)

    w = jnp.linspace(1, 2, 40).reshape(5, 8)
    for schedule, want in (("exponential", [40, 20, 10]), ("linear", [40, 28, 17])):
        seen.clear()
        prune = partial(iterate, watched, keep=5, rounds=3, schedule=schedule)
        mask = jax.jit(prune)(w)
        jax.effects_barrier()
        assert seen == want
        np.testing.assert_array_equal(mask, w > np.sort(w.ravel())[-6])


def test_iterate_never_regrows_what_has_the_largest_score_once_removed():
    """A score that favors zeros cannot bring them back."""
    w = jnp.linspace(1, 2, 16).reshape(4, 4)
    upside_down = lambda p: 1.0 / (p + 0.1)  # noqa: E731
    mask = iterate(upside_down, w, 0.75, rounds=4)
    np.testing.assert_array_equal(mask, w <= w.ravel()[3])


def test_iterate_errors():
    w = {"kernel": jnp.ones((4, 4)), "head": {"kernel": jnp.ones((2, 2))}}
    run = partial(iterate, scores.magnitude, w)
    with pytest.raises(ValueError, match="`rounds` must be a positive integer, got 0"):
        run(0.5, rounds=0)
    with pytest.raises(
        ValueError, match="`schedule` must be 'exponential' or 'linear'"
    ):
        run(0.5, schedule="cubic")
    with pytest.raises(ValueError, match="keep at least 4 weights; got 3"):
        run(keep=3, min_keep=2)
    with pytest.raises(ValueError, match="keep at least 1 weights; got 0"):
        run(keep=0)
    with pytest.raises(ValueError, match="must be concrete"):
        jax.jit(run)(0.5)
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        run(1.0)
