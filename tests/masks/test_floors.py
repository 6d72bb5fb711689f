"""`min_keep`: the budget moves between leaves, the total does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import masks
from jprune.masks._rank import _raise_to_floors
from tests.masks import oracle

SIZES = (20, 3, 12)


def leaves(seed, levels=None):
    """Three leaves, the second far smaller in magnitude than the others."""
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=(1, n)) for n in SIZES]
    if levels:
        values = [np.round(v * levels) for v in values]
    return tuple(
        (v * s).astype(np.float32) for v, s in zip(values, (1, 0.001, 1), strict=True)
    )


@pytest.mark.parametrize("min_keep", [1, 2, 5])
@pytest.mark.parametrize("keep", [13, 17, 30, 35])
def test_against_the_oracle(min_keep, keep):
    params = leaves(0)
    mask = masks.unstructured(params, keep=keep, min_keep=min_keep)
    want = oracle.top(params, keep, floors=[min(min_keep, n) for n in SIZES])
    for x, y in zip(mask, want, strict=True):
        np.testing.assert_array_equal(x, y)
    assert sum(int(x.sum()) for x in mask) == keep


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(6, 35), st.integers(1, 3))
def test_ties_across_floors(seed, keep, levels):
    params = leaves(seed, levels)
    mask = masks.unstructured(params, keep=keep, min_keep=2)
    want = oracle.top(params, keep, floors=[2, 2, 2])
    for x, y in zip(mask, want, strict=True):
        np.testing.assert_array_equal(x, y)


def test_floors_inside_a_within_mask():
    params = leaves(1)
    within = tuple(np.ones((1, n), bool) for n in SIZES)
    within[1][0, 1:] = False
    mask = masks.unstructured(params, keep=9, min_keep=2, within=within)
    want = oracle.top(params, 9, within=within, floors=[2, 2, 2])
    for x, y in zip(mask, want, strict=True):
        np.testing.assert_array_equal(x, y)
    assert [int(x.sum()) for x in mask][1] == 1


def test_a_budget_below_the_floors_is_an_error():
    with pytest.raises(ValueError, match="keep 8 in all, but `min_keep` guarantees 9"):
        masks.unstructured(leaves(0), keep=8, min_keep=3)
    with pytest.raises(
        ValueError, match="`min_keep` guarantees 9 over 3 leaves. Lower"
    ):
        masks.unstructured(leaves(0), 0.9, ranking="leaf", min_keep=3)


@pytest.mark.parametrize(
    "counts, floors, want",
    [
        ([5, 0, 4], [1, 1, 1], [4, 1, 4]),  # the largest gives
        ([5, 0, 5], [1, 2, 1], [4, 2, 4]),  # level
        ([5, 1, 5], [1, 2, 1], [5, 2, 4]),
        ([9, 0, 2], [3, 3, 1], [6, 3, 2]),  # what is above the floor counts
        ([2, 2], [2, 2], [2, 2]),
        ([0, 6], [3, 3], [3, 3]),
    ],
)
def test_raising_to_floors_by_hand(counts, floors, want):
    got = _raise_to_floors(counts, tuple(floors))
    assert np.asarray(got).tolist() == want


def test_raising_traced_counts_to_floors():
    traced = jax.jit(lambda *k: _raise_to_floors(k, (1, 2, 1)))
    for counts in ([5, 0, 5], [5, 1, 5], [9, 0, 0], [1, 2, 1], [1, 1, 1], [0, 3, 0]):
        got, want = traced(*counts), _raise_to_floors(counts, (1, 2, 1))
        assert [int(k) for k in got] == [int(k) for k in want]
        assert {k.dtype for k in got} == {jnp.dtype("int32")}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1))
def test_raising_to_floors_takes_one_at_a_time_from_the_largest(pairs):
    counts, floors = (np.array(x) for x in zip(*pairs, strict=True))
    got = np.asarray(_raise_to_floors(counts.tolist(), tuple(floors.tolist())))
    if counts.sum() < floors.sum():
        assert got.tolist() == counts.tolist()
        return
    slow = np.maximum(counts, floors)
    while slow.sum() > counts.sum():
        slow[np.argmax(slow - floors)] -= 1
    # Which of two equals gives the last one is of no account.
    assert sorted(got - floors) == sorted(slow - floors)
    assert np.all(got <= np.maximum(counts, floors))


def test_floors_of_a_ranking_by_leaf():
    params = leaves(3)
    mask = masks.unstructured(params, 0.9, ranking="leaf", min_keep=1)
    # floor(0.9 n + 1/2) removed leaves 2, 0, 1; the empty one takes from the first.
    assert [masks.kept_count(n, 0.9) for n in SIZES] == [2, 0, 1]
    assert [int(x.sum()) for x in mask] == [1, 1, 1]
