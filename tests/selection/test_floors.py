"""The k largest with a floor for each leaf, against a brute-force oracle."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import selection
from jprune.selection._image import image_of
from jprune.selection._largest import largest

SHAPES = [(3, 4), (5,), (2, 3), ()]


def oracle(leaves, k, floors, within=None):
    """First the best `m` of each leaf, then the best of the rest; a stable sort."""
    inside = within or [np.ones(x.shape, bool) for x in leaves]
    present = [int(w.sum()) for w in inside]
    least = [min(m, n) for m, n in zip(floors, present, strict=True)]
    k = min(k, sum(present))
    if sum(least) > k:
        least = [0] * len(leaves)
    flat = np.concatenate([np.abs(x).ravel() for x in leaves])
    allowed = np.concatenate([w.ravel() for w in inside])
    leaf = np.repeat(np.arange(len(leaves)), [x.size for x in leaves])
    order = [i for i in np.argsort(-flat, kind="stable") if allowed[i]]
    kept = np.zeros(flat.size, bool)
    for number, m in enumerate(least):
        kept[[i for i in order if leaf[i] == number][:m]] = True
    rest = [i for i in order if not kept[i]]
    kept[rest[: k - int(kept.sum())]] = True
    parts = np.split(kept, np.cumsum([x.size for x in leaves])[:-1])
    return [m.reshape(x.shape) for m, x in zip(parts, leaves, strict=True)]


@jax.jit
@chex.assert_max_traces(n=1)
def ours(leaves, k, floors, within, init):
    how = {"floors": floors, "within": within, "init": init, "masked": False}
    shares = largest(leaves, k, **how)
    kept = selection.keep_mask(leaves, shares.leaf, shares.counts, within=within)
    return kept, shares


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_equals_first_the_floors_then_the_best_of_the_rest(data):
    seed = data.draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-3, 4, size=len(SHAPES))
    levels = data.draw(st.sampled_from([2, 4, 1000]))
    leaves = [
        (np.round(rng.normal(size=s) * levels) * a).astype(np.float32)
        for s, a in zip(SHAPES, scale, strict=True)
    ]
    within = [rng.random(s) < data.draw(st.sampled_from([0.3, 1.1])) for s in SHAPES]
    within = [np.asarray(w, bool) for w in within]
    k = data.draw(st.integers(0, 24))
    floors = [data.draw(st.integers(0, 4)) for _ in SHAPES]
    guess = data.draw(st.integers(0, 2**31 - 2))
    init = selection.WarmStart(jnp.int32(guess), jnp.int32(rng.integers(0, 2**20)))
    kept, shares = ours(
        [jnp.asarray(x) for x in leaves],
        jnp.int32(k),
        jnp.asarray(floors, jnp.int32),
        [jnp.asarray(w) for w in within],
        init,
    )
    want = oracle(leaves, k, floors, within)
    for mine, theirs in zip(kept, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert shares.counts.tolist() == [int(m.sum()) for m in want]


def test_settled_leaves_cost_no_second_search():
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(rng.normal(size=(40, 40)), jnp.float32) for _ in range(3)]
    shares = jax.jit(lambda x: largest(x, jnp.int32(500), floors=[1, 1, 1]))(leaves)
    assert shares.leaf.passes.tolist() == [0, 0, 0]
    plain = jax.jit(lambda x: selection.kth_magnitude(x, 500))(leaves)
    assert int(shares.counts.sum()) == 500
    assert int(plain.count) == 500


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    tree = [jnp.array([5.0, 4, 3], dtype), jnp.array([0.1, 0.2], dtype)]
    shares = largest(tree, jnp.int32(3), floors=[1, 1])
    assert shares.counts.tolist() == [2, 1]


def test_shares_add_up_and_images_order():
    tree = [jnp.array([3.0, -4.0, 0.0]), jnp.array([[-1.0, jnp.nan]])]
    shares = largest(tree, jnp.int32(3), floors=[0, 0])
    assert shares.counts.tolist() == [2, 1]
    image = image_of(jnp.array([-0.0, 1e-40, -1.0, 2.0, 3e38]))
    assert image[0] == 0 and bool(jnp.all(jnp.diff(image) > 0))
    signed = image_of(jnp.array([-3e38, -2.0, 0.0, 1e-40, 3.0]), "signed")
    assert bool(jnp.all(jnp.diff(signed) > 0))
