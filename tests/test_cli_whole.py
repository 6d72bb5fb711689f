"""The command line writes all or nothing, and reads no array that may be another's."""

import io
import json
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jprune import cli
from jprune._archive import read_arrays, write_safetensors

MODULE = """
import jax
import jax.numpy as jnp

def mlp(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["b"]

def net(**more):
    shape = jax.random.normal
    a, b = shape(jax.random.key(0), (8, 16)), shape(jax.random.key(1), (16, 4))
    return mlp, {"a": a, "b": b, **more}, jnp.ones((2, 8))

def untyped():  # safetensors has no complex numbers
    return net(phase=jnp.ones(2, "complex64"))

def asked_to_leave():
    raise KeyboardInterrupt
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the working directory, under a name of its own."""
    name = f"jprune_whole_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def shrink(spec, out, *more):
    return cli.main(["shrink", spec, "--params", "0.5", "--out", str(out), *more])


def test_a_shrink_that_cannot_be_written_leaves_nothing(module, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert shrink(f"{module}:untyped", "small") == 1
    assert capsys.readouterr().err.count("\n") == 1
    after = [path for path in tmp_path.iterdir() if path.name != "__pycache__"]
    assert sorted(after) == before  # no folder that the next try would stumble over
    (tmp_path / "small").mkdir()  # an empty folder, and one behind a link
    assert shrink(f"{module}:net", "small") == 0
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert shrink(f"{module}:net", "link") == 0
    names = {"plan.json", "weights.safetensors", "report.txt"}
    assert {path.name for path in (tmp_path / "small").iterdir()} == names
    assert {path.name for path in (tmp_path / "disk").iterdir()} == names
    assert (tmp_path / "link").is_symlink()


def test_a_disk_that_is_full_leaves_no_half_folder(module, tmp_path, monkeypatch):
    def full(*ignored):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "write_safetensors", full)
    assert shrink(f"{module}:net", "small") == 1
    assert not (tmp_path / "small").exists()


def test_ctrl_c_is_no_traceback(module, capsys):
    assert cli.main(["flops", f"{module}:asked_to_leave"]) == 130
    assert capsys.readouterr().err == "stopped.\n"


@pytest.mark.parametrize("kind", ["int8", "complex64", "U1", "float64"])
def test_weights_of_another_kind_are_refused(kind, module, tmp_path, capsys):
    scale = 1e300 if kind == "float64" else 1  # more than float32 holds
    arrays = {"a": scale * np.ones((8, 16)), "b": scale * np.ones((16, 4))}
    np.savez("w.npz", **{k: v.astype(kind) for k, v in arrays.items()})
    assert shrink(f"{module}:net", "small", "--weights", "w.npz") == 1
    said = capsys.readouterr().err
    assert "leaf a must hold float32" in said and str(np.dtype(kind)) in said
    assert not (tmp_path / "small").exists()


def test_weights_of_another_precision_are_cast(module):
    rng = np.random.default_rng(0)
    wide = {"a": rng.normal(size=(8, 16)), "b": rng.normal(size=(16, 4))}
    np.savez("w.npz", **wide)
    assert shrink(f"{module}:net", "small", "--weights", "w.npz") == 0
    got = read_arrays("small")["a"]
    assert got.dtype == np.float32
    assert set(got.ravel()) <= set(wide["a"].astype(np.float32).ravel())


def safetensors(file, header, data):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def one(first, last, dtype="F32"):
    return {"dtype": dtype, "shape": [2], "data_offsets": [first, last]}


@pytest.mark.parametrize("kind", ["zip", "header", "bytes", "type", "list", "pair"])
def test_a_file_that_names_an_array_twice_is_refused(kind, tmp_path, capsys):
    ones, zeros = np.ones(2, np.float32).tobytes(), np.zeros(2, np.float32).tobytes()
    file = tmp_path / ("x.npz" if kind in ("zip", "pair") else "x.safetensors")
    match kind:
        case "zip":
            with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning):
                for array in (np.ones(2), np.zeros(2)):
                    data = io.BytesIO()
                    np.save(data, array)
                    archive.writestr("w.npy", data.getvalue())
        case "header":
            a, b = json.dumps(one(0, 8)), json.dumps(one(8, 16))
            safetensors(file, f'{{"w": {a}, "w": {b}}}'.encode(), ones + zeros)
        case "bytes":
            safetensors(file, {"w": one(0, 8), "v": one(4, 12)}, ones + zeros)
        case "type":
            safetensors(file, {"w": one(0, 8, "F4")}, ones)
        case "list":
            safetensors(file, [one(0, 8)], ones)
        case "pair":  # two bytes an entry, and still no bfloat16
            np.savez(file, w=np.zeros((2, 2), [("a", "u1"), ("b", "u1")]))
    assert cli.main(["report", str(file), "--scope", ".*"]) == 1
    wanted = {
        "zip": "names 'w' twice",
        "header": "names 'w' twice",
        "bytes": "leaves w and v claim the same bytes",
        "type": "leaf w has the data type F4",
        "list": "must be an object",
        "pair": "leaf w has the data type",
    }
    said = capsys.readouterr().err
    assert wanted[kind] in said and str(file) in said


def test_eight_bit_floats_go_round(tmp_path):
    arrays = {
        "a": jnp.arange(4, dtype=jnp.float8_e4m3fn),
        "b": jnp.ones(3, jnp.float8_e5m2),
        "none": jnp.zeros((0, 2)),
    }
    write_safetensors(tmp_path / "x.safetensors", arrays)
    got = read_arrays(str(tmp_path / "x.safetensors"))
    for path, array in arrays.items():
        assert got[path].dtype == array.dtype
        np.testing.assert_array_equal(got[path], np.asarray(array))
