"""Learned gates: the numbers of their specification, and a twin.

The sixth number is among the tests of `shrinking_scales`.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import reparam, surgery
from jprune.reparam._hard_concrete import (
    dual_ascent,
    expected_cost,
    hard_concrete,
    open_probability,
)
from jprune.reparam._learned_gates import open_gates
from jprune.surgery import AxisRef, Group
from tests.reparam import gate_twin
from tests.reparam.gate_net import (
    BLOCKS,
    CLOSED,
    INNER,
    OPEN,
    WIDTH,
    affine,
    block,
    compact,
    found,
    inputs,
    network,
    start,
)
from tests.surgery.sequence_nets import SEQUENCE_NETS


def made(**changes):
    deps, groups, branches = found()
    given: dict[str, Any] = {"price": 1.0, "cost": deps.flops, **changes}
    return reparam.learned_gates(groups, branches, **given)


def theta_with(r, channels=None, branches=None):
    """Theta at the start with these log alphas, all others wide open."""
    theta = jax.tree.map(jnp.asarray, r.init(start()))
    wide = jax.tree.map(
        lambda a: jnp.full_like(a, OPEN), (theta.channels, theta.branches)
    )
    return theta._replace(
        channels=wide[0] | (channels or {}), branches=wide[1] | (branches or {})
    )


def test_gates_g1_values():
    z = hard_concrete
    assert float(z(jnp.float32(0), jnp.float32(0.5))) == pytest.approx(0.5)
    q = open_probability(jnp.array([0.0, -3.0]))
    np.testing.assert_allclose(q, [0.831822, 0.197594], rtol=1e-5)
    stretched = jax.nn.sigmoid(-3.0) * 1.2 - 0.1
    np.testing.assert_allclose(stretched, -0.043089, rtol=1e-4)
    assert float(z(jnp.float32(-3))) == 0
    assert abs(float(z(jnp.float32(-2.397895)))) < 1e-6


@pytest.mark.parametrize("a", [-3.0, 0.0, 2.0])
def test_gates_g2_probability_of_being_open(a):
    u = jax.random.uniform(jax.random.key(0), (100_000,), minval=1e-7)
    drawn = hard_concrete(jnp.float32(a), u)
    share = float(jnp.mean(drawn > 0))
    assert abs(share - float(open_probability(jnp.float32(a)))) < 0.01


def test_gates_g3_expected_cost():
    def expected(q_mid, q_block):
        return expected_cost(
            {"mid": jnp.sum(q_mid)},
            {"block": q_block},
            {"block": ["mid"]},
            lambda n: 2 * n["mid"] + n["mid"] * 2,
        )

    q, half = jnp.array([1.0, 0.5]), jnp.float32(0.5)
    assert float(expected(q, half)) == 3.0
    assert float(expected(jnp.ones(2), jnp.float32(1))) == 8.0
    assert float(jax.grad(expected, argnums=1)(q, half)) == 6.0
    np.testing.assert_allclose(jax.grad(expected)(q, half), [2.0, 2.0])


def test_gates_g4_closed_block_is_dropped_exactly():
    r = made()
    theta = theta_with(r, branches={"0": jnp.float32(CLOSED)})
    gated, small, plan = compact(r, theta)
    params = start()

    @jax.jit
    def without_the_first(p, x):
        return block(p["1"], jax.nn.relu(affine(p["stem"], x))) @ p["head"]

    dropped = without_the_first(params, inputs())
    np.testing.assert_allclose(gated, dropped, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(small, dropped, rtol=1e-5, atol=1e-6)
    assert plan.compact_shapes["0", "inner", "kernel"] == (WIDTH, 0)
    # By design: a gate on the scale alone leaves the bias, here 0.2, in the stream.
    groups, branches = found()[1:]
    leaky = branches | {"0": reparam.Branch(("0/outer/scale",), branches["0"].inner)}
    r = reparam.learned_gates(groups, leaky, price=1.0)
    params["0"]["outer"]["bias"] = jnp.full(WIDTH, 0.2)
    kept = r.apply(theta._replace(weights=params))
    assert float(jnp.abs(jax.jit(network)(kept, inputs()) - dropped).max()) > 0.1


def test_gates_g5_channel_fold():
    unit = Group(
        "unit",
        1,
        tuple(
            AxisRef((n,), a, role)
            for n, a, role in [
                ("kernel", 1, "out"),
                ("scale", 0, "scale"),
                ("bias", 0, "bias"),
            ]
        ),
    )
    r = reparam.learned_gates([unit], price=1.0)
    p = {"kernel": jnp.ones((1, 1)), "scale": jnp.array([2.0])}
    p["bias"] = jnp.array([-1.0])
    quarter = np.log(0.35 / 1.2 / (1 - 0.35 / 1.2))
    theta = r.init(p)._replace(channels={"unit": jnp.array([quarter], jnp.float32)})
    folded = r.apply(theta)
    np.testing.assert_allclose(folded["scale"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(folded["bias"], -0.25, rtol=1e-6)
    assert float(folded["kernel"][0, 0]) == 1
    x = jnp.linspace(-3, 3, 13)[:, None]
    want = jax.nn.relu(0.25 * affine(p, x))
    np.testing.assert_allclose(jax.nn.relu(affine(folded, x)), want, rtol=1e-5)
    np.testing.assert_allclose(0.25 * jax.nn.relu(affine(p, x)), want, rtol=1e-5)


def test_gates_g7_price_zero_and_price_alone():
    def task(params):
        return jnp.mean(network(params, inputs()) ** 2)

    free = made(price=0.0)
    theta, key = free.init(start()), jax.random.key(2)
    whole = jax.jit(jax.grad(reparam.wrap(task, free)))(theta, reparam_key=key)
    alone = jax.jit(jax.grad(lambda t: task(free.apply(t, key))))(theta)
    got, want = ((t.channels, t.branches) for t in (whole, alone))
    chex.assert_trees_all_close(got, want, rtol=1e-5)
    assert any(np.any(g) for g in jax.tree.leaves(got))
    # A constant task and a high price: all gates close, what must stay stays.
    r = made(price=50.0)
    tx = optax.chain(optax.adam(0.5), reparam.projection(r))

    def step(carry, _):
        theta, state = carry
        updates, state = tx.update(jax.grad(r.penalty)(theta), state, theta)
        return (optax.apply_updates(theta, updates), state), None

    theta = r.init(start())
    run = jax.jit(lambda c: jax.lax.scan(step, c, length=60)[0])
    theta, _ = run((theta, tx.init(theta)))
    channels, branches = open_gates(theta)
    assert [int(k.sum()) for k in channels.values()] == [1, 1]
    assert not any(branches.values())
    params, mask = r.export(theta._replace(weights=start()))
    for name in ("stem", "head"):
        jax.tree.map(np.testing.assert_array_equal, params[name], start()[name])
    assert all(np.all(m) for m in jax.tree.leaves(mask["stem"]))


def test_gates_g8_dual_ascent():
    step = partial(dual_ascent, target=0.5, rate=0.1)
    assert float(step(0.0, 0.8)) == pytest.approx(0.03)
    assert float(step(0.0, 0.3)) == 0
    # The same through `project`, where E is the mean of q.
    groups = found()[1]
    r = reparam.learned_gates(groups, target=0.5, rate=0.1, cost=sum_of_counts)
    theta = r.init(start())
    q = float(open_probability(theta.channels[groups[0].id][0]))
    price = r.project(theta, theta, jnp.int32(0)).price
    assert float(price) == pytest.approx(0.1 * (q - 0.5), rel=1e-5)
    shut = theta._replace(channels=jax.tree.map(lambda a: a - 9, theta.channels))
    assert float(r.project(shut, shut, jnp.int32(0)).price) == 0


def sum_of_counts(counts):
    return sum(counts.values())


def test_gates_g9_shapes_after_surgery():
    r = made()
    theta = theta_with(
        r,
        {found()[1][1].id: jnp.array([CLOSED, OPEN, CLOSED, OPEN, CLOSED, OPEN])},
        {"0": jnp.float32(CLOSED)},
    )
    gated, small, plan = compact(r, theta)
    np.testing.assert_allclose(small, gated, rtol=1e-5, atol=1e-6)
    packed = plan.pack(r.export(theta)[0])
    size = sum(x.size for x in jax.tree.leaves(packed))
    # Block 0 keeps the scale and bias behind it, as zeros; block 1 three of six.
    stem, head = (4 + 2) * WIDTH, WIDTH * 3
    assert size == stem + head + 2 * WIDTH + 3 * (WIDTH + 2) + 3 * WIDTH + 2 * WIDTH
    deps, groups, _ = found()
    assert size == deps.parameters({groups[0].id: 0, groups[1].id: 3})
    report = surgery.verify(
        network, plan, r.apply(theta), inputs(), reference="dense", gradient=False
    )
    assert report.ok and report.way == "zero"


def test_gates_g10_a_higher_price_keeps_no_more():
    x = inputs(64)
    wanted = jax.nn.one_hot(jnp.argmax(x[:, :3], axis=1), 3)
    deps, groups, branches = found()
    r = made()
    rates = {"weights": optax.sgd(0.02, 0.9), "gates": optax.adam(0.05)}
    labels = r.init(start())._replace(
        weights="weights", channels="gates", branches="gates", price="weights"
    )
    tx = optax.chain(optax.partition(rates, labels), reparam.projection(r))

    def task(params):
        return jnp.mean(optax.softmax_cross_entropy(network(params, x), wanted))

    def trained(price):
        def step(carry, key):
            theta, state = carry
            slope = jax.grad(reparam.wrap(task, r))(theta, reparam_key=key)
            updates, state = tx.update(slope, state, theta)
            return (optax.apply_updates(theta, updates), state), None

        theta = r.init(start())._replace(price=price)
        keys = jax.random.split(jax.random.key(3), 200)
        (theta, _), _ = jax.lax.scan(step, (theta, tx.init(theta)), keys)
        return open_gates(theta)

    channels, blocks = jax.jit(jax.vmap(trained))(jnp.array([0.01, 0.3, 3.0]))
    counts = []
    for i in range(3):
        n = {g.id: int(channels[g.id][i].sum()) for g in groups}
        gone = {g.id: 0 for b in BLOCKS for g in branches[b].inner if not blocks[b][i]}
        counts.append(deps.parameters(n | gone))
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_gates_twin():
    """Against NumPy: equal noise, equal masks, equal price at each of 30 steps."""
    with jax.enable_x64(True):
        groups = [
            Group(
                "hidden",
                12,
                (
                    AxisRef(("a", "kernel"), 1, "out"),
                    AxisRef(("a", "bias"), 0, "bias"),
                    AxisRef(("b", "kernel"), 0, "in"),
                ),
            )
        ]
        branches = {"block": reparam.Branch(("b/kernel",), (groups[0],))}
        r = reparam.learned_gates(groups, branches, target=0.4, price=0.2, rate=0.3)
        theta = r.init(jax.tree.map(jnp.asarray, gate_twin.start()))
        theta = theta._replace(
            channels={"hidden": jnp.asarray(gate_twin.CHANNELS)},
            branches={"block": jnp.asarray(gate_twin.BLOCK)},
        )
        labels = theta._replace(weights="w", channels="g", branches="g", price="w")
        rates = {"w": optax.sgd(gate_twin.RATE), "g": optax.sgd(gate_twin.GATE_RATE)}
        tx = optax.chain(optax.partition(rates, labels), reparam.projection(r))
        grad = jax.jit(jax.grad(reparam.wrap(gate_twin.loss, r)))
        step, export, state = jax.jit(tx.update), jax.jit(r.export), tx.init(theta)
        twin, seen = gate_twin.Twin(price=0.2, target=0.4, rate=0.3), set()
        for i in range(30):
            _, mask = export(theta)
            kept, block = twin.open()
            np.testing.assert_array_equal(mask["a"]["kernel"][0], kept & block)
            np.testing.assert_array_equal(mask["b"]["kernel"][:, 0], kept & block)
            seen.add((int(kept.sum()), bool(block)))
            key = jax.random.key(i)
            keys = jax.random.split(key, 2)  # the branches' gates, then the channels'
            noise = [
                np.asarray(jax.random.uniform(k, s, minval=np.finfo(float).tiny))
                for k, s in zip(keys, [(), (12,)], strict=True)
            ]
            twin.step(*noise)
            slope = grad(theta, reparam_key=key)
            updates, state = step(slope, state, theta)
            theta = optax.apply_updates(theta, updates)
            np.testing.assert_allclose(theta.price, twin.price, rtol=1e-9)
            np.testing.assert_allclose(theta.channels["hidden"], twin.a, rtol=1e-8)
            np.testing.assert_allclose(theta.weights["a"]["kernel"], twin.w, rtol=1e-8)
        assert len(seen) > 3  # gates did close


def test_kinks_take_the_slope_from_within():
    slope = jax.vmap(jax.grad(hard_concrete))
    edge = float(np.log(11))  # where the stretched sigmoid meets 0 and 1
    inner = 1.2 * (11 / 12) * (1 / 12)
    a = jnp.array([-edge - 0.1, -edge + 1e-3, edge - 1e-3, edge + 0.1, 0.0])
    np.testing.assert_allclose(slope(a), [0, inner, inner, 0, 0.3], rtol=2e-3)


def test_parameters_are_the_default_cost():
    deps, groups, branches = found()
    r = reparam.learned_gates(groups, branches, price=1.0)
    theta = theta_with(r)
    dead = theta._replace(
        channels={g.id: jnp.full(INNER, -99.0) for g in groups},
    )
    total = deps.parameters()
    left = deps.parameters({g.id: 0 for g in groups})
    assert float(r.penalty(dead)) == pytest.approx(left / total, rel=1e-6)
    whole = jax.tree.map(lambda a: a + 99, theta.channels)
    sure = jax.tree.map(lambda a: a + 99, theta.branches)
    full = r.penalty(theta._replace(channels=whole, branches=sure))
    assert float(full) == pytest.approx(1, rel=1e-6)


def test_flattened_and_concatenated_axes():
    """Labels lead each gate to its places, and the cost counts places."""
    first = Group(
        "a", 2, (AxisRef(("w",), 0, "out"), AxisRef(("v",), 0, "in", (0, 1, 0, 1, -1)))
    )
    second = Group(
        "b", 1, (AxisRef(("u",), 0, "out"), AxisRef(("v",), 0, "in", (-1,) * 4 + (0,)))
    )
    params = {"w": jnp.ones(2), "u": jnp.ones(1), "v": jnp.ones((5, 1))}
    r = reparam.learned_gates([first, second], price=1.0)
    theta = r.init(params)._replace(
        channels={"a": jnp.array([0.0, CLOSED]), "b": jnp.array([OPEN])}
    )
    used, mask = r.export(theta)
    np.testing.assert_array_equal(mask["v"][:, 0], [1, 0, 1, 0, 1])
    np.testing.assert_allclose(used["v"][:, 0], [0.5, 0, 0.5, 0, 1])
    np.testing.assert_array_equal(used["w"], [1, 0])
    q = open_probability(jnp.array([0.0, CLOSED, OPEN]))
    n, m = float(q[0] + q[1]), float(q[2])
    assert float(r.penalty(theta)) == pytest.approx((n + m + 2 * n + m) / 8, rel=1e-5)


def test_schedule_moves_the_price():
    r = made(price=optax.linear_schedule(0.0, 2.0, 4))
    theta = r.init(start())
    assert float(theta.price) == 0
    assert float(r.project(theta, theta, jnp.int32(1)).price) == 1.0
    tilted = made(price=0.0, branch_price=2.0)
    q = float(open_probability(theta.branches["0"]))
    assert float(tilted.penalty(theta)) == pytest.approx(2 * q, rel=1e-5)


def test_a_branch_without_groups_closes_by_its_own_price():
    free = {"0": reparam.Branch(("0/outer/scale", "0/outer/bias"))}
    r = reparam.learned_gates([], free, price=5.0, branch_price=2.0)
    theta = r.init(start())
    q = open_probability(theta.branches["0"])
    penalty, pull = jax.value_and_grad(r.penalty)(theta)
    np.testing.assert_allclose(penalty, 5 + 2 * q, rtol=1e-6)  # the whole network: 1
    np.testing.assert_allclose(pull.branches["0"], 2 * q * (1 - q), rtol=1e-6)


def test_errors():
    groups, branches = found()[1:]
    gates = reparam.learned_gates
    with pytest.raises(ValueError, match="Without a `price` or a `target`"):
        gates(groups)
    with pytest.raises(ValueError, match=r"`start` must be in \(0, 1\), got 1"):
        gates(groups, price=1.0, start=1.0)
    with pytest.raises(ValueError, match=r"`target` in \(0, 1\).*got target=1.5"):
        gates(groups, target=1.5)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        gates(groups, price=-1)
    with pytest.raises(ValueError, match="'0/inner/kernel:1' is twice in `groups`"):
        gates([groups[0], groups[0]], price=1.0).init(start())
    with pytest.raises(ValueError, match="There is nothing to gate"):
        gates([], price=1.0).init(start())
    twice = branches | {"2": branches["1"]}
    with pytest.raises(ValueError, match="'1/inner/kernel:1' is inside two `branches`"):
        gates(groups, twice, price=1.0).init(start())
    wrong = {"0": reparam.Branch(("0/outer/gamma",), (groups[0],))}
    with pytest.raises(
        ValueError, match="(?s)paths such as '0/inner/bias'.*0: 0/outer"
    ):
        gates(groups, wrong, price=1.0).init(start())
    free = {"0": reparam.Branch(("0/outer/scale",))}
    with pytest.raises(ValueError, match="Branch '0' has no `inner`, closing it frees"):
        gates(groups, free, price=1.0).init(start())
    text = {"0": reparam.Branch("0/outer/bias")}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'0' .* write `\('0/outer/bias',\)`"):
        gates(groups, text, price=1.0).init(start())
    held = Group("r", WIDTH, (AxisRef(("head",), 0, "stat"),))
    with pytest.raises(ValueError, match="(?s)'r' has no member.*head"):
        gates([held], price=1.0).init(start())


def test_empty_groups_need_leave():
    deps = found()[0]
    r = made()
    theta = theta_with(r, branches={"0": jnp.float32(CLOSED)})
    mask = r.export(theta)[1]
    with pytest.raises(ValueError, match="`allow_empty=True` if the network works"):
        surgery.plan_from_masks(deps, mask)
    mask = jax.tree.map(lambda x: jnp.array(True), start())
    for layer in (mask["stem"], mask["0"]["outer"], mask["1"]["outer"]):
        layer["scale"] = jnp.zeros(WIDTH, bool)
    with pytest.raises(ValueError, match="the output cannot do without"):
        surgery.plan_from_masks(deps, mask, allow_empty=True)


@pytest.mark.slow
def test_heads_units_and_branches_of_a_transformer():
    """Gates of heads and hidden units; an attention and an MLP branch go."""
    last = "Attention_0/MultiHeadDotProductAttention_0"
    with jax.enable_x64(True):
        net = next(n for n in SEQUENCE_NETS if n.name == "ViT (Flax attention)").make()
        deps = surgery.groups(net.apply)(net.variables, *net.args)
        groups, branches = [], {}
        for b in ("Block_0", "Block_1"):
            heads = deps[f"params/{b}/{last}/key/kernel:1"]
            units = deps[f"params/{b}/Dense_0/kernel:1"]
            groups += [heads, units]
            for layer, inner in ((f"{last}/out", heads), ("Dense_1", units)):
                leaves = [f"params/{b}/{layer}/{name}" for name in ("kernel", "bias")]
                branches[f"{b}/{layer}"] = reparam.Branch(tuple(leaves), (inner,))
        r = reparam.learned_gates(groups, branches, price=1.0, cost=deps.flops)
        theta = r.init(net.variables)
        for g in groups:
            theta.channels[g.id] = jnp.where(jnp.arange(g.size) % 2 == 0, 0.5, CLOSED)
        for name in (f"Block_0/{last}/out", "Block_1/Dense_1"):
            theta.branches[name] = jnp.asarray(CLOSED)
        params, mask = r.export(theta)
        plan = surgery.plan_from_masks(deps, mask, allow_empty=True)
        small = jax.jit(surgery.shrink(net.apply, plan))(plan.pack(params), *net.args)
        # Against the gates by hand, in a network from which nothing is taken.
        gated = jax.tree_util.tree_map_with_path(gate_by_hand, net.variables)
        want = jax.jit(net.apply)(gated, *net.args)
    np.testing.assert_allclose(small, want, rtol=1e-9, atol=1e-10)
    shapes = {"/".join(map(str, k)): v for k, v in plan.compact_shapes.items()}
    assert shapes["params/Block_1/Dense_1/kernel"] == (0, 12)
    assert shapes["params/Block_0/Dense_1/kernel"] == (10, 12)
    assert shapes[f"params/Block_1/{last}/out/kernel"] == (2, 4, 12)
    assert shapes[f"params/Block_0/{last}/out/kernel"] == (0, 0, 12)


def gate_by_hand(path, w):
    """A leaf of the transformer; what ends a branch times its gates."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    attends, mixes = "/out/" in name, "Dense_1" in name and "Block" in name
    if not (attends or mixes):
        return w
    if ("Block_0" in name) == attends:
        return np.zeros_like(w)
    channel, branch = (1.2 / (1 + np.exp(-a)) - 0.1 for a in (0.5, np.log(9)))
    if "bias" in name:
        return w * branch
    rows = np.where(np.arange(len(w)) % 2 == 0, channel, 0)
    return w * branch * rows.reshape(-1, *[1] * (w.ndim - 1))
