"""ISS-P and ISS-R against hand-computed numbers (g1 to g9) and NumPy twins."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, transforms
from tests.masks.test_jaxprs import BIG, LIMIT, equations
from tests.transforms.table import gradients, tree


def follow(tx, params, updates, state=None):
    """`tx` alone on updates given step by step; the path, and the last state."""
    step = jax.jit(tx.update)
    state = tx.init(params) if state is None else state
    path = []
    for u in updates:
        u, state = step(u, state, params)
        params = optax.apply_updates(params, u)
        path.append(params)
    return path, state


def still(params, steps):
    return [jax.tree.map(jnp.zeros_like, params)] * steps


def row(*values):
    return {"w": jnp.array([values], jnp.float32)}


def test_issp_g1_counts():
    asked = {"a": 0.6, "b": 0.99, "c": 0.999, "d": 0.0, "e": 0.07, "f": 0.99}
    sizes = {"a": 5, "b": 100, "c": 1000, "d": 10, "e": 100, "f": 1}
    params = {k: jnp.arange(1.0, n + 1)[None] for k, n in sizes.items()}

    def low(sparsity):
        """How many weights of each leaf one step shrinks."""
        tx = transforms.shrink_softly(sparsity, end=9, scope=".*")
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zero, tx.init(params), params)
        return jax.tree.map(jnp.count_nonzero, updates)

    # (100, 0.07) is of section (i): ceil(7) is 7, though floats say 8.
    found = jax.jit(lambda: low(asked))()
    assert found == {"a": 3, "b": 99, "c": 995, "d": 0, "e": 7, "f": 0}
    traced = jax.jit(low)(0.6)
    assert traced == {"a": 3, "b": 60, "c": 600, "d": 6, "e": 60, "f": 0}


def test_issp_g2_ten_steps():
    params = row(0.9, -0.5, 0.1, 0.02, -0.3)
    path, _ = follow(transforms.shrink_softly(0.6, end=20), params, still(params, 10))
    first, last = path[0]["w"][0], path[-1]["w"][0]
    np.testing.assert_allclose(first, [0.9, -0.5, 0.095, 0.019, -0.285], rtol=1e-6)
    want = [0.9, -0.5, 0.0598737, 0.0119747, -0.1796211]
    np.testing.assert_allclose(last, want, atol=1e-7)


def test_issp_g3_the_two_ends_of_the_factor():
    params = {"w": tree("array")}
    grads = [gradients(params, t) for t in range(3)]
    same, _ = follow(transforms.shrink_softly(0.5, end=9, factor=1.0), params, grads)
    hard, state = follow(
        transforms.shrink_softly(0.5, end=9, factor=0.0), params, grads
    )
    plain = params
    for t, g in enumerate(grads):
        plain = optax.apply_updates(plain, g)
        chex.assert_trees_all_equal(same[t], plain)
    # IHT: the same low set, zeroed after the step of the optimizer.
    moved = optax.apply_updates(hard[-2], grads[-1])
    chex.assert_trees_all_equal(hard[-1], masks.apply(state.mask, moved))
    low = masks.unstructured(moved, 0.5, ranking="leaf")
    chex.assert_trees_all_equal(state.mask, low)


def test_issp_g4_steady_update():
    params = row(0.0, 5.0)
    tx = transforms.shrink_softly(0.5, end=1000)
    path, _ = follow(tx, params, [row(0.001, 0.0)] * 200)
    assert abs(float(path[-1]["w"][0, 0]) - 0.019) < 1e-6


def test_issp_g5_readmission():
    params = row(0.3, 0.29)
    tx = transforms.shrink_softly(0.5, end=9)
    path, _ = follow(tx, params, [row(0.0, 0.0), row(0.0, 0.05)])
    np.testing.assert_allclose(path[0]["w"][0], [0.3, 0.2755], rtol=1e-6)
    np.testing.assert_allclose(path[1]["w"][0], [0.285, 0.3255], rtol=1e-6)


def test_issp_g6_n_of_m():
    def select(p):
        return masks.n_of_m(p, 2, 4, axis=1)

    params = row(0.1, -0.9, 0.5, 0.2)
    tx = transforms.shrink_softly(end=2, select=select)
    path, _ = follow(tx, params, still(params, 1))
    np.testing.assert_allclose(path[0]["w"][0], [0.095, -0.9, 0.5, 0.19], rtol=1e-6)
    params = {"w": jax.random.normal(jax.random.key(0), (3, 16))}
    path, _ = follow(tx, params, [params] * 4)
    zeros = np.asarray(path[-1]["w"] == 0).reshape(3, 4, 4).sum(-1)
    np.testing.assert_array_equal(zeros, 2)


def test_issp_g7_freeze():
    params = tree("dict")
    tx = optax.chain(optax.adam(0.05), transforms.shrink_softly(0.7, end=4))
    transforms.check(tx, params)
    path, state = follow(tx, params, [gradients(params, t) for t in range(12)])
    for t, p in enumerate(path):
        for name, n in (("one", 32), ("two", 48)):
            zeros = int(jnp.sum(p[name]["kernel"] == 0))
            assert zeros == (int(np.ceil(0.7 * n)) if t >= 4 else 0)
    # What is zero was low in the last shrinking step (correction of section (i)).
    _, before = follow(tx, params, [gradients(params, t) for t in range(4)])
    chex.assert_trees_all_equal(before[1].mask, state[1].mask)
    chex.assert_trees_all_equal(masks.from_zeros(path[-1]), before[1].mask)


def test_issp_g8_growing_decay():
    tx = transforms.add_growing_decay(1e-4, 0.5, every=1)
    params = row(1.0, 0.1)
    zero, state, step = still(params, 1)[0], tx.init(params), jax.jit(tx.update)
    for _ in range(3):
        added, state = step(zero, state, params)
    np.testing.assert_array_equal(state.hits["w"][0], [0, 3])
    np.testing.assert_allclose(added["w"][0], [0, 3e-5], rtol=1e-6)
    added, state = step(zero, state, row(0.05, 0.1))  # now the other one is low
    np.testing.assert_array_equal(state.hits["w"][0], [1, 3])
    np.testing.assert_allclose(added["w"][0], [5e-6, 3e-5], rtol=1e-6)
    # The clock: 5,000 increments are not above 0.5, 5,001 are, then nothing grows.
    state = state._replace(hits={"w": jnp.array([[0, 4999]], jnp.int32)})
    seen = []
    for _ in range(4):
        _, state = step(zero, state, params)
        seen.append((int(state.hits["w"][0, 1]), bool(state.full["w"])))
    assert seen == [(5000, False), (5001, True), (5001, True), (5001, True)]


def test_issp_g9_skipped_leaves():
    params = tree("dict")
    grads = [gradients(params, t) for t in range(6)]
    plain, _ = follow(optax.adam(0.1), params, grads)
    soft = optax.chain(
        optax.adam(0.1), transforms.shrink_softly(0.5, end=3, scope="one/kernel")
    )
    path, _ = follow(soft, params, grads)
    for t in range(6):
        chex.assert_trees_all_equal(path[t]["two"], plain[t]["two"])
        chex.assert_trees_all_equal(path[t]["one"]["bias"], plain[t]["one"]["bias"])
    assert not np.array_equal(path[2]["one"]["kernel"], plain[2]["one"]["kernel"])


class Adam:
    """NumPy's side of `optax.adam(lr, 0.9, 0.99)`."""

    def __init__(self, lr):
        self.lr, self.t, self.m, self.v = lr, 0, 0.0, 0.0

    def __call__(self, g):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.99 * self.v + 0.01 * g**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.99**self.t)
        return -self.lr * m / (np.sqrt(v) + 1e-8)


