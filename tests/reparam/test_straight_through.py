"""Straight-through masks: N:M with SR-STE's numbers, Top-KAST, twins."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, reparam
from tests.reparam import twins

W = jnp.array([[0.4], [-0.1], [0.3], [0.05]])


def through(n, m, axis=None):
    return reparam.straight_through(lambda p: masks.n_of_m(p, n, m, axis))


def test_nm_g4_sr_ste_gradient():
    """The forward half of SR-STE: every weight gets the pruned network's gradient."""
    r = through(2, 4, 0)
    g = jnp.array([[0.1], [0.2], [-0.3], [0.4]])
    used = r.apply(W)
    np.testing.assert_array_equal(used, jnp.array([[0.4], [0], [0.3], [0]]))
    got = jax.grad(lambda w: jnp.sum(g * r.apply(w)))(W)
    np.testing.assert_array_equal(got, g)
    u = got + 2e-4 * jnp.where(r.export(W)[1], 0, W)
    np.testing.assert_allclose(u[:, 0], [0.1, 0.19998, -0.3, 0.40001], rtol=1e-6)
    after = (W - 0.1 * u)[:, 0]
    np.testing.assert_allclose(after, [0.39, -0.119998, 0.33, 0.009999], rtol=1e-5)


def test_nm_g5_dense_mask_is_plain_sgd():
    params = jax.tree.map(jnp.float32, twins.start())
    r = through(4, 4)
    plain, wrapped = (
        jax.jit(jax.grad(f)) for f in (twins.loss, reparam.wrap(twins.loss, r))
    )
    a, b = params, params
    for _ in range(5):
        a = jax.tree.map(lambda p, g: p - 0.1 * g, a, plain(a))
        b = jax.tree.map(lambda p, g: p - 0.1 * g, b, wrapped(b))
    np.testing.assert_array_equal(a["a"]["kernel"], b["a"]["kernel"])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_nm_g11_exactly_n_of_each_group(n):
    r = through(n, 4, 0)
    w = jax.random.normal(jax.random.key(n), (16, 5))
    _, mask = jax.jit(r.export)(w)
    counts = np.asarray(mask).reshape(4, 4, 5).sum(1)
    np.testing.assert_array_equal(counts, np.full((4, 5), n))


def follow(r, steps, on_step, lr=0.1, beta=0.9):
    """Trains theta in float64 with momentum; `on_step(theta)` after each step."""
    tx = optax.sgd(lr, momentum=beta)
    theta = r.init(jax.tree.map(jnp.asarray, twins.start()))
    state, step = tx.init(theta), jax.jit(tx.update)
    grad = jax.jit(jax.grad(reparam.wrap(twins.loss, r)))
    export = jax.jit(r.export)
    for _ in range(steps):
        _, mask = export(theta)
        updates, state = step(grad(theta), state, theta)
        theta = optax.apply_updates(theta, updates)
        on_step(mask, theta)


class Dense:
    """The NumPy side: dense weights moved by the gradient of the pruned network."""

    def __init__(self, choose):
        p = twins.start()
        self.t = [p["a"]["kernel"], p["a"]["bias"], p["b"]["kernel"]]
        self.v = [np.zeros_like(x) for x in self.t]
        self.choose = choose

    def __call__(self, mask, theta):
        used, learning = self.choose(self.t[0], self.t[2])
        np.testing.assert_array_equal(mask["a"]["kernel"], used[0])
        np.testing.assert_array_equal(mask["b"]["kernel"], used[1])
        cut = [self.t[0] * used[0], self.t[1], self.t[2] * used[1]]
        ga, gc, gb = twins.gradients(*cut)
        pulls = [ga * learning[0], gc, gb * learning[1]]
        self.v = [0.9 * v + g for v, g in zip(self.v, pulls, strict=True)]
        self.t = [x - 0.1 * v for x, v in zip(self.t, self.v, strict=True)]
        np.testing.assert_allclose(theta["a"]["kernel"], self.t[0], rtol=1e-9)
        np.testing.assert_allclose(theta["b"]["kernel"], self.t[2], rtol=1e-9)


def test_straight_through_twin():
    def choose(a, b):
        n = a.size + b.size
        kept = twins.smallest_out([a, b], n - int(np.floor(0.8 * n + 0.5)))
        return kept, (1, 1)

    with jax.enable_x64(True):
        r = reparam.straight_through(lambda p: masks.unstructured(p, 0.8, min_keep=0))
        follow(r, 25, Dense(choose))


def test_nm_twin():
    def choose(a, b):
        return [twins.unit_places(w, 4) < 2 for w in (a, b)], (1, 1)

    with jax.enable_x64(True):
        follow(through(2, 4), 25, Dense(choose))


@pytest.mark.slow
def test_top_kast_twin():
    def largest(w, share):
        return twins.smallest_out([w], w.size - int(np.floor(share * w.size + 0.5)))[0]

    def choose(a, b):
        return [largest(w, 0.75) for w in (a, b)], [largest(w, 0.5) for w in (a, b)]

    with jax.enable_x64(True):
        follow(reparam.top_kast(0.75, 0.5), 25, Dense(choose))


def test_top_kast_penalty_divides_by_the_density():
    r = reparam.top_kast(0.5, 0.25, decay=0.1, min_keep=0)
    w = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    value, slope = jax.value_and_grad(r.penalty)(w)
    np.testing.assert_allclose(float(value), 0.05 * (9 + 16 + 4 / 0.5), rtol=1e-6)
    np.testing.assert_allclose(slope, [[0, 0.1 * 2 / 0.5, 0.3, 0.4]], rtol=1e-6)


def test_a_pruned_weight_may_return():
    r = through(1, 2, 0)
    w = jnp.array([[0.5], [0.4]])
    goal = jnp.array([[0.0], [1.0]])
    grad = jax.jit(jax.grad(lambda w: jnp.sum((r.apply(w) - goal) ** 2)))
    for _ in range(3):
        w = w - 0.1 * grad(w)
    np.testing.assert_array_equal(r.export(w)[1], [[False], [True]])


def test_errors():
    with pytest.raises(ValueError, match="1 <= n <= m, got n=5, m=4"):
        through(5, 4, 0).apply(W)
    with pytest.raises(ValueError, match="m=4 does not divide"):
        through(2, 4).apply({"kernel": jnp.ones((6, 2))})
    with pytest.raises(ValueError, match="must not exceed `sparsity`"):
        reparam.top_kast(0.5, 0.75)
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        reparam.top_kast(1.5, 0.5)
