"""MaskSparsity's masks by hand (g4 to g6): thresholds of scales, votes of members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import masks
from jprune.surgery import AxisRef, Group


def scales(*values):
    """One group whose members are the scales given, one leaf each."""
    refs = tuple(AxisRef((f"s{i}",), 0, "scale") for i in range(len(values)))
    group = Group("g", len(values[0]), refs)
    return {f"s{i}": jnp.array(v) for i, v in enumerate(values)}, [group]


def test_masksparsity_g4_voting():
    remove = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 0, 1], [1, 1, 0, 0, 0]], bool)
    params, groups = scales(*np.where(remove, 0.001, 0.5))
    kept = jax.jit(lambda p: masks.keep_by_scale(p, groups))(params)["g"]
    np.testing.assert_array_equal(kept, [False, False, True, True, False])


def test_masksparsity_g5_energy_threshold():
    def kept(*scale):
        params, groups = scales(scale)
        return masks.keep_by_scale(params, groups, "optimal")["g"].tolist()

    # The threshold is half the smallest scale that holds energy and the one below.
    assert kept(-1e-3, 1.0, 2e-3) == [False, True, False]
    # A dead leaf keeps one; where the smallest scale holds energy all stay.
    assert kept(9e-4, 1e-5) == [True, False]
    assert kept(0.5, 1.0) == [True, True]


def test_masksparsity_g6_min_keep():
    params, groups = scales([0.001, 0.003, 0.002])
    kept = masks.keep_by_scale(params, groups)["g"]
    np.testing.assert_array_equal(kept, [False, True, False])
    kept = masks.keep_by_scale(params, groups, min_keep=2)["g"]
    np.testing.assert_array_equal(kept, [False, True, True])
    params, groups = scales([0.001] * 3)
    kept = masks.keep_by_scale(params, groups)["g"]
    np.testing.assert_array_equal(kept, [True, False, False])


def numpy_vote(keeps):
    """The loop of the specification."""
    remove = ~np.stack(keeps)
    votes, fewest = remove.sum(0), remove.sum(1).min()
    for v in range(len(keeps), 0, -1):
        if (votes >= v).sum() >= fewest:
            return votes < v
    raise AssertionError("one vote is always enough")


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_vote_against_the_loop(members):
    rng = np.random.default_rng(members)
    for _ in range(20):
        keeps = rng.random((members, 7)) < rng.random((members, 1))
        keeps[:, 3] = True  # no group is emptied
        params, groups = scales(*np.where(keeps, 0.5, 0.001))
        kept = masks.keep_by_scale(params, groups)["g"]
        np.testing.assert_array_equal(kept, numpy_vote(keeps))


def test_a_vote_that_would_empty_the_group_keeps_the_largest():
    params, groups = scales([0.0, 0.0, 0.5, 0.5], [0.5, 0.6, 0.0, 0.0])
    kept = masks.keep_by_scale(params, groups)["g"]
    np.testing.assert_array_equal(kept, [False, True, False, False])


def test_threshold_is_strict_and_sign_blind():
    params, groups = scales([0.01, -0.02, 0.005])
    kept = masks.keep_by_scale(params, groups, 0.01)["g"]
    np.testing.assert_array_equal(kept, [False, True, False])


def test_bad_thresholds():
    params, groups = scales([0.01, -0.02, 0.005])
    for threshold in ("optimum", -1.0, float("nan")):
        with pytest.raises(
            ValueError, match="`threshold` must be a number of at least"
        ):
            masks.keep_by_scale(params, groups, threshold)
    keep = jax.jit(lambda t: masks.keep_by_scale(params, groups, t))
    np.testing.assert_array_equal(keep(0.01)["g"], [False, True, False])


def test_norm_over_a_concatenation():
    first = Group("a", 2, (AxisRef(("s",), 0, "scale", (0, 1, -1, -1)),))
    second = Group("b", 2, (AxisRef(("s",), 0, "scale", (-1, -1, 1, 0)),))
    plain = Group("c", 3, (AxisRef(("k",), 1, "out"),))
    params = {"s": jnp.array([0.0, 1.0, 1.0, 0.0]), "k": jnp.ones((2, 3))}
    kept = masks.keep_by_scale(params, [first, second, plain])
    np.testing.assert_array_equal(kept["a"], [False, True])
    np.testing.assert_array_equal(kept["b"], [False, True])
    assert kept["c"].all()
    with pytest.raises(ValueError, match="No group has a norm scale"):
        masks.keep_by_scale(params, [plain])
