"""ASWL: the numbers of its specification, a twin, and the caution about norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jprune import reparam
from jprune.reparam._learned_attention import AttentionTheta, pruning_ratio, remaining
from tests.reparam import twins


def theta_of(weights, **attention):
    return AttentionTheta(
        weights, {name: jnp.float32(a) for name, a in attention.items()}
    )


@pytest.mark.parametrize(
    "alpha, a, p",
    [(2, 0.5, 0.25), (2, 0.2, 0.64), (1, 0.5, 0.5), (1, 0.2, 0.8), (1, 1, 0)]
    + [(2, 1, 0), (0.5, 1, 0), (0.5, 0.75, 0.5), (1, 0.01, 0.99)],
)
def test_aswl_g1_ratios(alpha, a, p):
    got, slope = jax.value_and_grad(pruning_ratio)(jnp.float32(a), alpha)
    np.testing.assert_allclose(got, p, rtol=1e-6)
    if a < 1:
        np.testing.assert_allclose(slope, -alpha * (1 - a) ** (alpha - 1), rtol=1e-5)
    assert jnp.isfinite(slope)


def test_aswl_g2_penalty():
    sizes = {"a": 100, "b": 300}
    attention = {"a": jnp.float32(0.5), "b": jnp.float32(0.2)}
    left = remaining(attention, sizes, alpha=2)
    np.testing.assert_allclose(left, 0.4575, rtol=1e-6)
    slopes = jax.grad(lambda a: remaining(a, sizes, alpha=2) ** 2)(attention)
    np.testing.assert_allclose(slopes["a"], 0.22875, rtol=1e-5)
    np.testing.assert_allclose(slopes["b"], 1.098, rtol=1e-5)
    r = reparam.learned_attention(gamma=5, alpha=2, decay=0.0)
    theta = AttentionTheta(
        {"a": jnp.ones((10, 10)), "b": jnp.ones((10, 30))}, attention
    )
    np.testing.assert_allclose(r.penalty(theta), 1.04653125, rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(r.penalty)(theta).attention["b"], 5 * 1.098, rtol=1e-5
    )


@pytest.mark.parametrize(
    "w, kept",
    [([0.5, -0.1, 0.3, -0.05], [1, 0, 1, 0]), ([-0.5, -0.4, 0.1, 0.2], [1, 1, 0, 0])],
)
def test_aswl_g3_mask(w, kept):
    r = reparam.learned_attention(start=0.5)
    params, mask = r.export(r.init({"kernel": jnp.array([w])}))
    np.testing.assert_array_equal(mask["kernel"], np.array([kept], bool))
    np.testing.assert_allclose(params["kernel"], 0.5 * np.array([w]) * kept, rtol=1e-6)


def test_aswl_g4_straight_through_step():
    r = reparam.learned_attention(gamma=0, decay=0.0)
    theta = theta_of({"kernel": jnp.array([[1.0], [0.2]])}, kernel=0.5)
    x = jnp.ones((1, 2))

    def loss(params):
        return jnp.sum(0.5 * (x @ params["kernel"] - 1) ** 2)

    assert float((x @ r.apply(theta)["kernel"])[0, 0]) == 0.5
    pull = jax.grad(reparam.wrap(loss, r))(theta)
    np.testing.assert_allclose(pull.weights["kernel"][:, 0], [-0.25, -0.25], rtol=1e-6)
    np.testing.assert_allclose(pull.attention["kernel"], -0.5, rtol=1e-6)
    after = jax.tree.map(lambda p, g: p - 0.1 * g, theta, pull)
    np.testing.assert_allclose(after.weights["kernel"][:, 0], [1.025, 0.225], rtol=1e-6)
    np.testing.assert_allclose(after.attention["kernel"], 0.55, rtol=1e-6)


def test_aswl_g5_folding_keeps_the_output():
    r = reparam.learned_attention(alpha=2)
    params = jax.tree.map(jnp.float32, twins.start())
    theta = r.init(params)._replace(
        attention={"a/kernel": jnp.float32(0.6), "b/kernel": jnp.float32(0.3)}
    )
    exported, mask = r.export(theta)
    x = jnp.asarray(twins.X, jnp.float32)
    kept = jax.tree.map(jnp.multiply, mask, params)
    hidden = 0.6 * (x @ kept["a"]["kernel"] + params["a"]["bias"][None])
    want = 0.3 * (jnp.tanh(hidden) @ kept["b"]["kernel"])
    plain = jnp.tanh(x @ exported["a"]["kernel"] + exported["a"]["bias"][None])
    np.testing.assert_allclose(plain @ exported["b"]["kernel"], want, atol=1e-6)
    np.testing.assert_allclose(exported["a"]["bias"], 0.6 * params["a"]["bias"], 1e-6)


def train(r, steps, lr=0.05, momentum=0.9, loss=twins.loss, params=None):
    params = jax.tree.map(jnp.float32, twins.start()) if params is None else params
    tx = optax.chain(optax.sgd(lr, momentum), reparam.projection(r))
    grad = jax.grad(reparam.wrap(loss, r))

    def body(carry, _):
        theta, state = carry
        updates, state = tx.update(grad(theta), state, theta)
        theta = optax.apply_updates(theta, updates)
        return (theta, state), jnp.stack(list(theta.attention.values()))

    theta = r.init(params)
    run = jax.jit(lambda t: jax.lax.scan(body, (t, tx.init(t)), length=steps))
    (theta, _), path = run(theta)
    return theta, path


@pytest.mark.slow
def test_aswl_g6_larger_gamma_prunes_more():
    shares = []
    for gamma in (0.0, 0.02, 0.1):  # from 1 on attention falls to its floor
        r = reparam.learned_attention(gamma=gamma, decay=0.0)
        theta, _ = train(r, 150, lr=0.005)
        sizes = {"a/kernel": 96, "b/kernel": 48}
        shares.append(float(remaining(theta.attention, sizes)))
    assert shares[0] > shares[1] > shares[2], shares


@pytest.mark.slow
def test_aswl_g6_attention_frozen_at_one_is_plain_training():
    r = reparam.learned_attention(gamma=0.0, decay=0.0, start=1.0)
    frozen = r._replace(
        project=lambda new, old, step: new._replace(attention=old.attention)
    )
    theta, _ = train(frozen, 20)
    plain = reparam.straight_through(
        lambda p: jax.tree.map(lambda x: jnp.array(True), p)
    )
    tx = optax.sgd(0.05, 0.9)
    params = jax.tree.map(jnp.float32, twins.start())
    grad = jax.grad(reparam.wrap(twins.loss, plain))

    def body(carry, _):
        p, state = carry
        updates, state = tx.update(grad(p), state, p)
        return (optax.apply_updates(p, updates), state), None

    (params, _), _ = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=20))(
        params
    )
    jax.tree.map(np.testing.assert_array_equal, theta.weights, params)


def test_aswl_g7_target_and_g8_clips():
    """The penalty alone finds its target density; clips hold all the way."""
    r = reparam.learned_attention(target=0.3, decay=0.0)
    theta, path = train(r, 400, lr=0.1, momentum=0.0, loss=lambda p: 0.0)
    left = remaining(theta.attention, {"a/kernel": 96, "b/kernel": 48})
    assert abs(float(left) - 0.3) < 0.01
    assert 0.01 - 1e-7 <= float(path.min()) and float(path.max()) <= 1


def test_aswl_g8_clips_under_a_violent_rate():
    r = reparam.learned_attention(gamma=50.0, decay=0.0)
    theta, path = train(r, 30, lr=0.5, momentum=0.0, loss=lambda p: 0.0)
    assert 0.01 - 1e-7 <= float(path.min()) < 0.02 and float(path.max()) <= 1
    _, mask = r.export(theta)
    for kernel in (mask["a"]["kernel"], mask["b"]["kernel"]):
        assert 1 <= int(jnp.sum(kernel)) and float(jnp.mean(~kernel)) <= 0.99
    once = r.project(theta._replace(attention={"a": jnp.float32(-3)}), theta, 0)
    assert float(once.attention["a"]) == np.float32(0.01)


def test_aswl_twin():
    """Both clips, decay and the moving counts against NumPy: 25 steps, equal masks."""
    with jax.enable_x64(True):
        gamma, alpha, decay, lr = 0.6, 2, 1e-3, 0.02
        r = reparam.learned_attention(gamma=gamma, alpha=alpha, decay=decay)
        theta = r.init(jax.tree.map(jnp.asarray, twins.start()))
        tx = optax.chain(optax.sgd(lr), reparam.projection(r))
        state, step, export = tx.init(theta), jax.jit(tx.update), jax.jit(r.export)
        grad = jax.jit(jax.grad(reparam.wrap(twins.loss, r)))

        p = twins.start()
        w, c = [p["a"]["kernel"], p["b"]["kernel"]], p["a"]["bias"]
        att, n = np.array([0.5, 0.5]), np.array([96, 48])
        seen = set()
        for _ in range(25):
            ratio = np.clip((1 - np.clip(att, 0.01, 1)) ** alpha, 0, 0.99)
            kept = [
                twins.smallest_out([x], m - min(int(m * q), m - 1))[0]
                for x, m, q in zip(w, n, ratio, strict=True)
            ]
            seen.add(int(kept[0].sum()))
            _, mask = export(theta)
            np.testing.assert_array_equal(mask["a"]["kernel"], kept[0])
            np.testing.assert_array_equal(mask["b"]["kernel"], kept[1])
            cut = [x * k for x, k in zip(w, kept, strict=True)]
            ga, gc, gb = twins.gradients(att[0] * cut[0], att[0] * c, att[1] * cut[1])
            left = np.sum((1 - ratio) * n) / n.sum()
            push = gamma * 2 * left * n / n.sum() * alpha * (1 - att) ** (alpha - 1)
            push += [np.sum(ga * cut[0]) + np.sum(gc * c), np.sum(gb * cut[1])]
            w[0] = w[0] - lr * (att[0] * ga + 2 * decay * cut[0])
            w[1] = w[1] - lr * (att[1] * gb + 2 * decay * cut[1])
            c, att = c - lr * att[0] * gc, np.clip(att - lr * push, 0.01, 1)
            updates, state = step(grad(theta), state, theta)
            theta = optax.apply_updates(theta, updates)
            np.testing.assert_allclose(theta.weights["a"]["kernel"], w[0], rtol=1e-9)
            np.testing.assert_allclose(theta.weights["a"]["bias"], c, rtol=1e-9)
            np.testing.assert_allclose(theta.attention["a/kernel"], att[0], rtol=1e-9)
        assert len(seen) > 20  # the counts did move


def test_a_norm_behind_the_layer_cancels_the_pull_of_the_task():
    """The caution: with a norm only the penalty acts on the attention."""
    r = reparam.learned_attention(gamma=0.0, decay=0.0)
    x, y = jnp.asarray(twins.X, jnp.float32), jnp.asarray(twins.Y, jnp.float32)
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}

    def loss(p, norm):
        out = x @ p["kernel"]
        if norm:
            out = (out - out.mean(0, keepdims=True)) / (
                out.std(0, keepdims=True) + 1e-6
            )
        return jnp.mean((out - y) ** 2)

    grad = jax.jit(jax.grad(reparam.wrap(loss, r)), static_argnums=1)
    pulls = [float(grad(r.init(params), n).attention["kernel"]) for n in (False, True)]
    assert abs(pulls[0]) > 0.1 and abs(pulls[1]) < 1e-4


def test_biases_are_found_or_named():
    r = reparam.learned_attention(start=0.5)
    two = {"w1": {"kernel": jnp.ones((2, 2))}, "shift": jnp.ones(2)}
    named = reparam.learned_attention(start=0.5, biases={"w1/kernel": "shift"})
    np.testing.assert_array_equal(r.apply(r.init(two))["shift"], [1, 1])
    np.testing.assert_array_equal(named.apply(named.init(two))["shift"], [0.5, 0.5])
    with pytest.raises(ValueError, match="Two kernels share the bias bias: say"):
        r.init({"q": jnp.ones((2, 2)), "k": jnp.ones((2, 2)), "bias": jnp.ones(2)})


@pytest.mark.parametrize(
    ("biases", "message"),
    [
        ({"x": "shift"}, "from a kernel in scope to a leaf that is none: 'x: shift'"),
        ({"a/kernel": "y"}, "to a leaf that is none: 'a/kernel: y'"),
        ({"a/kernel": "b/kernel"}, "to a leaf that is none: 'a/kernel: b/kernel'"),
        (
            {"a/kernel": "shift", "b/kernel": "shift"},
            "Two kernels share the bias shift: say",
        ),
    ],
)
def test_bad_biases(biases, message):
    kernel = {"kernel": jnp.ones((2, 2))}
    params = {"a": kernel, "b": kernel, "shift": jnp.ones(2)}
    with pytest.raises(ValueError, match=message):
        reparam.learned_attention(biases=biases).init(params)


def test_the_bias_of_an_nnx_layer_is_found():
    ones = nnx.initializers.ones
    params = nnx.state(nnx.Linear(4, 3, bias_init=ones, rngs=nnx.Rngs(0)))
    r = reparam.learned_attention(start=0.5)
    used = r.apply(r.init(params))
    np.testing.assert_array_equal(jax.tree.leaves(used["bias"]), [[0.5] * 3])


@pytest.mark.parametrize(
    "settings",
    [{"start": 0.0}, {"start": 1.5}, {"alpha": 0}, {"gamma": -1}]
    + [{"target": 2.0}, {"decay": -1.0}],
)
def test_bad_arguments(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        reparam.learned_attention(**settings)
