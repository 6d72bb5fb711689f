"""Counts over many leaves: booleans, entries of a vector, sums that stop at int32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune.selection._count_true import counts_true
from jprune.selection._sweep import entry
from jprune.transforms._build import total

MOST = 2**31 - 1


def test_counts_of_masks():
    rng = np.random.default_rng(0)
    masks = [rng.random(shape) < 0.3 for shape in [(3, 4), (), (0,), (7,)]]
    got = jax.jit(counts_true)([jnp.asarray(m) for m in masks])
    assert got.tolist() == [int(m.sum()) for m in masks]


@pytest.mark.parametrize(
    "counts",
    [[], [5], [65_535, 1], [65_536] * 3, [MOST - 1, 1], [MOST, 1], [MOST] * 9],
)
def test_a_total_stops_at_the_largest_int32(counts):
    got = total([jnp.int32(n) for n in counts])
    assert int(got) == min(sum(counts), MOST)


def test_entries_of_a_vector_are_one_program():
    x = jnp.arange(5.0)
    assert [float(entry(x, i)) for i in range(5)] == x.tolist()
    # Nothing of which entry it is stands in the program but one constant.
    a, b = (str(jax.make_jaxpr(lambda v, i=i: entry(v, i))(x)) for i in (0, 3))
    assert a == b
