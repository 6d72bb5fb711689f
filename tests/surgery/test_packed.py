"""One safetensors file for a compact model: round trip, and read by others."""

import json
import tracemalloc
import weakref

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


class OneAtATime(dict):
    """A checkpoint that makes each array when it is asked for, and counts the living.

    What a reader still holds when the next one is asked for was not let go.
    """

    def __init__(self, arrays):
        super().__init__(arrays)
        self.alive, self.most = set(), 0

    def __getitem__(self, name):
        array = super().__getitem__(name).copy()
        self.alive.add(name)
        weakref.finalize(array, self.alive.discard, name)
        self.most = max(self.most, len(self.alive))
        return array


def checkpoint():
    """A plan from shapes alone, and the arrays of six layers by name."""
    shapes = {
        "layers": [
            {"up": jax.ShapeDtypeStruct((64, 256), jnp.float32)}
            | {"down": jax.ShapeDtypeStruct((256, 64), jnp.float32)}
            for _ in range(6)
        ]
    }

    def fn(p, x):
        for layer in p["layers"]:
            x = jnp.tanh(x @ layer["up"]) @ layer["down"]
        return x

    deps = surgery.groups(fn)(shapes, jax.ShapeDtypeStruct((1, 64), jnp.float32))
    even = {g.id: np.arange(g.size, dtype=float) for g in deps}
    rng = np.random.default_rng(0)
    arrays = {
        f"layers/{i}/{k}": rng.standard_normal(shapes["layers"][i][k].shape, np.float32)
        for i in range(6)
        for k in ("up", "down")
    }
    return surgery.select(deps, even, sparsity=0.5), arrays


def tree_of(arrays, sep="/"):
    def leaf(*keys):
        return arrays[sep.join(keys)]

    return {
        "layers": [
            {k: leaf("layers", str(i), k) for k in ("up", "down")} for i in range(6)
        ]
    }


@pytest.mark.parametrize("kind", ["file", "parts", "dots", "mapping"])
def test_a_file_packed_leaf_by_leaf_equals_pack(tmp_path, kind):
    plan, arrays = checkpoint()
    names = sorted(arrays)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    source, sep = files[0], "/"
    if kind == "parts":
        source = files
        other.save_file({n: arrays[n] for n in names[:5]}, files[0])
        other.save_file({n: arrays[n] for n in names[5:]}, files[1])
    elif kind == "dots":
        sep = "."
        other.save_file({n.replace("/", "."): arrays[n] for n in names}, files[0])
    elif kind == "mapping":
        source = arrays
    else:
        other.save_file(arrays, files[0])
    surgery.pack_file(plan, source, tmp_path / "small.safetensors")
    want = plan.pack(tree_of(arrays))
    got = tree_of(other.load_file(tmp_path / "small.safetensors"), sep)
    jax.tree.map(np.testing.assert_array_equal, want, got)
    again, tree = surgery.load_packed(tmp_path / "small.safetensors", like=want)
    assert again.to_json() == plan.to_json()
    jax.tree.map(np.testing.assert_array_equal, want, tree)


def test_packing_a_file_holds_one_leaf_at_a_time(tmp_path):
    plan, arrays = checkpoint()
    counted = OneAtATime(arrays)
    surgery.pack_file(plan, counted, tmp_path / "small.safetensors")
    assert counted.most <= 2 and not counted.alive  # the last goes as the next comes

    other.save_file(arrays, tmp_path / "big.safetensors")
    leaf = 64 * 256 * 4
    tracemalloc.start()
    surgery.pack_file(plan, tmp_path / "big.safetensors", tmp_path / "x.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * leaf  # of 12


def test_packing_a_file_names_what_does_not_fit(tmp_path):
    plan, arrays = checkpoint()
    target = tmp_path / "small.safetensors"
    with pytest.raises(ValueError, match="missing"):
        surgery.pack_file(plan, {k: arrays[k] for k in list(arrays)[1:]}, target)
    with pytest.raises(ValueError, match="without them"):
        surgery.pack_file(plan, arrays | {"more": np.zeros(1)}, target)
    with pytest.raises(ValueError, match="layers/0/up must have the shape"):
        surgery.pack_file(plan, arrays | {"layers/0/up": np.zeros((2, 2))}, target)
    with pytest.raises(ValueError, match="not a safetensors file"):
        surgery.pack_file(plan, tmp_path / "none.safetensors", target)
    assert list(tmp_path.iterdir()) == []
