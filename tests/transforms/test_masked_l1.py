"""MaskSparsity against hand-computed numbers (g1 to g3, g7 to g9) and a NumPy twin.

The numbers of thresholds and votes (g4 to g6) are in tests/masks/test_voting.py.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import compress, masks, surgery, transforms
from jprune.surgery import AxisRef, Group

KEEP = {"scale": np.array([True, True, False, False]), "kernel": np.array(True)}


def added(scale, keep=None, grads=None, **kwargs):
    params = {"scale": jnp.array(scale), "kernel": jnp.ones((2, 2))}
    grads = jax.tree.map(jnp.zeros_like, params) if grads is None else grads
    tx = transforms.add_masked_l1(5e-4, KEEP if keep is None else keep, **kwargs)
    return tx.update(grads, tx.init(params), params)[0]


def test_masksparsity_g1_force():
    got = added([0.5, -0.2, 0.003, 0.0])
    np.testing.assert_array_equal(got["scale"], np.float32([0, 0, 5e-4, 0]))
    np.testing.assert_array_equal(got["kernel"], 0)


def test_masksparsity_g2_kept_scales_are_untouched():
    key = jax.random.key(0)
    params = {"scale": jnp.array([0.5, -0.2, 0.003, 0.01]), "kernel": jnp.ones((2, 2))}
    with_it = optax.chain(
        transforms.add_masked_l1(5e-4, KEEP), optax.sgd(0.1, 0.9, nesterov=True)
    )
    without = optax.sgd(0.1, 0.9, nesterov=True)
    ours, plain = params, params
    s, r = with_it.init(ours), without.init(plain)
    for t in range(20):
        noise = jax.random.normal(jax.random.fold_in(key, t), (4,))
        grads = {"scale": noise, "kernel": jnp.full((2, 2), noise[0])}
        u, s = with_it.update(grads, s, ours)
        v, r = without.update(grads, r, plain)
        ours, plain = optax.apply_updates(ours, u), optax.apply_updates(plain, v)
    np.testing.assert_array_equal(ours["scale"][:2], plain["scale"][:2])
    np.testing.assert_array_equal(ours["kernel"], plain["kernel"])
    assert not np.any(np.asarray(ours["scale"][2:] == plain["scale"][2:]))


def killing(momentum, dtype, steps):
    """The path of one doomed scale that has no data gradient."""
    tx = optax.chain(
        transforms.add_masked_l1(5e-4, {"g": np.zeros(1, bool)}),
        optax.sgd(0.1, momentum, nesterov=True),
    )
    params = {"g": jnp.array([0.01], dtype)}
    zero = {"g": jnp.zeros(1, dtype)}

    def body(carry, _):
        updates, state = tx.update(zero, carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), params["g"][0]

    start = (params, tx.init(params))
    return np.asarray(jax.jit(lambda c: jax.lax.scan(body, c, length=steps)[1])(start))


def test_masksparsity_g3_killing():
    assert abs(killing(None, jnp.float32, 200)[-1]) < 6e-5
    with jax.enable_x64(True):
        assert abs(killing(None, jnp.float64, 200)[-1]) < 1e-12
        path = killing(0.9, jnp.float64, 400)
    assert np.argmax(path <= 0) + 1 == 28
    # The first swing goes far below zero, then it chatters.
    np.testing.assert_allclose(path.min(), -8.9e-4, rtol=0.01)
    assert np.abs(path[300:]).max() <= 1.1e-4


def bn_net(p, x):
    h = (x @ p["k1"] - p["mean"][None]) / jnp.sqrt(p["var"][None] + 1e-3)
    h = jax.nn.relu(h * p["scale"][None] + p["beta"][None])
    return h @ p["k2"] + p["b2"][None]


def bn_params(beta):
    rng = np.random.default_rng(0)
    return {
        "k1": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        "mean": jnp.array([0.1, -0.2, 0.3]),
        "var": jnp.array([1.0, 2.0, 0.5]),
        "scale": jnp.array([0.8, 0.0, 1.2]),
        "beta": jnp.array([0.1, beta, -0.1]),
        "k2": jnp.array([[0.3, 0.4], [1.0, -2.0], [0.5, 0.6]]),
        "b2": jnp.array([0.1, 0.2]),
    }


def test_masksparsity_g7_surgery():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)), jnp.float32)
    deps = surgery.groups(bn_net)(bn_params(-0.2), x)
    [group] = [g for g in deps if g.kind == "coupled"]
    kept = masks.keep_by_scale(bn_params(-0.2), [group])
    np.testing.assert_array_equal(kept[group.id], [True, False, True])
    plan = surgery.plan_from_keep(deps, kept)
    small = surgery.shrink(bn_net, plan)
    for beta, shift in [(-0.2, [0, 0]), (0.3, [-0.3, 0.6])]:
        params = bn_params(beta)
        moved = small(plan.pack(params), x) - bn_net(params, x)
        np.testing.assert_allclose(moved, [shift] * 4, atol=1e-6)
    folded = compress.fold_constants(bn_net, plan, bn_params(0.3), x)
    np.testing.assert_allclose(
        small(plan.pack(folded), x), bn_net(bn_params(0.3), x), atol=1e-6
    )


GROUPS = [
    Group(
        "stream",
        6,
        (
            AxisRef(("a", "kernel"), 1, "out"),
            AxisRef(("a", "scale"), 0, "scale"),
            AxisRef(("a", "bias"), 0, "bias"),
            AxisRef(("b", "kernel"), 1, "out"),
            AxisRef(("b", "scale"), 0, "scale"),
            AxisRef(("c", "kernel"), 0, "in"),
        ),
    ),
    Group("inner", 4, (AxisRef(("c", "kernel"), 1, "out"),)),
]


def small_params(rng):
    return {
        "a": {
            "kernel": rng.normal(size=(3, 6)),
            "scale": 0.06 * rng.normal(size=6),
            "bias": rng.normal(size=6),
        },
        "b": {"kernel": rng.normal(size=(3, 6)), "scale": 0.06 * rng.normal(size=6)},
        "c": {"kernel": rng.normal(size=(6, 4))},
    }


def test_masksparsity_g8_complement():
    """What is penalized and what is kept are complementary, on the scales alone."""
    params = jax.tree.map(jnp.asarray, small_params(np.random.default_rng(0)))
    keep = np.array([True, False, True, True, False, True])
    keeps = {"stream": jnp.asarray(keep)}
    mask = masks.from_groups(params, GROUPS, keeps, roles=("scale",))
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = transforms.add_masked_l1(1.0, mask)
    got, _ = tx.update(zero, tx.init(params), params)
    chex.assert_trees_all_equal_structs(got, mask)
    for name in "ab":
        np.testing.assert_array_equal((got[name]["scale"] != 0) + keep.astype(int), 1)
        assert not np.any(np.asarray(got[name]["kernel"]))
    assert not np.any(np.asarray(got["a"]["bias"]))


def test_masksparsity_g9_smooth_l1():
    keep = {"scale": np.zeros(2, bool), "kernel": np.array(True)}
    got = added([1e-4, -2e-5], keep, kind="smooth_l1", learning_rate=0.1)
    np.testing.assert_allclose(got["scale"], [5e-4, -1e-8], rtol=1e-5)
    by_schedule = added(
        [1e-4, -2e-5],
        keep,
        kind="smooth_l1",
        learning_rate=optax.constant_schedule(0.1),
    )
    chex.assert_trees_all_equal(by_schedule, got)
    square = added([0.5, -0.2, 0.003, 0.0], kind="l2")
    np.testing.assert_allclose(square["scale"], [0, 0, 1.5e-6, 0], rtol=1e-5)


def numpy_keep(params, threshold):
    """Votes of the stream's two scales; the inner group has none and stays whole."""
    remove = np.stack([np.abs(params[n]["scale"]) <= threshold for n in "ab"])
    for row, name in zip(remove, "ab", strict=True):
        if row.all():
            row[np.argmax(np.abs(params[name]["scale"]))] = False
    both, either, fewest = remove.all(0), remove.any(0), remove.sum(1).min()
    keep = ~(both if both.sum() >= fewest else either)
    if not keep.any():
        mean = np.mean([np.abs(params[n]["scale"]) for n in "ab"], 0)
        keep[np.argmax(mean)] = True
    return keep


