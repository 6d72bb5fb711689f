"""SWD against hand-computed numbers (g1 to g10) and against a NumPy twin."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, scores, surgery, transforms
from jprune.surgery import AxisRef, Group

A, B = [0.5, -0.1, 0.3], [-0.05, 2.0, -0.2]


def two_leaves():
    return {"a": jnp.array([A]), "b": jnp.array([B])}


def follow(tx, params, grads, steps):
    """Parameters after each step; `grads` maps parameters to gradients."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads(params), state, params)
        return optax.apply_updates(params, updates), state

    state, path = tx.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        path.append(params)
    return path


def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def test_swd_g1_schedule():
    a = optax.exponential_decay(0.1, 6, 1e5 / 0.1)
    got = [float(a(t)) for t in range(7)]
    np.testing.assert_allclose(got, [0.1, 1, 10, 100, 1e3, 1e4, 1e5], rtol=1e-5)
    assert all(np.diff(got) > 0)
    flat = optax.exponential_decay(3.0, 6, 1.0)
    assert [float(flat(t)) for t in (0, 3, 6)] == [3.0, 3.0, 3.0]


def test_swd_g2_selection():
    kept = masks.unstructured(two_leaves(), 0.5)
    np.testing.assert_array_equal(kept["a"], [[True, False, True]])
    np.testing.assert_array_equal(kept["b"], [[False, True, False]])


def test_swd_g3_added_gradient_is_that_of_the_loss():
    params = two_leaves()
    tx = transforms.add_selective_decay(0.01, 10.0, sparsity=0.5)
    added, _ = tx.update(zeros(params), tx.init(params), params)
    np.testing.assert_allclose(added["a"], [[0, -0.01, 0]], rtol=1e-6)
    np.testing.assert_allclose(added["b"], [[-0.005, 0, -0.02]], rtol=1e-6)
    assert added["a"][0, 0] == 0 and added["b"][0, 1] == 0

    kept = masks.unstructured(params, 0.5)

    def penalty(p):
        targeted = masks.apply(jax.tree.map(jnp.logical_not, kept), p)
        return 0.5 * 0.01 * 10 * sum(jnp.sum(x**2) for x in jax.tree.leaves(targeted))

    np.testing.assert_allclose(penalty(params), 0.002625, rtol=1e-5)
    chex.assert_trees_all_close(jax.grad(penalty)(params), added, rtol=1e-6)


def coupled(sparsity, mu=0.01, a=10.0, lr=0.1):
    return optax.chain(
        optax.add_decayed_weights(mu),
        transforms.add_selective_decay(mu, a, sparsity=sparsity),
        optax.sgd(lr, momentum=0.9),
    )


def test_swd_g4_momentum():
    path = follow(coupled(0.5), two_leaves(), zeros, 3)
    targeted = [float(p["a"][0, 1]) / -0.1 for p in path]
    kept = [float(p["a"][0, 0]) / 0.5 for p in path]
    np.testing.assert_allclose(targeted, [0.989, 0.968221, 0.938869469], rtol=1e-5)
    np.testing.assert_allclose(kept, [0.999, 0.997101, 0.994394799], rtol=1e-5)
    two = path[1]
    np.testing.assert_allclose(
        two["a"], [[0.4985505, -0.0968221, 0.2991303]], rtol=1e-5
    )
    np.testing.assert_allclose(
        two["b"], [[-0.0484111, 1.994202, -0.1936442]], rtol=1e-5
    )


@pytest.mark.parametrize(
    "a, fixed", [(0.1, 0.98912), (10, 0.900901), (1e3, 0.0908265), (1e5, 9.98991e-4)]
)
def test_swd_g5_fixed_point(a, fixed):
    params = {"w": jnp.array([[1.0]])}
    tx = optax.chain(
        optax.add_decayed_weights(0.01),
        transforms.add_selective_decay(
            0.01, a, select=lambda p: {"w": jnp.zeros((1, 1), bool)}
        ),
        optax.sgd(0.5 / (1 + 0.01 * (1 + a))),
    )
    path = follow(tx, params, lambda p: {"w": p["w"] - 1.0}, 60)
    np.testing.assert_allclose(path[-1]["w"], fixed, rtol=1e-5)


