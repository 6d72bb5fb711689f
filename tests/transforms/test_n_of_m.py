"""SR-STE's decay and hard N:M: hand-computed numbers, a NumPy twin, nested stages.

Groups, SLS and the straight-through half have theirs in tests/masks and tests/reparam.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, reparam, transforms
from tests.reparam import twins
from tests.transforms.table import gradients, tree


def column(*values):
    return {"w": jnp.array(values, jnp.float32)[:, None]}


def test_nm_g4_sr_ste_chain():
    params, grads = column(0.4, -0.1, 0.3, 0.05), column(0.1, 0.2, -0.3, 0.4)
    tx = transforms.add_pruned_decay(2e-4, 2, 4)
    u, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(u["w"][:, 0], [0.1, 0.19998, -0.3, 0.40001], rtol=1e-6)
    np.testing.assert_array_equal(u["w"][::2], grads["w"][::2])
    recipe = transforms.sr_ste(0.1, 2, 4, weight_decay=0.0, momentum=0.0)
    u, _ = recipe.update(grads, recipe.init(params), params)
    after = optax.apply_updates(params, u)["w"][:, 0]
    np.testing.assert_allclose(after, [0.39, -0.119998, 0.33, 0.009999], rtol=1e-5)


def test_nm_g5_no_decay_and_dense_mask_are_plain_sgd():
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 3))}
    grads = {"kernel": jax.random.normal(jax.random.key(1), (8, 3))}
    plain = optax.chain(optax.add_decayed_weights(5e-5), optax.sgd(0.1, 0.9))
    want, _ = plain.update(grads, plain.init(params), params)
    for tx in (
        transforms.sr_ste(0.1, 2, 4, strength=0.0),
        transforms.sr_ste(0.1, 4, 4, strength=0.5),
    ):
        got, _ = tx.update(grads, tx.init(params), params)
        chex.assert_trees_all_equal(got, want)


def test_sr_ste_twin_25_steps():
    """Network, mask, decay and momentum together, in float64."""
    strength, mu, lr = 0.05, 0.01, 0.1
    with jax.enable_x64(True):
        r = reparam.straight_through(lambda p: masks.n_of_m(p, 2, 4))
        tx = transforms.sr_ste(lr, 2, 4, strength=strength, weight_decay=mu)
        start = twins.start()
        theta = jax.tree.map(jnp.asarray, start)
        state = tx.init(theta)

        @jax.jit
        def step(theta, state):
            grads = jax.grad(reparam.wrap(twins.loss, r))(theta)
            updates, state = tx.update(grads, state, theta)
            return r.export(theta)[1], optax.apply_updates(theta, updates), state

        w = [start["a"]["kernel"], start["a"]["bias"], start["b"]["kernel"]]
        v, previous, moves = [0.0, 0.0, 0.0], None, 0
        for _ in range(25):
            mask, theta, state = step(theta, state)
            ones = np.ones(12, bool)
            kept = [
                twins.unit_places(w[0], 4) < 2,
                ones,
                twins.unit_places(w[2], 4) < 2,
            ]
            np.testing.assert_array_equal(mask["a"]["kernel"], kept[0])
            np.testing.assert_array_equal(mask["b"]["kernel"], kept[2])
            grads = twins.gradients(*[x * k for x, k in zip(w, kept, strict=True)])
            for i in range(3):
                u = grads[i] + strength * np.where(kept[i], 0, w[i]) + mu * w[i]
                v[i] = 0.9 * v[i] + u
                w[i] = w[i] - lr * v[i]
            np.testing.assert_allclose(theta["a"]["kernel"], w[0], rtol=1e-9)
            np.testing.assert_allclose(theta["b"]["kernel"], w[2], rtol=1e-9)
            moves += previous is not None and not np.array_equal(previous, kept[0])
            previous = kept[0]
        assert moves > 3


def test_sr_ste_ends_n_of_m_when_it_knows_its_end():
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 3))}
    tx = transforms.sr_ste(0.1, 1, 4, total_steps=3)
    path, _ = run(tx, params, 5)
    per_group = [np.sum(np.asarray(p["kernel"] != 0).reshape(2, 4, 3), 1) for p in path]
    assert [int(c.max()) for c in per_group] == [4, 4, 1, 1, 1]


def run(tx, params, steps):
    state, step = tx.init(params), jax.jit(tx.update)
    path = []
    for t in range(steps):
        updates, state = step(gradients(params, t), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


def counts(params, m):
    """The fewest and the most that a group of the kernels keeps."""
    kept = [
        np.asarray(params[k]["kernel"] != 0).reshape(
            -1, m, params[k]["kernel"].shape[1]
        )
        for k in ("one", "two")
    ]
    per_group = np.concatenate([k.sum(1).ravel() for k in kept])
    return int(per_group.min()), int(per_group.max())


@pytest.mark.parametrize(
    ("n", "begin", "end", "want"),
    [
        # floor(3 (1 - ((10 - t) / 8)^3)) reaches 1, 2, 3 at t = 3.01, 4.45, 10.
        (1, 2, 10, [4, 4, 4, 4, 3, 2, 2, 2, 2, 2, 1, 1]),
        pytest.param(2, 0, 5, [4, 4, 3, 3, 3, 2, 2], marks=pytest.mark.slow),
        pytest.param(2, 3, 3, [4, 4, 4, 2, 2], marks=pytest.mark.slow),
        (1, None, 2, [4, 4, 1, 1]),
    ],
)
def test_stages(n, begin, end, want):
    """Exactly so many of every 4 at each step, masks nested, under Adam with decay."""
    params = tree("dict")
    tx = optax.chain(
        optax.adamw(0.05, weight_decay=0.1),
        transforms.prune_to_n_of_m(n, 4, begin=begin, end=end),
    )
    path, _ = run(tx, params, len(want))
    assert [counts(p, 4) for p in path] == [(k, k) for k in want]
    for before, after in zip(path, path[1:], strict=False):
        for k in ("one", "two"):
            gone = np.asarray(before[k]["kernel"] == 0)
            assert bool(np.all(np.asarray(after[k]["kernel"])[gone] == 0))
    assert masks.is_n_of_m(masks.from_zeros(path[-1]), n, 4)
    assert bool(jnp.all(path[-1]["one"]["bias"] != 0))


def test_gradual_n_of_m_twin():
    """Against a sort of each group in float64: the same mask at each of 24 steps."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        w = rng.normal(size=(16, 6))
        params = {"w": jnp.asarray(w)}
        tx = optax.chain(
            optax.sgd(0.1), transforms.prune_to_n_of_m(2, 8, begin=1, end=19)
        )
        state, step = tx.init(params), jax.jit(tx.update)
        keep = np.ones((2, 8, 6), bool)
        for t in range(24):
            g = rng.normal(size=w.shape)
            updates, state = step({"w": jnp.asarray(g)}, state, params)
            params = optax.apply_updates(params, updates)
            if 1 <= t <= 19:
                n = 8 - int(np.floor(6 * (1 - ((19 - t) / 18) ** 3) + 1e-9))
                size = np.where(keep, np.abs(w).reshape(keep.shape), -1)
                order = np.argsort(-size, axis=1, kind="stable")
                keep &= np.argsort(order, axis=1, kind="stable") < n
            w = np.where(keep.reshape(w.shape), w - 0.1 * g, 0)
            np.testing.assert_array_equal(state[1].mask["w"], keep.reshape(w.shape))
            np.testing.assert_allclose(params["w"], w, rtol=1e-12)


