"""One safetensors file for a compact model: round trip, and read by others."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as other
from safetensors import safe_open

from jprune import surgery


def net(p, x):
    return jnp.tanh(x @ p["a/b"]["w"]) @ p["layers"][0]


PARAMS = {
    "a/b": {"w": jnp.arange(12.0, dtype=jnp.bfloat16).reshape(3, 4)},
    "layers": [jnp.arange(8.0).reshape(4, 2)],
}
X = jnp.ones((2, 3))


def made():
    deps = surgery.groups(net)(PARAMS, X)
    plan = surgery.plan_from_keep(deps, {deps[0].id: [0, 2]})
    return plan, plan.pack(PARAMS)


def test_round_trip(tmp_path):
    plan, packed = made()
    surgery.save_packed(tmp_path / "m.safetensors", plan, packed)
    again, tree = surgery.load_packed(tmp_path / "m.safetensors", like=packed)
    assert jax.tree.structure(tree) == jax.tree.structure(packed)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(packed), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    assert again.to_json() == plan.to_json()
    got = surgery.shrink(net, again)(tree, X)
    assert np.allclose(got, net(plan.zero(PARAMS), X))
    _, nested = surgery.load_packed(tmp_path / "m.safetensors")
    assert nested["layers"][0].shape == (2, 2)


def test_other_readers_see_the_arrays_and_the_plan(tmp_path):
    plan, packed = made()
    packed["a/b"]["w"] = packed["a/b"]["w"].astype(jnp.float32)
    surgery.save_packed(tmp_path / "m.safetensors", plan, packed)
    arrays = other.load_file(tmp_path / "m.safetensors")
    assert np.array_equal(arrays["a/b/w"], [[0, 2], [4, 6], [8, 10]])
    with safe_open(tmp_path / "m.safetensors", "numpy") as file:
        data = json.loads(file.metadata()["jprune_plan"])
    assert data == json.loads(plan.to_json())


def test_random_keys_are_numbers(tmp_path):
    params = {"key": jax.random.key(3), "w": jnp.ones((3, 4)), "v": jnp.ones((4, 2))}

    def fn(p, x):
        noise = jax.random.normal(p["key"], (2, 4))
        return (x @ p["w"] + noise) @ p["v"]

    deps = surgery.groups(fn)(params, X)
    plan = surgery.plan_from_keep(deps, {"w:1": [1, 2]})
    packed = plan.pack(params)
    surgery.save_packed(tmp_path / "m.safetensors", plan, packed)
    _, tree = surgery.load_packed(tmp_path / "m.safetensors", like=packed)
    small = surgery.shrink(fn, plan)
    assert np.array_equal(small(tree, X), small(packed, X))


def test_errors(tmp_path):
    plan, packed = made()
    file = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=r"`packed` must have the compact shapes"):
        surgery.save_packed(file, plan, PARAMS)
    with pytest.raises(ValueError, match=r"missing: layers/0"):
        surgery.save_packed(file, plan, {"a/b": packed["a/b"]})
    other.save_file({"a": np.ones(3)}, file)
    with pytest.raises(ValueError, match="is not a file written by"):
        surgery.load_packed(file)
    file.write_bytes(b"\0" * 4)
    with pytest.raises(ValueError, match="is not a file written by"):
        surgery.load_packed(file)
    with pytest.raises(ValueError, match="is not a file written by"):
        surgery.load_packed(tmp_path / "none")