@pytest.mark.parametrize(
    "a_max, lr, w1, bound", [(1e3, 0.1, 0.02725, 0.0273), (1e5, 1e-3, 3e-4, 3.1e-4)]
)
def test_swd_g6_removal_is_harmless(a_max, lr, w1, bound):
    tx = transforms.swd(
        lr,
        mu=0.01,
        a_min=0.1,
        a_max=a_max,
        total_steps=6000,
        sparsity=0.5,
        remove=False,
    )
    params = {"w": jnp.array([[1.0, 0.3]])}
    goal = params["w"]

    def body(carry, _):
        params, state = carry
        updates, state = tx.update({"w": params["w"] - goal}, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(
        lambda p: jax.lax.scan(body, (p, tx.init(p)), length=6000)
    )(params)
    np.testing.assert_allclose(params["w"][0, 0], 0.990099, rtol=1e-3)
    np.testing.assert_allclose(params["w"][0, 1], w1, rtol=1e-2)
    cut, _ = transforms.finish(params, lambda p: masks.unstructured(p, 0.5))
    assert float(jnp.max(jnp.abs(cut["w"] - params["w"]))) <= bound


def test_swd_g7_finish_keeps_the_accuracy():
    """A small MLP on separable blobs: with a_max = 1e5 removal moves no logit."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 12)) * 2
    y = np.arange(400) % 4
    x = jnp.asarray(centers[y] + rng.normal(size=(400, 12)), jnp.float32)
    params = {
        "a": jnp.asarray(rng.normal(size=(12, 32)) * 0.4, jnp.float32),
        "b": jnp.asarray(rng.normal(size=(32, 4)) * 0.25, jnp.float32),
    }

    def logits(p):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    def loss(p):
        return optax.softmax_cross_entropy_with_integer_labels(logits(p), y).mean()

    def train(a_max):
        tx = transforms.swd(
            optax.cosine_decay_schedule(0.1, 1500),
            mu=5e-3,
            a_min=0.1 if a_max > 1 else a_max,
            a_max=a_max,
            total_steps=1500,
            sparsity=0.9,
            remove=False,
        )

        def body(carry, _):
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p), state, p)
            return (optax.apply_updates(p, updates), state), None

        run = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=1500))
        (p, _), _ = run(params)
        cut, mask = transforms.finish(p, lambda p: masks.unstructured(p, 0.9))
        assert int(masks.count(mask)) == masks.kept_count(512, 0.9)
        return p, cut

    def accuracy(p):
        return float(jnp.mean(jnp.argmax(logits(p), -1) == y))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained, cut = train(1e5)
        plain, plain_cut = train(1e-6)
    assert abs(accuracy(trained) - accuracy(cut)) <= 0.001
    assert float(jnp.max(jnp.abs(logits(trained) - logits(cut)))) < 0.01
    assert float(jnp.max(jnp.abs(logits(plain) - logits(plain_cut)))) > 1.0


def test_swd_g8_set_is_dynamic():
    goal = jnp.array([[0.2, 1.5]])
    params = {"w": jnp.array([[1.0, 0.1]])}
    tx = coupled(0.5, mu=1e-3, a=10.0)
    first = masks.unstructured(params, 0.5)["w"]
    path = follow(tx, params, lambda p: {"w": p["w"] - goal}, 40)
    last = masks.unstructured(path[-1], 0.5)["w"]
    np.testing.assert_array_equal(first, [[True, False]])
    np.testing.assert_array_equal(last, [[False, True]])
    penalty = transforms.add_selective_decay(1e-3, 10.0, sparsity=0.5)
    added, _ = penalty.update(zeros(params), penalty.init(params), path[-1])
    assert float(added["w"][0, 1]) == 0 and float(added["w"][0, 0]) != 0


def bn_groups():
    """Two batch norms of two channels, with their conv kernels (HWIO)."""

    def group(bn, conv):
        return Group(
            id=bn,
            size=2,
            members=(
                AxisRef((bn, "scale"), 0, "scale"),
                AxisRef((bn, "bias"), 0, "bias"),
                AxisRef((conv, "kernel"), 3, "out"),
            ),
        )

    groups = (group("bn1", "conv1"), group("bn2", "conv2"))
    params = {
        "bn1": {"scale": jnp.array([0.9, 0.05]), "bias": jnp.array([1.0, 2.0])},
        "bn2": {"scale": jnp.array([0.4, 0.01]), "bias": jnp.array([3.0, 4.0])},
        "conv1": {"kernel": jnp.ones((3, 3, 3, 2))},
        "conv2": {"kernel": jnp.ones((3, 3, 2, 2))},
    }
    return groups, params


@pytest.mark.parametrize("roles", [("scale", "bias"), ("scale", "bias", "out")])
def test_swd_g9_structured(roles):
    groups, params = bn_groups()

    def select(p):
        gammas = scores.over_groups(p, groups, roles=("scale",), raw=True)
        keeps = masks.unstructured(gammas, 0.5, scope=".")
        return masks.from_groups(p, groups, keeps, roles=roles)

    tx = transforms.add_selective_decay(0.01, 10.0, select=select)
    added, _ = tx.update(zeros(params), tx.init(params), params)
    np.testing.assert_allclose(added["bn1"]["scale"], [0, 0.1 * 0.05], rtol=1e-6)
    np.testing.assert_allclose(added["bn2"]["scale"], [0, 0.1 * 0.01], rtol=1e-6)
    np.testing.assert_allclose(added["bn1"]["bias"], [0, 0.2], rtol=1e-6)
    np.testing.assert_allclose(added["bn2"]["bias"], [0, 0.4], rtol=1e-6)
    kernel = np.zeros((3, 3, 3, 2))
    if "out" in roles:
        kernel[..., 1] = 0.1
    np.testing.assert_allclose(added["conv1"]["kernel"], kernel, rtol=1e-6)


def test_swd_g9_parameter_budget():
    """conv 3x3 3->2, BN(2), dense 2->10 with bias: 88 parameters, 49 with one."""

    def net(p, x):
        h = jax.lax.conv_general_dilated(
            x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = h * p["gamma"][None, None, None] + p["beta"][None, None, None]
        return jnp.mean(h, (1, 2)) @ p["w"] + p["bias"][None]

    shapes = {"k": (3, 3, 3, 2), "gamma": (2,), "beta": (2,), "w": (2, 10)}
    params = {n: jnp.ones(s) for n, s in (shapes | {"bias": (10,)}).items()}
    params["gamma"] = jnp.array([0.9, 0.05])
    deps = surgery.groups(net)(params, jnp.ones((1, 4, 4, 3)))
    name = deps[0].id
    assert deps.parameters() == 88 and deps.parameters({name: 1}) == 49

    @jax.jit
    def choose(p):
        gammas = scores.over_groups(p, deps, roles=("scale",), raw=True)
        return surgery.choose(deps, gammas, params=49 / 88, ranking="global")

    np.testing.assert_array_equal(choose(params)[name], [True, False])


def test_swd_g10_sparsity_zero_is_plain_sgd():
    params = two_leaves()
    plain = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    grads = lambda p: jax.tree.map(jnp.sin, p)  # noqa: E731
    want = follow(plain, params, grads, 5)
    got = follow(coupled(0.0), params, grads, 5)
    chex.assert_trees_all_equal(got, want)


def numpy_keep(leaves, keep):
    """The `keep` largest magnitudes over all leaves, ties by position."""
    flat = np.concatenate([np.abs(x).ravel() for x in leaves])
    order = np.argsort(-flat, kind="stable")
    mask = np.zeros(flat.size, bool)
    mask[order[:keep]] = True
    cuts = np.cumsum([x.size for x in leaves])[:-1]
    parts = np.split(mask, cuts)
    return [m.reshape(x.shape) for m, x in zip(parts, leaves, strict=True)]


def test_swd_twin_50_steps():
    """A whole run in float64 against NumPy: equal masks at every step, then removal."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        shapes = [(12, 16), (16, 8)]
        x, y = rng.normal(size=(40, 12)), rng.normal(size=(40, 8))
        params = [rng.normal(size=s) * 0.3 for s in shapes]
        T, mu, lr, beta, a_min, a_max = 50, 1e-3, 0.05, 0.9, 0.5, 2e3
        n = sum(p.size for p in params)
        keep = n - int(np.floor(0.9 * n + 0.5))

        def loss(p):
            return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - y) ** 2)

        grad = jax.jit(jax.grad(loss))
        tx = transforms.swd(
            lr, mu=mu, a_min=a_min, a_max=a_max, total_steps=T, sparsity=0.9
        )
        ours = {"a": jnp.asarray(params[0]), "b": jnp.asarray(params[1])}
        state = tx.init(ours)
        step = jax.jit(tx.update)
        ranked = jax.jit(lambda p: masks.unstructured(p, 0.9))

        theirs, z = [p.copy() for p in params], [np.zeros(s) for s in shapes]
        for t in range(T):
            kept = numpy_keep(theirs, keep)
            mine = ranked(ours)
            np.testing.assert_array_equal(mine["a"], kept[0])
            np.testing.assert_array_equal(mine["b"], kept[1])
            g = [np.asarray(v) for v in grad({"a": theirs[0], "b": theirs[1]}).values()]
            a = a_min * (a_max / a_min) ** (t / T)
            for i in range(2):
                d = g[i] + mu * theirs[i] + mu * a * theirs[i] * ~kept[i]
                z[i] = beta * z[i] + d
                theirs[i] = theirs[i] - lr * z[i]
            updates, state = step(grad(ours), state, ours)
            ours = optax.apply_updates(ours, updates)
            if t == T - 1:
                theirs = [np.where(m, w, 0) for m, w in zip(kept, theirs, strict=True)]
            # Optax evaluates the schedule of the strength in float32.
            np.testing.assert_allclose(ours["a"], theirs[0], rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(ours["b"], theirs[1], rtol=1e-4, atol=1e-7)
        assert int(masks.count(masks.from_zeros(ours))) == keep


def test_state_is_a_few_scalars():
    params = {"w": jnp.ones((64, 64))}
    tx = transforms.add_selective_decay(0.01, 1.0, sparsity=0.5)
    assert sum(x.size for x in jax.tree.leaves(tx.init(params))) <= 8


def test_decoupled_reaches_zero_under_adam():
    """After the preconditioner the penalty keeps its size; before it, it does not."""
    params = {"w": jnp.array([[1.0, 0.05]])}
    penalty = transforms.add_selective_decay(0.1, 50.0, sparsity=0.5)
    decoupled = optax.chain(optax.scale_by_adam(), penalty, optax.scale(-0.05))
    coupled_tx = optax.chain(penalty, optax.scale_by_adam(), optax.scale(-0.05))
    after = follow(decoupled, params, zeros, 30)[-1]["w"]
    before = follow(coupled_tx, params, zeros, 1)[-1]["w"]
    assert abs(float(after[0, 1])) < 1e-3 and float(after[0, 0]) == 1.0
    # Adam's first step has size lr whatever the penalty's strength.
    np.testing.assert_allclose(before[0, 1], 0.05 - 0.05, atol=1e-6)


def test_every_keeps_the_mask_between_refreshes():
    params = {"w": jnp.array([[1.0, 0.1]])}
    tx = transforms.add_selective_decay(0.1, 1.0, sparsity=0.5, every=2)
    state = tx.init(params)
    _, state = tx.update(zeros(params), state, params)
    swapped = {"w": params["w"][:, ::-1]}
    added, state = tx.update(zeros(params), state, swapped)
    assert float(added["w"][0, 1]) != 0 and float(added["w"][0, 0]) == 0
    added, state = tx.update(zeros(params), state, swapped)
    assert float(added["w"][0, 0]) != 0 and float(added["w"][0, 1]) == 0


def test_stability_warning_uses_both_schedules():
    decayed = optax.cosine_decay_schedule(0.1, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transforms.swd(
            decayed, mu=1e-3, a_min=1.0, a_max=2e5, total_steps=100, sparsity=0.5
        )
    with pytest.warns(UserWarning, match=r"unstable at step 99.*= 22.1 >= 3.8"):
        transforms.swd(
            0.1, mu=1e-3, a_min=1.0, a_max=2.5e5, total_steps=100, sparsity=0.5
        )


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, "exactly one of"),
        ({"sparsity": 0.5, "keep": 3}, "exactly one of"),
        ({"sparsity": 0.5, "every": 0}, "`every` must be at least 1"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        transforms.add_selective_decay(0.01, 1.0, **kwargs)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        transforms.add_selective_decay(0.01, 1.0, sparsity=sparsity)


def test_scope_that_matches_nothing():
    tx = transforms.add_selective_decay(0.01, 1.0, sparsity=0.5, scope="attention")
    with pytest.raises(ValueError, match="`scope`='attention' matches no leaf"):
        tx.init(two_leaves())


def test_bad_strengths():
    with pytest.raises(ValueError, match="0 < a_min <= a_max"):
        transforms.swd(0.1, mu=1e-3, a_min=0.0, total_steps=9, sparsity=0.5)


def test_an_optimizer_as_learning_rate_is_an_error():
    with pytest.raises(TypeError, match="`learning_rate`.*add_selective_decay"):
        transforms.swd(optax.adam(1e-3), mu=1e-4, total_steps=4, sparsity=0.5)
