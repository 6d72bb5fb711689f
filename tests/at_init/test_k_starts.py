"""K-starts against hand-computed numbers (g1 to g3, g6, g7, g9) and its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jprune import at_init, masks, transforms
from jprune.at_init._fitness import fitness
from jprune.at_init._random_mask import random_mask

W = jnp.array([[1.0, -2.0, 3.0, -4.0]])
ACC = jnp.array([[4.0, 0.0, 0.0, -4.0]])
KEY = jax.random.key(7)
TREE = {
    "a": {"kernel": jax.random.normal(jax.random.key(1), (6, 5)), "bias": jnp.ones(5)},
    "b": {"kernel": jax.random.normal(jax.random.key(2), (4, 8))},
}
GRADS = jax.tree.map(lambda w: jnp.cos(9 * w), TREE)
SHARES = pytest.mark.parametrize(
    "share", ["leaf", pytest.param("network", marks=pytest.mark.slow)]
)


def choose(params, grads, sparsity, k, **how):
    """`k_starts` as one compiled program; `k` may be an array of numbers."""
    one = jax.jit(lambda p, g, k: at_init.k_starts(KEY, p, g, sparsity, k=k, **how))
    return one(params, grads, jnp.arange(k) if isinstance(k, int) else k)


def test_kstarts_dissipating_g1_count():
    def draw(i):
        key = jax.random.fold_in(KEY, i)
        return random_mask(key, jnp.ones((8, 5)), 0.7)

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(20)))
    np.testing.assert_array_equal(drawn.sum((1, 2)), 12)
    assert len({mask.tobytes() for mask in drawn}) == 20


def test_every_weight_is_kept_equally_often():
    draw = partial(random_mask, KEY, jnp.ones((4, 5)), 0.7)
    drawn = jax.jit(jax.vmap(lambda j: draw(start=j)))(jnp.arange(4000))
    # Four standard deviations of the mean of 4000 draws at 0.3 are 0.029.
    np.testing.assert_allclose(np.mean(drawn, axis=0), 0.3, atol=0.029)


def test_kstarts_dissipating_g2_fitness():
    candidates = jnp.array([[[1, 1, 0, 0]], [[0, 0, 1, 1]], [[1, 0, 0, 1]]], bool)
    want = {1.0: [0.3, 0.7, 0.5], 0.0: [0.5, 0.5, 1.0], 0.5: [0.4, 0.6, 0.75]}
    fittest = {1.0: 1, 0.0: 2, 0.5: 2}
    for balance, numbers in want.items():
        rate = jax.vmap(lambda m, b=balance: fitness(m, W, ACC, balance=b))
        got = np.asarray(rate(candidates))[:, 0]
        np.testing.assert_allclose(got, numbers, rtol=1e-6)
        assert np.argmax(got) == fittest[balance]


def test_the_network_divides_the_sums_of_its_leaves_once():
    mask = {"w": jnp.array([[True, False]]), "v": jnp.array([[False, True]])}
    tree = {"w": jnp.array([[3.0, 1.0]]), "v": jnp.array([[4.0, 8.0]])}
    rate = partial(fitness, mask, tree, tree)
    np.testing.assert_allclose(rate(), [8 / 12, 3 / 4])  # v, then w
    np.testing.assert_allclose(rate(share="network"), 11 / 16)
    zero = jax.tree.map(jnp.zeros_like, tree)
    np.testing.assert_allclose(fitness(mask, tree, zero), [1 / 3, 3 / 8])


def test_kstarts_dissipating_g3_accumulation():
    steps = jnp.array([[1.0, -1.0], [-1.0, -1.0]])
    for magnitudes, want in ((False, [0, 2]), (True, [2, 2])):
        sgd = optax.sgd(0.0)
        early = at_init.train_early(
            dot, sgd, jnp.zeros(2), [steps], [None], scope=".*", magnitudes=magnitudes
        )
        np.testing.assert_array_equal(jnp.abs(early.grads), want)


def dot(params, batch):
    return params @ batch


def test_sums_of_half_precision_gradients_are_float32():
    params, steps = jnp.zeros(1, jnp.bfloat16), jnp.bfloat16([[256], [1], [1]])
    sgd = optax.sgd(0.0)
    found = at_init.train_early(dot, sgd, params, [steps], [None], scope=".*").grads
    assert found.dtype == jnp.float32 and float(found[0]) == 258


@SHARES
def test_kstarts_dissipating_g6_one_start_is_random_pruning(share):
    @jax.jit
    def alone(balance):
        how = {"k": 1, "balance": balance, "share": share}
        return at_init.k_starts(KEY, TREE["a"], GRADS["a"], 0.5, **how)

    want = random_mask(KEY, TREE["a"], 0.5)
    for balance in (0.0, 0.5, 1.0):
        jax.tree.map(np.testing.assert_array_equal, alone(balance), want)


@SHARES
def test_kstarts_dissipating_g6_more_starts_are_never_less_fit(share):
    w, g = TREE["a"], GRADS["a"]

    @jax.jit
    def best(starts):
        mask = at_init.k_starts(KEY, w, g, 0.5, k=starts, share=share)
        return jnp.atleast_1d(fitness(mask, w, g, share=share))

    rated = [best(jnp.arange(16) % k) for k in (1, 2, 4, 8, 16)]
    assert np.all(np.diff(rated, axis=0) >= 0) and np.all(rated[-1] > rated[0])


def test_kstarts_dissipating_g7_scale():
    params, grads = jax.tree.map(lambda x: 7 * x, (TREE, GRADS))
    choose = jax.jit(lambda p, g: at_init.k_starts(KEY, p, g, 0.5, k=4))
    mask, again = choose(TREE["a"], GRADS["a"]), choose(params["a"], grads["a"])
    jax.tree.map(np.testing.assert_array_equal, again, mask)
    np.testing.assert_allclose(
        fitness(mask, params["a"], grads["a"]),
        fitness(mask, TREE["a"], GRADS["a"]),
        rtol=1e-6,
    )


def test_kstarts_dissipating_g9_removed_weights_stay_zero():
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(18, 7, 6)), jnp.float32)
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9))
    params = {"kernel": TREE["a"]["kernel"], "bias": jnp.ones(5)}

    def loss(p, x):
        return jnp.mean(jnp.tanh(x @ p["kernel"] + p["bias"][None]) ** 2)

    def rule(e):
        return at_init.k_starts(KEY, e.params, e.grads, 0.7, k=2, within=e.mask)

    early = at_init.train_early(loss, tx, params, [data[:8]], [rule])
    dense = at_init.train_early(loss, tx, params, [data[:8]], [None])
    kept = np.asarray(early.mask["kernel"])
    assert kept.sum() == 9
    # Nothing is rewound: what is kept has its trained value.
    want = np.where(kept, dense.params["kernel"], 0)
    np.testing.assert_array_equal(early.params["kernel"], want)

    held = optax.chain(tx, transforms.keep_masked(early.mask))
    state = (early.opt_state, held.init(early.params)[1])
    later, step = early.params, jax.jit(held.update)
    for x in data[8:]:
        updates, state = step(jax.grad(loss)(later, x), state, later)
        later = optax.apply_updates(later, updates)
    after = at_init.train_early(loss, tx, early, [data[8:]], [None])
    for end in (later, after.params):
        np.testing.assert_array_equal(np.asarray(end["kernel"])[~kept], 0.0)
        assert np.all(np.asarray(end["kernel"])[kept] != want[kept])


def brute_force(starts, share, balance):
    """Every candidate by itself, rated in NumPy float64."""
    rated = []
    for j in starts:
        mask = random_mask(KEY, TREE, 0.5, start=j)
        sums = []
        for tree in (TREE, GRADS):
            for name in ("a", "b"):
                x = np.abs(np.asarray(tree[name]["kernel"], np.float64))
                kept = np.asarray(mask[name]["kernel"])
                sums.append((x[kept].sum(), x.sum()))
        sums = np.array(sums).reshape(2, 2, 2)  # [tree, leaf, (kept, whole)]
        sums = sums.sum(1, keepdims=True) if share == "network" else sums
        rated.append(np.array([balance, 1 - balance]) @ (sums[..., 0] / sums[..., 1]))
    return np.array(rated)  # [k, leaves or 1]


@SHARES
def test_the_fittest_is_chosen(share):
    rated = brute_force(range(5), share, 0.3)
    how = {"balance": 0.3, "share": share}
    got = choose(TREE, GRADS, 0.5, 5, **how)
    best = np.broadcast_to(np.argmax(rated, axis=0), 2)
    for name, j in zip("ab", best, strict=True):
        want = random_mask(KEY, TREE, 0.5, start=int(j))[name]["kernel"]
        np.testing.assert_array_equal(got[name]["kernel"], want)


@pytest.mark.slow
def test_a_few_at_once_choose_alike():
    all_at_once = choose(TREE, GRADS, 0.5, 5)
    few = choose(TREE, GRADS, 0.5, 5, at_once=2)
    jax.tree.map(np.testing.assert_array_equal, few, all_at_once)


def test_equal_candidates_leave_the_first():
    flat = jnp.ones((5, 4))
    want = random_mask(KEY, flat, 0.5)
    choose = jax.jit(lambda g: at_init.k_starts(KEY, flat, g, 0.5, k=9, balance=0.0))
    for grads in (flat, jnp.zeros((5, 4))):
        np.testing.assert_array_equal(choose(grads), want)


@pytest.mark.slow
def test_small_units_gain_more_than_large_ones():
    w = jnp.abs(jax.random.normal(jax.random.key(3), (64, 12)))
    gain = {}
    for share in ("leaf", "channel"):
        mask = choose(w, None, 0.9, 16, balance=1.0, share=share)
        np.testing.assert_array_equal(np.sum(mask), 77 if share == "leaf" else 72)
        kept = float(jnp.sum(jnp.where(mask, w, 0)) / jnp.sum(w))
        gain[share] = kept / (float(jnp.sum(mask)) / w.size) - 1
    # sqrt(2 ln k (1-d)/(d N)) cv with cv = 0.76: 19 % of a leaf, 66 % of 64 weights.
    assert 0.05 < gain["leaf"] < 0.3 and 0.4 < gain["channel"] < 0.9


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda f: f, id="concrete", marks=pytest.mark.slow),
        pytest.param(jax.jit, id="traced"),
    ],
)
def test_small_units_keep_one_weight(wrap):
    params = {"kernel": jnp.ones((10, 3))}
    fit = partial(at_init.k_starts, KEY, params, None, balance=1.0)
    each = wrap(lambda s: fit(s, share="channel"))(0.98)["kernel"]
    np.testing.assert_array_equal(each.sum(0), 1)
    assert int(wrap(fit)(0.99)["kernel"].sum()) == 1
    two = params | {"w": jnp.ones((20, 10), jnp.bfloat16)}
    mask = wrap(lambda s: random_mask(KEY, two, s))(0.99)
    assert [int(mask[name].sum()) for name in two] == [1, 2]  # nothing is moved


def test_channels_go_whole():
    params = {"kernel": jax.random.normal(KEY, (8, 12))}
    got = choose(params, None, 0.5, 4, pattern=masks.channels, balance=1.0)
    columns = np.asarray(got["kernel"])
    assert np.all(columns == columns[0]) and columns[0].sum() == 6


@pytest.mark.slow
def test_blocks_go_whole():
    params = {"kernel": jax.random.normal(KEY, (8, 12))}
    tiles = partial(masks.blocks, block=(4, 4))
    got = choose(params, None, 0.5, 4, pattern=tiles, balance=1.0)
    blocks = np.asarray(got["kernel"]).reshape(2, 4, 3, 4)
    assert np.all(blocks == blocks[:, :1, :, :1]) and blocks[:, 0, :, 0].sum() == 3


def test_what_is_gone_counts_for_nobody():
    """The candidates inside `within` are rated on it, whatever the dense gradient."""
    within = jnp.array([[True, True, True, False]])
    huge = jnp.array([[0.0, 1.0, 0.0, 1e6]])
    got = choose(W, huge, 0.75, 32, balance=0.0, within=within)
    np.testing.assert_array_equal(got, [[False, True, False, False]])


def test_traced_once_and_vmapped_over_seeds():
    traces = 0

    @jax.jit
    def choose(key, params, grads, sparsity):
        nonlocal traces
        traces += 1
        return at_init.k_starts(key, params, grads, sparsity, k=2)

    w, g = TREE["a"], GRADS["a"]
    one = choose(KEY, w, g, 0.5)
    choose(jax.random.key(8), g, w, 0.25)
    assert traces == 1
    keys = jnp.stack([KEY, jax.random.key(8)])
    both = jax.vmap(choose, (0, None, None, None))(keys, w, g, 0.5)
    jax.tree.map(lambda b, o: np.testing.assert_array_equal(b[0], o), both, one)


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_weights_choose_alike(axis_type):
    mesh = jax.make_mesh((4,), ("x",), (axis_type,))
    w = jax.random.normal(KEY, (8, 12))
    split = jax.device_put(w, NamedSharding(mesh, PartitionSpec("x")))
    choose = jax.jit(lambda w: at_init.k_starts(KEY, w, w, 0.5))
    with jax.set_mesh(mesh):
        got = choose(split)
    np.testing.assert_array_equal(got, choose(w))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "`k` must be at least 1, got 0"),
        ({"at_once": 0}, "`at_once` must be at least 1, got 0"),
        ({"balance": 1.5}, r"`balance` must be in \[0, 1\].*got 1.5"),
        ({"grads": None}, "`grads` must be the accumulated gradient.*got None"),
        ({"grads": {"a": GRADS["a"]}}, "`grads` must have.*missing: b/kernel"),
        ({"share": "layer"}, "`share` must be 'leaf', 'network'.*got 'layer'"),
        (
            {"share": "channel", "pattern": masks.channels},
            "`share='channel'` removes single weights",
        ),
        ({"sparsity": 1.0}, r"`sparsity` must be in \[0, 1\)"),
        (
            {"sparsity": {"a": GRADS["a"], "b": {"kernel": 1.5}}},
            "`sparsity` cannot be met at",
        ),
        ({"scope": "nothing"}, "`scope`='nothing' matches no leaf"),
    ],
)
def test_errors(change, message):
    args = {"key": KEY, "params": TREE, "grads": GRADS, "sparsity": 0.5, **change}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        at_init.k_starts(**args)


def test_errors_of_the_others():
    with pytest.raises(ValueError, match="`share` must be 'leaf' or 'network'"):
        fitness(W > 0, W, W, share="channel")


@pytest.mark.parametrize("k", [1.5, True, "3", [[1, 2]], jnp.ones(2)])
def test_a_number_of_starts_is_whole(k):
    with pytest.raises((ValueError, TypeError), match=r"`k` must be"):
        at_init.k_starts(KEY, TREE, GRADS, 0.5, k=k)
