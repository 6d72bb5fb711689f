"""Per-leaf ranking, restrictions, transformations, warm starts, sizes, error texts."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import selection
from tests.jaxprs import jaxprs_in_params
from tests.selection.oracle import SIZE, build, flat, hard_trees, top

F32 = jnp.float32
Image = Literal["magnitude", "signed"]
LEAVES = 5


@functools.partial(jax.jit, static_argnames=("image",))
def select_leaves(tree, k, within=None, image: Image = "magnitude"):
    found = selection.kth_magnitude(tree, k, ranking="leaf", within=within, image=image)
    return found, selection.keep_mask(tree, found, k, within=within, image=image)


@functools.partial(jax.jit, static_argnames=("image",))
def select_within(tree, k, within, image: Image = "magnitude"):
    found = selection.kth_magnitude(tree, k, within=within, image=image)
    return found, selection.keep_mask(tree, found, k, within=within, image=image)


@pytest.mark.parametrize("image", ["magnitude", "signed"])
def test_leaf_ranking_is_the_global_one_of_each_leaf(image):
    rng = np.random.default_rng(5)
    for name, tree in hard_trees((F32, jnp.bfloat16), 4):
        leaves = jax.tree.leaves(tree)
        counts = [int(rng.integers(0, leaf.size + 1)) for leaf in leaves]
        found, mask = select_leaves(tree, jnp.array(counts), image=image)
        for leaf, k, kept in zip(leaves, counts, jax.tree.leaves(mask), strict=True):
            want = top([leaf], k, image == "signed")
            np.testing.assert_array_equal(np.ravel(kept), want, f"{name} {k}")
        assert (found.count >= jnp.array(counts)).all()
        assert found.passes.shape == (len(leaves),) and found.passes.max() <= 28


def test_leaf_ranking_is_one_loop():
    leaves = [jnp.ones((2, 3)) for _ in range(LEAVES)]
    counts = jnp.full(LEAVES, 2)
    kth = jax.make_jaxpr(lambda t, k: selection.kth_magnitude(t, k, ranking="leaf"))
    names = [e.primitive.name for e in equations(kth(leaves, counts))]
    assert names.count("while") == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(0, SIZE), whole=st.booleans())
def test_within_restricts(seed, k, whole):
    rng = np.random.default_rng(seed)
    tree = hard_trees((F32,), seed)[seed % 7][1]
    shapes = jax.tree.map(lambda x: x.shape, tree)
    within = jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape) < 0.6), tree)
    within["c"] = jnp.asarray(whole)  # a 0-d mask speaks for its leaf
    inside = flat(jax.tree.map(lambda w, x: np.broadcast_to(w, x.shape), within, tree))
    for image in ("magnitude", "signed"):
        found, mask = select_within(tree, k, within, image=image)
        want = top(tree, k, image == "signed", within=inside)
        np.testing.assert_array_equal(flat(mask), want)
        assert int(found.count) >= min(k, inside.sum())
    assert jax.tree.map(lambda x: x.shape, mask) == shapes


def test_within_may_hold_python_bools():
    tree = {"a": jnp.arange(4.0), "b": jnp.arange(4.0) + 9}
    found = selection.kth_magnitude(tree, 2, within={"a": True, "b": False})
    mask = selection.keep_mask(tree, found, 2, within={"a": True, "b": False})
    assert mask["a"].tolist() == [False, False, True, True] and not mask["b"].any()


def test_under_vmap_scan_cond_and_grad():
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.round(rng.standard_normal((3, 4, 5)) * 3), F32)
    counts = jnp.array([3, 0, 17])

    def keep(x, k):
        return selection.keep_mask(x, selection.kth_magnitude(x, k), k)

    want = jnp.stack([keep(row, int(k)) for row, k in zip(x, counts, strict=True)])
    assert want.sum(axis=(1, 2)).tolist() == counts.tolist()
    np.testing.assert_array_equal(jax.jit(jax.vmap(keep))(x, counts), want)
    scanned = jax.lax.scan(lambda c, a: (c, keep(*a)), 0, (x, counts))[1]
    np.testing.assert_array_equal(scanned, want)
    branch = jax.lax.cond(True, lambda: keep(x[0], 3), lambda: x[0] > 0)
    np.testing.assert_array_equal(branch, want[0])
    grad = jax.grad(lambda w: jnp.sum(jnp.where(keep(w, 3), w, 0) ** 2))(x[0])
    np.testing.assert_array_equal(grad, jnp.where(want[0], 2 * x[0], 0))


def test_threshold_in_a_gap_stays_at_the_guess():
    x = jnp.array([1.0, 1.0 + 2**-10, 2.0, 3.0])
    bits = int(np.float32(1.5).view(np.int32))
    for spread in (1, 5000):
        init = selection.WarmStart(jnp.int32(bits), jnp.int32(spread))
        found = selection.kth_magnitude(x, 2, init=init)
        assert (int(found.bits), int(found.count), int(found.passes)) == (bits, 2, 1)
    memory = init.after(found)
    assert (int(memory.bits), int(memory.spread)) == (bits, 1)


def test_spread_is_twice_the_miss_unless_a_gap_ended_the_search():
    def after(last, bits, passes):
        found = selection.Threshold(jnp.int32(bits), jnp.int32(1), jnp.int32(passes))
        last = selection.WarmStart(*map(jnp.int32, last))
        return [int(v) for v in last.after(found)]

    assert after((1000, 64), 1300, 4) == [1300, 600]
    assert after((1000, 64), 900, 4) == [900, 200]
    assert after((1000, 64), 1064, 1) == [1064, 64]  # within the spread: not measured
    assert after((1000, 64), 1000, 1) == [1000, 1]
    assert after((0, 0), 900, 8) == [900, 1]  # cold: there was no guess to miss
    assert after((-(2**31) + 1, 5), 2**31 - 1, 9) == [2**31 - 1, 2**31 - 2]


def test_cold_has_the_dtype_and_shape_of_the_search():
    tree = [jnp.ones(3), jnp.ones(2, jnp.bfloat16)]
    assert (
        selection.WarmStart.cold().bits.shape == ()
        and selection.WarmStart.cold().bits.dtype == "int32"
    )
    assert selection.WarmStart.cold(tree, ranking="leaf").spread.shape == (2,)
    with jax.enable_x64(True):
        wide = jnp.ones(3, jnp.float64)
        memory = selection.WarmStart.cold(wide)
        for _ in range(2):
            found = selection.kth_magnitude(wide, 2, init=memory)
            memory = memory.after(found)
            assert memory.bits.dtype == memory.spread.dtype == jnp.int64


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_fifty_steps_of_a_closed_loop(decay):
    """Momentum with selective decay: the mask is the host's at each of 50 steps."""
    rng = np.random.default_rng(1)
    scales = np.geomspace(0.01, 0.1, 4)
    tree = [jnp.asarray(rng.standard_normal((40, 50)) * s, F32) for s in scales]
    drift = [jnp.asarray(rng.standard_normal((40, 50)) * 1e-3, F32) for _ in tree]
    k = 800

    @jax.jit
    def step(w, v, warm):
        found = selection.kth_magnitude(w, k, init=warm)
        mask = selection.keep_mask(w, found, k)
        pull = lambda p, m, g: g + decay * jnp.where(m, 0, p)  # noqa: E731
        v = jax.tree.map(lambda p, m, g, u: 0.9 * u + pull(p, m, g), w, mask, drift, v)
        w = jax.tree.map(lambda p, u: p - 0.1 * u, w, v)
        return w, v, warm.after(found), mask, found.passes

    v, warm, passes = [0 * p for p in tree], selection.WarmStart.cold(tree), []
    for _ in range(50):
        before = tree
        tree, v, warm, mask, made = step(tree, v, warm)
        np.testing.assert_array_equal(flat(mask), top(before, k))
        passes.append(int(made))
    assert np.mean(passes[3:]) <= 5 and max(passes) <= 28


