"""All stages in one loop: masks of the k largest, with leaves flattened and not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune.selection._count_true import count_true
from jprune.selection._largest import largest

SHAPES = [(3, 1, 4), (5,), (2, 3), ()]


def kept(leaves, k, floors=None, within=None):
    """A stable sort of all entries, the floors first."""
    inside = within or [np.ones(x.shape, bool) for x in leaves]
    flat = np.concatenate([np.abs(x).ravel() for x in leaves]).astype(np.float64)
    allowed = np.concatenate([w.ravel() for w in inside])
    leaf = np.repeat(np.arange(len(leaves)), [x.size for x in leaves])
    order = [i for i in np.argsort(-flat, kind="stable") if allowed[i]]
    chosen = np.zeros(flat.size, bool)
    if np.ndim(k):
        for number, m in enumerate(k):
            chosen[[i for i in order if leaf[i] == number][:m]] = True
    else:
        for number, m in enumerate(floors or [0] * len(leaves)):
            chosen[[i for i in order if leaf[i] == number][:m]] = True
        rest = [i for i in order if not chosen[i]]
        chosen[rest[: k - int(chosen.sum())]] = True
    ends = np.cumsum([x.size for x in leaves])[:-1]
    return [
        m.reshape(x.shape) for m, x in zip(np.split(chosen, ends), leaves, strict=True)
    ]


@pytest.mark.parametrize(
    ("devices", "dtype"),
    [
        (1, np.float32),
        pytest.param(4, np.float32, marks=pytest.mark.slow),
        pytest.param(1, jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param(4, jnp.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_masks_equal_a_stable_sort(monkeypatch, devices, dtype):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    run = {
        name: jax.jit(lambda x, k, **how: largest(x, k, **how))
        for name in ("plain", "floors", "leaf", "within")
    }
    rng = np.random.default_rng(0)
    for levels in (1, 3, 1000):  # nearly all tie, many tie, none does
        leaves = [
            np.asarray(np.round(rng.normal(size=s) * levels), dtype) for s in SHAPES
        ]
        within = [rng.random(s) < 0.7 for s in SHAPES]
        for k in (0, 1, 7, 13, 24):
            got = run["plain"](leaves, np.int32(k))
            equal(got.masks, kept(leaves, k))
            if k > 4:
                floors = [1, 0, 2, 1]
                got = run["floors"](leaves, np.int32(k), floors=jnp.array(floors))
                equal(got.masks, kept(leaves, k, floors))
                assert got.counts.tolist() == [int(m.sum()) for m in got.masks]
        each = np.array([5, 0, 6, 1], np.int32)
        equal(run["leaf"](leaves, each).masks, kept(leaves, each))
        most = int(sum(w.sum() for w in within))
        got = run["within"](leaves, np.int32(most // 2), within=within)
        equal(got.masks, kept(leaves, most // 2, within=within))
        got = run["within"](leaves, each, within=within)
        equal(got.masks, kept(leaves, each, within=within))


def equal(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_tree_is_ranked_among_what_the_mask_leaves_out():
    rng = np.random.default_rng(1)
    one, two = (
        [np.round(rng.normal(size=s) * 3).astype(np.float32) for s in SHAPES]
        for _ in range(2)
    )
    within = [rng.random(s) < 0.5 for s in SHAPES]
    outside = [~w for w in within]
    each = np.array([3, 2, 1, 1], np.int32)
    run = jax.jit(lambda which: largest(one, each, within=within, instead=(two, which)))
    equal(run(np.array(False)).masks, kept(one, each, within=within))
    equal(run(np.array(True)).masks, kept(two, each, within=outside))


def test_one_reduction_for_each_leaf():
    """The body of the loop holds all: nothing else reads the leaves by counting."""
    leaves = [jnp.ones((8, 8)), jnp.ones((4, 4, 2))]
    text = jax.jit(largest).lower(leaves, jnp.int32(9)).as_text()
    sweeps = [line for line in text.splitlines() if "stablehlo.reduce(" in line]
    assert sum("8x8" in line or "4x4x2" in line for line in sweeps) <= 2 * 3
    assert text.count("stablehlo.while") == 1


def test_count_true():
    x = np.random.default_rng(0).random((7, 9)) < 0.4
    assert int(count_true(jnp.asarray(x))) == int(x.sum())
