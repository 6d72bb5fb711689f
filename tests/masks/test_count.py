"""The counting rule: floor(s n + 1/2) removed, of the decimal a person wrote."""

from decimal import ROUND_FLOOR, Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import masks


def by_decimal(n: int, text: str) -> int:
    """The rule in decimal arithmetic, from the digits themselves."""
    removed = Decimal(text) * n + Decimal("0.5")
    return n - int(removed.to_integral_value(rounding=ROUND_FLOOR))


def pruned(n, **target):
    return masks.unstructured(jnp.arange(1.0, n + 1), scope=True, **target)


def test_allocation_g3_rounding_half_up():
    counts = [(10, 0.9), (10, 0.25), (7, 0.5), (5, 0), (5, 1)]
    assert [masks.kept_count(n, s) for n, s in counts] == [1, 7, 3, 5, 0]


def test_float_hazards():
    assert int(10000 * 0.57) == 5699  # the hazard is real
    assert masks.kept_count(10000, 0.57) == 4300
    assert int((1 - 0.9) * 10) == 0
    assert masks.kept_count(10, 0.9) == 1


@pytest.mark.parametrize("n", [1, 7, 40, 10_000, 25_557_032, 2**31 - 1])
def test_every_percentage_of_every_size(n):
    for i in range(100):
        text = f"0.{i:02d}"
        assert masks.kept_count(n, float(text)) == by_decimal(n, text), text


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
def test_a_float_of_any_width_means_the_decimal_it_prints(dtype):
    for i in range(1, 100):
        # Of so many any other decimal than i/100 gives another count.
        assert masks.kept_count(10**18, dtype(i / 100)) == 10**16 * (100 - i)
    if dtype != np.float64:
        assert masks.kept_count(10_000, jnp.asarray(0.57, dtype)) == 4300


def test_numbers_that_are_no_percentage():
    assert masks.kept_count(10**9, 1e-5) == 10**9 - 10**4
    n = 10**17
    assert masks.kept_count(n, 0.1 + 0.2) == n - 30_000_000_000_000_004
    assert masks.kept_count(3, np.int64(1)) == masks.kept_count(3, jnp.int32(1)) == 0
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match=f"Expected a finite number, got {value}"):
            masks.kept_count(10, value)


def test_shares_read_back_as_the_count_they_came_from():
    rng = np.random.default_rng(0)
    sizes = [1, 3, 7, 432, 4608, 2**31 - 1]
    for n in sizes:
        for k in {0, 1, n - 1, n, *rng.integers(0, n + 1, 50).tolist()}:
            assert masks.kept_count(n, 1 - k / n) == k


@pytest.mark.parametrize("s", [-0.1, 1.01])
def test_kept_count_out_of_range(s):
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\], got {s}"):
        masks.kept_count(10, s)


@pytest.mark.parametrize("s", [1, 1.0, -0.1, 90, float("nan"), np.float32(1)])
def test_range_of_a_sparsity(s):
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\).*got"):
        pruned(5, sparsity=s)


def test_a_sparsity_is_one_number():
    with pytest.raises(ValueError, match=r"must be one number, got shape \(2,\)"):
        pruned(5, sparsity=np.array([0.1, 0.2]))


def test_targets_that_are_refused():
    for given in [(None, None), (0.5, 3)]:
        with pytest.raises(ValueError, match="exactly one of `sparsity`.*and `keep`"):
            pruned(5, sparsity=given[0], keep=given[1])
    for keep in [3.0, True, np.array([1, 2]), jnp.float32(3)]:
        with pytest.raises(TypeError, match="`keep` must be one integer"):
            pruned(5, keep=keep)
    for keep in [-1, 6]:
        with pytest.raises(
            ValueError, match=rf"`keep` must be in \[0, 5\], got {keep}"
        ):
            pruned(5, keep=keep)
    for keep in (np.int64(5), jnp.int32(5)):
        assert pruned(5, keep=keep).all()


SIZES = (7, 10, 1234, 10_000)


@jax.jit
def traced_counts(sparsity):
    return [masks.count(pruned(n, sparsity=sparsity, min_keep=0)) for n in SIZES]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_traced_sparsity_agrees_with_the_host(dtype):
    """Percentages have halves only where n is small, and there float32 is exact."""
    for i in range(0, 100, 7 if dtype == jnp.float32 else 25):
        got = traced_counts(jnp.asarray(i / 100, dtype))
        assert [int(k) for k in got] == [masks.kept_count(n, i / 100) for n in SIZES]


def test_a_traced_sparsity_counts_beyond_2_to_the_23():
    """14/15 of VGG-16's kernels: 13,734,545.07 go, and float32 has no half there."""
    leaf = jnp.zeros(14_715_584, jnp.bfloat16)
    kept = jax.jit(lambda s: masks.count(masks.unstructured(leaf, s, scope=True)))
    assert kept(jnp.float32(14 / 15)) == 14_715_584 - 13_734_545


def test_traced_counts_are_clipped():
    assert [int(k) for k in traced_counts(jnp.float32(1.5))] == [0] * len(SIZES)
    assert [int(k) for k in traced_counts(jnp.float32(-0.5))] == list(SIZES)
    clipped = jax.jit(lambda k: masks.count(pruned(5, keep=k, min_keep=0)))
    assert [int(clipped(k)) for k in (-3, 4, 9)] == [0, 4, 5]