@pytest.mark.slow
def test_cold_start_of_a_large_tree():
    """Sampled when unsharded, right from any guess, and few passes either way."""
    rng = np.random.default_rng(2)
    n = 2**20 + 77
    draws = {
        "normal": rng.standard_normal(n),
        "heavy": rng.standard_t(1.5, n),
        "zeros": rng.standard_normal(n) * (rng.random(n) < 0.05),
    }
    limits = {"sample": 10, "typical": 16, "wrong": 28}

    @jax.jit
    def run(tree, k):
        guesses = [0, 2**31 - 1, 0x3F800000]
        bad = [selection.WarmStart(jnp.int32(b), jnp.int32(64)) for b in guesses]
        inits = [None, selection.WarmStart.cold(), *bad]
        found = [selection.kth_magnitude(tree, k, init=init) for init in inits]
        return found, selection.keep_mask(tree, found[0], k)

    for name, x in draws.items():
        split = np.split(x.astype(np.float32), [900_001, 900_100, n - 3])
        tree = [jnp.asarray(part) for part in split]
        for k in (n // 10, n - 5):
            found, mask = run(tree, jnp.int32(k))
            kth = np.partition(np.abs(flat(tree)), n - k)[n - k]
            assert all(k <= int(one.count) for one in found), (name, k)
            assert flat(mask).sum() == k
            assert np.abs(flat(tree))[flat(mask)].min() == kth
            bounds = [limits["sample"], limits["typical"], *[limits["wrong"]] * 3]
            for one, bound in zip(found, bounds, strict=True):
                assert int(one.passes) <= bound, (name, k, bound)


def test_small_leaves_are_packed_and_keep_their_order():
    rng = np.random.default_rng(3)
    shapes = [(3,), (5000,), (), (2, 2), (70, 70), (0,), (9,)]
    dtypes = [F32, F32, jnp.bfloat16, F32, F32, F32, jnp.bfloat16]
    rows = [np.round(2 * rng.standard_normal(s)) for s in shapes]
    tree = [jnp.asarray(r, d) for r, d in zip(rows, dtypes, strict=True)]
    within = [jnp.asarray(rng.random(s) < 0.8) for s in shapes]
    inside = flat(within)
    kth = jax.make_jaxpr(lambda t: selection.kth_magnitude(t, 9))(tree)
    joined = [e for e in equations(kth) if e.primitive.name == "concatenate"]
    assert [e.outvars[0].aval.shape for e in joined if e.invars[0].aval.shape != (1,)]
    for k in (5, 3000, 9000):
        found, mask = select_within(tree, k, within)
        np.testing.assert_array_equal(flat(mask), top(tree, k, within=inside))


def equations(jaxpr):
    """Every equation of a jaxpr, those of its sub-jaxprs included."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    for eqn in inner.eqns:
        yield eqn
        for sub in jaxprs_in_params(eqn.params):
            yield from equations(sub)


MILLION = [
    jax.ShapeDtypeStruct(s, F32) for s in [(3, 3, 256, 256), (400_000,), (7,), (9, 9)]
]


def kth_and_mask(tree, k, ranking: Literal["global", "leaf"] = "global", **kwargs):
    found = selection.kth_magnitude(tree, k, ranking=ranking, **kwargs)
    return selection.keep_mask(tree, found, k)


@pytest.mark.parametrize(
    "kwargs", [{}, {"init": selection.WarmStart.cold()}, {"snap": True}]
)
def test_nothing_is_sorted_or_joined_at_a_million(kwargs):
    run = functools.partial(kth_and_mask, **kwargs)
    for eqn in equations(jax.make_jaxpr(run)(MILLION, 1000)):
        if eqn.primitive.name in ("sort", "top_k", "concatenate", "gather", "scatter"):
            assert max(math.prod(v.aval.shape) for v in eqn.outvars) <= 65_536, eqn


@pytest.mark.parametrize("ranking", ["global", "leaf"])
def test_no_copy_of_the_tree_is_made(ranking):
    """A lost barrier would hoist the images, or the positions, out of a loop."""
    k = 1000 if ranking == "global" else [900, 90, 3, 7]
    size = 4 * sum(math.prod(s.shape) for s in MILLION)
    init = selection.WarmStart.cold(MILLION, ranking=ranking)
    run = functools.partial(kth_and_mask, k=k, ranking=ranking, init=init)
    memory = jax.jit(run).lower(MILLION).compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes <= 0.01 * size


def test_bad_leaves_are_named():
    tree = {"w": jnp.ones(2), "n": jnp.ones(2, int), "z": {"c": jnp.ones(1, complex)}}
    with pytest.raises(TypeError, match=r"n: int32\n  z/c: complex64"):
        selection.kth_magnitude(tree, 1)
    with pytest.raises(TypeError, match=r"w: bool"):
        selection.keep_mask({"w": jnp.ones(2, bool)}, threshold(), 1)


def threshold(shape=()):
    zero = jnp.zeros(shape, jnp.int32)
    return selection.Threshold(zero, zero, zero)


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"k": 5}, ValueError, "between 0 and the number of entries, got 5 of 4"),
        ({"k": -1}, ValueError, "`k` must lie between 0"),
        ({"k": 0.5}, TypeError, "`k` must be an integer count.*got float"),
        ({"k": True}, TypeError, "`k` must be an integer count.*got bool"),
        ({"k": [1, 2]}, ValueError, r"`k` must be one integer, got shape \(2,\)"),
        ({"ranking": "leaf"}, ValueError, "one entry for each of the 2 leaves"),
        ({"ranking": "layer"}, ValueError, "`ranking` must be.*got 'layer'"),
        ({"image": "abs"}, ValueError, "`image` must be.*got 'abs'"),
        ({"pivots": 1}, ValueError, "`pivots` must be at least 2, got 1"),
        ({"within": {"a": True}}, ValueError, "`within` must have.*missing: b"),
        ({"within": {"a": 1, "b": True}}, TypeError, "tree of bool, got int64 at a"),
        (
            {"within": {"a": np.ones(2, bool), "b": True}},
            ValueError,
            r"at a expected \(3,\), got \(2,\)",
        ),
        (
            {"init": selection.WarmStart.cold([1.0, 2.0], ranking="leaf")},
            ValueError,
            r"`init` must be of shape \(\), got \(2,\): make it by `WarmStart.cold",
        ),
        ({"specs": jax.P()}, ValueError, "`specs`.*give `axis_name` too"),
    ],
)
def test_bad_arguments_say_what_to_do(kwargs, error, text):
    tree = {"a": jnp.ones(3), "b": jnp.ones(())}
    with pytest.raises(error, match=f"(?s){text}"):
        selection.kth_magnitude(tree, **{"k": 1, **kwargs})


def test_a_threshold_of_another_tree_is_refused():
    with pytest.raises(ValueError, match="is of 3 leaves, `tree` has 2"):
        selection.keep_mask([jnp.ones(2)] * 2, threshold((3,)), [1, 1])
    with pytest.raises(ValueError, match='`ties` must be "first" or "all"'):
        selection.keep_mask([jnp.ones(2)] * 2, threshold(), 1, ties="last")  # type: ignore[arg-type]
    with jax.enable_x64(True), pytest.raises(ValueError, match="int32.*int64"):
        selection.keep_mask(jnp.ones(2, jnp.float64), threshold(), 1)
    with pytest.raises(ValueError, match="needs `tree`"):
        selection.WarmStart.cold(ranking="leaf")


def test_too_many_entries_are_refused_at_trace_time():
    large = [jax.ShapeDtypeStruct((2**16, 2**14), F32)] * 2
    with pytest.raises(ValueError, match="2147483648 entries; counts are int32"):
        jax.eval_shape(lambda t: selection.kth_magnitude(t, 1), large)
    assert build(np.zeros(SIZE), (F32,))["c"].shape == (7,)


def test_no_implicit_promotion(strict_promotion):
    del strict_promotion
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(4, jnp.bfloat16)}
    within = {"a": jnp.ones((2, 3), bool), "b": jnp.asarray(True)}
    for snap in (False, True):
        found, mask = select_within(tree, 5, within)
        memory = selection.WarmStart.cold(tree).after(found)
        again = selection.kth_magnitude(tree, 5, init=memory, snap=snap)
        assert int(again.bits) == int(found.bits)
    assert flat(mask).sum() == 5
    assert flat(select_leaves(tree, jnp.array([2, 1]))[1]).sum() == 3
