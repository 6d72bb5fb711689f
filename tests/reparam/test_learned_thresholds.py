"""Adaptive sparsity loss: the numbers of its specification, and a twin."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import reparam
from jprune.reparam._learned_thresholds import (
    ThresholdTheta,
    budget_penalty,
    predicted_density,
    soft_prune,
)
from tests.reparam import twins

W = jnp.array([[-1.5, -0.5, 0.5, 1.5]])


def of(**thresholds):
    return {name: jnp.float32(r) for name, r in thresholds.items()}


def test_asl_g1_density():
    got = [float(predicted_density(jnp.float32(r))) for r in (1, 1.5, 1.6448536)]
    np.testing.assert_allclose(got, [0.3173105, 0.1336144, 0.1], rtol=1e-6)
    slope = jax.grad(predicted_density)(jnp.float32(3))
    np.testing.assert_allclose(slope, -0.0088637, rtol=1e-4)


def test_asl_g2_start():
    r = reparam.learned_thresholds(0.9, min_size=1)
    theta = r.init({"kernel": W})
    np.testing.assert_allclose(theta.thresholds["kernel"], 0.738847, rtol=1e-6)
    density = predicted_density(theta.thresholds["kernel"])
    np.testing.assert_allclose(density, 1 - 0.54, rtol=1e-6)


def test_asl_g3_losses():
    r, n = of(a=1, b=1.5), {"a": 1000, "b": 3000}

    def price(r, **kind):
        return budget_penalty(r, n, target=0.9, weight=10.0, **kind)

    value, slope = jax.value_and_grad(price)(r)
    np.testing.assert_allclose(value, 0.0632637, rtol=1e-5)
    np.testing.assert_allclose(slope["a"], -0.1924595, rtol=1e-5)
    np.testing.assert_allclose(slope["b"], -0.3090485, rtol=1e-5)
    np.testing.assert_allclose(price(r, budget="leaf"), 0.241769, rtol=1e-5)
    over = price(r, one_sided=True)
    np.testing.assert_allclose(over, 10 * 0.0795385, rtol=1e-5)
    assert float(price(of(a=4, b=4), one_sided=True)) == 0


@pytest.mark.parametrize("r, share, slack", [(1, 0.6826, 0.003), (1.6449, 0.9, 0.002)])
def test_asl_g4_gaussian_weights(r, share, slack):
    w = jax.random.normal(jax.random.key(0), (400, 500))
    _, kept = jax.jit(soft_prune)(w, jnp.float32(r))
    assert abs(float(jnp.mean(~kept)) - share) < slack


def test_asl_g5_forward():
    used, kept = soft_prune(W, jnp.float32(0.5))
    np.testing.assert_array_equal(used, [[-1.5, 0, 0, 1.5]])
    np.testing.assert_array_equal(kept, [[True, False, False, True]])


@pytest.mark.parametrize("g, dr", [([0, 2, 0, 0], 1.999997), ([2, 0, 0, 2], 0.0)])
def test_asl_g6_gradient(g, dr):
    r = reparam.learned_thresholds(0.9, min_size=1)
    theta = ThresholdTheta({"kernel": W}, of(kernel=0.5))
    g = jnp.array([g], jnp.float32)
    pull = jax.grad(lambda t: jnp.sum(g * r.apply(t)["kernel"]))(theta)
    np.testing.assert_allclose(pull.thresholds["kernel"], dr, rtol=1e-6)
    np.testing.assert_array_equal(pull.weights["kernel"], g)


def test_asl_g7_export_is_the_last_forward():
    r = reparam.learned_thresholds(0.9, min_size=1)
    w = jax.random.normal(jax.random.key(1), (20, 10)) + 0.3
    theta = r.init({"kernel": w})
    exported, mask = r.export(theta)
    used = r.apply(theta)["kernel"]
    np.testing.assert_array_equal(exported["kernel"], used)
    np.testing.assert_array_equal(exported["kernel"] == 0, ~mask["kernel"])
    centered = np.asarray(w, np.float64) - np.mean(np.asarray(w, np.float64))
    sigma = np.std(centered, ddof=1)
    kept = np.abs(centered) > 0.738847 * sigma + 1e-6
    np.testing.assert_array_equal(mask["kernel"], kept)
    np.testing.assert_allclose(used, centered * kept, atol=1e-6)


def test_asl_g8_thresholds_alone_meet_the_budget():
    n = {"a": 500, "b": 2000, "c": 8000}
    r = of(a=0.7388, b=0.7388, c=0.7388)
    price = lambda r: budget_penalty(r, n, target=0.9, weight=10.0)  # noqa: E731

    def density(r):
        return sum(n[k] * float(predicted_density(r[k])) for k in n) / 10500

    def descend(r, steps):
        step = lambda r, _: (  # noqa: E731
            jax.tree.map(lambda x, g: x - 0.05 * g, r, jax.grad(price)(r)),
            None,
        )
        return jax.jit(lambda r: jax.lax.scan(step, r, length=steps)[0])(r)

    r = descend(r, 400)
    assert density(r) == pytest.approx(0.10010, abs=1e-5)
    got = [float(r[k]) for k in "abc"]
    np.testing.assert_allclose(got, [0.888, 1.241, 1.924], atol=1e-3)
    assert density(descend(r, 1600)) == pytest.approx(0.1000006, abs=1e-6)


def test_asl_g9_zero_and_negative_thresholds_are_dense():
    for r in (0.0, -1.0):
        used, kept = soft_prune(W, jnp.float32(r))
        np.testing.assert_array_equal(used, W)
        assert bool(kept.all())
    slope = jax.grad(lambda r: jnp.sum(soft_prune(W, r)[0]))(jnp.float32(-1))
    assert float(slope) == 0


def test_asl_g10_small_leaves_are_untouched():
    r = reparam.learned_thresholds(0.9, min_size=100)
    params = {
        "small": jax.random.normal(jax.random.key(0), (9, 11)),
        "large": jax.random.normal(jax.random.key(1), (10, 10)),
        "bias": jnp.ones(500),
    }
    theta = r.init(params)
    assert list(theta.thresholds) == ["large"]
    used = r.apply(r.project(theta, theta, jnp.int32(0)))
    for name in ("small", "bias"):
        np.testing.assert_array_equal(used[name], params[name])
    assert float(jnp.mean(used["large"] == 0)) > 0.3


def test_asl_twin():
    """Against NumPy, centering in place: equal masks at each of 25 steps."""
    with jax.enable_x64(True):
        lam, lr, lr_r, beta, goal = 10.0, 0.2, 0.05, 0.9, 0.8
        r = reparam.learned_thresholds(goal, weight=lam, min_size=1)
        theta = r.init(jax.tree.map(jnp.asarray, twins.start()))
        rates = {"w": optax.sgd(lr, beta), "r": optax.sgd(lr_r, beta)}
        labels = theta._replace(weights="w", thresholds="r")
        tx = optax.chain(optax.partition(rates, labels), reparam.projection(r))
        state, step, export = tx.init(theta), jax.jit(tx.update), jax.jit(r.export)
        grad = jax.jit(jax.grad(reparam.wrap(twins.loss, r)))

        p = twins.start()
        w, c = [p["a"]["kernel"], p["b"]["kernel"]], p["a"]["bias"]
        t = np.array([float(x) for x in theta.thresholds.values()])
        v, vc, vt = [np.zeros_like(x) for x in w], np.zeros_like(c), np.zeros(2)
        n, seen = np.array([96, 48]), set()
        for _ in range(25):
            w = [x - x.mean() for x in w]
            sigma = np.array([x.std(ddof=1) for x in w])
            bound = np.clip(t, 0, 5) * sigma + 1e-6
            kept = [np.abs(x) > b for x, b in zip(w, bound, strict=True)]
            seen.add(int(kept[0].sum()))
            _, mask = export(theta)
            np.testing.assert_array_equal(mask["a"]["kernel"], kept[0])
            np.testing.assert_array_equal(mask["b"]["kernel"], kept[1])
            cut = [x * k for x, k in zip(w, kept, strict=True)]
            ga, gc, gb = twins.gradients(cut[0], c, cut[1])
            task = [
                s * np.sum((-x / b * g)[~k])
                for s, x, b, g, k in zip(sigma, w, bound, (ga, gb), kept, strict=True)
            ]
            density = np.array([1 - math.erf(x / math.sqrt(2)) for x in t])
            miss = np.sum(n * density) / n.sum() - (1 - goal)
            slope = -math.sqrt(2 / math.pi) * np.exp(-(t**2) / 2) * n / n.sum()
            pulls = np.array(task) + 2 * lam * miss * slope
            v = [beta * a + g for a, g in zip(v, (ga, gb), strict=True)]
            vc, vt = beta * vc + gc, beta * vt + pulls
            w = [x - lr * a for x, a in zip(w, v, strict=True)]
            c, t = c - lr * vc, np.clip(t - lr_r * vt, 0, 5)
            updates, state = step(grad(theta), state, theta)
            theta = optax.apply_updates(theta, updates)
            got = [float(x) for x in theta.thresholds.values()]
            np.testing.assert_allclose(got, t, rtol=1e-9)
            centered = w[0] - w[0].mean()
            np.testing.assert_allclose(
                theta.weights["a"]["kernel"], centered, rtol=1e-8, atol=1e-12
            )
        assert len(seen) > 5  # the counts did move


def test_costs_make_it_a_budget_of_flops():
    params = {"conv": jnp.ones((4, 4)), "head": jnp.ones((4, 4))}
    costs = {"conv": 64.0, "head": 1.0}
    r = reparam.learned_thresholds(0.5, min_size=1, weight=1.0, costs=costs)
    theta = ThresholdTheta(params, of(conv=1.0, head=0.0))
    density = (64 * 0.3173105 + 1) / 65
    np.testing.assert_allclose(r.penalty(theta), (density - 0.5) ** 2, rtol=1e-5)
    with pytest.raises(ValueError, match="`costs` must have exactly the structure"):
        reparam.learned_thresholds(0.5, min_size=1, costs={"conv": 1}).init(params)


def test_the_largest_weight_stays():
    used, kept = soft_prune(jnp.array([[1.0, -1.0, 1.0, -1.0]]), jnp.float32(5))
    assert bool(kept.all())
    flat, kept = soft_prune(jnp.array([[1.0]]), jnp.float32(5))
    np.testing.assert_array_equal(flat, [[1.0]])


def test_leaves_without_weights_have_no_threshold():
    params = {"kernel": jnp.zeros((0, 4)), "w": jnp.ones((2, 2))}
    assert [*reparam.learned_thresholds(0.5, min_size=0).init(params).thresholds] == [
        "w"
    ]


def test_errors():
    with pytest.raises(ValueError, match="`target` in"):
        reparam.learned_thresholds(1.0)
    with pytest.raises(ValueError, match="'global' or 'leaf', got 'layer'"):
        reparam.learned_thresholds(0.5, budget="layer")
    with pytest.raises(ValueError, match="No leaf in scope has `min_size`=1000"):
        reparam.learned_thresholds(0.5).init({"w": jnp.ones((3, 3))})
