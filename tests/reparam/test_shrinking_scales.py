"""Shrinking scales: the proximal number of the specification, a twin."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import reparam
from jprune.reparam._shrinking_scales import freed_costs, soft_threshold
from jprune.surgery import AxisRef, Group
from tests.reparam import gate_twin
from tests.reparam.gate_net import BLOCKS, INNER, WIDTH, compact, found, start


def test_gates_g6_proximal_step():
    g, want = jnp.array([0.5, -0.02, 0.01]), [0.485, -0.005, 0]
    np.testing.assert_allclose(soft_threshold(g, 0.015), want, rtol=1e-5)
    # The same through `project`: one group, whose gates free equally much.
    scale = Group("s", 3, (AxisRef(("scale",), 0, "scale"),))
    r = reparam.shrinking_scales([scale], price=0.1, learning_rate=0.15)
    theta = r.init({"scale": g})
    moved = r.project(theta, theta, jnp.int32(0))
    np.testing.assert_allclose(moved.weights["scale"], want, rtol=1e-5)
    np.testing.assert_array_equal(r.export(moved)[1]["scale"], [True, True, False])


def scale_made(**changes):
    deps, groups, branches = found()
    given = {"price": 1.0, "learning_rate": 0.1, "cost": deps.flops, **changes}
    return reparam.shrinking_scales(groups, branches, **given)


@pytest.mark.parametrize("deep", [True, False])
def test_scales_twin(deep):
    """Against NumPy, the block gated or not: equal masks at each of 25 steps."""
    with jax.enable_x64(True):
        refs = [("a", "kernel", 1, "out"), ("a", "scale", 0, "scale")]
        refs += [("a", "bias", 0, "bias"), ("b", "kernel", 0, "in")]
        unit = Group("u", 12, tuple(AxisRef((a, b), n, r) for a, b, n, r in refs))
        branches = {"block": reparam.Branch(("b/kernel",), (unit,))} if deep else {}
        price, rate = 0.3, gate_twin.RATE
        r = reparam.shrinking_scales([unit], branches, price=price, learning_rate=rate)
        theta = r.init(jax.tree.map(jnp.asarray, gate_twin.scale_start()))
        tx = optax.chain(optax.sgd(rate), reparam.projection(r))
        state, grad = tx.init(theta), jax.grad(reparam.wrap(gate_twin.scale_loss, r))
        step = jax.jit(lambda t, s: tx.update(grad(t), s, t))
        twin, seen = gate_twin.ScaleTwin(price, deep), set()
        for _ in range(25):
            kept = (twin.g != 0) & (twin.v != 0)
            mask = r.export(theta)[1]
            for leaf in (mask["a"]["scale"], mask["a"]["kernel"][0], mask["a"]["bias"]):
                np.testing.assert_array_equal(leaf, kept)
            np.testing.assert_array_equal(mask["b"]["kernel"][:, 0], kept)
            seen.add(int(kept.sum()))
            updates, state = step(theta, state)
            theta = optax.apply_updates(theta, updates)
            twin.step()
            np.testing.assert_allclose(theta.weights["a"]["scale"], twin.g, rtol=1e-8)
            np.testing.assert_allclose(theta.weights["b"]["kernel"], twin.b, rtol=1e-8)
            np.testing.assert_allclose(theta.branches.get("block", 1), twin.v)
        assert (0 in seen) == deep and len(seen) > 2 - deep


def test_scales_close_channels_and_blocks_exactly():
    deps, groups, _ = found()
    r = scale_made()
    theta = r.init(start())
    theta.weights["1"]["inner"]["scale"] = jnp.array([0.0, 1.0, 0.0, -2.0, 3.0, 0.0])
    theta.branches["0"] = jnp.float32(0)
    gated, small, plan = compact(r, theta)
    np.testing.assert_allclose(small, gated, rtol=1e-5, atol=1e-6)
    shapes = plan.compact_shapes
    assert shapes["0", "inner", "kernel"] == (WIDTH, 0)
    assert shapes["1", "inner", "kernel"] == (WIDTH, 3)
    # The shift of a channel without scale is zero in the forward pass already.
    assert theta.weights["1"]["inner"]["bias"][0] != 0
    assert r.apply(theta)["1"]["inner"]["bias"][0] == 0


def test_scales_shrink_by_what_they_free():
    deps, groups, branches = found()
    freed = freed_costs(start(), groups, branches)
    channel, whole = WIDTH + 2 + WIDTH, INNER * (WIDTH + 2 + WIDTH)
    mean = (2 * INNER * channel + 2 * whole) / (2 * INNER + 2)
    assert freed[groups[0].id] == pytest.approx(channel / mean)
    assert freed["1"] == pytest.approx(whole / mean)
    r = scale_made(cost=None, learning_rate=lambda step: 0.1 * (step + 1))
    theta = r.init(start())
    after = r.project(theta, theta, jnp.int32(1))
    assert float(after.branches["0"]) == pytest.approx(1 - 0.2 * freed["0"], rel=1e-5)
    gone = theta.weights["0"]["inner"]["scale"] - after.weights["0"]["inner"]["scale"]
    np.testing.assert_allclose(gone, 0.2 * freed[groups[0].id], rtol=1e-5)
    np.testing.assert_array_equal(
        after.weights["0"]["outer"]["scale"], theta.weights["0"]["outer"]["scale"]
    )


def test_scales_never_empty_a_layer():
    r = scale_made(price=1e3)
    theta = r.init(start())
    after = r.project(theta, theta, jnp.int32(0))
    for name in BLOCKS:
        old = theta.weights[name]["inner"]["scale"]
        want = np.where(np.arange(INNER) == np.argmax(np.abs(old)), old, 0)
        np.testing.assert_array_equal(after.weights[name]["inner"]["scale"], want)
        assert float(after.branches[name]) == 0


def test_a_cost_of_arrays_may_be_traced():
    groups = found()[1]

    def cost(counts):
        return 2 * jnp.sum(jnp.asarray([counts[g.id] for g in groups]))

    r = reparam.shrinking_scales(groups, price=0.1, learning_rate=0.1, cost=cost)
    theta = r.init(start())
    want = r.project(theta, theta, jnp.int32(0))
    got = jax.jit(r.project)(theta, theta, jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_scale_errors():
    with pytest.raises(ValueError, match="`price` must not be negative, got -1"):
        scale_made(price=-1)
    bare = Group("bare", 3, (AxisRef(("head",), 1, "out"),))
    make = partial(reparam.shrinking_scales, price=1.0, learning_rate=0.1)
    with pytest.raises(
        ValueError, match=r"'bare' has no member in the roles \('scale'"
    ):
        make([bare]).init(start())
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), start())
    with pytest.raises(ValueError, match="(?s)half precision.*scale: bfloat16"):
        make(found()[1]).init(half)
    free = {"0": reparam.Branch(("0/outer/scale",))}
    with pytest.raises(ValueError, match="Branch '0' has no `inner`"):
        make(found()[1], free).init(start())
    with pytest.raises(ValueError, match="frees nothing of the `cost`"):
        r = make(found()[1], cost=lambda counts: 7)
        r.project(theta := r.init(start()), theta, jnp.int32(0))
