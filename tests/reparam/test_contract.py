"""The contract of a reparameterization, every row of the table.

A ranking takes seconds to compile, so each case compiles its functions once for all
tests of one tree.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jprune import masks, reparam
from tests.reparam.table import TABLE, tree

CASES = pytest.mark.parametrize("case", TABLE, ids=lambda c: c.name)


class Compiled(NamedTuple):
    """The functions of one case, each compiled once for a tree."""

    init: Any
    apply: Any
    penalty: Any
    export: Any
    tx: Any
    step: Any


def squares(params):
    """A loss that pulls every weight to 1."""
    return sum(jnp.mean((x - 1) ** 2) for x in jax.tree.leaves(params))


@functools.cache
def compiled(name, neutral=False):
    case = next(c for c in TABLE if c.name == name)
    r = case.neutral() if neutral else case.make()
    tx = optax.chain(optax.sgd(0.05, momentum=0.9), reparam.projection(r))
    loss = reparam.wrap(squares, r)

    traced = set()

    @jax.jit
    def step(theta, state):
        kind = jax.tree.structure(theta)
        assert kind not in traced, "a second trace for the same tree"
        traced.add(kind)
        updates, state = tx.update(jax.grad(loss)(theta), state, theta)
        return optax.apply_updates(theta, updates), state

    jitted = (jax.jit(f) for f in (r.init, r.apply, r.penalty, r.export))
    return Compiled(*jitted, tx, step)


def train(run, theta, steps, state=None):
    state = run.tx.init(theta) if state is None else state
    for _ in range(steps):
        theta, state = run.step(theta, state)
    return theta, state


KINDS = [("dict", jnp.float32), ("tuple", jnp.bfloat16), ("array", jnp.float32)]


def kinds_of_cases():
    for case in TABLE:
        for kind, dtype in KINDS:
            slow = [pytest.mark.slow] if case.dear and kind != "dict" else []
            dtype = dtype if case.half else jnp.float32
            yield pytest.param(case, kind, dtype, marks=slow, id=f"{case.name}-{kind}")


@pytest.mark.parametrize("case, kind, dtype", list(kinds_of_cases()))
def test_any_tree_and_dtype_trains(case, kind, dtype):
    run, params = compiled(case.name), tree(kind, dtype)
    theta = run.init(params)
    used = jax.eval_shape(case.make().apply, theta)
    chex.assert_trees_all_equal_shapes_and_dtypes(used, params)
    after, _ = train(run, theta, 3)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, theta)
    chex.assert_tree_all_finite(after)
    moved = zip(jax.tree.leaves(after), jax.tree.leaves(theta), strict=True)
    assert any(np.any(a != b) for a, b in moved)


@CASES
def test_theta_is_arrays_that_differentiate(case):
    theta = compiled(case.name).init(tree("dict"))
    for leaf in jax.tree.leaves(theta):
        assert isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
        assert not leaf.weak_type  # a weak dtype would compile the second step anew


@CASES
def test_export_is_what_apply_uses_with_exact_masks(case):
    run = compiled(case.name)
    theta, _ = train(run, run.init(tree("dict")), 4)
    params, mask = run.export(theta)
    used, penalty = run.apply(theta), run.penalty(theta)
    chex.assert_trees_all_equal(params, masks.apply(mask, used))
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    for m, p, u in zip(*map(jax.tree.leaves, (mask, params, used)), strict=True):
        assert m.dtype == bool and m.shape in ((), p.shape)
        np.testing.assert_array_equal(np.broadcast_to(m, p.shape), np.asarray(p) != 0)
        np.testing.assert_array_equal(p, u)
    assert mask["one"]["bias"].ndim == 0
    assert penalty.shape == () and jnp.isfinite(penalty)


@CASES
def test_neutral_setting_is_the_identity(case):
    run, params = compiled(case.name, neutral=True), tree("dict")
    exported, mask = run.export(run.init(params))
    chex.assert_trees_all_equal(exported, params)
    chex.assert_trees_all_equal(run.apply(run.init(params)), params)
    assert all(np.all(m) for m in jax.tree.leaves(mask))


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] * c.dear, id=c.name) for c in TABLE],
)
def test_gradient_is_that_of_finite_differences(case):
    """In the coordinates where `apply` is smooth; the estimators have hand numbers."""
    with jax.enable_x64(True):
        r = case.make()
        theta = r.init(tree("dict", jnp.float64))
        weigh = jax.tree.map(jnp.cos, tree("dict", jnp.float64))

        @jax.jit
        @jax.value_and_grad
        def linear(theta):
            parts = jax.tree.map(lambda w, p: jnp.sum(w * p), weigh, r.apply(theta))
            return sum(jax.tree.leaves(parts))

        gradient = jax.tree.leaves(linear(theta)[1])
        leaves, treedef = jax.tree.flatten(theta)
        smooth, h = jax.tree.leaves(case.smooth(theta)), 1e-6

        def moved(i, at, d):
            changed = [*leaves]
            changed[i] = leaves[i].at[at].add(d)
            return linear(jax.tree.unflatten(treedef, changed))[0]

        for i in range(len(leaves)):
            for at in map(tuple, np.argwhere(np.asarray(smooth[i]))[:6]):
                want = (moved(i, at, h) - moved(i, at, -h)) / (2 * h)
                np.testing.assert_allclose(gradient[i][at], want, rtol=1e-5, atol=1e-7)


HOLLOW = {"hollow": {"kernel": jnp.zeros((0, 4))}}
WHOLE = {"whole": {"kernel": jax.random.normal(jax.random.key(0), (8, 12))}}
TREES = {"empty": {}, "hollow": HOLLOW, "partly": HOLLOW | WHOLE}
UNTIED = [c for c in TABLE if not c.name.startswith(("learned_gates", "shrinking"))]


@pytest.mark.parametrize("params", TREES.values(), ids=TREES)
@pytest.mark.parametrize("case", UNTIED, ids=lambda c: c.name)
def test_leaves_without_weights_pass(case, params):
    """Those of an emptied group, and the tree without leaves that wrappers hand over;
    gates belong to groups, which have members.
    """
    r = case.make()
    theta = r.init(params)
    used, mask = r.export(theta)
    chex.assert_trees_all_equal_shapes_and_dtypes(used, params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    gradient = jax.grad(
        reparam.wrap(lambda p: sum(map(jnp.sum, jax.tree.leaves(p))) + 0.0, r)
    )
    chex.assert_tree_all_finite(
        (gradient(theta), r.project(theta, theta, jnp.int32(0)))
    )
    if "whole" not in params:
        assert float(r.penalty(theta)) == 0


@CASES
def test_resume(case):
    run = compiled(case.name)
    want, want_state = train(run, run.init(tree("dict")), 6)
    half, state = train(run, run.init(tree("dict")), 3)
    leaves, treedef = jax.tree.flatten((half, state))
    saved = [np.asarray(x) for x in leaves]
    half, state = jax.tree.unflatten(treedef, [jnp.asarray(x) for x in saved])
    got, got_state = train(run, half, 3, state)
    chex.assert_trees_all_equal((got, got_state), (want, want_state))


@CASES
def test_project_keeps_its_set_and_lets_it_alone(case):
    r = case.make()
    old = compiled(case.name).init(tree("dict"))
    new = jax.tree.map(lambda x: x + 3 * jnp.sin(40 * x + 1), old)
    once = r.project(new, old, jnp.int32(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(once, old)
    again = r.project(once, old, jnp.int32(0))
    if case.proximal:
        for a, b, c in zip(*map(jax.tree.leaves, (again, once, new)), strict=True):
            assert np.all(abs(a) <= abs(b)) and np.all(abs(b) <= abs(c))
            assert np.all(a * b >= 0) and np.all(b * c >= 0)
        return
    chex.assert_trees_all_close(again, once, atol=1e-6)


@pytest.mark.slow
@CASES
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_theta_gives_the_same_network(case, kind):
    r, params = case.make(), tree("dict")
    theta = r.init(params)
    want = jax.jit(r.apply)(theta)
    mesh = jax.make_mesh((2, 2), ("x", "y"), (kind, kind))

    def place(x):
        spec = {2: P("x", "y"), 1: P("y")}.get(x.ndim, P()) if x.size % 4 == 0 else P()
        return jax.device_put(x, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        got = jax.jit(r.apply)(jax.tree.map(place, theta))
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, want), rtol=1e-6
    )
    zeros = jax.tree.map(lambda x: np.asarray(x) == 0, (got, want))
    chex.assert_trees_all_equal(*zeros)


@pytest.mark.slow
@CASES
def test_vmap_is_a_loop(case):
    r = case.make()
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x[::-1]]), tree("dict"))
    got = jax.vmap(lambda p: r.apply(r.init(p)))(many)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], many)
        want = r.apply(r.init(one))
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], got), want, rtol=1e-5
        )


@CASES
def test_a_fresh_theta_may_be_donated(case):
    """No buffer twice, in theta, the state and the caller's parameters together."""
    r, params = case.make(), tree("dict", jnp.float32)
    theta = r.init(params)
    tx = optax.chain(optax.adam(0.1), reparam.projection(r))
    state = tx.init(theta)
    leaves = jax.tree_util.tree_leaves_with_path((params, theta, state))
    at = [(x.unsafe_buffer_pointer(), jax.tree_util.keystr(p)) for p, x in leaves]
    places = dict(at)
    twice = [(path, places[pointer]) for pointer, path in at if places[pointer] != path]
    assert not twice


@CASES
def test_an_export_outlives_a_donated_theta(case):
    """It shares no buffer with theta, so that training may go on."""
    theta = case.make().init(tree("dict", jnp.float32))
    params, mask = case.make().export(theta)
    held = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(theta)}
    out = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, mask))}
    assert not held & out