def numpy_low(w, s):
    """The low set by a sort: ceil of the share, at most 99.5 %, later indices first."""
    k = min(int(np.ceil(s * w.size - 1e-9)), int(0.995 * w.size))
    low = np.zeros(w.size, bool)
    low[np.argsort(-np.abs(w).ravel(), kind="stable")[w.size - k :]] = True
    return low.reshape(w.shape)


def twin_start():
    rng = np.random.default_rng(5)
    params = {"a": rng.normal(size=(7, 9)), "b": rng.normal(size=(9, 4))}
    goal = {k: rng.normal(size=w.shape) for k, w in params.items()}
    return params, goal, rng


def pulls(params, goal, rng):
    return {k: w - goal[k] + 0.3 * rng.normal(size=w.shape) for k, w in params.items()}


def test_issp_twin_30_steps():
    with jax.enable_x64(True):
        theirs, goal, rng = twin_start()
        ours = jax.tree.map(jnp.asarray, theirs)
        tx = transforms.issp(0.1, sparsity=0.63, end=22, factor=0.97)
        state, step = tx.init(ours), jax.jit(tx.update)
        adams, low, changes = {k: Adam(0.1) for k in theirs}, {}, 0
        for t in range(30):
            grads = pulls(theirs, goal, rng)
            updates, state = step(jax.tree.map(jnp.asarray, grads), state, ours)
            ours = optax.apply_updates(ours, updates)
            for k, w in theirs.items():
                c = w + adams[k](grads[k])
                if t < 22:
                    was, low[k] = low.get(k), numpy_low(c, 0.63)
                    changes += was is not None and not np.array_equal(was, low[k])
                theirs[k] = np.where(low[k], 0.97 * c if t < 22 else 0, c)
                np.testing.assert_array_equal(state[1].mask[k], ~low[k])
                np.testing.assert_allclose(ours[k], theirs[k], rtol=1e-9, atol=1e-12)
        assert changes > 5  # weights do come back


