"""WeightMom's reading against hand-computed numbers (g1 to g8) and a NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jprune import masks, transforms
from jprune.transforms._weight_history import layer_importance
from tests.transforms.table import gradients, tree

prune = transforms.prune_by_weight_history
FINAL = 14 / 15


def run(tx, params, steps, jit=True, grads=gradients):
    """The masks after each step, the parameters and the state at the end."""

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, grad=grads)
        return optax.apply_updates(params, updates), state

    step, state, seen = jax.jit(step) if jit else step, tx.init(params), []
    for t in range(steps):
        params, state = step(grads(params, t), state, params)
        seen.append(optax.tree.get(state, "mask"))
    return seen, params, state


def test_weightmom_g1_average():
    params = {"w": jnp.array([[1.0, 0.5, 0.2]])}
    tx = prune(1 / 3, begin=1, end=1)
    state = tx.init(params)
    updates, state = tx.update({"w": jnp.array([[-1.0, 0.0, 0.1]])}, state, params)
    params = optax.apply_updates(params, updates)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(state.history["w"], [[0.9, 0.5, 0.21]], rtol=1e-6)
    np.testing.assert_array_equal(state.mask["w"], [[True, True, False]])
    plain = masks.unstructured(params, 1 / 3)
    np.testing.assert_array_equal(plain["w"], [[False, True, True]])


TWO_GONE = {"a": jnp.array([[True, True, False, False]]), "b": jnp.ones((1, 4), bool)}


@pytest.mark.parametrize(
    "gamma, want", [(1.0, [1.25, 0.75]), (0.0, [1, 1]), (8.0, [3, 0.1])]
)
def test_weightmom_g2_importance(gamma, want):
    got = layer_importance(TWO_GONE, gamma)
    np.testing.assert_allclose([got["a"], got["b"]], want, rtol=1e-6)


@pytest.mark.parametrize(
    "gamma, want", [(1.0, [1.25, 0.75]), (0.0, [1, 1]), (8.0, [3, 0.1])]
)
def test_each_layer_of_a_stack_has_an_importance(gamma, want):
    """The numbers above, with the two leaves as the layers of one."""
    deep = jnp.stack([*TWO_GONE.values()])
    got = layer_importance({"layers": {"kernel": deep}}, gamma)["layers"]["kernel"]
    np.testing.assert_allclose(got, np.reshape(want, (2, 1, 1)), rtol=1e-6)
    one = layer_importance({"layers": {"kernel": deep}}, gamma, stacked={})
    np.testing.assert_allclose(one["layers"]["kernel"], 1, rtol=1e-6)
    mixed = layer_importance({"a": deep, "b": TWO_GONE["b"]}, gamma, stacked={"a": 0})
    own = {"a": deep[0], "b": deep[1], "c": TWO_GONE["b"]}
    apart = layer_importance(own, gamma)
    np.testing.assert_array_equal(np.ravel(mixed["a"]), [apart["a"], apart["b"]])
    np.testing.assert_array_equal(mixed["b"], apart["c"])


def test_what_is_no_stack_in_the_parameters_has_one_floor():
    """Without its bias, out of scope, the kernel would look like a stack."""
    kernel = jnp.stack([jnp.full((2, 2), 100.0), *jnp.ones((2, 2, 2))])
    params = {"blocks": {"kernel": kernel, "bias": jnp.ones(7)}}
    tx = prune(8 / 12, end=0)
    _, state = tx.update(_still(params, 0), tx.init(params), params)
    assert state.mask["blocks"]["kernel"].sum((1, 2)).tolist() == [4, 0, 0]


@pytest.mark.parametrize("gamma, gone", [(1.0, ("b", 0)), (0.0, ("a", 0))])
def test_weightmom_g3_scores(gamma, gone):
    params = {
        "a": jnp.array([[0.2, 0.4, 0.0, 0.0]]),
        "b": jnp.array([[0.3, 0.6, 0.9, 0.35]]),
    }
    tx = prune(3 / 8, begin=5, end=5, gamma=gamma)
    state = tx.init(params)._replace(count=jnp.int32(5), mask=TWO_GONE)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(still, state, params)
    leaf, at = gone
    want = {**TWO_GONE, leaf: TWO_GONE[leaf].at[0, at].set(False)}
    jax.tree.map(np.testing.assert_array_equal, state.mask, want)
    assert optax.apply_updates(params, updates)[leaf][0, at] == 0


def test_weightmom_g4_schedule():
    params = {"w": jax.random.normal(jax.random.key(0), (100, 100))}
    seen, _, _ = run(prune(FINAL, end=4, every=1), params, 5)
    removed = [int(jnp.sum(~m["w"])) for m in seen]
    fractions = [0, 0.539583, 0.816667, 0.91875, 0.933333]
    assert removed == [round(10_000 * s) for s in fractions]


def test_weightmom_g5_monotone_exact_and_zero():
    params = tree("dict")
    tx = optax.chain(optax.adamw(0.05), prune(0.8, begin=2, end=12, every=3))
    seen, params, _ = run(tx, params, 16)
    n, previous = 80, masks.full(params)
    for t, mask in enumerate(seen):
        last = min(t - (t - 2) % 3, 11) if t < 12 else 12
        s = 0 if t < 2 else 0.8 - 0.8 * (1 - (last - 2) / 10) ** 3
        kept = sum(int(m.sum()) for m in jax.tree.leaves(mask) if m.ndim)
        assert kept == n - int(np.floor(s * n + 0.5))
        assert not any(
            bool(jnp.any(m & ~p))
            for m, p in zip(*map(jax.tree.leaves, (mask, previous)), strict=True)
        )
        previous = mask
    for p, m in zip(*map(jax.tree.leaves, (params, seen[-1])), strict=True):
        assert m.ndim == 0 or np.all((p == 0) == ~m)


def test_weightmom_g6_reduces_to_gradual_magnitude():
    params = tree("dict")
    sgd = optax.sgd(0.1, 0.9)
    ours = optax.chain(sgd, prune(0.7, end=15, every=4, beta=0.0, gamma=0.0))
    plain = optax.chain(sgd, transforms.prune_gradually(0.7, end=15, every=4))
    seen, _, _ = run(ours, params, 20)
    want, _, _ = run(plain, params, 20)
    jax.tree.map(np.testing.assert_array_equal, seen, want)


def test_weightmom_g7_no_layer_is_emptied():
    small, large = jnp.full((2, 2), 1e-3), 1 + jnp.arange(10_000.0).reshape(100, 100)
    params = {"large": large, "small": small}
    seen, _, _ = run(prune(0.999, end=2, every=1), params, 3, grads=_still)
    assert int(seen[-1]["small"].sum()) == 1
    assert int(masks.count(seen[-1])) == 10_004 - round(0.999 * 10_004)
    seen, _, _ = run(
        prune(0.999, end=0, min_keep=0, gamma=0.0), params, 1, grads=_still
    )
    assert int(seen[-1]["small"].sum()) == 0


def _still(params, t):
    return jax.tree.map(jnp.zeros_like, params)


@pytest.mark.slow
def test_weightmom_g8_jit_and_replicated():
    params = tree("dict")
    tx = optax.chain(optax.sgd(0.1), prune(optax.constant_schedule(0.7), end=3))
    want, dense, _ = run(tx, params, 4)
    eager, _, _ = run(tx, params, 1, jit=False)
    jax.tree.map(np.testing.assert_array_equal, eager[0], want[0])
    mesh = jax.make_mesh((4,), ("x",))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        copied, again, _ = run(tx, placed, 4)
    jax.tree.map(np.testing.assert_array_equal, copied, want)
    jax.tree.map(np.testing.assert_array_equal, again, dense)


class Twin:
    """The specification in NumPy: layers as a list, float64."""

    def __init__(self, layers, beta, gamma, signal, layer_norm, regrow):
        self.w = [w.copy() for w in layers]
        self.keep = [np.ones(w.shape, bool) for w in layers]
        self.beta, self.gamma, self.signal = beta, gamma, signal
        self.layer_norm, self.regrow = layer_norm, regrow
        sizes = [np.abs(w) for w in layers]
        self.m = sizes if signal == "weight_ema" else [0 * w for w in layers]

    def step(self, grads, rate, removed):
        """One step; `removed` is how many are zero after it, None for no pruning."""
        for i, (w, g, keep) in enumerate(zip(self.w, grads, self.keep, strict=True)):
            x = g
            if self.signal == "weight_ema":
                x = np.abs(np.where(keep, w, -rate * g if self.regrow else 0))
            self.m[i] = self.beta * self.m[i] + (1 - self.beta) * x
        if removed is not None:
            self.prune(removed)
        for i, (w, g, keep) in enumerate(zip(self.w, grads, self.keep, strict=True)):
            self.w[i] = np.where(keep, w - rate * g, 0)

    def prune(self, removed):
        mean = 1 - np.concatenate([k.ravel() for k in self.keep]).mean()
        scores = []
        for w, m, keep in zip(self.w, self.m, self.keep, strict=True):
            q = np.abs(m) * (np.abs(w) if self.signal == "product" else 1)
            q = q / q[keep].mean() if self.layer_norm else q
            q = q * max(1 + self.gamma * ((1 - keep.mean()) - mean), 0.1)
            scores.append((q if self.regrow else np.where(keep, q, -1)).ravel())
        flat = np.concatenate(scores)
        keep = np.zeros(flat.size, bool)
        keep[np.argsort(-flat, kind="stable")[: flat.size - removed]] = True
        parts = np.split(keep, np.cumsum([w.size for w in self.w])[:-1])
        self.keep = [p.reshape(w.shape) for p, w in zip(parts, self.w, strict=True)]


VARIANTS = {
    "default": {},
    "layer_norm": {"layer_norm": True, "gamma": 2.0},
    "regrow": {"regrow": True, "beta": 0.2},
    "grad_momentum": {"signal": "grad_momentum", "regrow": True},
    "product": {"signal": "product"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_weightmom_twin(variant):
    settings = {"beta": 0.8, "gamma": 1.0, **VARIANTS[variant]}
    defaults = {"signal": "weight_ema", "layer_norm": False, "regrow": False}
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        layers = [rng.normal(size=(9, 11)), 3 * rng.normal(size=(11, 5))]
        twin = Twin(layers, **{**defaults, **settings})
        rate = 3.0 if variant == "regrow" else 0.3  # or nothing removed is ever larger
        params = {"a": jnp.asarray(layers[0]), "b": jnp.asarray(layers[1])}
        tx = optax.chain(
            optax.sgd(rate), prune(0.75, begin=2, end=21, every=3, **settings)
        )
        state, step, back = tx.init(params), jax.jit(tx.update), 0
        for t in range(26):
            g = [rng.normal(size=w.shape) for w in layers]
            grads = {"a": jnp.asarray(g[0]), "b": jnp.asarray(g[1])}
            updates, state = step(grads, state, params, grad=grads)
            params = optax.apply_updates(params, updates)
            due = 2 <= t < 21 and (t - 2) % 3 == 0 or t == 21
            s = 0.75 - 0.75 * (1 - (t - 2) / 19) ** 3
            before = twin.keep
            twin.step(g, rate, int(np.floor(s * 154 + 0.5)) if due else None)
            mask = optax.tree.get(state, "mask")
            np.testing.assert_array_equal(mask["a"], twin.keep[0])
            np.testing.assert_array_equal(mask["b"], twin.keep[1])
            back += sum(np.sum(n & ~o) for n, o in zip(twin.keep, before, strict=True))
        np.testing.assert_allclose(params["a"], twin.w[0], rtol=1e-10)
        np.testing.assert_allclose(params["b"], twin.w[1], rtol=1e-10)
        assert sum(np.sum(~k) for k in twin.keep) == 154 - masks.kept_count(154, 0.75)
        assert (back > 0) == settings.get("regrow", False)


def test_leaves_out_of_scope_have_no_history():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "steps": jnp.int32(0)}
    state = prune(0.5, end=2, scope=r"kernel").init(params)
    assert state.history["kernel"].shape == (2, 3)
    assert state.history["bias"].ndim == state.history["steps"].ndim == 0


@pytest.mark.parametrize("how", [{}, {"regrow": True}, {"layer_norm": True}], ids=str)
def test_a_scalar_in_scope_has_a_history(how):
    params = {"gain": jnp.array(9.0), "w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    tx = prune(0.4, end=0, scope=r".", min_keep=0, gamma=0.0, **how)
    state = tx.init(params)
    assert float(state.history["gain"]) == 9.0
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert bool(state.mask["gain"])
    halved = jax.tree.map(lambda p: p / 2, params)
    _, state = tx.update(halved, state, halved)
    np.testing.assert_allclose(state.history["gain"], 0.9 * 9 + 0.1 * 4.5)


@pytest.mark.parametrize("signal", ["weight_ema", "product", "grad_momentum"])
def test_check_knows_the_projection(signal):
    last = prune(0.5, end=9, signal=signal)
    transforms.check(optax.chain(optax.sgd(0.1), last), tree("dict"))
    with pytest.raises(ValueError, match="A projection must come last"):
        transforms.check(optax.chain(last, optax.sgd(0.1)), tree("dict"))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"beta": 1.0}, r"`beta` must be in \[0, 1\), got 1.0"),
        ({"gamma": -1.0}, "`gamma` must be at least 0, got -1.0"),
        ({"signal": "hessian"}, "`signal` must be 'weight_ema'.*got 'hessian'"),
        ({"begin": 3}, "0 <= begin <= end"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        prune(0.5, end=2, **kwargs)


def test_signals_that_need_the_gradient():
    params = tree("dict")
    tx = prune(0.5, end=2, signal="product")
    with pytest.raises(
        ValueError, match="`signal`='product' ranks gradients.*no `grad"
    ):
        tx.update(gradients(params), tx.init(params), params)
    with pytest.raises(ValueError, match="`grad` must have exactly the structure"):
        tx.update(gradients(params), tx.init(params), params, grad={"one": 0})


@pytest.mark.parametrize("sparsity", [1.0, -0.2])
def test_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        prune(sparsity, end=2).init(tree("dict"))
