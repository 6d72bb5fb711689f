"""TPP against hand-computed numbers (g1 to g7, g9, g10) and against a NumPy twin.

The numbers of the singular values (g8) are in tests/analysis/test_trainability.py.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, surgery, transforms
from jprune.surgery import AxisRef, Group
from jprune.transforms._decorrelation import growing_strength

F = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
STAYS = np.array([True, True, False])
KERNEL = Group("h", 3, (AxisRef(("kernel",), 1, "out"),))


def force(kernel, stays, strength=1.0, group=KERNEL, **kwargs):
    """What the penalty adds to a zero gradient."""
    params = {"kernel": jnp.asarray(kernel)}
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = transforms.add_decorrelation(
        [group], {group.id: jnp.asarray(stays)}, strength, **kwargs
    )
    return tx.update(zero, tx.init(params), params)[0]["kernel"]


def gram_loss(kernel, stays):
    """The authors' form: mean squared error to a detached, masked copy of the Gram."""
    gram = kernel.T @ kernel
    target = jnp.where(stays[:, None] & stays[None], jax.lax.stop_gradient(gram), 0)
    return jnp.mean((gram - target) ** 2)


def test_tpp_g1_hand_gradient():
    want = [[0, 0, 0.8888889], [0, 1.7777778, 4.4444447]]
    got = force(F, STAYS, gram=1.0, decay_kernels=False)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    both = force(F, STAYS, 0.5, gram=1.0)  # with the decay of the doomed filter
    np.testing.assert_allclose(both, 0.5 * (np.array(want) + F * ~STAYS), rtol=1e-6)


def test_the_weight_of_the_gram_term_may_be_a_schedule():
    params = {"kernel": jnp.asarray(F)}
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = transforms.add_decorrelation([KERNEL], {"h": STAYS}, 1.0, gram=lambda t: t)
    state = tx.init(params)
    for step in range(3):
        updates, state = tx.update(zero, state, params)
        want = force(F, STAYS, gram=float(step))
        np.testing.assert_allclose(updates["kernel"], want, rtol=1e-6)


def test_tpp_g2_autodiff_of_the_authors_form():
    kernel, stays = jnp.asarray(F), jnp.asarray(STAYS)
    value, gradient = jax.value_and_grad(gram_loss)(kernel, stays)
    np.testing.assert_allclose(value, 24 / 9, rtol=1e-6)
    np.testing.assert_allclose(
        force(F, STAYS, gram=1.0, decay_kernels=False), gradient, rtol=1e-6
    )
    # A convolution: the Gram matrix is over all axes but the filters'.
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 5))
    stays = jnp.array([True, False, True, False, True])
    group = Group("c", 5, (AxisRef(("kernel",), 3, "out"),))
    by_autodiff = jax.grad(lambda k: gram_loss(k.reshape(-1, 5), stays))(kernel)
    got = force(kernel, stays, group=group, gram=1.0, decay_kernels=False)
    np.testing.assert_allclose(got, by_autodiff, rtol=1e-4, atol=1e-4)


def test_tpp_g3_nothing_to_prune():
    np.testing.assert_array_equal(force(F, np.ones(3, bool)), np.zeros((2, 3)))


def test_tpp_g4_orthogonal_filters():
    got = force(np.diag([1.0, 2.0, 3.0]), STAYS, gram=1.0, decay_kernels=False)
    want = np.zeros((3, 3))
    want[2, 2] = 12
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(gram_loss(jnp.diag(jnp.array([1.0, 2, 3])), STAYS), 9)


