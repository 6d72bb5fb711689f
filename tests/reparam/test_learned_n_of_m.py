"""SLS: the numbers of its specification, and a twin through the freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import reparam
from jprune.reparam._learned_n_of_m import anneal, cost, units
from tests.reparam import twins

RISING = jnp.array([0.49, 1.03, 1.03])


def test_nm_g6_priorities():
    k = jnp.array([0.9, 0.8, 0.6])
    np.testing.assert_array_equal(units(k), [1, 1, 0])
    n, slope = jax.value_and_grad(lambda k: 1 + jnp.sum(units(k)))(k)
    assert float(n) == 3
    np.testing.assert_allclose(slope, [2.28, 1.44, 0.72], rtol=1e-6)
    assert float(1 + jnp.sum(units(jnp.ones(3)))) == 4


def test_nm_g7_non_monotone_product():
    np.testing.assert_array_equal(units(RISING, strict=False), [0, 1, 1])
    np.testing.assert_array_equal(units(RISING), [0, 0, 0])
    w = {"kernel": jnp.array([[1.0], [-4.0], [3.0], [2.0]])}
    for strict, kept in ((True, [0, 1, 0, 0]), (False, [1, 1, 0, 1])):
        r = reparam.learned_n_of_m(4, target=0.5, weight=1.0, strict=strict)
        theta = r.init(w)._replace(priorities={"kernel": RISING})
        np.testing.assert_array_equal(r.export(theta)[1]["kernel"][:, 0], kept)
        np.testing.assert_array_equal(r.apply(theta)["kernel"][:, 0] != 0, kept)


@pytest.mark.parametrize("target, reached", [(0.3125, False), (0.32, True)])
def test_nm_g8_cost_and_budget(target, reached):
    half, quarter = jnp.array([1.0, 0.4, 1.0]), jnp.array([0.4, 1.0, 1.0])
    priorities = {"a": half, "b": quarter}
    assert float(cost(priorities, {"a": 100, "b": 300})) == 125
    r = reparam.learned_n_of_m(4, target=target, weight=1.0, axis=0)
    old = r.init({"a": jnp.ones((4, 25)), "b": jnp.ones((4, 75))})
    old = old._replace(priorities=priorities)
    new = jax.tree.map(lambda x: x + 0.01, old)
    got = r.project(new, old, jnp.int32(0))
    wanted = old if reached else new
    np.testing.assert_array_equal(got.priorities["a"], wanted.priorities["a"])
    np.testing.assert_array_equal(got.weights["a"], new.weights["a"])
    assert float(got.strength) == 1.0  # training never moves it


def test_theta_says_what_it_is():
    r = reparam.learned_n_of_m(4, target=0.5, weight=1.0)
    theta = r.init({"kernel": jnp.ones((8, 2))})
    np.testing.assert_array_equal(theta.priorities["kernel"], jnp.ones(3))


def test_nm_g9_annealing():
    np.testing.assert_allclose(anneal(1.0, 1.0, 1.1), 1.2, rtol=1e-6)
    np.testing.assert_allclose(anneal(1.2, 1.1, 1.5), 1.2, rtol=1e-6)


def test_nm_g3_padding():
    r = reparam.learned_n_of_m(4, target=0.5, weight=1.0, pad=True)
    w = jnp.arange(1.0, 7.0)[:, None]
    theta = r.init({"kernel": w})._replace(
        priorities={"kernel": jnp.array([1.0, 0.4, 1.0])}
    )
    _, mask = r.export(theta)
    np.testing.assert_array_equal(mask["kernel"][:, 0], [0, 0, 1, 1, 1, 1])
    bare = reparam.learned_n_of_m(4, target=0.5, weight=1.0)
    with pytest.raises(ValueError, match=r"m=4 does not divide.*\n  kernel: axis 0"):
        bare.init({"kernel": w})


def test_masked_weights_get_no_gradient_and_priorities_do():
    r = reparam.learned_n_of_m(2, target=0.9, weight=0.0)
    theta = r.init({"kernel": jnp.array([[3.0], [2.0], [1.0], [5.0]])})
    theta = theta._replace(priorities={"kernel": jnp.array([0.4])})
    g = jnp.array([[1.0], [10.0], [100.0], [1000.0]])
    pull = jax.grad(lambda t: jnp.sum(g * r.apply(t)["kernel"]))(theta)
    np.testing.assert_array_equal(
        pull.weights["kernel"], g * jnp.array([[1], [0], [0], [1]])
    )
    # Unit 2 is 2 and 1 here: their pulls, as if the unit were switched on.
    np.testing.assert_allclose(pull.priorities["kernel"], [2 * 10 + 1 * 100])


def test_conv_kernels_group_input_channels():
    r = reparam.learned_n_of_m(2, target=0.6, weight=0.0)
    w = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    theta = r.init({"kernel": w})._replace(priorities={"kernel": jnp.array([0.1])})
    mask = np.asarray(r.export(theta)[1]["kernel"])
    np.testing.assert_array_equal(mask.reshape(3, 3, 2, 2, 5).sum(3), 1)
    pairs = np.abs(np.asarray(w)).reshape(3, 3, 2, 2, 5)
    np.testing.assert_array_equal(mask.reshape(pairs.shape).argmax(3), pairs.argmax(3))


def test_sls_twin():
    """Search, annealing, freezing and after, against NumPy: equal masks, 40 steps."""
    with jax.enable_x64(True):
        m, target, lam, lr, beta, epoch = 4, 0.6, 0.2, 0.02, 0.9, 3
        r = reparam.learned_n_of_m(m, target=target, weight=lam, steps_per_epoch=epoch)
        theta = r.init(jax.tree.map(jnp.asarray, twins.start()))
        tx = optax.chain(optax.sgd(lr, beta), reparam.projection(r))
        state, step, export = tx.init(theta), jax.jit(tx.update), jax.jit(r.export)
        grad = jax.jit(jax.grad(reparam.wrap(twins.loss, r)))

        p = twins.start()
        w, c = [p["a"]["kernel"], p["b"]["kernel"]], p["a"]["bias"]
        k = [np.ones(m - 1), np.ones(m - 1)]
        v, vc = [np.zeros_like(x) for x in w], np.zeros_like(c)
        vk, prices = [np.zeros(m - 1)] * 2, np.array([96.0, 48.0])
        strength, ratio, frozen_at, annealed = 1.0, 1.0, None, 0
        for t in range(40):
            inside = [np.clip(x, 0, 1.03) for x in k]
            product = [np.cumprod(x) for x in inside]
            b = [np.cumprod(x > 0.5) for x in product]
            place = [twins.unit_places(x, m) for x in w]
            factor = [
                np.concatenate([[1], x])[q] for x, q in zip(b, place, strict=True)
            ]
            _, mask = export(theta)
            np.testing.assert_array_equal(mask["a"]["kernel"], factor[0] > 0)
            np.testing.assert_array_equal(mask["b"]["kernel"], factor[1] > 0)
            g = twins.gradients(w[0] * factor[0], c, w[1] * factor[1])
            share = sum((1 + x.sum()) / m * q for x, q in zip(b, prices, strict=True))
            share /= prices.sum()
            for i, gw in enumerate((g[0], g[2])):
                dc = [np.sum((gw * w[i])[place[i] == u]) for u in range(1, m)]
                dc = np.array(dc) + lam * strength * prices[i] / prices.sum() / m
                dk = np.zeros(m - 1)
                for j in range(m - 1):
                    others = np.where(np.arange(m - 1) == j, 1, inside[i])
                    dk[j] = np.sum(dc[j:] * np.cumprod(others)[j:])
                dk *= (k[i] >= 0) & (k[i] <= 1.03)
                vk[i] = beta * vk[i] + dk
                v[i] = beta * v[i] + gw * factor[i]
                w[i] = w[i] - lr * v[i]
                if share >= target:
                    k[i] = k[i] - lr * vk[i]
            vc = beta * vc + g[1]
            c = c - lr * vc
            if share < target:
                frozen_at = t if frozen_at is None else frozen_at
            elif (t + 1) % epoch == 0 and (t + 1) // epoch % 2:
                ratio = 1 / share
            elif (t + 1) % epoch == 0 and 1 / share - ratio < 0.2:
                strength, annealed = strength * 1.2, annealed + 1
            updates, state = step(grad(theta), state, theta)
            theta = optax.apply_updates(theta, updates)
            np.testing.assert_allclose(theta.priorities["a/kernel"], k[0], rtol=1e-9)
            np.testing.assert_allclose(theta.priorities["b/kernel"], k[1], rtol=1e-9)
            np.testing.assert_allclose(theta.strength, strength, rtol=1e-6)
            np.testing.assert_allclose(theta.weights["b"]["kernel"], w[1], rtol=1e-8)
        assert annealed and frozen_at is not None and 10 < frozen_at < 35


def test_export_after_search_meets_the_target():
    r = reparam.learned_n_of_m(4, target=0.5, weight=1.0)
    params = jax.tree.map(jnp.float32, twins.start())
    tx = optax.chain(optax.adam(0.05), reparam.projection(r))
    theta = r.init(params)
    state, grad = tx.init(theta), jax.grad(reparam.wrap(twins.loss, r))

    @jax.jit
    def step(theta, state):
        updates, state = tx.update(grad(theta), state, theta)
        return optax.apply_updates(theta, updates), state

    for _ in range(60):
        theta, state = step(theta, state)
    exported, mask = r.export(theta)
    kept = sum(int(jnp.sum(mask[x]["kernel"])) for x in "ab")
    assert kept < 0.5 * 144
    for layer in "ab":
        kernel = np.asarray(mask[layer]["kernel"])
        counts = kernel.reshape(-1, 4, kernel.shape[1]).sum(1)
        assert len(np.unique(counts)) == 1  # one N for the layer
    np.testing.assert_array_equal(exported["a"]["bias"], theta.weights["a"]["bias"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight": -1.0}, "`weight` must not be negative, got -1.0"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be at least 1, got 0"),
        ({"steps_per_epoch": 2.5}, "`steps_per_epoch` must be a whole number, got 2.5"),
    ],
)
def test_errors_of_the_price(settings, message):
    with pytest.raises(ValueError, match=message):
        reparam.learned_n_of_m(4, target=0.5, **{"weight": 1.0, **settings})


@pytest.mark.parametrize(
    "m, target, message",
    [
        (1, 0.5, "`m` must be at least 2"),
        (4, 0.25, r"\(0.25, 1\]"),
        (4, 1.5, "got 1.5"),
    ],
)
def test_errors(m, target, message):
    with pytest.raises(ValueError, match=message):
        reparam.learned_n_of_m(m, target=target, weight=1.0)


def test_a_priority_at_a_bound_has_the_derivative_from_within():
    """The authors' clip: 1 on the closed interval, 0 outside."""
    slope = jax.grad(lambda k: jnp.sum(units(k)))
    np.testing.assert_allclose(slope(jnp.array([1.03, 1.0])), [2.0, 1.03], rtol=1e-6)
    np.testing.assert_allclose(slope(jnp.array([0.0, 1.0])), [2.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(slope(jnp.array([1.04, 1.0]))[0], 0)


def test_units_may_be_ranked_once_an_epoch():
    """Between two rankings the places stand, whatever the weights do."""
    r = reparam.learned_n_of_m(4, target=0.3, weight=0.0, rank_every=2)
    theta = r.init({"kernel": jnp.array([[4.0], [3.0], [2.0], [1.0]])})
    theta = theta._replace(priorities={"kernel": jnp.array([1.0, 0.0, 1.0])})
    half = [[True], [True], [False], [False]]
    assert r.export(theta)[1]["kernel"].tolist() == half
    turned = theta._replace(weights={"kernel": theta.weights["kernel"][::-1]})
    one = r.project(turned, theta, jnp.int32(0))
    assert r.export(one)[1]["kernel"].tolist() == half
    assert (r.apply(one)["kernel"] != 0).tolist() == half
    two = r.project(turned, one, jnp.int32(1))
    assert r.export(two)[1]["kernel"].tolist() == half[::-1]
    grads = jax.grad(lambda t: jnp.sum(r.apply(t)["kernel"]))(two)
    assert not np.any(grads.ranks["kernel"])
    with pytest.raises(ValueError, match="`rank_every` must be at least 1, got 0"):
        reparam.learned_n_of_m(4, target=0.3, weight=0.0, rank_every=0)
