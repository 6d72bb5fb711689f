"""`times=`: the ranking of a product that is never stored."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import selection
from jprune.masks._unstructured import ranked
from jprune.selection._largest import largest
from tests.selection.oracle import COUNTS, SIZE, build, flat, hard_trees, top

BF16, F32, F64 = jnp.bfloat16, jnp.float32, jnp.float64


def products(tree, times, dtype):
    """The product of each leaf on the host, rounded once, to `dtype`."""
    with np.errstate(all="ignore"):
        return jax.tree.map(
            lambda a, b: np.asarray(a).astype(dtype) * np.asarray(b).astype(dtype),
            tree,
            times,
        )


@jax.jit
def select(tree, times, within, k):
    options = {"times": times, "within": within}
    found = selection.kth_magnitude(tree, k, **options)
    return found, selection.keep_mask(tree, found, k, **options)


@pytest.mark.parametrize("dtypes", [(F32,), (BF16, F32)], ids=["f32", "mixed"])
def test_equals_the_ranking_of_the_stored_product(dtypes):
    rng = np.random.default_rng(5)
    times = build(np.round(3 * rng.standard_normal(SIZE)), dtypes[::-1])
    within = build(rng.random(SIZE) < 0.8, (bool,))
    everything = jax.tree.map(jnp.ones_like, within)
    for name, tree in hard_trees(dtypes, 0):
        # A NaN that a product makes has a payload of the hardware's choice, and a
        # subnormal product may be flushed to zero.
        if name in ("not finite", "subnormal"):
            continue
        stored = products(tree, times, np.float32)
        for k in COUNTS:
            for inside in (everything, within):
                found, mask = select(tree, times, inside, k)
                want = top(stored, k, within=flat(inside))
                np.testing.assert_array_equal(flat(mask), want, f"{name} k={k}")
                assert int(found.count) >= want.sum()


def test_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(6)
        tree, times = (build(rng.standard_normal(SIZE), (t,)) for t in (F64, F32))
        everything = jax.tree.map(lambda x: jnp.ones(x.shape, bool), tree)
        mask = select(tree, times, everything, 20)[1]
        want = top(products(tree, times, np.float64), 20)
        np.testing.assert_array_equal(flat(mask), want)


@pytest.mark.slow
def test_small_leaves_sampling_floors_and_ranking_by_leaf():
    rng = np.random.default_rng(7)
    shapes = [(3,), (2**20 + 3,), (2, 2), (5000,), (9,)]
    tree, times = (
        [jnp.asarray(rng.standard_normal(s), F32) for s in shapes] for _ in range(2)
    )
    stored = [np.asarray(a) * np.asarray(b) for a, b in zip(tree, times, strict=True)]
    whole = ranked(
        tree,
        70_000,
        scope=[True] * 5,
        min_keep=0,
        times=times,
        init=selection.WarmStart.cold(tree),
    )[0]
    np.testing.assert_array_equal(flat(whole), top(stored, 70_000))

    sampled = selection.kth_magnitude(tree, 70_000, times=times)
    assert int(sampled.passes) <= 10
    mask = selection.keep_mask(tree, sampled, 70_000, times=times)
    np.testing.assert_array_equal(flat(mask), flat(whole))

    counts = [2, 999, 1, 0, 9]
    found = selection.kth_magnitude(tree, counts, ranking="leaf", times=times)
    each = selection.keep_mask(tree, found, counts, times=times)
    want = [top([x], k) for x, k in zip(stored, counts, strict=True)]
    np.testing.assert_array_equal(flat(each), np.concatenate(want))

    k, floors = jnp.int32(70_000), [3, 1, 1, 1, 1]
    shares = largest(tree, k, floors=floors, times=times)
    plain = largest(stored, k, floors=floors)
    np.testing.assert_array_equal(shares.counts, plain.counts)
    assert int(shares.counts[0]) == 3


def test_the_product_is_never_stored():
    shapes = [(3, 3, 256, 256), (400_000,), (9, 9)]
    tree = [jax.ShapeDtypeStruct(s, F32) for s in shapes]
    size = 4 * sum(math.prod(s) for s in shapes)

    def run(tree, times):
        found = selection.kth_magnitude(
            tree, 1000, times=times, init=selection.WarmStart.cold()
        )
        return selection.keep_mask(tree, found, 1000, times=times)

    memory = jax.jit(run).lower(tree, tree).compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes <= 0.01 * size


@pytest.mark.parametrize(
    ("times", "error", "text"),
    [
        ({"a": jnp.ones(3)}, ValueError, "`times` must have.*missing: b"),
        (
            {"a": jnp.ones(2), "b": jnp.ones(())},
            ValueError,
            r"`times` must have the shape of its leaf: at a expected \(3,\), got \(2,",
        ),
        (
            {"a": jnp.ones(3), "b": jnp.ones((), int)},
            TypeError,
            "`times` must have floating leaves only.*b: int32",
        ),
    ],
)
def test_times_that_does_not_fit(times, error, text):
    tree = {"a": jnp.ones(3), "b": jnp.ones(())}
    with pytest.raises(error, match=f"(?s){text}"):
        selection.kth_magnitude(tree, 1, times=times)
