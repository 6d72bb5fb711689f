"""The transform contract: eleven rows, every transformation of the table.

Rows share one compiled step for each transformation; what a row can show by tracing
alone (structures, dtypes, keywords) it shows without compiling.
"""

import functools
import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jprune import transforms
from tests.transforms.table import TABLE, gradients, tree

CASES = pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] * c.slow, id=c.name) for c in TABLE],
)
STEPS = 4


class Run:
    """A transformation with its one jitted step, and how often that was traced."""

    def __init__(self, tx):
        self.tx, self.traces = tx, 0

        def step(grads, state, params):
            self.traces += 1
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.step, self.init = jax.jit(step), jax.jit(tx.init)

    def __call__(self, params, steps=STEPS, state=None, first=0):
        state = self.init(params) if state is None else state
        for t in range(first, first + steps):
            params, state = self.step(gradients(params, t), state, params)
        return params, state


@functools.cache
def plain(name):
    """The case's run on the dict of the contract, and where it ends."""
    run = Run(next(case for case in TABLE if case.name == name).make())
    return run, *run(tree("dict"))


def traced(tx, params, **extra):
    """Shapes of the updates and of the next state; nothing is compiled."""
    state = jax.eval_shape(tx.init, params)
    update = functools.partial(tx.update, **extra)
    return jax.eval_shape(update, gradients(params), state, params), state


@CASES
def test_row1_jit_once(case):
    run, params, state = plain(case.name)
    assert run.traces == 1
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    chex.assert_tree_all_finite(params)
    again = jax.eval_shape(run.tx.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(again, state)


@CASES
def test_row2_unexpected_keyword(case):
    traced(case.make(), tree("dict"), unexpected=1)


@CASES
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_row3_structure_and_dtype(case, dtype):
    params = tree("dict", dtype)
    (updates, following), state = traced(case.make(), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(following, state)


@CASES
@pytest.mark.parametrize("kind", ["dict", "tuple", "array"])
def test_row4_any_tree(case, kind):
    params = tree(kind)
    (updates, _), _ = traced(case.make(), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@CASES
def test_row5_params_none(case):
    params = tree("dict")
    tx, grads = case.make(), gradients(params)
    state = jax.eval_shape(tx.init, params)
    if not case.needs_params:
        jax.eval_shape(tx.update, grads, state)
        return
    base = case.name.split("-")[0]
    # A recipe's error comes from its first part that needs the parameters.
    named = {
        "swd": "params",
        "csgd": "params",
        "tpp": "add_decorrelation",
        "trp": "truncate_rank",
        "network_slimming": "add_masked_l1",
        "masksparsity": "add_masked_l1",
        "gsm": "mask_by_saliency",
        "issp": "shrink_softly",
        "sr_ste": "add_pruned_decay",
        "rigl": "drop_and_grow",
        "sparse_evolutionary": "drop_and_grow",
        "static_sparse": "drop_and_grow",
        "gap": "grow_and_prune",
    }.get(base, base)
    with pytest.raises(ValueError, match=named):
        jax.eval_shape(tx.update, grads, state)


@CASES
def test_row6_map_params(case):
    run, _, state = plain(case.name)
    same = optax.tree.map_params(run.tx, lambda x: x, state)
    chex.assert_trees_all_equal(same, state)


@CASES
def test_row7_inject_hyperparams(case):
    if not case.inject:
        pytest.skip("no numeric hyper-parameter")
    _, want, _ = plain(case.name)
    got, _ = Run(optax.inject_hyperparams(case.make)(**case.inject))(tree("dict"))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-7)


@CASES
def test_row8_masked(case):
    params = tree("dict")
    only = {"one": {"kernel": True, "bias": False}, "two": {"kernel": False}}
    got, _ = Run(optax.masked(case.make(), only))(params, 2)
    alone = {"one": {"kernel": params["one"]["kernel"]}}
    tx = case.make()
    state, step = tx.init(alone), jax.jit(tx.update)
    for t in range(2):
        grads = {"one": {"kernel": gradients(got, t)["one"]["kernel"]}}
        updates, state = step(grads, state, alone)
        alone = optax.apply_updates(alone, updates)
    chex.assert_trees_all_close(
        got["one"]["kernel"], alone["one"]["kernel"], rtol=1e-5, atol=1e-7
    )


@CASES
def test_row8_partition(case):
    labels = {"one": {"kernel": "a", "bias": "b"}, "two": {"kernel": "a"}}
    tx = optax.partition({"a": case.make(), "b": optax.sgd(0.1)}, labels)
    params = tree("dict")
    (updates, following), state = traced(tx, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(following, state)


@CASES
def test_row8_multisteps(case):
    """Gradients held for two steps are the mean gradient of one step."""
    params = tree("dict")
    run, _, _ = plain(case.name)
    tx = optax.MultiSteps(case.make(), 2)
    state, step = tx.init(params), jax.jit(tx.update)
    grads = gradients(params)
    for _ in range(2):
        updates, state = step(grads, state, params)
    want, _ = run(params, 1)
    got = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


@CASES
def test_row9_resume(case):
    run, want, want_state = plain(case.name)
    half, state = run(tree("dict"), 2)
    leaves, treedef = jax.tree.flatten(state)
    file = io.BytesIO()
    np.savez(file, *[np.asarray(x) for x in leaves])
    file.seek(0)
    with np.load(file) as saved:
        again = [jnp.asarray(saved[f"arr_{i}"]) for i in range(len(leaves))]
    state = jax.tree.unflatten(treedef, again)
    got, got_state = run(half, STEPS - 2, state, first=2)
    chex.assert_trees_all_equal((got, got_state), (want, want_state))


@CASES
def test_row10_neutral(case):
    if case.neutral is None:
        pytest.skip("a recipe has no neutral setting")
    tx, params = case.neutral(), tree("dict")
    state, step = tx.init(params), jax.jit(tx.update)
    for t in range(3):
        grads = gradients(params, t)
        updates, state = step(grads, state, params)
        chex.assert_trees_all_equal(updates, grads)


@CASES
@pytest.mark.parametrize(
    "kind",
    [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit],
    ids=str,
)
def test_row11_sharded(case, kind):
    run, _, _ = plain(case.name)
    params = tree("dict")
    want, _ = run(params, 3)
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind, kind))
    specs = {"one": {"kernel": P("x", "y"), "bias": P("y")}, "two": {"kernel": P("x")}}
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    where = transforms.state_sharding(run.tx, params, shardings)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        state = jax.jit(run.tx.init, out_shardings=where)(placed)
        step = jax.jit(run.tx.update)
        for t in range(3):
            grads = jax.device_put(gradients(params, t), shardings)
            updates, state = step(grads, state, placed)
            placed = optax.apply_updates(placed, updates)
    got, want = (jax.tree.map(np.asarray, x) for x in (placed, want))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=case.atol)
    zeros = jax.tree.map(lambda x: x == 0, (got, want))
    chex.assert_trees_all_equal(*zeros)
    for leaf, sharding in zip(
        jax.tree.leaves(placed), jax.tree.leaves(shardings), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
