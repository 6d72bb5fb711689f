"""The transform contract: eleven rows, every transformation of the table."""

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

CASES = pytest.mark.parametrize("case", TABLE, ids=lambda c: c.name)


def stepper(tx):
    """One jitted step that also counts its traces."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, params, steps, state=None, first=0):
    chex.clear_trace_counter()
    state = jax.jit(tx.init)(params) if state is None else state
    step = stepper(tx)
    for t in range(first, first + steps):
        params, state = step(gradients(params, t), state, params)
    return params, state


@CASES
def test_row1_jit_once(case):
    params, state = run(case.make(), tree("dict"), 4)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))


@CASES
def test_row2_unexpected_keyword(case):
    tx, params = case.make(), tree("dict")
    jax.eval_shape(
        lambda g, s, p: tx.update(g, s, p, unexpected=1),
        gradients(params),
        tx.init(params),
        params,
    )


@CASES
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_row3_structure_and_dtype(case, dtype):
    tx, params = case.make(), tree("dict", dtype)
    updates, _ = jax.jit(tx.update)(gradients(params), tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@CASES
@pytest.mark.parametrize("kind", ["dict", "tuple", "array"])
def test_row4_any_tree(case, kind):
    tx, params = case.make(), tree(kind)
    updates, _ = jax.jit(tx.update)(gradients(params), tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_tree_all_finite(updates)


@CASES
def test_row5_params_none(case):
    tx, params = case.make(), tree("dict")
    if not case.needs_params:
        tx.update(gradients(params), tx.init(params))
        return
    base = case.name.split("-")[0]
    # A recipe's error comes from its first part that needs the parameters.
    named = {
        "swd": "params",
        "csgd": "params",
        "tpp": "add_decorrelation",
        "network_slimming": "add_masked_l1",
        "masksparsity": "add_masked_l1",
        "gsm": "mask_by_saliency",
    }.get(base, base)
    with pytest.raises(ValueError, match=named):
        tx.update(gradients(params), tx.init(params))


@CASES
def test_row6_map_params(case):
    tx, params = case.make(), tree("dict")
    state = tx.init(params)
    same = optax.tree.map_params(tx, lambda x: x, state)
    chex.assert_trees_all_equal(same, state)


@CASES
def test_row7_inject_hyperparams(case):
    if not case.inject:
        pytest.skip("no numeric hyper-parameter")
    plain, injected = case.make(), optax.inject_hyperparams(case.make)(**case.inject)
    params = tree("dict")
    want, _ = run(plain, params, 4)
    got, _ = run(injected, params, 4)
    chex.assert_trees_all_close(got, want, rtol=1e-6)


@CASES
def test_row8_masked(case):
    params = tree("dict")
    only = {"one": {"kernel": True, "bias": False}, "two": {"kernel": False}}
    tx = optax.chain(optax.masked(case.make(), only))
    got, _ = run(tx, params, 4)
    alone = {"one": {"kernel": params["one"]["kernel"]}}
    tx = case.make()
    state, step = tx.init(alone), jax.jit(tx.update)
    for t in range(4):
        grads = {"one": {"kernel": gradients(params, t)["one"]["kernel"]}}
        updates, state = step(grads, state, alone)
        alone = optax.apply_updates(alone, updates)
    chex.assert_trees_all_close(got["one"]["kernel"], alone["one"]["kernel"], rtol=1e-6)


@CASES
def test_row8_partition_and_multisteps(case):
    params = tree("dict")
    labels = {"one": {"kernel": "a", "bias": "b"}, "two": {"kernel": "a"}}
    tx = optax.partition({"a": case.make(), "b": optax.sgd(0.1)}, labels)
    got, _ = run(tx, params, 3)
    chex.assert_tree_all_finite(got)
    accumulated, _ = run(optax.MultiSteps(case.make(), 2), params, 4)
    chex.assert_tree_all_finite(accumulated)
    assert not np.array_equal(accumulated["one"]["kernel"], params["one"]["kernel"])


@CASES
def test_row9_resume(case):
    tx, params = case.make(), tree("dict")
    want, want_state = run(tx, params, 4)
    half, state = run(tx, params, 2)
    leaves, treedef = jax.tree.flatten(state)
    file = io.BytesIO()
    np.savez(file, *[np.asarray(x) for x in leaves])
    file.seek(0)
    with np.load(file) as saved:
        again = [jnp.asarray(saved[f"arr_{i}"]) for i in range(len(leaves))]
    state = jax.tree.unflatten(treedef, again)
    got, got_state = run(tx, half, 2, state, first=2)
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
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_row11_sharded(case, kind):
    tx, params = case.make(), tree("dict")
    want, _ = run(tx, params, 3)
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind, kind))
    specs = {"one": {"kernel": P("x", "y"), "bias": P("y")}, "two": {"kernel": P("x")}}
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        where = transforms.state_sharding(tx, params, shardings)
        state = jax.jit(tx.init, out_shardings=where)(placed)
        step = jax.jit(tx.update)
        for t in range(3):
            grads = jax.device_put(gradients(params, t), shardings)
            updates, state = step(grads, state, placed)
            placed = optax.apply_updates(placed, updates)
    got = jax.tree.map(np.asarray, placed)
    want_host = jax.tree.map(np.asarray, want)
    chex.assert_trees_all_close(got, want_host, rtol=1e-6, atol=1e-7)
    zeros = jax.tree.map(lambda x: np.asarray(x) == 0, (placed, want))
    chex.assert_trees_all_equal(*zeros)
    chex.assert_trees_all_equal_structs(placed, shardings)
    assert placed["one"]["kernel"].sharding.is_equivalent_to(
        shardings["one"]["kernel"], 2
    )
