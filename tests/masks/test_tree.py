"""Masks as values: apply, count, combine, read off zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import analysis, masks

PARAMS = {
    "w": jnp.array([[1.0, jnp.nan], [jnp.inf, -0.0]]),
    "b": jnp.array([1.0, 2.0, 3.0]),
    "n": jnp.array(7),
}
MASK = {
    "w": jnp.array([[True, False], [False, True]]),
    "b": jnp.array(True),
    "n": jnp.array(True),
}


def test_apply_zeroes_whatever_is_there():
    pruned = masks.apply(MASK, PARAMS)
    np.testing.assert_array_equal(pruned["w"], [[1, 0], [0, 0]])
    np.testing.assert_array_equal(pruned["b"], PARAMS["b"])
    assert int(pruned["n"]) == 7 and pruned["n"].dtype == jnp.int32
    assert not np.signbit(pruned["w"][0, 1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_apply_keeps_dtypes_and_bits(dtype):
    rng = np.random.default_rng(0)
    w, mask = jnp.asarray(rng.normal(size=(4, 5)), dtype), rng.random((4, 5)) < 0.5
    pruned = jax.jit(masks.apply)({"w": mask}, {"w": w})["w"]
    assert pruned.dtype == dtype
    np.testing.assert_array_equal(pruned, np.where(mask, w, np.zeros((), dtype)))


def test_apply_passes_no_gradient_to_removed_weights():
    grads = jax.grad(lambda w: jnp.sum(masks.apply({"w": MASK["w"]}, {"w": w})["w"]))(
        jnp.ones((2, 2))
    )
    np.testing.assert_array_equal(grads, MASK["w"])


def test_full_and_from_zeros():
    full = masks.full(PARAMS)
    assert jax.tree.map(jnp.shape, full) == jax.tree.map(jnp.shape, PARAMS)
    assert all(bool(x.all()) and x.dtype == bool for x in jax.tree.leaves(full))
    mask = masks.from_zeros(PARAMS)
    np.testing.assert_array_equal(mask["w"], [[True, True], [True, False]])
    assert mask["b"].shape == () == mask["n"].shape
    mask = masks.from_zeros({"b": jnp.array([0.0, 1.0])}, scope="b")
    np.testing.assert_array_equal(mask["b"], [False, True])


def test_intersect():
    other = {"w": jnp.array([[True, True], [False, False]]), "b": False, "n": True}
    both = masks.intersect(MASK, other)
    np.testing.assert_array_equal(both["w"], [[True, False], [False, False]])
    assert not both["b"] and both["b"].shape == ()
    one = masks.intersect(MASK)
    jax.tree.map(np.testing.assert_array_equal, one, MASK)
    vector = MASK | {"b": jnp.array([True, False, True])}
    for a, b in [(MASK, vector), (vector, MASK)]:
        np.testing.assert_array_equal(masks.intersect(a, b)["b"], vector["b"])
    three = masks.intersect(MASK, vector, other)
    np.testing.assert_array_equal(three["b"], [False] * 3)
    whole = masks.intersect(MASK, masks.full(PARAMS))
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, PARAMS)


def test_count_and_sparsity():
    # Leaves out of scope (0-d) are not counted, unless the parameters are given.
    assert int(masks.count(MASK)) == 2
    assert float(masks.sparsity(MASK)) == 0.5
    assert int(masks.count(MASK, PARAMS)) == 2 + 3 + 1
    assert float(masks.sparsity(MASK, PARAMS)) == 2 / 8
    scope = {"w": True, "b": False, "n": False}
    assert int(masks.count(MASK, PARAMS, scope)) == 2
    assert float(masks.sparsity(MASK, scope=scope)) == 0.5
    removed = MASK | {"b": jnp.array(False)}
    assert int(masks.count(removed, PARAMS)) == 3
    assert float(masks.sparsity(removed, PARAMS)) == np.float32(5 / 8)
    rows = {row.path: row for row in analysis.report(PARAMS, removed).rows}
    assert rows["b"].kept == 0 and rows["b"].in_scope
    count, sparsity = jax.jit(lambda m: (masks.count(m), masks.sparsity(m)))(MASK)
    assert int(count) == 2 and count.dtype == jnp.int32
    assert float(sparsity) == 0.5 and sparsity.dtype == jnp.float32


def test_sparsity_is_what_was_asked_and_reads_back_from_zeros():
    w = {"w": jax.random.normal(jax.random.key(1), (10, 100))}
    mask = masks.unstructured(w, 0.57)
    assert float(masks.sparsity(mask)) == np.float32(0.57)
    again = masks.from_zeros(masks.apply(mask, w))
    np.testing.assert_array_equal(again["w"], mask["w"])


def test_counts_of_nothing():
    assert int(masks.count({})) == 0 and float(masks.sparsity({})) == 0
    assert masks.size({}) == 0


def test_counts_beyond_int32():
    """A 0-d mask stands for a leaf of any size; sparsity has no limit, count has."""
    mask = {"w": jnp.array(True), "v": jnp.array([True, False])}
    huge = {
        "w": jax.ShapeDtypeStruct((1 << 16, 1 << 16), jnp.float32),
        "v": jax.ShapeDtypeStruct((2,), jnp.float32),
    }
    assert float(masks.sparsity(mask, huge)) == np.float32(1 / (2**32 + 2))
    with pytest.raises(ValueError, match="4294967298 scalars do not fit an int32"):
        masks.count(mask, huge)


def test_size():
    params = {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    assert masks.size(params) == 12
    assert masks.size(params, scope="bias") == 4
    with pytest.raises(ValueError, match="matches no leaf"):
        masks.size(params, scope="scale")


MISSHAPEN = MASK | {"b": jnp.array([True, False])}
OTHER_TREE = {"w": MASK["w"], "b": None, "n": True}
SCORES = MASK | {"b": jnp.ones(3)}


@pytest.mark.parametrize("mask, message", [
    (MISSHAPEN, r"`mask` must have the shape.*\n  b: \(2,\) against \(3,\)"),
    (MASK | {"n": jnp.array([True])}, r"n: \(1,\) against \(\)"),
    (OTHER_TREE, r"(?s)`mask` must have exactly the structure.*missing: b"),
    (SCORES, r"(?s)`mask` must hold bools.*Got scores or weights.*\n  b: float32"),
])  # fmt: skip
def test_masks_that_do_not_fit(mask, message):
    for use in (masks.apply, masks.count, masks.sparsity):
        with pytest.raises(ValueError, match=message):
            use(mask, PARAMS)


def test_what_is_no_array_passes():
    params = {"act": jax.nn.relu, "name": "a", "w": jnp.ones((2, 2))}
    mask = masks.unstructured(params, 0.5)
    done = masks.apply(mask, params)
    assert done["act"] is jax.nn.relu and done["name"] == "a"
    assert done["w"].tolist() == [[1, 1], [0, 0]]


def test_intersect_errors():
    with pytest.raises(ValueError, match="`intersect` needs at least one mask"):
        masks.intersect()
    with pytest.raises(ValueError, match=r"b: \(3,\) against \(2,\)"):
        masks.intersect(MISSHAPEN, MASK | {"b": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match="exactly the structure"):
        masks.intersect(MASK, OTHER_TREE)
    with pytest.raises(ValueError, match="`scope` must have exactly the structure"):
        masks.count(MASK, PARAMS, {"w": True})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_subnormal_weight_is_not_zero(dtype):
    """A mask, a report and NumPy count alike, where the hardware flushes or not."""
    tiny = float(jnp.finfo(dtype).smallest_subnormal)
    w = jnp.asarray(np.array([[0.0, -0.0, tiny, -tiny, 1.0]]).astype(dtype))
    want = [[False, False, True, True, True]]
    assert masks.from_zeros({"w": w})["w"].tolist() == want
    assert jax.jit(masks.from_zeros)({"w": w})["w"].tolist() == want
    for given in ({"w": w}, {"w": np.asarray(w)}):
        assert analysis.report(given).total.kept == 3
