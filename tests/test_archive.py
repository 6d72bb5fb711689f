"""Arrays in files: each form read back, each kind of damage an error with the name."""

import json
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import surgery
from jprune._archive import by_path, read_arrays, write_safetensors
from jprune.cli import main

TREE = {
    "params": {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "n": np.int32(3),
}


def equal(a, b):
    assert sorted(a) == sorted(b)
    for path in a:
        np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]))
        assert np.asarray(a[path]).dtype == np.asarray(b[path]).dtype, path


def safetensors_by_hand(file, arrays, dtype="F32"):
    """The format, written anew here: length, header, bytes."""
    header, data = {}, b""
    for name, array in arrays.items():
        raw = array.tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_safetensors_by_hand_and_back(tmp_path):
    arrays = {"b/w": np.ones((2, 3), np.float32), "a": np.zeros(0, np.float32)}
    safetensors_by_hand(tmp_path / "x.safetensors", arrays)
    equal(read_arrays(str(tmp_path / "x.safetensors")), arrays)
    every = {
        "half": jnp.arange(4, dtype=jnp.bfloat16),
        "flag": np.array([True, False]),
        "scalar": np.float64(2.5),
    }
    write_safetensors(tmp_path / "y.safetensors", every, {"plan": "{}"})
    equal(read_arrays(str(tmp_path / "y.safetensors")), every)


def test_the_library_of_the_format_reads_ours(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="an optional reader")
    arrays = {"w": np.eye(3, dtype=np.float32), "i": np.arange(5, dtype=np.int64)}
    write_safetensors(tmp_path / "x.safetensors", arrays, {"k": "v"})
    equal(library.load_file(tmp_path / "x.safetensors"), arrays)
    library.save_file(arrays, tmp_path / "y.safetensors")
    equal(read_arrays(str(tmp_path / "y.safetensors")), arrays)


def test_orbax_trees_and_managers(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="an optional reader")
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "tree", jax.tree.map(np.asarray, TREE))
    equal(read_arrays(str(tmp_path / "tree")), by_path(TREE))
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (2, 10):
            tree = jax.tree.map(np.asarray, times(step))  # its oldest takes no scalars
            manager.save(step, args=ocp.args.StandardSave(tree))
    equal(read_arrays(str(tmp_path / "run")), by_path(times(10)))


def times(number):
    return jax.tree.map(lambda x: x * np.asarray(number, x.dtype), TREE)


def _claiming(file, shape):
    head = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(file, "w") as archive, archive.open("w.npy", "w") as part:
        np.lib.format.write_array_header_1_0(part, head)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "header", "cut", "folder"])
def test_damage_is_said_with_the_name(kind, tmp_path, capsys):
    file = tmp_path / f"x.{'npz' if kind == 'npz' else 'safetensors'}"
    if kind == "npz":
        _claiming(file, (5_000_000_000,))
    elif kind == "safetensors":
        safetensors_by_hand(file, {"w": np.ones(4, np.float32)}, dtype="F64")
    elif kind == "header":
        file.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    elif kind == "cut":
        safetensors_by_hand(file, {"w": np.ones(4, np.float32)})
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.mkdir()
    assert main(["report", str(file)]) == 1
    said = capsys.readouterr().err
    assert str(file) in said and ("cannot be read" in said or "no array" in said)


MODULE = """
import jax
import jax.numpy as jnp


def mlp(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def shapes():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    return mlp, {"a": shape(8, 16), "b": shape(16, 4)}, jnp.ones((2, 8))


def raises():
    raise KeyError("k")


def numbers():
    return (lambda p, x: p * x), 2.0, 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"jprune_shrink_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.savez(
        "w.npz",
        a=random.normal(size=(8, 16)).astype(np.float32),
        b=random.normal(size=(16, 4)).astype(np.float32),
    )
    return name


def test_shrink_leaves_plan_weights_and_report(module, tmp_path, capsys):
    words = ["shrink", f"{module}:shapes", "--flops", "0.5", "--out", "small"]
    assert main([*words, "--weights", "w.npz"]) == 0
    printed = capsys.readouterr().out
    assert "written to small" in printed
    plan = surgery.load_plan(tmp_path / "small" / "plan.json")
    got = read_arrays("small/weights.safetensors")
    dense = dict(np.load("w.npz"))
    # Half the FLOPs are half the units: those of the plan, cut out of the weights.
    kept = np.flatnonzero(plan.keep[("a",)][1])
    assert len(kept) == 8
    equal(got, {"a": dense["a"][:, kept], "b": dense["b"][kept]})
    assert (
        f"{2 * 2 * 192:,} -> {2 * 2 * 96:>16,}"
        in (tmp_path / "small" / "report.txt").read_text()
    )
    assert main([*words, "--weights", "w.npz"]) == 1  # never over what is there
    assert "must be a new or an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("shapes", (), "leaf a has a shape but no values"),
        ("raises", (), "KeyError: 'k'"),
        ("numbers", (), "the variables must be a tree of arrays"),
        ("shapes", ("--weights", "other.npz"), "missing ['b'], unexpected ['c']"),
        ("shapes", ("--weights", "turned.npz"), "must have the shape (8, 16)"),
    ],
)
def test_mistakes_of_shrink(name, more, message, module, capsys):
    np.savez("other.npz", a=np.ones((8, 16)), c=np.ones(2))
    np.savez("turned.npz", a=np.ones((16, 8)), b=np.ones((16, 4)))
    words = ["shrink", f"{module}:{name}", "--flops", "0.5", "--out", "o", *more]
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_a_traceback_is_there_for_who_wants_it(module):
    with pytest.raises(ValueError, match="KeyError"):
        main(["--traceback", "flops", f"{module}:raises"])


def test_a_module_with_a_mistake(module, tmp_path, capsys):
    (tmp_path / f"{module}_bad.py").write_text("def (")
    assert main(["flops", f"{module}_bad:x"]) == 1
    assert "SyntaxError" in capsys.readouterr().err


def test_the_folder_that_shrink_leaves(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    body = np.array([1.0, 2.0], "<f4").tobytes()
    file = tmp_path / "weights.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + body)
    np.testing.assert_array_equal(read_arrays(str(tmp_path))["w"], [1.0, 2.0])
