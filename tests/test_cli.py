"""`jprune report` and `jprune cite`: what is printed, and each error."""

import os
import runpy
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune._archive import read_arrays
from jprune.cli import main


@pytest.fixture
def tree():
    return {
        "params": {
            "Conv_0": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)},
            "Dense_0": {"kernel": jnp.ones((4, 2), jnp.bfloat16)},
        }
    }


def save(file, tree):
    """The call that `jprune report --help` shows."""
    np.savez(
        file,
        **{
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        },
    )
    return str(file)


def test_report_of_an_archive_is_the_report_of_the_tree(tree, tmp_path, capsys):
    file = save(tmp_path / "params.npz", tree)
    assert main(["report", file]) == 0
    assert capsys.readouterr().out == f"{jprune.analysis.report(tree)}\n"


def test_report_with_a_scope(tree, tmp_path, capsys):
    file = save(tmp_path / "params.npz", tree)
    assert main(["report", file, "--scope", "Conv.*kernel$"]) == 0
    in_scope = capsys.readouterr().out.splitlines()[-2].split()
    assert in_scope[:5] == ["in", "scope", "4", "16", "75.00"]


def test_report_with_a_mask(tree, tmp_path, capsys):
    file = save(tmp_path / "params.npz", tree)
    mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool).at[0].set(False), tree)
    assert main(["report", file, "--mask", save(tmp_path / "m.npz", mask)]) == 0
    assert capsys.readouterr().out == f"{jprune.analysis.report(tree, mask)}\n"


