"""Dissipating gradients as a projection: hand numbers, and a NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import at_init, masks, transforms


def test_kstarts_dissipating_g4_g5_in_a_chain():
    """The hand numbers of the mask, reached by updates, then a return to the start."""
    w0 = jnp.array([[1.0, -2.0, 0.5, 0.0, 0.1]])
    first = jnp.array([[0.05, -0.5, 0.04, 0.02, 0.2]])
    tx = transforms.prune_unmoved(0.1, every=1, end=3, min_keep=0, scope=lambda _: True)
    state, params = tx.init(w0), w0
    seen = []
    for updates in (first, -first, 0 * first, 1 + 0 * first, 1 + 0 * first):
        updates, state = tx.update(updates, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(state.mask[0].tolist())
    # The test sees what the updates before it did.
    assert seen[:2] == [[True] * 5, [False, True, False, True, True]]
    assert seen[2:] == [[False] * 5] * 3
    np.testing.assert_array_equal(params, 0)


def test_twin():
    """25 steps of momentum with decay: equal masks at each, floors included."""
    rng = np.random.default_rng(5)
    w = {"a": rng.normal(size=(5, 4)), "b": rng.normal(size=(3, 6))}
    scale = {"a": 0.02, "b": 1e-4}  # b hardly moves: its floor of 6 holds
    gradients = {k: rng.normal(size=(25, *w[k].shape)) * scale[k] for k in w}
    floors, counts = {"a": 4, "b": 6}, []
    with jax.enable_x64(True):
        tx = optax.chain(
            optax.add_decayed_weights(1e-4),
            optax.sgd(0.5, 0.9),
            transforms.prune_unmoved(0.05, every=4, end=20),
        )
        transforms.check(tx, jax.tree.map(jnp.asarray, w))
        params = jax.tree.map(jnp.asarray, w)
        state, update = tx.init(params), jax.jit(tx.update)
        w0 = {k: x.copy() for k, x in w.items()}
        velocity = {k: np.zeros_like(x) for k, x in w.items()}
        mask = {k: np.ones(x.shape, bool) for k, x in w.items()}
        for t in range(25):
            grads = {k: jnp.asarray(g[t]) for k, g in gradients.items()}
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            for k in w:
                if t in (4, 8, 12, 16, 20):
                    change = np.abs(w[k] - w0[k])
                    kept = mask[k] & ~(change <= 0.05 * np.abs(w0[k]))
                    if kept.sum() < floors[k]:
                        r = change / np.abs(w0[k])
                        kept = mask[k] & (r >= np.sort(r[mask[k]])[-floors[k]])
                    mask[k] = kept
                g = gradients[k][t] + 1e-4 * w[k]
                velocity[k] = 0.9 * velocity[k] + g
                w[k] = np.where(mask[k], w[k] - 0.5 * velocity[k], 0)
                np.testing.assert_array_equal(state[-1].mask[k], mask[k])
                np.testing.assert_allclose(params[k], w[k], rtol=1e-9, atol=1e-12)
            counts.append((mask["a"].sum(), mask["b"].sum()))
    assert 4 < counts[-1][0] < 20 and counts[4][0] < 20 and counts[-1][1] == 6


def test_the_chain_and_the_rule_agree():
    params = {"kernel": jax.random.normal(jax.random.key(0), (6, 5))}
    moved = {"kernel": params["kernel"] + 0.2}
    tx = transforms.prune_unmoved(0.2, every=1, end=1)
    state = tx.init(params)._replace(count=jnp.int32(1))
    _, state = tx.update(moved, state, moved)
    start = at_init.train_early(jnp.sum, optax.sgd(0.1), params, [], [])
    start = start._replace(params=moved)
    want = at_init.dissipating(0.2)(start)["kernel"]
    np.testing.assert_array_equal(state.mask["kernel"], want)
    assert 0 < int(masks.count(state.mask)) < 30


def test_adam_makes_the_test_one_of_size():
    """The caution: under Adam all weights move alike, and the largest would go."""
    key = jax.random.key(1)
    params = {"kernel": jax.random.normal(key, (30, 20))}
    sizes = jnp.exp(3 * jax.random.normal(jax.random.key(2), (30, 20)))
    still = transforms.prune_unmoved(0.05, every=10, end=10)
    kept = {}
    for name, tx in (("adam", optax.adam(0.01)), ("sgd", optax.sgd(0.01))):
        chain = optax.chain(tx, still)
        state, now, step = chain.init(params), params, jax.jit(chain.update)
        for _ in range(11):
            updates, state = step({"kernel": sizes}, state, now)
            now = optax.apply_updates(now, updates)
        kept[name] = np.asarray(state[-1].mask["kernel"])
    size = np.abs(np.asarray(params["kernel"]))
    assert size[kept["adam"]].max() <= size[~kept["adam"]].min()
    assert size[kept["sgd"]].max() > size[~kept["sgd"]].min()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": -0.1}, "`fraction` must be finite and >= 0, got -0.1"),
        ({"every": 0}, "need 1 <= every <= end.*got 0, 4"),
        ({"every": 3}, "`end` a multiple of `every`; got 3, 4"),
        ({"every": 1.5, "end": 3.0}, "`every` must be a whole number, got 1.5"),
        ({"end": 1}, "need 1 <= every <= end.*got 2, 1"),
        ({"min_keep": -1}, "`min_keep` must be an integer >= 0, or None, got -1"),
        ({"scope": "nothing"}, "`scope`='nothing' matches no leaf"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        settings = {"fraction": 0.1, "every": 2, "end": 4, **change}
        transforms.prune_unmoved(**settings).init({"kernel": jnp.ones((2, 3))})
