"""The contract of a criterion before training, every row of the table.

What a ranking compiles takes seconds, so each case is compiled once for each tree.
"""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jprune import at_init, masks
from tests.at_init.table import BATCH, SPARSITY, TABLE, loss
from tests.jaxprs import jaxprs_in_params

CASES = pytest.mark.parametrize("case", TABLE, ids=lambda c: c.name)
# A ranking takes seconds to compile: where scores tell the same, masks are slow tests.
RANKINGS_SLOW = pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=[pytest.mark.slow] * (c.kind in ("mask", "pruned")))
        for c in TABLE
    ],
    ids=lambda c: c.name,
)
SCOPES = {"dict": None, "tuple": ".", "array": None}


def tree(kind, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(3), 3)
    a, b, c = (
        jax.random.normal(k, s, dtype)
        for k, s in zip(keys, [(8, 4), (4, 6), (4,)], strict=True)
    )
    return {
        "dict": {"one": {"kernel": a, "bias": c}, "two": {"kernel": b}},
        "tuple": (a, (b, c)),
        "array": a,
    }[kind]


@functools.cache
def compiled(name, kind):
    """The jitted criterion of a case for one tree; a second trace is an error."""
    case = next(c for c in TABLE if c.name == name)
    traced = set()

    @jax.jit
    def run(params, batch, key):
        what = (jax.tree.leaves(params)[0].dtype, key is None)
        assert what not in traced, "a second trace for the same arguments"
        traced.add(what)
        return case.run(loss, params, batch, key, SCOPES[kind])

    return run


def parts(case, got):
    """Scores or None, mask or None, parameters or None."""
    if case.kind == "pruned":
        return None, got[1], got[0]
    return (None, got, None) if case.kind == "mask" else (got, None, None)


def check(case, got, params, kind):
    """Structure, shapes, dtype, range, scope and count of a result."""
    found, mask, pruned = parts(case, got)
    scope = masks.prunable(params, include=SCOPES[kind])
    if found is not None:
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
        for s, on in zip(jax.tree.leaves(found), jax.tree.leaves(scope), strict=True):
            assert s.dtype == jnp.float32 and np.all(np.isfinite(s))
            assert on or not np.any(s)
            assert case.kind == "signed" or np.all(s >= 0)
    if mask is not None:
        for m, p, on in zip(*map(jax.tree.leaves, (mask, params, scope)), strict=True):
            assert m.dtype == bool and m.shape == (p.shape if on else ())
            assert on or bool(m)
        size = masks.size(params, scope)
        assert int(masks.count(mask)) == masks.kept_count(size, SPARSITY)
    if pruned is not None:
        chex.assert_trees_all_equal_shapes_and_dtypes(pruned, params)
        chex.assert_trees_all_equal(pruned, masks.apply(mask, pruned))


@CASES
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("dict", jnp.float32),
        pytest.param("tuple", jnp.float32, marks=pytest.mark.slow),
        pytest.param("array", jnp.bfloat16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_tree_is_traced_once(case, kind, dtype):
    run, params = compiled(case.name, kind), tree(kind, dtype)
    first = run(params, BATCH, None)
    check(case, first, params, kind)
    chex.assert_trees_all_equal(first, run(params, BATCH, None))
    run(jax.tree.map(lambda x: x * 2, params), BATCH + 1, None)


@CASES
def test_zeros_give_finite_scores_and_exact_counts(case):
    params = jax.tree.map(jnp.zeros_like, tree("dict"))
    check(case, compiled(case.name, "dict")(params, BATCH, None), params, "dict")


@RANKINGS_SLOW
def test_the_key_decides_and_nothing_else_does(case):
    if not case.data:
        assert "key" not in inspect.signature(getattr(at_init, case.name)).parameters
        return
    run, params = compiled(case.name, "dict"), tree("dict")
    one, again, other = (run(params, BATCH, jax.random.key(i)) for i in (0, 0, 5))
    chex.assert_trees_all_equal(one, again)
    check(case, one, params, "dict")
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


@RANKINGS_SLOW
def test_bfloat16_is_near_float32(case):
    """Scores to the rounding of the loss; a mask within a few of its entries."""
    halves = tree("dict", jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
    run = compiled(case.name, "dict")
    got, want = run(halves, BATCH, None), run(wide, BATCH, None)
    check(case, got, halves, "dict")
    found, mask, _ = parts(case, got)
    if found is not None:
        peak = max(np.abs(s).max() for s in jax.tree.leaves(want))
        chex.assert_trees_all_close(found, want, atol=0.05 * float(peak))
    else:
        pairs = zip(*map(jax.tree.leaves, (mask, parts(case, want)[1])), strict=True)
        assert sum(int(np.sum(a != b)) for a, b in pairs) <= 6


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(getattr(inner, "jaxpr", inner))


@CASES
def test_at_a_million_weights_nothing_is_sorted_or_joined(case):
    big = {"a": {"kernel": jnp.zeros((1024, 768))}, "b": {"kernel": jnp.zeros((9, 4))}}
    jaxpr = jax.make_jaxpr(lambda p: case.run(loss, p, BATCH, None, None))(big).jaxpr
    seen = {eqn.primitive.name for eqn in equations(jaxpr)}
    for eqn in equations(jaxpr):
        if eqn.primitive.name in ("sort", "top_k", "concatenate"):
            assert max(v.aval.size for v in eqn.invars) <= 65_536, eqn
    assert len(seen) > 5


@pytest.mark.slow
@CASES
def test_vmap_is_a_loop(case):
    params = tree("dict")
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x[::-1]]), params)
    run = functools.partial(case.run, loss, batch=BATCH, key=None, scope=None)
    got = jax.jit(jax.vmap(lambda p: run(params=p)))(many)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], many)
        want = compiled(case.name, "dict")(one, BATCH, None)
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], got), want, rtol=1e-5, atol=1e-7
        )


@pytest.mark.slow
@CASES
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_parameters_give_the_same(case, kind):
    params = tree("dict")
    want = compiled(case.name, "dict")(params, BATCH, None)
    mesh = jax.make_mesh((2, 2), ("x", "y"), (kind, kind))

    def place(x):
        spec = P("x", "y") if x.ndim == 2 else P()
        return jax.device_put(x, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        run = jax.jit(lambda p: case.run(loss, p, BATCH, None, None))
        got = run(jax.tree.map(place, params))
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, want), rtol=1e-5
    )