def test_masksparsity_twin_60_steps():
    """The third stage in float64 against NumPy: equal masks at every step."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(7)
        theirs = small_params(rng)
        ours = jax.tree.map(jnp.asarray, theirs)
        s, eta, mu, lr, threshold, T = 0.02, 1e-3, 0.9, 0.02, 0.02, 60
        keep = np.array([True, False, True, False, False, True])
        tx = transforms.masksparsity(
            lr,
            GROUPS,
            {"stream": jnp.asarray(keep), "inner": jnp.ones(4, bool)},
            strength=s,
            weight_decay=eta,
            threshold=threshold,
            total_steps=T,
        )
        state, update = tx.init(ours), jax.jit(tx.update)
        choose = jax.jit(lambda p: masks.keep_by_scale(p, GROUPS, threshold))
        velocity = jax.tree.map(np.zeros_like, theirs)
        seen = set()
        for t in range(T):
            grads = jax.tree.map(lambda w: 0.01 * rng.normal(size=w.shape), theirs)
            updates, state = update(grads, state, ours)
            ours = optax.apply_updates(ours, updates)
            for name in "abc":
                for leaf, w in theirs[name].items():
                    d = grads[name][leaf].copy()
                    if leaf == "scale":
                        d += s * np.sign(w) * ~keep
                    d += eta * w
                    velocity[name][leaf] = mu * velocity[name][leaf] + d
                    theirs[name][leaf] = w - lr * (d + mu * velocity[name][leaf])
            want = numpy_keep(theirs, threshold)
            if t == T - 1:
                for name in "ab":
                    for leaf in theirs[name].values():
                        leaf[..., ~want] = 0
                theirs["c"]["kernel"][~want] = 0
            else:
                np.testing.assert_array_equal(choose(ours)["stream"], want)
                assert bool(choose(ours)["inner"].all())
            seen.add(tuple(want))
            chex.assert_trees_all_close(ours, theirs, rtol=1e-8, atol=1e-12)
        assert len(seen) > 3
        np.testing.assert_array_equal(ours["c"]["kernel"][:, 0] == 0, ~want)


def test_without_a_threshold_exactly_the_mask_is_removed():
    params = jax.tree.map(jnp.asarray, small_params(np.random.default_rng(0)))
    keep = jnp.array([True, False, True, False, False, True])
    tx = transforms.masksparsity(
        0.1, GROUPS, {"stream": keep}, threshold=None, total_steps=2
    )
    transforms.check(tx, params)
    state = tx.init(params)
    for _ in range(3):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for name in "ab":
        np.testing.assert_array_equal(params[name]["scale"] != 0, keep)


def test_network_slimming_penalizes_every_scale_and_nothing_else():
    params = jax.tree.map(jnp.asarray, small_params(np.random.default_rng(0)))
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = transforms.network_slimming(1.0, strength=0.5, weight_decay=0.0, momentum=0.0)
    updates, _ = tx.update(zero, tx.init(params), params)
    for name in "ab":
        want = -0.5 * np.sign(params[name]["scale"])
        np.testing.assert_array_equal(updates[name]["scale"], want)
    assert not np.any(np.asarray(updates["a"]["kernel"]))
    assert not np.any(np.asarray(updates["a"]["bias"]))
    tx = transforms.network_slimming(1.0, strength=0.0, decay_scope="kernel")
    updates, _ = tx.update(zero, tx.init(params), params)
    assert np.all(np.asarray(updates["a"]["kernel"] != 0))
    assert not np.any(np.asarray(updates["a"]["scale"]))


def test_network_slimming_finds_the_scales_of_nnx():
    params = {"bn": {"scale": {"value": jnp.ones(2)}}, "w": {"value": jnp.ones((2, 2))}}
    tx = transforms.network_slimming(1.0, strength=0.5, weight_decay=0.0, momentum=0.0)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_array_equal(updates["bn"]["scale"]["value"], [-0.5, -0.5])
    assert not np.any(np.asarray(updates["w"]["value"]))
    with pytest.raises(ValueError, match="named scale or gamma: pass `scope`.*\n  w/v"):
        tx.init({"w": params["w"]})


@pytest.mark.parametrize("name", ["one of two", "the only one"])
def test_a_scalar_is_penalized_as_any_scale(name):
    params = {"skip": {"scale": jnp.array(2.0)}}
    if name == "one of two":
        params["bn"] = {"scale": jnp.ones(3)}
    tx = transforms.network_slimming(1.0, strength=0.5, weight_decay=0.0, momentum=0.0)
    for init in (tx.init, jax.jit(tx.init)):
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zero, init(params), params)
        assert float(updates["skip"]["scale"]) == -0.5


def test_errors():
    params = {"scale": jnp.ones(2)}
    kind: Any = "huber"
    with pytest.raises(ValueError, match="`kind` must be"):
        transforms.add_masked_l1(1.0, KEEP, kind=kind)
    with pytest.raises(ValueError, match="smooth_l1 needs `learning_rate`"):
        transforms.add_masked_l1(1.0, KEEP, kind="smooth_l1")
    with pytest.raises(ValueError, match="nothing would be penalized"):
        transforms.add_masked_l1(1.0, {"scale": np.array(True)}).init(params)
    with pytest.raises(ValueError, match="exactly the structure"):
        transforms.add_masked_l1(1.0, KEEP).init(params)
    listed: Any = [jnp.ones(6, bool)]
    with pytest.raises(ValueError, match="must be a mapping from group ids.*got list"):
        transforms.masksparsity(0.1, GROUPS, listed)
    with pytest.raises(ValueError, match="'other', which is no group"):
        transforms.masksparsity(0.1, GROUPS, {"other": jnp.ones(6, bool)})
    with pytest.raises(ValueError, match="No group of `keeps` has a member"):
        transforms.masksparsity(0.1, GROUPS, {"inner": jnp.ones(4, bool)})
