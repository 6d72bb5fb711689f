"""Masks by a value against NumPy, with floors and ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import masks


def oracle(x, threshold, within, floor):
    kept = (x > threshold) & within
    if kept.sum() >= floor:
        return kept
    level = np.sort(x[within])[::-1][: max(floor, 1)]
    return within & (x >= level[-1]) if floor and level.size else within & False


@pytest.mark.parametrize("floor", [0, 1, 7, 99, None])
def test_above(floor):
    rng = np.random.default_rng(3)
    scores = {k: rng.integers(0, 9, (5, 4)).astype(np.float32) for k in "ab"}
    scores["a"] = np.minimum(scores["a"], 5)
    within = {k: rng.random((5, 4)) < 0.8 for k in "ab"}
    select = jax.jit(lambda t: masks.above(scores, t, within=within, min_keep=floor))
    for threshold in (0.0, 3.0, 6.0, 8.0):
        got = select(threshold)
        for name, kept in got.items():
            count = 4 if floor is None else min(floor, 20)
            want = oracle(scores[name], threshold, within[name], count)
            np.testing.assert_array_equal(kept, want)


def test_equal_scores_stay_together():
    """A channel whose scalars score alike is not cut through by the floor."""
    scores = jnp.tile(jnp.array([3.0, 1.0, 2.0]), (4, 1))
    got = masks.above(scores, 9.0, min_keep=2)
    np.testing.assert_array_equal(got, np.tile([True, False, False], (4, 1)))


def test_leaves_out_of_scope_and_nan():
    tree = {"kernel": jnp.array([[jnp.nan, 0.0], [2.0, 1.0]]), "bias": jnp.zeros(2)}
    got = masks.above(tree, 1.0)
    assert got["kernel"].tolist() == [[False, False], [True, False]]
    assert got["bias"].shape == () and bool(got["bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": -0.1}, "`threshold` must be finite and >= 0, got -0.1"),
        ({"threshold": np.inf}, "`threshold` must be finite and >= 0, got inf"),
        ({"min_keep": -1}, "`min_keep` must be an integer >= 0, or None, got -1"),
        ({"within": {"v": True}}, "`within` must have exactly the structure"),
    ],
)
def test_errors(change, message):
    args = {"scores": {"w": jnp.ones((2, 2))}, "threshold": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        masks.above(**args)
