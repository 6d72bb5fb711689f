"""Allocations: hand numbers, exact totals, and the layers that become dense."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import masks, scores
from jprune.masks._allocation import densities, largest_remainder

NET = {"c1": (3, 3, 3, 16), "c2": (3, 3, 16, 32), "fc": (32, 10)}
SIZES = {"c1": 432, "c2": 4608, "fc": 320}


def shaped(shapes):
    """A tree of kernels (shapes alone will do) beside biases that take no part."""
    return {
        k: {"kernel": jax.ShapeDtypeStruct(v, jnp.float32), "bias": jnp.zeros(v[-1])}
        for k, v in shapes.items()
    }


def kept(allocation, shapes):
    """The counting rule applied to each leaf of an allocation."""
    counts = {}
    for key, shape in shapes.items():
        assert allocation[key]["bias"] == 0.0
        share = allocation[key]["kernel"]
        assert isinstance(share, float)
        counts[key] = masks.kept_count(int(np.prod(shape)), share)
    return counts


@pytest.mark.parametrize(
    "s, density, total",
    [
        (0.9, (0.256351, 0.051911, 0.581405), 536),
        (0.8, (0.550867, 0.111551, 1.0), 1072),
        (0.5, (1.0, 0.418403, 1.0), 2680),
    ],
)
def test_allocation_g4_erk(s, density, total):
    counts = kept(masks.erk(shaped(NET), s), NET)
    assert sum(counts.values()) == total
    for (key, n), d in zip(SIZES.items(), density, strict=True):
        assert abs(counts[key] - d * n) < 1


def test_allocation_g4_epsilon():
    """eps = 536/121 at S = 0.9, and 9.518987 at 0.8, where fc is dense."""
    ratios = [Fraction(sum(v), int(np.prod(v))) for v in NET.values()]
    sizes = list(SIZES.values())
    at_90 = densities(sizes, ratios, 0.9)
    assert [d / r for d, r in zip(at_90, ratios, strict=True)] == [
        Fraction(536, 121)
    ] * 3
    c1, c2, fc = densities(sizes, ratios, 0.8)
    assert fc == 1 and c1 / ratios[0] == c2 / ratios[1]
    assert float(c1 / ratios[0]) == pytest.approx(9.518987, abs=5e-7)
    for s in (0.9, 0.8, 0.5):
        total = sum(
            d * n for d, n in zip(densities(sizes, ratios, s), sizes, strict=True)
        )
        assert total == (1 - Fraction(str(s))) * sum(sizes)


def test_allocation_g4_erdos_renyi():
    counts = kept(masks.erdos_renyi(shaped(NET), 0.9), NET)
    assert sum(counts.values()) == 536
    for (key, n), d in zip(SIZES.items(), (0.328941, 0.077907, 0.109070), strict=True):
        assert abs(counts[key] - d * n) < 1


def test_allocation_g5_mlp():
    shapes = {"a": (4, 8), "b": (8, 2)}
    ratios, sizes = [Fraction(12, 32), Fraction(10, 16)], [32, 16]
    half = densities(sizes, ratios, 0.5)
    assert half == [Fraction(24, 22) * r for r in ratios]
    np.testing.assert_allclose(
        [float(d) for d in half], [0.409091, 0.681818], atol=5e-7
    )
    quarter = densities(sizes, ratios, 0.25)
    assert quarter == [Fraction(5, 8), 1]
    for allocate in (masks.erk, masks.erdos_renyi):
        assert kept(allocate(shaped(shapes), 0.5), shapes) == {"a": 13, "b": 11}
        assert kept(allocate(shaped(shapes), 0.25), shapes) == {"a": 20, "b": 16}


def test_power_of_erk():
    """Power 0 is the uniform allocation; the ratio goes in to the power."""
    params = shaped(NET)
    flat = kept(masks.erk(params, 0.9, power=0), NET)
    assert flat == kept(masks.uniform(params, 0.9), NET)
    counts = kept(masks.erk(params, 0.99, power=0.5), NET)
    weight = {k: (sum(v) / np.prod(v)) ** 0.5 * SIZES[k] for k, v in NET.items()}
    for key in NET:
        assert abs(counts[key] - 54 * weight[key] / sum(weight.values())) < 1


def test_uniform_has_an_exact_total():
    shapes = {str(i): (1, 3) for i in range(7)}
    params = shaped(shapes)
    for s in (0.0, 0.1, 0.5, 0.9):
        counts = kept(masks.uniform(params, s), shapes)
        assert sum(counts.values()) == masks.kept_count(21, s)
        assert max(counts.values()) - min(counts.values()) <= 1
    # Each leaf rounded by itself would miss it: 7 * round(0.1 * 3) is 0, not 2.
    assert sum(3 - masks.kept_count(3, 0.1) for _ in shapes) == 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_totals_are_exact_for_every_allocation(shapes, percent):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    n = sum(int(np.prod(shape)) for shape in shapes)
    for allocate in (masks.uniform, masks.erdos_renyi, masks.erk):
        counts = kept(allocate(shaped(named), percent / 100), named)
        assert sum(counts.values()) == masks.kept_count(n, percent / 100)
        assert all(0 <= counts[k] <= np.prod(named[k]) for k in named)


def test_largest_remainder_by_hand():
    shares = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 2)]
    assert largest_remainder(shares, [5, 4, 5], 6) == [3, 1, 2]  # 2.5, 1.33, 2.5
    assert largest_remainder(shares, [5, 4, 5], 5) == [2, 1, 2]
    assert largest_remainder(shares, [4, 3, 4], 5) == [2, 1, 2]


def test_an_allocation_makes_masks_with_its_counts():
    rng = np.random.default_rng(0)
    params = {
        k: {"kernel": rng.normal(size=v).astype(np.float32)} for k, v in NET.items()
    }
    mask = masks.unstructured(params, masks.erk(params, 0.8))
    got = {k: int(mask[k]["kernel"].sum()) for k in NET}
    assert got == {"c1": 238, "c2": 514, "fc": 320} and sum(got.values()) == 1072


def test_allocation_g6_lamp():
    params = ({"w": jnp.array([[1.0, 2.0, 3.0]])}, {"w": jnp.array([[0.1, 0.2]])})
    mask = masks.unstructured(scores.lamp(params), keep=3, min_keep=0)
    np.testing.assert_array_equal(mask[0]["w"], [[0, 1, 1]])
    np.testing.assert_array_equal(mask[1]["w"], [[0, 1]])
    plain = masks.unstructured(params, keep=3, min_keep=0)
    assert not np.any(plain[1]["w"])  # global magnitude empties the second leaf
    larger = (params[0], {"w": 100 * params[1]["w"]})
    again = masks.unstructured(scores.lamp(larger), keep=3, min_keep=0)
    jax.tree.map(np.testing.assert_array_equal, mask, again)


@pytest.mark.parametrize("allocate", [masks.erk, masks.erdos_renyi])
def test_vectors_have_no_ratio(allocate):
    with pytest.raises(ValueError, match=r"needs leaves with two or more.*\(10,\)"):
        allocate(shaped(NET), 0.5, scope="fc/(kernel|bias)")


def test_uniform_takes_vectors():
    params = {"w": jnp.ones((2, 5)), "b": jnp.ones(5)}
    assert masks.uniform(params, 0.4, scope=".") == {"w": 0.4, "b": 0.4}


def test_errors():
    params = shaped(NET)
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        masks.erk(params, 1.0)
    with pytest.raises(ValueError, match="`sparsity` must not be traced"):
        jax.make_jaxpr(lambda s: masks.uniform(params, s))(0.5)
    with pytest.raises(ValueError, match="matches no leaf"):
        masks.erdos_renyi(params, 0.5, scope="nothing")


def test_no_leaves_and_empty_leaves():
    assert masks.erk({}, 0.5) == {}
    params = {"w": jnp.ones((0, 3)), "v": jnp.ones((2, 3))}
    assert masks.erk(params, 0.5)["v"] == 0.5


def test_uniform_plus_by_hand():
    """First layer dense, last at most at 80 %: the middle makes up for both."""
    params = {"a": np.ones((10, 10)), "b": np.ones((40, 10)), "c": np.ones((10, 50))}
    # 190 of 1000 would stay, but 100 of a and 100 of c at 80 % must.
    want = "cannot be reached: under `most` at least 200 of 1000"
    with pytest.raises(ValueError, match=want):
        masks.uniform(params, 0.81, most={"^a$": 0.0, "^c$": 0.8})
    shares = masks.uniform(params, 0.75, most={"^a$": 0.0, "^c$": 0.8})
    # 250 stay: 100 of a; 150 over b and c alike is 1/6, less than c's 1/5.
    assert shares["a"] == 0 and shares["c"] == 0.8
    assert shares["b"] == pytest.approx(1 - 50 / 400)
    loose = masks.uniform(params, 0.75, most={"^a$": 0.0, "^c$": 0.9})
    assert loose["b"] == pytest.approx(1 - 150 / 900, abs=2e-3)
    mask = masks.unstructured(params, loose)
    assert int(masks.count(mask)) == 250
    with pytest.raises(ValueError, match="'z': 0.5 matches no leaf in scope"):
        masks.uniform(params, 0.5, most={"z": 0.5})
    with pytest.raises(ValueError, match="1.5 is out of range"):
        masks.uniform(params, 0.5, most={"a": 1.5})