def test_tpp_g5_norm_term():
    group = Group(
        "n", 2, (AxisRef(("scale",), 0, "scale"), AxisRef(("bias",), 0, "bias"))
    )
    params = {"scale": jnp.array([0.5, 0.5]), "bias": jnp.array([-0.2, -0.2])}
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = transforms.add_decorrelation([group], {"n": jnp.array([False, True])}, 0.3)
    got, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(got["scale"], [0.15, 0], rtol=1e-6)
    np.testing.assert_allclose(got["bias"], [-0.06, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "r, sparsity, gone", [(7, 0.5, 4), (10, 0.99, 9), (10, 0.7, 7)]
)
def test_tpp_g6_count(r, sparsity, gone):
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, r)).astype(np.float32)}
    group = Group("h", r, (AxisRef(("kernel",), 1, "out"),))
    keep = transforms.keep_large_filters(params, [group], sparsity)["h"]
    assert keep.sum() == r - gone
    norm = np.abs(params["kernel"]).sum(0)
    assert norm[keep].min() > norm[~keep].max()


def test_filters_by_group_id():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=(4, 6))}
    groups = [Group(n, 6, (AxisRef((n,), 1, "out"),)) for n in "ab"]
    keep = transforms.keep_large_filters(params, groups, {"b": 0.5})
    assert keep["a"].all() and keep["b"].sum() == 3
    with pytest.raises(ValueError, match=r"'c', which is no group.*\n  a\n  b"):
        transforms.keep_large_filters(params, groups, {"c": 0.5})
    with pytest.raises(ValueError, match="in \\[0, 1\\)"):
        transforms.keep_large_filters(params, groups, 1.0)


def test_tpp_g7_schedule():
    cifar = growing_strength(100_000, every=10)
    steps = [0, 9, 10, 100_000, 200_000]
    np.testing.assert_allclose(
        [float(cifar(t)) for t in steps], [0, 0, 1e-4, 1, 1], rtol=1e-6
    )
    imagenet = growing_strength(50_000, every=5)
    assert float(imagenet(49_999)) < 1 == float(imagenet(50_000))
    np.testing.assert_allclose(jax.jit(imagenet)(25_004), 0.5, rtol=1e-6)


def conv_net(v, x):
    """Conv with bias, norm, ReLU, a residual head: the first conv's channels may go."""
    p, s = v["params"], v["stats"]
    dims = ("NHWC", "HWIO", "NHWC")

    def wide(a):
        return a[None, None, None]

    y = jax.lax.conv_general_dilated(
        x, p["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=dims
    )
    y = (y + wide(p["conv"]["bias"]) - wide(s["mean"])) / jnp.sqrt(wide(s["var"]))
    y = jax.nn.relu(y * wide(p["norm"]["scale"]) + wide(p["norm"]["bias"]))
    y = jax.lax.conv_general_dilated(
        y, p["next"]["kernel"], (1, 1), "SAME", dimension_numbers=dims
    )
    return jnp.mean(y, (1, 2))


def conv_variables():
    rng = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "params": {
            "conv": {"kernel": draw(3, 3, 2, 6), "bias": draw(6)},
            "norm": {"scale": draw(6), "bias": draw(6)},
            "next": {"kernel": draw(3, 3, 6, 4)},
        },
        "stats": {"mean": draw(6), "var": jnp.abs(draw(6)) + 0.5},
    }


def test_tpp_g9_lossless_cut():
    variables = conv_variables()
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 2))
    deps = surgery.groups(conv_net)(variables, x)
    group = next(g for g in deps if g.kind == "coupled")
    params = variables["params"]
    keeps = transforms.keep_large_filters(params, [group], 0.5)
    tx = transforms.prune_in_turn([group], keeps, begin=0, every=0)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    done = {**variables, "params": optax.apply_updates(params, updates)}
    plan = surgery.plan_from_keep(deps, keeps)
    small = surgery.shrink(conv_net, plan)
    np.testing.assert_allclose(
        small(plan.pack(done), x), conv_net(done, x), rtol=1e-5, atol=1e-6
    )
    assert plan.pack(done)["params"]["conv"]["kernel"].shape == (3, 3, 2, 3)