def test_one_shot_is_prune_once():
    params = tree("dict")
    once = transforms.prune_once(lambda p: masks.n_of_m(p, 2, 4), step=1)
    a, _ = run(transforms.prune_to_n_of_m(2, 4, end=1), params, 3)
    b, _ = run(once, params, 3)
    chex.assert_trees_all_equal(a, b)


def test_check_knows_the_projection():
    params, last = tree("dict"), transforms.prune_to_n_of_m(2, 4, begin=0, end=9)
    transforms.check(optax.chain(optax.sgd(0.1), last), params)
    with pytest.raises(ValueError, match="A projection must come last"):
        transforms.check(optax.chain(last, optax.sgd(0.1, momentum=0.9)), params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: transforms.add_pruned_decay(1.0, 5, 4),
            "1 <= n <= m, got n=5, m=4",
        ),
        (
            lambda: transforms.sr_ste(0.1, 2, 5),
            r"m=5 does not divide axis 0 of one/kernel, shape \(8, 4\)",
        ),
        (
            lambda: transforms.prune_to_n_of_m(2, 4, axis=3, end=1),
            "`axis` 3 is out of range for one/kernel",
        ),
        (
            lambda: transforms.prune_to_n_of_m(2, 4, begin=3, end=1),
            "0 <= begin <= end; got begin=3, end=1",
        ),
        (
            lambda: transforms.prune_to_n_of_m(0, 4, end=1),
            "1 <= n <= m, got n=0",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(tree("dict"))
