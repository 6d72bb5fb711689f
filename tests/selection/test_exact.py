"""Masks equal a stable sort on the host, for all dtypes, images and awkward values."""

import functools
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import selection
from tests.selection.oracle import COUNTS, SIZE, build, flat, hard_trees, top

BF16, F16, F32, F64 = jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64
INT32 = st.integers(-(2**31), 2**31 - 1)


@functools.partial(jax.jit, static_argnames=("image", "snap", "ties"))
def select(
    tree: Any,
    k: Any,
    init: selection.WarmStart | None = None,
    image: Literal["magnitude", "signed"] = "magnitude",
    snap: bool = False,
    ties: Literal["first", "all"] = "first",
):
    found = selection.kth_magnitude(tree, k, init=init, image=image, snap=snap)
    return found, selection.keep_mask(tree, found, k, ties=ties, image=image)


def guard(found: selection.Threshold) -> int:
    """12 free passes, then two bits of the image at each."""
    return 12 + 4 * found.bits.dtype.itemsize


def agree(dtypes, image, seeds=(0, 1), snap=False):
    for seed in seeds:
        for name, tree in hard_trees(dtypes, seed):
            for k in COUNTS:
                found, mask = select(tree, jnp.int32(k), image=image, snap=snap)
                want = top(tree, k, image == "signed")
                np.testing.assert_array_equal(flat(mask), want, f"{name} k={k}")
                assert k <= int(found.count) and int(found.passes) <= guard(found)


@pytest.mark.parametrize("image", ["magnitude", "signed"])
@pytest.mark.parametrize(
    "dtypes",
    [(F32,), (BF16,), (F16,), (F32, BF16, F16)],
    ids=["f32", "bf16", "f16", "mixed"],
)
def test_equals_stable_sort(dtypes, image):
    agree(dtypes, image)


SIGNED_TOO = ["magnitude", pytest.param("signed", marks=pytest.mark.slow)]


@pytest.mark.parametrize("image", SIGNED_TOO)
def test_equals_stable_sort_in_float64(image):
    with jax.enable_x64(True):
        agree((F64,), image)
        agree((F64, F16), image, seeds=(0,))
        tree = build(1 + np.arange(SIZE) * 2.0**-50, (F64,))
        found, _ = select(tree, 5, image=image)
        assert found.bits.dtype == jnp.int64 and found.count.dtype == jnp.int32


@pytest.mark.parametrize("image", SIGNED_TOO)
def test_snap_changes_nothing_but_passes(image):
    agree((F32,), image, snap=True)


def test_snap_ends_at_once_on_few_values():
    tree = build(np.arange(SIZE) % 5 / 8 + 1e-3, (F32,))
    plain, snap = select(tree, 20)[0], select(tree, 20, snap=True)[0]
    assert int(plain.count) == int(snap.count) > 20
    assert int(snap.passes) <= 5 < int(plain.passes)


def test_what_is_not_finite_never_ranks():
    bits = np.array(
        [0x7F800001, 0xFFC00000, 0x7FFFFFFF, 0x7FFFFFFF, 0x7F800000, 0, 0x3F800000],
        "u4",
    )
    x = jnp.asarray(bits.view(np.float32))
    for image in ("magnitude", "signed"):
        for k in range(8):
            mask = select(x, k, image=image)[1]
            want = top([x], k, image == "signed")
            np.testing.assert_array_equal(flat(mask), want, f"{image} k={k}")


@settings(max_examples=60, deadline=None)
@given(bits=INT32, spread=INT32, seed=st.integers(0, 7), k=st.integers(0, SIZE))
def test_independent_of_guess_and_spread(bits, spread, seed, k):
    init = selection.WarmStart(jnp.int32(bits), jnp.int32(spread))
    name, tree = hard_trees((F32,), seed)[seed % 7]
    for image in ("magnitude", "signed"):
        found, mask = select(tree, k, init, image=image)
        want = top(tree, k, image == "signed")
        np.testing.assert_array_equal(flat(mask), want, name)
        assert int(found.passes) <= guard(found)


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(width=32), min_size=SIZE, max_size=SIZE))
def test_any_floats(values):
    tree = build(np.array(values, np.float32), (F32,))
    for k in (1, SIZE // 2, SIZE - 1):
        np.testing.assert_array_equal(flat(select(tree, k)[1]), top(tree, k))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 47), order=st.permutations(range(4)))
def test_symmetries(seed, k, order):
    """Leaves permuted, signs changed, everything doubled: the same entries are kept."""
    rng = np.random.default_rng(seed)
    leaves = [jnp.asarray(np.round(rng.standard_normal((3, 4)) * 4, 0)) for _ in "abcd"]
    leaves = [leaf.astype(F32) for leaf in leaves]
    mask = select(leaves, k, ties="all")[1]
    permuted = select([leaves[i] for i in order], k, ties="all")[1]
    for i, leaf in zip(order, permuted, strict=True):
        np.testing.assert_array_equal(leaf, mask[i])
    first = select(leaves, k)[1]
    chex.assert_trees_all_equal(first, select([-x for x in leaves], k)[1])
    chex.assert_trees_all_equal(first, select([2 * x for x in leaves], k)[1])


def test_masks_are_nested_and_count_exactly_k():
    for name, tree in hard_trees((F32,), 3):
        last = np.zeros(SIZE, bool)
        for k in range(SIZE + 1):
            kept = flat(select(tree, k)[1])
            assert kept.sum() == k and not (last & ~kept).any(), name
            last = kept


def test_ties_all_keeps_whole_ties():
    x = jnp.array([3.0, 1.0, -1.0, 1.0, 0.0])
    found, mask = select(x, 2, ties="all")
    assert mask.tolist() == [True, True, True, True, False] and int(found.count) == 4
    assert select(x, 2)[1].tolist() == [True, True, False, False, False]


def test_traced_count_compiles_once():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def run(x, k):
        return selection.keep_mask(x, selection.kth_magnitude(x, k), k)

    x = jnp.arange(10.0)
    assert [int(run(x, jnp.int32(k)).sum()) for k in (0, 3, 10)] == [0, 3, 10]


def test_traced_count_is_cut_to_the_size():
    x = jnp.arange(4.0)
    found, mask = select(x, jnp.int32(9))
    assert int(found.count) == 4 and mask.all()
    found, mask = select(x, jnp.int32(-2))
    assert int(found.count) == 0 and not mask.any()


def test_threshold_is_the_bit_pattern_of_the_kth():
    x = jnp.array([0.5, -3.0, 0.5, 0.25, 0.5])
    found = selection.kth_magnitude(x, 2)
    assert int(found.bits) == int(np.float32(0.5).view(np.int32)) and found.count == 4
    low = selection.kth_magnitude(-x, 4, image="signed")
    assert int(low.bits) == -int(found.bits)
    half = selection.kth_magnitude(x.astype(BF16), 2)
    assert int(half.bits) == int(np.float32(0.5).view(np.int32)) >> 16


def test_empty_trees():
    for tree in ({}, [], jnp.zeros((0,)), {"a": jnp.zeros((0, 3)), "b": jnp.zeros(0)}):
        found, mask = select(tree, 0)
        assert int(found.count) == 0 and int(found.passes) == 0
        chex.assert_trees_all_equal_shapes(mask, tree)
    assert selection.kth_magnitude([], [], ranking="leaf").bits.shape == (0,)