def test_tpp_g10_layers_in_turn():
    groups = [Group(n, 2, (AxisRef((n,), 1, "out"),)) for n in "abcd"]
    keep = dict.fromkeys("dcba", jnp.array([True, False]))
    tx = transforms.prune_in_turn(groups, keep, begin=30, every=100)
    params = {n: jnp.ones((2, 2)) for n in "abcd"}
    transforms.check(tx, params)
    zero = jax.tree.map(jnp.zeros_like, params)
    state, update = tx.init(params), jax.jit(tx.update)
    for offset, due in [(0, 0), (99, 0), (100, 1), (250, 2), (399, 3), (400, 4)]:
        at = state._replace(count=jnp.int32(30 + offset))
        updates, following = update(zero, at, params)
        new = optax.apply_updates(params, updates)
        zeroed = [bool(jnp.all(new[n][:, 1] == 0)) for n in "abcd"]
        assert zeroed == [i < due for i in range(4)]
        assert all(bool(jnp.all(new[n][:, 0] == 1)) for n in "abcd")
        assert int(following.count) == 31 + offset


TWIN = [
    Group(
        "a",
        5,
        (
            AxisRef(("a", "kernel"), 3, "out"),
            AxisRef(("a", "bias"), 0, "bias"),
            AxisRef(("a", "scale"), 0, "scale"),
            AxisRef(("b", "kernel"), 0, "in"),
        ),
    ),
    Group("b", 4, (AxisRef(("b", "kernel"), 1, "out"),)),
]


