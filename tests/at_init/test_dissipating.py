"""Dissipating gradients and the combination: hand numbers (g4, g5, g8) and a twin.

The twin of K-starts, of dissipating gradients and of both together trains a small
network in NumPy float64 from the specification; only the random numbers are JAX's.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import at_init, masks, scores

KEY = jax.random.key(7)
combined = at_init.dissipating_k_starts
W0 = jnp.array([[1.0, -2.0, 0.5, 0.0, 0.1]])
W = jnp.array([[1.05, -2.5, 0.54, 0.02, 0.3]])
ALL = jnp.ones((1, 5), bool)


def early(params, initial, mask):
    start = at_init.train_early(loss, optax.identity(), initial, [], [], scope=".*")
    return start._replace(params=params, grads=params, mask=mask)


def test_kstarts_dissipating_g4_what_is_still_goes():
    rule = at_init.dissipating(0.1, min_keep=0)
    assert rule(early(W, W0, ALL)).tolist() == [[False, True, False, True, True]]
    rule = at_init.dissipating(0.0, min_keep=0)
    assert not np.any(rule(early(W0, W0, ALL)))


def test_kstarts_dissipating_g5_monotone():
    rule = at_init.dissipating(0.1, min_keep=0)
    once = rule(early(W, W0, ALL))
    # A removed weight is 0, far from where it started, and yet does not come back.
    moved = jnp.where(once, 3 * W, 0)
    np.testing.assert_array_equal(rule(early(moved, W0, once)), once)
    back = jnp.where(once, W0, 0)
    assert not np.any(rule(early(back, W0, once)))


def test_a_layer_keeps_one_weight_for_each_output():
    """Where all would go, those that moved most stay."""
    w0 = {"kernel": jnp.ones((4, 3))}
    steps = jnp.arange(12.0).reshape(4, 3) / 1000
    w = {"kernel": 1 + steps}
    mask = at_init.dissipating(0.1)(early(w, w0, masks.full(w)))
    np.testing.assert_array_equal(mask["kernel"], steps >= 0.009)


def test_rank_form_has_exact_counts():
    rule = at_init.dissipating(sparsity=0.6)  # relative moves 0.05, 0.25, 0.08, inf, 2
    assert rule(early(W, W0, ALL)).tolist() == [[False, False, False, True, True]]


def test_channels_and_blocks_are_judged_whole():
    w0 = jnp.array([[1.0, 1.0, 4.0, 4.0], [1.0, 1.0, 4.0, 4.0]])
    w = w0 + jnp.array([[0.3, 0.0, 0.3, 0.0], [0.0, 0.1, 0.0, 0.0]])
    state = early(w, w0, jnp.ones((2, 4), bool))
    # Columns moved by 0.3/2, 0.1/2, 0.3/8 and 0; tiles by 0.4/4 and 0.3/16.
    unit = partial(scores.channel_norm, order=1)
    columns = at_init.dissipating(0.04, unit=unit, min_keep=0)(state)
    assert columns.tolist() == [[True, True, False, False]] * 2
    unit = partial(scores.block_norm, block=(2, 2), order=1)
    tiles = at_init.dissipating(0.04, unit=unit, min_keep=0)(state)
    assert tiles.tolist() == [[True, True, False, False]] * 2
    # Under the floor, whole channels stay.
    floor = at_init.dissipating(9.0, unit=unit, min_keep=1)(state)
    assert floor.tolist() == [[True, True, False, False]] * 2
    params = {"kernel": w}
    state = early(params, {"kernel": w0}, masks.full(params))
    unit = partial(scores.channel_norm, order=1)
    rule = at_init.dissipating(sparsity=0.75, unit=unit, pattern=masks.channels)
    assert rule(state)["kernel"].tolist() == [[True, False, False, False]] * 2


def test_kstarts_dissipating_g8_combination():
    survivors = jnp.array([[True, True, False, True, True, False]])
    w = jnp.where(survivors, jnp.array([[1.0, 2.0, 9.0, 4.0, 5.0, 9.0]]), 0)
    for sparsity, count in ((4 / 6, 2), (1 / 6, 4)):
        mask = np.asarray(at_init.k_starts(KEY, w, w, sparsity, k=4, within=survivors))
        assert mask.sum() == count and not np.any(mask & ~survivors)


@pytest.mark.slow
def test_orders_of_the_combination():
    rules = combined(KEY, 0.9, epochs=3)
    assert len(rules) == 4
    inside = combined(KEY, 0.96, epochs=2, order="k_starts_first", first=0.36)
    params = {"kernel": jax.random.normal(KEY, (20, 10))}
    state = early(params, params, masks.full(params))
    counts = []
    for rule in inside:
        mask = rule(state)
        assert not np.any(np.asarray(mask["kernel"] & ~state.mask["kernel"]))
        state = early(masks.apply(mask, params), params, mask)
        counts.append(int(masks.count(mask)))
    assert counts == [128, 32, 8]  # 0.64, 0.64/4, 0.64/16 of 200


def test_k_starts_first_may_ask_for_nothing():
    for rule in combined(KEY, 0.0, order="k_starts_first", balance=1.0):
        assert int(masks.count(rule(early(W, W0, ALL)))) == W.size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: combined(KEY, 1.0),
            r"`sparsity` must be in \[0, 1\)",
        ),
        (
            lambda: combined(KEY, 0.9, epochs=0),
            "`epochs` must be at least 1",
        ),
        (
            lambda: combined(KEY, 0.9, order="both"),
            "`order` must be.*'both'",
        ),
        (
            lambda: combined(KEY, 0.5, order="k_starts_first", first=0.5),
            "`first` must be at least 0 and below `sparsity` 0.5, got 0.5",
        ),
        (
            lambda: at_init.train_early(loss, optax.sgd(1.0), {}, [0], []),
            "one rule for each window, got 0 rules and 1 windows",
        ),
        (
            lambda: at_init.train_early(
                loss,
                optax.sgd(1.0),
                at_init.train_early(loss, optax.sgd(1.0), {"w": W}, [], []),
                [],
                [],
                scope="w",
            ),
            "`scope` is decided at the start",
        ),
        (
            lambda: at_init.dissipating(0.1, sparsity=0.5),
            "`fraction` or `sparsity`, not both",
        ),
        (
            lambda: at_init.dissipating(pattern=masks.channels),
            "`pattern` goes with `sparsity`",
        ),
        (
            lambda: at_init.dissipating(-1.0),
            "`fraction` must be finite and >= 0, got -1.0",
        ),
        (
            lambda: at_init.dissipating()(early({"w": W}, {"v": W0}, {"w": ALL})),
            "`initial` must have exactly the structure",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return 0.5 * jnp.sum((hidden @ params["b"]["kernel"] - y) ** 2)


class Twin:
    """The specification, b.1 to b.5, in NumPy float64."""

    def __init__(self, params, rate, momentum, decay):
        self.w = {name: np.array(x, np.float64) for name, x in params.items()}
        self.w0 = {name: x.copy() for name, x in self.w.items()}
        self.mask = {name: np.ones(self.w[name].shape, bool) for name in ("wa", "wb")}
        self.velocity = {name: np.zeros_like(x) for name, x in self.w.items()}
        self.setting = rate, momentum, decay
        self.total = {}

    def grads(self, x, y):
        w = self.w
        hidden = np.tanh(x @ w["wa"] + w["bias"])
        error = hidden @ w["wb"] - y
        inner = error @ w["wb"].T * (1 - hidden**2)
        return {"wa": x.T @ inner, "bias": inner.sum(0), "wb": hidden.T @ error}

    def window(self, xs, ys, magnitudes):
        rate, momentum, decay = self.setting
        self.total = {name: np.zeros_like(x) for name, x in self.w.items()}
        for x, y in zip(xs, ys, strict=True):
            for name, g in self.grads(x, y).items():
                g = np.where(self.mask.get(name, True), g, 0)
                self.total[name] += np.abs(g) if magnitudes else g
                v = g + decay * self.w[name] + momentum * self.velocity[name]
                self.velocity[name] = v
                moved = self.w[name] - rate * v
                self.w[name] = np.where(self.mask.get(name, True), moved, 0)

    def dissipate(self, f):
        for name, mask in self.mask.items():
            change = np.abs(self.w[name] - self.w0[name])
            kept = mask & ~(change <= f * np.abs(self.w0[name]))
            floor = self.w[name].shape[-1]
            if kept.sum() < floor:
                r = change / (np.abs(self.w0[name]) + 1e-300)
                kept = mask & (r >= np.sort(r[mask])[-floor])
            self.mask[name] = kept

    def dissipate_to(self, sparsity):
        for name, mask in self.mask.items():
            keep = mask.size - int(np.floor(sparsity * mask.size + 0.5))
            r = np.abs(self.w[name] - self.w0[name]) / np.abs(self.w0[name])
            self.mask[name] = mask & (r >= np.sort(r[mask])[-keep])

    def choose(self, sparsity, k, balance):
        for leaf, (name, mask) in enumerate(self.mask.items()):
            keep = mask.size - int(np.floor(sparsity * mask.size + 0.5))
            # In the flattened tree the first kernel is leaf 1, the second leaf 2.
            key = jax.random.fold_in(KEY, leaf + 1)
            sizes = [np.abs(self.w[name]) * mask, np.abs(self.total[name]) * mask]
            best = (-1.0, None)
            for j in range(k):
                drawn = jax.random.fold_in(key, j)
                u = np.asarray(jax.random.uniform(drawn, mask.shape, jnp.float32))
                level = np.sort(u[mask])[::-1][: max(keep, 1)][-1]
                candidate = mask & (u >= level)
                parts = [(a * candidate).sum() / a.sum() for a in sizes]
                fit = balance * parts[0] + (1 - balance) * parts[1]
                if fit > best[0]:
                    best = fit, candidate
            self.mask[name] = best[1]

    def apply(self):
        for name, mask in self.mask.items():
            self.w[name] = np.where(mask, self.w[name], 0)


def fresh(seed):
    rng = np.random.default_rng(seed)
    shapes = {"wa": (6, 8), "bias": (8,), "wb": (8, 5)}
    flat = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    tree = {
        "a": {"kernel": flat["wa"], "bias": flat["bias"]},
        "b": {"kernel": flat["wb"]},
    }
    xs, ys = rng.normal(size=(5, 6, 4, 6)), rng.normal(size=(5, 6, 4, 5))
    return flat, jax.tree.map(jnp.asarray, tree), xs, ys


RULES = {
    "dissipating_first": (
        combined(KEY, 0.6, epochs=2, fraction=0.15, k=6, balance=0.4),
        [
            lambda t: t.dissipate(0.15),
            lambda t: t.dissipate(0.15),
            lambda t: t.choose(0.6, 6, 0.4),
        ],
    ),
    "k_starts_first": (
        combined(KEY, 0.75, epochs=2, order="k_starts_first", k=6),
        [
            lambda t: t.choose(0.5, 6, 0.5),
            lambda t: t.dissipate_to(1 - 0.5 * 0.5**0.5),
            lambda t: t.dissipate_to(0.75),
        ],
    ),
    "floor": (
        [at_init.dissipating(5.0), lambda e: e.mask],
        [lambda t: t.dissipate(5.0), lambda t: None],
    ),
}


TX = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.02, 0.9))  # traced once


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("dissipating_first", 0),
        ("k_starts_first", 0),
        ("floor", 0),
        pytest.param("dissipating_first", 1, marks=pytest.mark.slow),
        pytest.param("k_starts_first", 1, marks=pytest.mark.slow),
    ],
)
def test_twin(name, seed):
    """Four windows of six steps: equal masks after each, equal weights at the end."""
    with jax.enable_x64(True):
        flat, params, xs, ys = fresh(seed)
        rules, steps = RULES[name]
        run = at_init.train_early(loss, TX, params, [], [])
        twin = Twin(flat, 0.02, 0.9, 1e-2)
        same = [lambda e: e.mask] * (4 - len(rules))
        for i, rule in enumerate([*rules, *same]):
            window = [(xs[i], ys[i])]
            run = at_init.train_early(
                loss, TX, run, window, [jax.jit(rule)], magnitudes=True
            )
            twin.window(xs[i], ys[i], magnitudes=True)
            if i < len(steps):
                steps[i](twin)
            twin.apply()
            for got, want in zip(kernels(run.mask), twin.mask.values(), strict=True):
                np.testing.assert_array_equal(got, want)
        for got, want in zip(kernels(run.params), ("wa", "wb"), strict=True):
            np.testing.assert_allclose(got, twin.w[want], rtol=1e-9, atol=1e-12)
        removed = [int(np.sum(~m)) for m in twin.mask.values()]
        assert all(removed)


def kernels(tree):
    return [np.asarray(tree[name]["kernel"]) for name in ("a", "b")]


@pytest.mark.slow
def test_seeds_train_side_by_side():
    """The early phase under `jit` and `vmap` is that of each seed alone."""
    rules = combined(KEY, 0.6, epochs=1, k=3)

    def phase(params, xs, ys):
        windows = [(xs[i], ys[i]) for i in range(2)]
        tx = optax.sgd(0.02, 0.9)
        return at_init.train_early(loss, tx, params, windows, rules)

    runs = [fresh(seed)[1:] for seed in (0, 1)]
    runs = [jax.tree.map(jnp.float32, run) for run in runs]
    both = jax.jit(jax.vmap(phase))(*jax.tree.map(lambda *x: jnp.stack(x), *runs))
    for i, run in enumerate(runs):
        alone = jax.jit(phase)(*run)
        together = jax.tree.map(lambda x, i=i: x[i], both)
        jax.tree.map(np.testing.assert_array_equal, alone.mask, together.mask)
        for a, b in zip(kernels(alone.params), kernels(together.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            assert 0 < np.sum(a == 0) < a.size