def test_issr_twin_40_steps():
    """Regularization grows every 2 steps until .35 is passed; one step; then zeros."""
    with jax.enable_x64(True):
        theirs, goal, rng = twin_start()
        ours = jax.tree.map(jnp.asarray, theirs)
        tx = transforms.issr(
            0.03, sparsity=0.63, increment=0.04, every=2, limit=0.35, end=38
        )
        transforms.check(tx, ours)
        state, step = tx.init(ours), jax.jit(tx.update)
        adams = {k: Adam(0.03) for k in theirs}
        reg = {k: np.zeros(w.shape) for k, w in theirs.items()}
        low, removed = {}, None
        for t in range(40):
            grads = pulls(theirs, goal, rng)
            updates, state = step(jax.tree.map(jnp.asarray, grads), state, ours)
            ours = optax.apply_updates(ours, updates)
            over = all(r.max() > 0.35 for r in reg.values())
            removed = t if over and removed is None else removed
            for k, w in theirs.items():
                if t % 2 == 0 and not reg[k].max() > 0.35:
                    low[k] = numpy_low(w, 0.63)
                    reg[k] = reg[k] + 0.04 * low[k]
                c = w + adams[k](grads[k] + (0 if over else reg[k] * w))
                theirs[k] = np.where(low[k] & over, 0, c)
                np.testing.assert_array_equal(state.penalty.mask[k], ~low[k])
                np.testing.assert_allclose(ours[k], theirs[k], rtol=1e-9, atol=1e-12)
        assert removed is not None and 17 <= removed < 30


def test_issr_removes_at_end_at_the_latest():
    params = tree("dict")
    tx = transforms.issr(0.05, sparsity=0.5, every=3, end=5)
    path, _ = follow(tx, params, [gradients(params, t) for t in range(8)])
    zeros = [int(jnp.sum(p["one"]["kernel"] == 0)) for p in path]
    assert zeros == [0] * 5 + [16] * 3


@pytest.mark.slow
def test_one_low_set_over_all_leaves():
    params = {"a": jnp.full((2, 4), 3.0), "b": jnp.array([[1.0, 2.0, 9.0, 8.0]])}
    tx = transforms.shrink_softly(0.15, end=1, ranking="global")
    path, _ = follow(tx, params, still(params, 2))
    np.testing.assert_array_equal(path[-1]["b"], [[0, 0, 9, 8]])
    assert bool(jnp.all(path[-1]["a"] == 3))


def test_factor_may_be_a_schedule():
    factor = optax.piecewise_constant_schedule(0.5, {1: 0.5})
    tx = transforms.shrink_softly(0.5, end=9, factor=factor)
    path, _ = follow(tx, row(8.0, 4.0), still(row(8.0, 4.0), 2))
    assert [float(p["w"][0, 1]) for p in path] == [2.0, 0.5]


def test_low_precision_leaves_no_residue():
    params = {"w": jnp.array([[1.2345678, 0.31415927]], jnp.bfloat16)}
    tx = transforms.shrink_softly(0.5, end=2)
    path, _ = follow(tx, params, [row(1e-3, 2e-3)] * 4)
    assert path[0]["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(float(path[0]["w"][0, 1]), 0.95 * 0.3162, rtol=1e-2)
    assert [float(p["w"][0, 1]) for p in path[2:]] == [0, 0]


@pytest.mark.parametrize(
    "tx",
    [
        transforms.shrink_softly(0.9, end=9),
        transforms.add_growing_decay(0.1, 0.9, every=3),
        transforms.add_pruned_decay(0.1, 2, 4),
        transforms.prune_to_n_of_m(2, 4, begin=0, end=9),
    ],
    ids=["iss-p", "iss-r", "sr-ste", "stages"],
)
def test_no_large_sort_or_concatenation(tx):
    state = jax.eval_shape(tx.init, BIG)
    jaxpr = jax.make_jaxpr(tx.update)(BIG, state, BIG).jaxpr
    sizes = [
        max(v.aval.size for v in (*eqn.invars, *eqn.outvars))
        for eqn in equations(jaxpr)
        if eqn.primitive.name in ("sort", "top_k", "approx_top_k", "concatenate")
    ]
    assert max(sizes, default=0) <= LIMIT


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transforms.shrink_softly(0.5, end=0), "`end` must be at least 1"),
        (
            lambda: transforms.shrink_softly(0.5, end=1, factor=1.5),
            r"`factor` must be in \[0, 1\], got 1.5",
        ),
        (
            lambda: transforms.shrink_softly(end=1),
            "exactly one of `sparsity` and `select`",
        ),
        (
            lambda: transforms.issp(0.1, sparsity=0.5, select=masks.full, end=1),
            "exactly one of `sparsity` and `select`",
        ),
        (
            lambda: transforms.shrink_softly(1.2, end=1),
            r"`sparsity` must be in \[0, 1\): the fraction of zeros, got 1.2",
        ),
        (
            lambda: transforms.shrink_softly({"one": 0.5}, end=1),
            r"`sparsity` must have exactly the structure of the param.*\.\n  missing",
        ),
        (lambda: transforms.shrink_softly(0.5, end=1, scope="nothing"), "nothing"),
        (
            lambda: transforms.shrink_softly(0.5, end=1, ranking="layer"),
            "`ranking` must be 'global', 'leaf' or 'output', got 'layer'",
        ),
        (
            lambda: transforms.add_growing_decay(0.1, 0.5, every=0),
            "`every` must be at least 1",
        ),
        (lambda: transforms.add_growing_decay(0.1), "exactly one of `sparsity`"),
        (lambda: transforms.issr(0.1, sparsity=0.5, end=0), "`end` must be at least"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(tree("dict"))