def test_report_of_files_and_folders(tmp_path, capsys):
    (tmp_path / "net" / "deep").mkdir(parents=True)
    np.save(tmp_path / "net" / "deep" / "w.npy", np.eye(3))
    np.save(tmp_path / "net" / "b.npy", np.zeros(2))
    assert main(["report", str(tmp_path / "net")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["b", "deep/w"]
    assert main(["report", str(tmp_path / "net" / "b.npy"), "--scope", ".*"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:4] == [
        *("b", "2", "float64", "0")
    ]


def test_cite(capsys):
    assert main(["cite", "swd", "gsm"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{jprune.cite('swd')}\n\n{jprune.cite('gsm')}\n"
    assert main(["cite"]) == 0
    assert capsys.readouterr().out == f"{jprune.cite()}\n"
    assert main(["cite", "--list"]) == 0
    assert "lamp" in capsys.readouterr().out.splitlines()


def failure(capsys, *argv):
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_errors_name_the_file_and_the_cure(tree, tmp_path, capsys):
    file = save(tmp_path / "params.npz", tree)
    assert "Did you mean 'lamp'" in failure(capsys, "cite", "lampp")
    assert "no file" in failure(capsys, "report", str(tmp_path / "absent.npz"))
    assert "must be an .npz archive" in failure(capsys, "report", "params.msgpack")
    (tmp_path / "empty").mkdir()
    assert "holds no array" in failure(capsys, "report", str(tmp_path / "empty"))
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    assert "cannot be read" in failure(capsys, "report", str(tmp_path / "broken.npz"))
    message = failure(capsys, "report", file, "--scope", "Conv_1")
    assert "matches no leaf" in message and "params/Conv_0/kernel" in message
    assert "regular expression" in failure(capsys, "report", file, "--scope", "(")
    other = save(tmp_path / "m.npz", {"a": np.ones(2, bool)})
    message = failure(capsys, "report", file, "--mask", other)
    assert "unexpected: a" in message and "missing: params/Conv_0/bias" in message


def test_pickles_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    message = failure(capsys, "report", str(tmp_path / "objects.npz"))
    assert "cannot be read" in message and "allow_pickle" in message


def test_a_lost_data_type_is_an_error(tmp_path, capsys):
    np.savez(tmp_path / "f8.npz", w=np.ones(2, jnp.float8_e4m3fn))
    message = failure(capsys, "report", str(tmp_path / "f8.npz"))
    assert "leaf w" in message and "Save it as float32" in message


def test_help_shows_how_to_save(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert "numpy.savez(" in capsys.readouterr().out


def test_usage_errors_leave_with_status_2(capsys):
    for argv in ([], ["prune"], ["report"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"jprune {jprune.__version__}\n"


def test_python_m_jprune(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["jprune", "cite", "swd"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("jprune", run_name="__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{jprune.cite('swd')}\n"


@pytest.mark.slow
def test_the_installed_command():
    command = shutil.which("jprune")
    if command is None:
        pytest.skip("jprune is not installed as a command here")
    done = subprocess.run([command, "cite", "swd"], capture_output=True, text=True)
    assert done.stdout.strip() == jprune.cite("swd"), done.stderr


MODULE = """
import jax
import jax.numpy as jnp


def mlp(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def net():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    return mlp, {"a": shape(8, 16), "b": shape(16, 4)}, shape(2, 8)


def heads():
    fn = lambda v, x: x @ v["trunk"] @ v["mean"]
    return fn, {"trunk": jnp.ones((8, 16)), "mean": jnp.ones((16, 4))}, jnp.ones((2, 8))


def noisy():
    v = {
        "a": jnp.ones((8, 16)),
        "act": jnp.tanh,
        "b": jnp.ones((16, 4)),
        "key": jax.random.key(3, impl="rbg"),
    }
    return (lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"]), v, jnp.ones((2, 8))


def needs(x):
    return x


def bare():
    return mlp
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the working directory, under a name of its own."""
    name = f"jprune_cli_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_flops_of_a_module(module, capsys):
    assert main(["flops", f"{module}:net"]) == 0
    expected = 2 * 2 * (8 * 16 + 16 * 4)
    assert capsys.readouterr().out == (
        f"{expected:,} FLOPs (2 per MAC)\n{8 * 16 + 16 * 4} parameters\n"
    )


def test_a_weight_called_mean_is_counted(module, capsys, tmp_path):
    assert main(["flops", f"{module}:heads"]) == 0
    assert f"{8 * 16 + 16 * 4} parameters" in capsys.readouterr().out
    out = str(tmp_path / "small")
    assert main(["shrink", f"{module}:heads", "--params", "0.5", "--out", out]) == 0
    (row,) = (x for x in capsys.readouterr().out.splitlines() if "parameters " in x)
    assert row.split() == ["parameters", "192", "->", "96"]


def test_random_keys_and_functions_among_the_leaves(module, capsys, tmp_path):
    out = tmp_path / "small"
    assert main(["shrink", f"{module}:noisy", "--flops", "0.5", "--out", str(out)]) == 0
    arrays = read_arrays(str(out / "weights.safetensors"))
    assert {p: a.shape for p, a in arrays.items()} == {
        "a": (8, 8),
        "b": (8, 4),
        "key": (4,),
    }
    whole = {"a": np.ones((8, 16), np.float32), "b": np.ones((16, 4), np.float32)}
    np.savez(tmp_path / "whole.npz", key=arrays["key"], **whole)
    again = ["flops", f"{module}:noisy", "--weights", str(tmp_path / "whole.npz")]
    assert main(again) == 0
    assert "192 parameters" in capsys.readouterr().out


def test_groups_of_a_module(module, capsys):
    assert main(["groups", f"{module}:net"]) == 0
    first, frozen = capsys.readouterr().out.split("frozen:")
    (row,) = [line for line in first.splitlines() if "a:1 (out)" in line]
    assert row.split()[:4] == ["a:1", "16", "[16]", "coupled"] and "b:0 (in)" in row
    assert "a:0[0:8]  model input" in frozen and "b:1[0:4]  model output" in frozen


@pytest.mark.parametrize(
    "spec, message",
    [
        ("no_colon", "`MODEL` must be module:callable, got 'no_colon'"),
        ("not_there_at_all:net", "No module named 'not_there_at_all'"),
        ("{module}:nothing", "has no attribute 'nothing'"),
        ("{module}:bare", "must return `(fn, variables, *args)`"),
        ("{module}:needs", "without arguments and returns `(fn, variables, *args)`"),
    ],
)
def test_errors_of_models(spec, message, module, capsys):
    assert main(["flops", spec.format(module=module)]) == 1
    assert message in capsys.readouterr().err


def test_a_reader_that_has_seen_enough(monkeypatch):
    """`jprune cite | head`: a closed pipe is no error, then and at exit."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert main(["cite", "lamp"]) == 0