def test_tpp_twin_60_steps():
    """Ramp, plateau and turns in float64 against NumPy; equal zeros at every step."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        theirs = {
            "a": {
                "kernel": 0.4 * rng.normal(size=(3, 3, 2, 5)),
                "bias": rng.normal(size=5),
                "scale": rng.normal(size=5),
            },
            "b": {"kernel": 0.4 * rng.normal(size=(5, 4))},
        }
        ours = jax.tree.map(jnp.asarray, theirs)
        stay = {"a": np.array([1, 0, 1, 0, 1], bool), "b": np.array([0, 1, 1, 1], bool)}
        lr, mu, eta, c, grow, settle, interval = 0.02, 0.9, 1e-2, 3.0, 40, 20, 7
        tx = transforms.tpp(
            lr,
            TWIN,
            jax.tree.map(jnp.asarray, stay),
            total_steps=grow + settle,
            end=grow,
            every=4,
            gram=c,
            weight_decay=eta,
            interval=interval,
            momentum=mu,
        )
        state, update = tx.init(ours), jax.jit(tx.update)
        velocity = jax.tree.map(np.zeros_like, theirs)
        for t in range(grow + settle):
            lam = min((t // 4) * 4 / grow, 1.0)
            grads = jax.tree.map(lambda w: 0.1 * rng.normal(size=w.shape), theirs)
            updates, state = update(grads, state, ours)
            ours = optax.apply_updates(ours, updates)
            for turn, name in enumerate("ab"):
                m = stay[name]
                for leaf, w in theirs[name].items():
                    d = grads[name][leaf] + lam * w * ~m + eta * w
                    if leaf == "kernel":
                        flat = w.reshape(-1, m.size)
                        masked = (flat.T @ flat) * (1 - np.outer(m, m))
                        term = 4 / m.size**2 * c * lam * flat @ masked
                        d = d + term.reshape(w.shape)
                    velocity[name][leaf] = mu * velocity[name][leaf] + d
                    new = w - lr * velocity[name][leaf]
                    if t - grow >= (turn + 1) * interval:
                        new[..., ~m] = 0
                    theirs[name][leaf] = new
            # The schedule of the strength is float32.
            chex.assert_trees_all_close(ours, theirs, rtol=1e-6, atol=1e-7)
            zeros = jax.tree.map(lambda w: np.asarray(w) == 0, (ours, theirs))
            chex.assert_trees_all_equal(*zeros)
        assert not np.any(theirs["b"]["kernel"][:, ~stay["b"]])


def test_decorrelation_turns_the_doomed_filter_away_from_those_that_stay():
    kernel = jax.random.normal(jax.random.key(2), (8, 4))
    stays = jnp.array([True, True, True, False])
    group = Group("h", 4, (AxisRef(("kernel",), 1, "out"),))
    tx = optax.chain(
        transforms.add_decorrelation([group], {"h": stays}, 1.0, gram=1.0),
        optax.sgd(0.05),
    )
    params = {"kernel": kernel}
    zero = jax.tree.map(jnp.zeros_like, params)

    def body(carry, _):
        updates, state = tx.update(zero, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    start = (params, tx.init(params))
    (end, _), _ = jax.jit(lambda c: jax.lax.scan(body, c, length=500))(start)
    gram = np.asarray(end["kernel"].T @ end["kernel"])
    assert np.abs(gram[3]).max() < 1e-6
    assert np.abs(np.diag(gram)[:3]).min() > 0.5


def test_groups_that_share_an_axis_and_heads():
    """A fused kernel holds two groups; heads and inner size are axes of one kernel."""
    q = Group("q", 2, (AxisRef(("w",), 1, "out", (0, 1, -1, -1)),))
    k = Group("k", 2, (AxisRef(("w",), 1, "out", (-1, -1, 0, 1)),))
    w = jax.random.normal(jax.random.key(0), (3, 4))
    keeps = {"k": jnp.array([False, True]), "q": jnp.array([True, False])}
    tx = transforms.add_decorrelation([q, k], keeps, 1.0, gram=1.0)
    zero = {"w": jnp.zeros_like(w)}
    got, _ = tx.update(zero, tx.init({"w": w}), {"w": w})
    stays = jnp.array([True, False, False, True])
    want = jax.grad(gram_loss)(w, stays) + jnp.where(stays[None], 0, w)
    np.testing.assert_allclose(got["w"], want, rtol=1e-4, atol=1e-5)


def test_errors():
    params = {"kernel": jnp.asarray(F)}
    stays = {KERNEL.id: jnp.asarray(STAYS)}
    with pytest.raises(
        ValueError, match=r"bool vector of 3 .* got bool of shape \(2,\)"
    ):
        transforms.add_decorrelation([KERNEL], {KERNEL.id: jnp.ones(2, bool)}, 1.0)
    for numbers in (np.array([1, 1, 0]), jnp.array([1.0, 1.0, 0.0])):
        with pytest.raises(ValueError, match="bool vector .* True = keep; got (i|f)"):
            transforms.add_decorrelation([KERNEL], {KERNEL.id: numbers}, 1.0)
        with pytest.raises(ValueError, match="bool vector .* True = keep; got (i|f)"):
            transforms.prune_in_turn([KERNEL], {KERNEL.id: numbers}, begin=0)
    with pytest.raises(ValueError, match="has no member"):
        transforms.add_decorrelation([KERNEL], stays, 1.0).init({"x": params["kernel"]})
    with pytest.raises(ValueError, match="has no member"):
        transforms.prune_in_turn([KERNEL], stays, begin=0).init({"x": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="must not be negative"):
        transforms.prune_in_turn([KERNEL], stays, begin=-1)
    with pytest.raises(ValueError, match="at least 1"):
        growing_strength(0)
    with pytest.raises(ValueError, match="`total_steps` - `end` = 109 - 9 must exceed"):
        transforms.tpp(0.1, [KERNEL], stays, total_steps=109, end=9, weight_decay=0.0)


def test_recipe_ends_with_the_doomed_at_zero():
    stays = {KERNEL.id: jnp.asarray(STAYS)}
    tx = transforms.tpp(
        0.01,
        [KERNEL],
        stays,
        total_steps=6,
        end=3,
        interval=1,
        every=1,
        weight_decay=0.1,
    )
    params = {"kernel": jnp.asarray(F) + 0.5}
    transforms.check(tx, params)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(6):
        updates, state = update({"kernel": jnp.ones((2, 3))}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["kernel"][:, 2], 0)
    assert int(masks.count(masks.from_zeros(params))) == 4
