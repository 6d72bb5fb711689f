"""GSM against hand-computed numbers (g1 to g10) and against a NumPy twin."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, transforms

W1, G1 = [[1.0, -0.2], [0.5, 0.05]], [[0.1, 1.0], [-0.3, 2.0]]
W2, G2 = [[0.4, -2.0]], [[0.6, 0.01]]


def params():
    return {
        "w1": {"kernel": jnp.array(W1), "bias": jnp.array([0.3])},
        "w2": {"kernel": jnp.array(W2)},
    }


def grads():
    return {
        "w1": {"kernel": jnp.array(G1), "bias": jnp.array([0.2])},
        "w2": {"kernel": jnp.array(G2)},
    }


def optimizer(keep, lr=0.1, beta=0.9, eta=0.01, **kwargs):
    return transforms.gsm(lr, keep=keep, momentum=beta, weight_decay=eta, **kwargs)


def test_gsm_g1_selection():
    tx = transforms.mask_by_saliency(keep=2)
    got, _ = tx.update(grads(), tx.init(params()), params())
    np.testing.assert_array_equal(got["w1"]["kernel"], [[0, 1.0], [0, 0]])
    np.testing.assert_array_equal(got["w2"]["kernel"], np.float32([[0.6, 0]]))
    np.testing.assert_array_equal(got["w1"]["bias"], np.float32([0.2]))


def test_gsm_g2_one_step():
    tx = optimizer(2)
    updates, _ = tx.update(grads(), tx.init(params()), params())
    new = optax.apply_updates(params(), updates)
    np.testing.assert_allclose(
        new["w1"]["kernel"], [[0.999, -0.2998], [0.4995, 0.04995]], rtol=1e-5
    )
    np.testing.assert_allclose(new["w2"]["kernel"], [[0.3396, -1.998]], rtol=1e-5)
    np.testing.assert_allclose(new["w1"]["bias"], [0.28], rtol=1e-6)


def test_gsm_g3_passive_trajectory():
    tx = optimizer(1)
    p = {"w": jnp.array([[1.0, 9.0]])}
    state, w, z = tx.init(p), [], []
    for _ in range(3):
        updates, state = tx.update({"w": jnp.array([[0.0, 1.0]])}, state, p)
        p = optax.apply_updates(p, updates)
        w.append(float(p["w"][0, 0]))
        z.append(-float(updates["w"][0, 0]) / 0.1)
    np.testing.assert_allclose(z, [0.01, 0.01899, 0.02706201], rtol=1e-5)
    np.testing.assert_allclose(w, [0.999, 0.997101, 0.994394799], rtol=1e-6)


def test_gsm_g4_all_active_is_plain_sgd():
    scope = lambda p: masks.prunable(p)  # noqa: E731
    plain = optax.chain(
        optax.add_decayed_weights(0.01, mask=scope), optax.sgd(0.1, momentum=0.9)
    )
    ours, theirs = params(), params()
    tx = optimizer(6)
    s, r = tx.init(ours), plain.init(theirs)
    for _ in range(4):
        u, s = tx.update(grads(), s, ours)
        v, r = plain.update(grads(), r, theirs)
        ours, theirs = optax.apply_updates(ours, u), optax.apply_updates(theirs, v)
    chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.parametrize(
    "beta, factor", [(0.98, 4.022e-4), (0.9, 0.2097), (0, 0.85539)]
)
def test_gsm_g5_decay_of_the_passive(beta, factor):
    """312,400 steps at alpha 5e-3, eta 1e-4, in float64, through the transformation."""
    with jax.enable_x64(True):
        p = {"w": jnp.array([[1.0, 9.0]], jnp.float64)}
        tx = optimizer(1, lr=5e-3, beta=beta, eta=1e-4)
        active = {"w": jnp.array([[0.0, 1.0]], jnp.float64)}

        def body(carry, _):
            p, state = carry
            # The active weight is put back, so that it stays the most salient.
            updates, state = tx.update(active, state, p)
            new = optax.apply_updates(p, updates)
            return ({"w": new["w"].at[0, 1].set(9.0)}, state), None

        # The recursion is linear: its growth over 3,124 steps past the start-up,
        # to the power 100, is the long run to the tolerance asked.
        run = jax.jit(lambda c, n: jax.lax.scan(body, c, length=n)[0], static_argnums=1)
        start = run((p, tx.init(p)), 2000)
        one = run(start, 3104)
        rate = float(one[0]["w"][0, 0]) / float(start[0]["w"][0, 0])
        total = float(start[0]["w"][0, 0]) * rate**100
        np.testing.assert_allclose(total, factor, rtol=1e-3)


def test_gsm_g6_whole_model():
    p, g = params(), grads()
    g["w2"]["kernel"] = g["w2"]["kernel"] * 1000
    tx = transforms.mask_by_saliency(keep=3)
    got, _ = tx.update(g, tx.init(p), p)
    assert int(jnp.sum(got["w2"]["kernel"] != 0)) == 2
    assert int(jnp.sum(got["w1"]["kernel"] != 0)) == 1


def test_gsm_g7_order_matters():
    mask, decay = transforms.mask_by_saliency(keep=2), optax.add_decayed_weights(0.01)
    right = optax.chain(mask, decay, optax.sgd(0.1))
    wrong = optax.chain(decay, mask, optax.sgd(0.1))
    for tx, value in [(right, 0.999), (wrong, 1.0)]:
        updates, _ = tx.update(grads(), tx.init(params()), params())
        new = optax.apply_updates(params(), updates)
        np.testing.assert_allclose(new["w1"]["kernel"][0, 0], value, rtol=1e-6)


def test_gsm_g8_final_removal_is_harmless():
    """A quadratic with 3 large and 9 small optima: the small ones decay away."""
    goal = jnp.array([[2.0, -1.5, 1.0] + [0.01] * 9])
    tx = optimizer(3, lr=0.05, beta=0.9, eta=0.05)

    def body(carry, _):
        p, state = carry
        updates, state = tx.update({"w": p["w"] - goal}, state, p)
        return (optax.apply_updates(p, updates), state), None

    p = {"w": goal + 0.3}
    (p, _), _ = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=2000))(p)
    cut, _ = transforms.finish(p, lambda p: masks.unstructured(p, keep=3))
    assert float(jnp.max(jnp.abs(cut["w"] - p["w"]))) < 1e-4


def test_gsm_g9_reactivation():
    p = {"w": jnp.array([[1.0, 0.5]])}
    tx = transforms.mask_by_saliency(keep=1)
    state = tx.init(p)
    first, state = tx.update({"w": jnp.array([[1.0, 1.0]])}, state, p)
    second, state = tx.update({"w": jnp.array([[1.0, 3.0]])}, state, p)
    np.testing.assert_array_equal(first["w"], [[1, 0]])
    np.testing.assert_array_equal(second["w"], [[0, 3]])


def test_gsm_g10_ticket_retraining():
    """Mask of the result on the initial weights; masked positions stay exactly 0."""
    start = params()
    ticket = masks.unstructured(start, keep=3)
    p = masks.apply(ticket, start)
    tx = optax.chain(
        transforms.mask_updates(ticket),
        optax.add_decayed_weights(1e-3),
        optax.sgd(0.01, momentum=0.9, nesterov=True),
    )
    state = tx.init(p)
    step = jax.jit(tx.update)
    for t in range(100):
        g = jax.tree.map(lambda x, t=t: jnp.cos(x + t), p)
        updates, state = step(g, state, p)
        p = optax.apply_updates(p, updates)
    chex.assert_trees_all_equal(masks.from_zeros(p), ticket)


def numpy_active(saliency, q):
    flat = np.concatenate([x.ravel() for x in saliency])
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(-flat, kind="stable")[:q]] = True
    parts = np.split(chosen, np.cumsum([x.size for x in saliency])[:-1])
    return [m.reshape(x.shape) for m, x in zip(parts, saliency, strict=True)]


def test_gsm_twin_50_steps():
    """A whole run in float64 against NumPy: equal active sets at every step."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        shapes = [(10, 14), (14, 6)]
        x, y = rng.normal(size=(30, 10)), rng.normal(size=(30, 6))
        theirs = [rng.normal(size=s) * 0.3 for s in shapes]
        n = sum(w.size for w in theirs)
        q, last = int(np.floor(0.1 * n)), n - int(np.floor(0.9 * n))
        T, lr, beta, eta = 50, 0.05, 0.9, 0.02

        def loss(p):
            return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - y) ** 2)

        grad = jax.jit(jax.grad(loss))
        ours = {"a": jnp.asarray(theirs[0]), "b": jnp.asarray(theirs[1])}
        tx = transforms.gsm(
            lr, sparsity=0.9, momentum=beta, weight_decay=eta, total_steps=T
        )
        alone = transforms.mask_by_saliency(sparsity=0.9)
        state, probe = tx.init(ours), alone.init(ours)
        step, choose = jax.jit(tx.update), jax.jit(alone.update)
        z = [np.zeros(s) for s in shapes]
        for t in range(T):
            g = grad({"a": theirs[0], "b": theirs[1]})
            g = [np.asarray(g["a"]), np.asarray(g["b"])]
            active = numpy_active(
                [np.abs(a * b) for a, b in zip(g, theirs, strict=True)], q
            )
            mine = grad(ours)
            passed, probe = choose(mine, probe, ours)
            np.testing.assert_array_equal(passed["a"] != 0, active[0])
            np.testing.assert_array_equal(passed["b"] != 0, active[1])
            cut = numpy_active([np.abs(w) for w in theirs], last)
            for i in range(2):
                z[i] = beta * z[i] + eta * theirs[i] + np.where(active[i], g[i], 0)
                theirs[i] = theirs[i] - lr * z[i]
            updates, state = step(mine, state, ours)
            ours = optax.apply_updates(ours, updates)
            if t == T - 1:
                theirs = [np.where(m, w, 0) for m, w in zip(cut, theirs, strict=True)]
            np.testing.assert_allclose(ours["a"], theirs[0], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(ours["b"], theirs[1], rtol=1e-9, atol=1e-12)
        assert int(masks.count(masks.from_zeros(ours))) == last


def test_gsm_counts_of_the_paper():
    """LeNet-300-100 at 60x: 4,436 active at each step, 4,437 kept at the end."""
    lenet = {
        "a": jax.ShapeDtypeStruct((784, 300), jnp.float32),
        "b": jax.ShapeDtypeStruct((300, 100), jnp.float32),
        "c": jax.ShapeDtypeStruct((100, 10), jnp.float32),
    }
    key = jax.random.key(0)
    p = {
        k: jax.random.normal(jax.random.fold_in(key, i), s.shape)
        for i, (k, s) in enumerate(lenet.items())
    }
    s = 1 - 1 / 60
    tx = transforms.gsm(0.0, sparsity=s, weight_decay=1e-4, total_steps=1)
    only = transforms.mask_by_saliency(sparsity=s)
    passed, _ = jax.jit(only.update)(p, only.init(p), p)
    updates, _ = jax.jit(tx.update)(p, tx.init(p), p)
    cut = optax.apply_updates(p, updates)
    assert sum(int(jnp.sum(x != 0)) for x in jax.tree.leaves(passed)) == 4436
    assert sum(int(jnp.sum(x != 0)) for x in jax.tree.leaves(cut)) == 4437


def test_traced_keep_serves_several_sparsities():
    p, g = params(), grads()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def active(keep):
        tx = transforms.mask_by_saliency(keep=keep)
        return tx.update(g, tx.init(p), p)[0]

    for keep in (1, 2, 5):
        got = active(jnp.int32(keep))
        kernels = (got["w1"]["kernel"], got["w2"]["kernel"])
        assert sum(int(jnp.sum(x != 0)) for x in kernels) == keep


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"keep": 2, "weight_decay": 0.0}, "`weight_decay` must be positive"),
        ({"weight_decay": 0.1}, "exactly one of `sparsity` and `keep`"),
        ({"keep": 2, "sparsity": 0.5, "weight_decay": 0.1}, "exactly one of"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        transforms.gsm(0.1, **kwargs)


def test_keep_out_of_range():
    tx = transforms.mask_by_saliency(keep=7)
    with pytest.raises(ValueError, match=r"`keep` must be in \[0, 6\], got 7"):
        tx.init(params())


def test_integer_and_complex_leaves():
    for dtype in (jnp.int32, jnp.complex64):
        bad = {"w": {"kernel": jnp.ones((2, 2), dtype)}}
        tx = transforms.mask_by_saliency(keep=1, scope={"w": {"kernel": True}})
        with pytest.raises(TypeError, match="Only floating leaves.*w/kernel"):
            tx.init(bad)
