"""Powerpropagation: the numbers of its specification, a twin, and its companions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, reparam, transforms
from tests.reparam import twins

W = jnp.array([[0.5, -0.2, 0.0]])


def pulled(alpha, theta, **settings):
    r = reparam.powerpropagation(alpha, **settings)
    return jax.grad(lambda t: jnp.sum(r.apply(t)))(theta)


def test_powerprop_g1_forward():
    square = reparam.powerpropagation(2).apply(W)
    np.testing.assert_allclose(square, [[0.25, -0.04, 0]], rtol=1e-6)
    assert reparam.powerpropagation(3).apply(jnp.array([[-0.5]]))[0, 0] == -0.125
    chex.assert_trees_all_equal(reparam.powerpropagation(1).apply(W), W)


def test_powerprop_g2_gradient_and_step():
    np.testing.assert_allclose(pulled(2, W), [[1.0, 0.4, 0]], rtol=1e-6)
    theta = W - 0.1 * pulled(2, W)
    np.testing.assert_allclose(theta, [[0.4, -0.24, 0]], rtol=1e-6)
    w = reparam.powerpropagation(2).apply(theta)
    np.testing.assert_allclose(w, [[0.16, -0.0576, 0]], rtol=1e-6)


def test_powerprop_g3_derivative():
    assert float(pulled(3, jnp.full((1, 1), -0.5))[0, 0]) == 0.75


@pytest.mark.parametrize(
    "alpha, slopes",
    [
        (1, [1, 1, 1]),
        (1.5, [0, 1.0606602, 0.6708204]),
        (2, [0, 1, 0.4]),
        (3, [0, 0.75, 0.12]),
    ],
)
def test_powerprop_g4_finite_derivatives(alpha, slopes):
    theta = jnp.array([[0.0, 0.5, -0.2]])
    np.testing.assert_allclose(pulled(alpha, theta)[0], slopes, rtol=1e-6)
    twice = jax.grad(lambda t: jnp.sum(pulled(alpha, t)))(theta)
    want = (
        alpha * (alpha - 1) * np.array([0, 0.5 ** (alpha - 2), -(0.2 ** (alpha - 2))])
    )
    np.testing.assert_allclose(twice[0], want, rtol=1e-5)


def test_powerprop_g5_init_is_the_inverse():
    r = reparam.powerpropagation(2)
    theta = r.init(jnp.full((1, 1), 0.04))
    np.testing.assert_allclose(theta, 0.2, rtol=1e-6)
    np.testing.assert_allclose(r.apply(theta), 0.04, rtol=1e-6)
    draws = jax.nn.initializers.lecun_normal()(jax.random.key(0), (1000, 100))
    again = r.apply(r.init(draws))
    np.testing.assert_allclose(again, draws, rtol=1e-5)
    assert float(jnp.std(again)) == pytest.approx(float(jnp.std(draws)), rel=0.01)


def test_powerprop_g7_the_two_forms_agree():
    r = reparam.powerpropagation(2)
    start = jnp.array([[0.3, -0.5, 0.2], [0.7, -0.1, 0.4]])
    goal = jnp.array([[0.5, 0.1, 0.2], [-0.3, -0.4, 0.9]])

    def pull(w):
        return jnp.sum((w - goal) ** 2)

    def follow(tx, value, gradient):
        def body(carry, _):
            x, state = carry
            updates, state = tx.update(gradient(x), state, x)
            return (optax.apply_updates(x, updates), state), None

        run = lambda x: jax.lax.scan(body, (x, tx.init(x)), length=100)  # noqa: E731
        return jax.jit(run)(value)[0][0]

    sgd = optax.sgd(0.02, momentum=0.9)
    in_theta = follow(sgd, r.init(start), jax.grad(reparam.wrap(pull, r)))
    in_w = follow(reparam.reparameterized(sgd, r), start, jax.grad(pull))
    np.testing.assert_allclose(r.apply(in_theta), in_w, atol=1e-6)
    assert float(jnp.max(jnp.abs(in_w - start))) > 0.1


def test_powerprop_g8_order_and_counts():
    theta = jax.random.normal(jax.random.key(1), (40, 30))
    w = reparam.powerpropagation(4).apply(theta)
    order = [np.argsort(-np.abs(np.asarray(x)).ravel()) for x in (theta, w)]
    np.testing.assert_array_equal(*order)
    layers = {"in": (784, 300), "mid": (300, 100), "out": (100, 10)}
    weights = {
        k: jnp.arange(1.0, 1 + m * n).reshape(m, n) for k, (m, n) in layers.items()
    }
    sparsity = {"in": 0.95, "mid": 0.95, "out": 0.9}
    kept = masks.unstructured(weights, sparsity, scope="in|mid|out")
    counts = {k: int(m.sum()) for k, m in kept.items()}
    assert counts == {"in": 11760, "mid": 1500, "out": 100}


def test_powerprop_g9_rich_get_richer():
    r, h = reparam.powerpropagation(2), 1e-4
    w = jnp.array([[0.25, -0.04]])
    theta = r.init(w)
    moved = r.apply(theta - h * 0.1 * pulled(2, theta))
    change = (moved - w) / h
    np.testing.assert_allclose(change, [[-0.1, -0.016]], rtol=2e-2)
    np.testing.assert_allclose(change[0, 0] / change[0, 1], 6.25, rtol=2e-2)


@pytest.mark.slow
def test_powerprop_g10_more_mass_near_zero_and_cheaper_pruning():
    """Means of three seeds; between alpha 2 and 3 the mass below 1e-3 does not grow."""
    from sklearn import datasets

    data = datasets.load_digits()
    x = jnp.asarray(data["images"].reshape(-1, 64) / 16, jnp.float32)
    y = jnp.asarray(data["target"])
    draw = jax.nn.initializers.truncated_normal(64**-0.5)
    shapes = [(64, 300), (300, 100), (100, 10)]

    def logits(p, x):
        for w in p[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ p[-1]

    def fit(alpha, seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        params = [draw(k, s) for k, s in zip(keys, shapes, strict=True)]
        r = reparam.powerpropagation(alpha)
        tx = optax.sgd(0.1, momentum=0.9)

        def batch_loss(p, i):
            out = logits(p, x[i])
            return optax.softmax_cross_entropy_with_integer_labels(out, y[i]).mean()

        def body(carry, key):
            theta, state = carry
            i = jax.random.randint(key, (64,), 0, 1437)
            grads = jax.grad(reparam.wrap(batch_loss, r))(theta, i)
            updates, state = tx.update(grads, state, theta)
            return (optax.apply_updates(theta, updates), state), None

        theta = r.init(params)
        keys = jax.random.split(jax.random.key(100 + seed), 2000)
        (theta, _), _ = jax.jit(lambda t: jax.lax.scan(body, (t, tx.init(t)), keys))(
            theta
        )
        dense, _ = r.export(theta)
        cut = masks.apply(masks.unstructured(dense, 0.9, ranking="leaf"), dense)
        small = np.mean([np.mean(np.abs(w) < 1e-3) for w in dense])
        hits = jnp.mean(jnp.argmax(logits(cut, x[1437:]), -1) == y[1437:])
        return small, float(hits)

    found = {a: np.mean([fit(a, seed) for seed in range(3)], 0) for a in (1, 2, 3)}
    assert found[1][0] < min(found[2][0], found[3][0]), found
    assert found[3][1] > found[1][1] + 0.05, found


def test_powerprop_twin_gradual_pruning():
    """In theta, under gradual pruning: equal masks at each of 25 steps."""
    with jax.enable_x64(True):
        alpha, lr, beta, steps, final = 3, 0.2, 0.9, 25, 0.8
        r = reparam.powerpropagation(alpha)
        params = jax.tree.map(jnp.asarray, twins.start())
        tx = optax.chain(
            optax.sgd(lr, momentum=beta),
            transforms.prune_gradually(final, end=19, every=3),
        )
        theta = r.init(params)
        state, step = tx.init(theta), jax.jit(tx.update)
        grad = jax.jit(jax.grad(reparam.wrap(twins.loss, r)))

        p = twins.start()
        a, c, b = p["a"]["kernel"], p["a"]["bias"], p["b"]["kernel"]
        t = [np.cbrt(a), c, np.cbrt(b)]
        velocity = [np.zeros_like(x) for x in t]
        keep = [np.ones(a.shape, bool), np.ones(b.shape, bool)]
        n = a.size + b.size
        for i in range(steps):
            updates, state = step(grad(theta), state, theta)
            theta = optax.apply_updates(theta, updates)
            if i <= 19 and (i % 3 == 0 or i == 19):
                s = final - final * (1 - i / 19) ** 3
                count = n - int(np.floor(s * n + 0.5))
                held = [np.where(k, x, 0) for k, x in zip(keep, t[::2], strict=True)]
                keep = twins.smallest_out(held, count)
            ga, gc, gb = twins.gradients(t[0] ** 3, t[1], t[2] ** 3)
            pulls = [ga * 3 * t[0] ** 2, gc, gb * 3 * t[2] ** 2]
            velocity = [beta * v + g for v, g in zip(velocity, pulls, strict=True)]
            t = [x - lr * v for x, v in zip(t, velocity, strict=True)]
            t[0], t[2] = np.where(keep[0], t[0], 0), np.where(keep[1], t[2], 0)
            np.testing.assert_array_equal(theta["a"]["kernel"] != 0, keep[0])
            np.testing.assert_array_equal(theta["b"]["kernel"] != 0, keep[1])
        np.testing.assert_allclose(theta["a"]["kernel"], t[0], rtol=1e-9)
        exported, mask = r.export(theta)
        np.testing.assert_allclose(exported["b"]["kernel"], t[2] ** 3, rtol=1e-8)
        assert int(masks.count(mask)) == masks.kept_count(n, final)


def test_swd_in_theta_ends_exactly_sparse():
    r = reparam.powerpropagation(2)
    params = jax.tree.map(jnp.float32, twins.start())
    tx = transforms.swd(0.05, mu=1e-3, a_max=1e3, total_steps=20, sparsity=0.75)
    theta, loss = r.init(params), reparam.wrap(twins.loss, r)
    state = tx.init(theta)

    @jax.jit
    def step(theta, state):
        updates, state = tx.update(jax.grad(loss)(theta), state, theta)
        return optax.apply_updates(theta, updates), state

    for _ in range(20):
        theta, state = step(theta, state)
    exported, mask = r.export(theta)
    kept = masks.kept_count(masks.size(params), 0.75)
    assert int(masks.count(mask)) == kept
    assert sum(int(jnp.sum(exported[k]["kernel"] != 0)) for k in "ab") == kept


def test_floor_lets_zeros_grow_by_the_gradient_of_the_weight():
    """Among zeros |dL/dtheta| orders as |dL/dw|, not against what is not zero."""
    theta = jnp.array([[0.0, 0.0, 0.0, 0.9]])
    pull = jnp.array([[0.3, -2.0, 0.7, 0.1]])

    def gradient(floor):
        r = reparam.powerpropagation(3, floor=floor)
        return jax.grad(lambda t: jnp.sum(pull * r.apply(t)))(theta)[0]

    np.testing.assert_allclose(gradient(0.0)[:3], 0)
    np.testing.assert_allclose(gradient(0.01)[:3], 0.01 * pull[0, :3], rtol=1e-6)
    np.testing.assert_allclose(gradient(0.01)[3], 3 * 0.81 * 0.1, rtol=1e-5)


def rigl(floor):
    """RigL around powerpropagation in the space of the weights, and a task for it."""
    keys = jax.random.split(jax.random.key(0), 3)
    goal = jax.random.normal(keys[0], (30, 30))
    mask = {"kernel": jax.random.uniform(keys[1], (30, 30)) > 0.5}
    w = {"kernel": 0.3 * jax.random.normal(keys[2], (30, 30))}
    tx = transforms.drop_and_grow(
        reparam.reparameterized(
            optax.sgd(0.02), reparam.powerpropagation(2, floor=floor)
        ),
        mask=mask,
        every=10,
        begin=10,
        end=30,
    )
    gradient = jax.grad(lambda w: jnp.sum((w["kernel"] - goal) ** 2))

    @jax.jit
    def step(w, state):
        updates, state = tx.update(gradient(w), state, w)
        return optax.apply_updates(w, updates), state

    return masks.apply(mask, w), tx, gradient, step


def test_rigl_around_reparameterized_grows_by_the_gradient_of_the_weight():
    w, tx, gradient, step = rigl(0.1)
    state = tx.init(w)
    for _ in range(10):
        w, state = step(w, state)
    before = np.asarray(state.mask["kernel"])
    pull = np.abs(gradient(w)["kernel"])
    there = int(before.sum())
    dropped = there - masks.kept_count(there, 0.3)
    kept = twins.smallest_out(
        [np.where(before, w["kernel"], 0)], before.sum() - dropped
    )
    grown = twins.smallest_out([np.where(kept[0], 0, pull)], dropped)
    _, state = step(w, state)
    np.testing.assert_array_equal(state.mask["kernel"], kept[0] | grown[0])
    assert np.sum(grown[0] & ~before) > dropped / 2


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_grown_weights_need_a_floor_to_train(floor):
    w, tx, _, step = rigl(floor)
    state, first = tx.init(w), w["kernel"] != 0
    for _ in range(40):
        w, state = step(w, state)
    new = np.asarray(state.mask["kernel"] & ~first)
    assert new.sum() > 50
    assert np.all(np.asarray(w["kernel"])[new] != 0) == (floor > 0)


def test_a_leaf_that_is_masked_entirely_trains_on():
    r = reparam.powerpropagation(2)
    tx = reparam.reparameterized(optax.sgd(0.1), r)
    params = {"kernel": jnp.ones((2, 2))}
    state, gone = tx.init(params), masks.apply({"kernel": jnp.array(False)}, params)
    updates, _ = tx.update(params, state, gone)
    np.testing.assert_array_equal(updates["kernel"], 0)


def test_compose_refuses_a_second_with_a_constraint():
    power, ranked = reparam.powerpropagation(2), reparam.learned_attention()
    with pytest.raises(ValueError, match="`second` must be unconstrained"):
        reparam.compose(power, ranked)
    assert reparam.compose(reparam.powerpropagation(1), power).apply(W).shape == (1, 3)
    with pytest.raises(TypeError, match="`first` must be a Reparam, got function"):
        reparam.compose(reparam.powerpropagation, power)  # pyright: ignore
    with pytest.raises(TypeError, match="`second` must be a Reparam, got tuple"):
        reparam.compose(power, ())  # pyright: ignore


def test_with_top_kast():
    """Forward the largest half in w, gradient to the largest three quarters."""
    r = reparam.compose(
        reparam.powerpropagation(2), reparam.top_kast(0.5, 0.25, min_keep=0)
    )
    w = jnp.array([[0.04, 0.49, -0.81, 0.25]])
    theta = r.init(w)
    used, pull = jax.value_and_grad(lambda t: jnp.sum(r.apply(t)))(theta)
    np.testing.assert_allclose(float(used), 0.49 - 0.81, rtol=1e-5)
    np.testing.assert_allclose(pull, [[0, 2 * 0.7, 2 * 0.9, 2 * 0.5]], rtol=1e-5)
    exported, mask = r.export(theta)
    np.testing.assert_array_equal(mask, [[False, True, True, False]])
    np.testing.assert_allclose(exported, [[0, 0.49, -0.81, 0]], rtol=1e-5)


def test_reparameterized_inside_chain_and_map_params():
    r = reparam.powerpropagation(2)
    tx = optax.chain(
        reparam.reparameterized(optax.adam(0.01), r),
        transforms.keep_masked(lambda p: masks.unstructured(p, 0.5)),
    )
    params = {"kernel": jnp.array([[0.5, -0.1, 0.3, 0.2]])}
    state = tx.init(params)
    same = optax.tree.map_params(tx, lambda x: x, state)
    chex.assert_trees_all_equal(same, state)
    updates, state = tx.update(params, state, params)
    after = optax.apply_updates(params, updates)["kernel"]
    np.testing.assert_array_equal(after != 0, [[True, False, True, False]])


@pytest.mark.parametrize("alpha", [0.5, 0, -1, float("nan")])
def test_bad_power(alpha):
    with pytest.raises(
        ValueError, match="`alpha` must be a finite number of at least 1"
    ):
        reparam.powerpropagation(alpha)


def test_errors():
    with pytest.raises(ValueError, match="`floor` must not be negative"):
        reparam.powerpropagation(2, floor=-1)
    dead = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.zeros((2, 2))}}
    with pytest.raises(ValueError, match="would never train.*\n  b/kernel"):
        reparam.powerpropagation(2).init(dead)
    reparam.powerpropagation(2, floor=0.1).init(dead)
    with pytest.raises(TypeError, match="`r` must be a Reparam"):
        reparam.wrap(jnp.sum, reparam.powerpropagation)
    tx = reparam.reparameterized(optax.sgd(0.1), reparam.learned_attention())
    with pytest.raises(ValueError, match="needs a theta structured as the parameters"):
        tx.init(dead)
    for bad in (tx, reparam.projection(reparam.powerpropagation(2))):
        with pytest.raises(ValueError, match="needs the parameters"):
            bad.update(dead, None)


def test_wrap_passes_aux_key_and_arguments():
    r = reparam.powerpropagation(2)._replace(
        apply=lambda theta, key=None: theta if key is None else theta + key,
        penalty=lambda theta: jnp.sum(theta),
    )

    def loss_fn(params, x, *, y):
        return jnp.sum(params) * x + y, params

    loss = reparam.wrap(loss_fn, r, has_aux=True)
    value, aux = loss(jnp.array([1.0, 2.0]), 10.0, y=5.0, reparam_key=1.0)
    assert float(value) == 50 + 5 + 3
    np.testing.assert_array_equal(aux, [2.0, 3.0])


def test_an_infinite_power_is_refused():
    with pytest.raises(ValueError, match="`alpha` must be a finite number"):
        reparam.powerpropagation(float("inf"))
