"""What goes wrong in a long job: each kind of fault is said, and costs little."""

import fcntl
import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import config, files, results, rules, stopping, train
from experiments.checkpoints import CheckpointError, Checkpoints, Saved, digest
from experiments.config import ConfigError
from experiments.data import graphs, images, planetoid
from experiments.data.dataset import DataError
from experiments.files import FileError
from experiments.journal import Journal
from experiments.loop import Diverged, compile_program, fit

SMALL = [
    "digits",
    "--set=model=lenet300",
    "--set=batch=716",
    "--set=dense.epochs=1",
    "--set=one_shot.stats_momentum=0.0",
    "--only=one_shot",
]


def sgd(_):
    return optax.sgd(0.1, 0.9)


# One identity a run.


def test_runs_whose_labels_round_alike_are_two_runs(open_tiny, tmp_path):
    lab = open_tiny(tmp_path)._replace(settings={"sparsity": (0.981, 0.984)})
    one, two = (lab.run("swd 98%", sparsity=s) for s in (0.981, 0.984))
    assert one.digest != two.digest
    keys = [jax.random.key_data(lab.key(run)).tolist() for run in (one, two)]
    assert keys[0] != keys[1]
    again = lab.run("another name", sparsity=0.981)
    assert again.digest == one.digest and one.then("tuned").digest != one.digest
    assert [rules.percent(s) for s in (0.981, 0.984, 0.29)] == ["98.1%", "98.4%", "29%"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": (0.9, 0.9)}, r"`swd.sparsity` names 0.9 twice"),
        ({"sparsity": (0.9, 0.9 + 1e-9)}, r"names 0.9 twice"),
        ({"sparsity": (0.9, 1.0)}, r"`swd.sparsity` must be at least 0 and less than"),
        ({"epochs": 0}, r"`swd.epochs` must be at least 1, got 0"),
        ({"lr": float("inf")}, r"`swd.lr` must be finite"),
        ({"mu": -1.0}, r"`swd.mu` must be a finite number, at least 0, got -1.0"),
        ({"momentum": float("nan")}, r"`swd.momentum` must be"),
        ({"kinds": ("spacial",)}, r"unknown value of `swd.kinds`.*spatial"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        rules.check("swd", settings)


def test_two_equal_runs_are_refused():
    with pytest.raises(ConfigError, match="`a` and `b` have the same settings"):
        rules.check_distinct({"a": {"lr": 1.0, "mu": 2}, "b": {"mu": 2, "lr": 1.0}})


def test_a_sweep_holds_values_of_one_kind():
    with pytest.raises(ConfigError, match="expected values of type float, got"):
        config.override(config.load("digits"), ["swd.sparsity=('a',)"])
    changed = config.override(config.load("digits"), ["swd.sparsity=(0, 0.5)"])
    assert changed.runs["swd"]["sparsity"] == (0.0, 0.5)


@pytest.mark.parametrize(
    "words",
    [
        ["--seed=-1"],
        [f"--seed={2**32}"],
        ["--set=steps_per_dispatch=-1"],
        ["--set=checkpoint_every=-1"],
        ["--set=swd.batch=100000"],
    ],
)
def test_mistakes_end_before_anything_is_trained(words, tmp_path, capsys):
    assert train.main(["digits", *words, f"--out={tmp_path / 'o'}"]) == 2
    said = capsys.readouterr().err
    assert said.strip().startswith("error: ") and "dense:" not in said


# Checkpoints.


def noise(step):
    return jax.random.normal(jax.random.key(step), (64, 64))


def tree(step):
    return {"w": noise(step), "n": jnp.int32(3)}


def keeper(folder, say=print):
    return Checkpoints(folder, resume=True, every=1, say=say)


def two_saved(folder):
    with keeper(folder) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(Saved(step, tree(step), jnp.zeros(3), 1.5 * step))


def flip_a_bit(folder):
    """One bit of the largest file under a folder."""
    file = max(
        (f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def names(folder):
    return sorted(place.name for place in folder.iterdir())


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path):
    run, said = tmp_path / "run", []
    two_saved(run)
    assert names(run) == ["2", "3"]
    flip_a_bit(run / "3" / "state")
    with keeper(run, said.append) as checkpoints:
        found = checkpoints.restore(tree(0), jnp.zeros(3))
        assert found is not None and (found.step, found.seconds) == (2, 3.0)
        np.testing.assert_array_equal(found.state["w"], noise(2))
        checkpoints.save(Saved(3, tree(3), jnp.zeros(3), 0.0))  # its step comes again
    (line,) = said
    assert f"{run / '3'} is damaged and is now called 3.damaged" in line
    assert names(run) == ["2", "3", "3.damaged"]
    flip_a_bit(run / "3" / "state")
    with keeper(run, said.append) as checkpoints:
        assert checkpoints.restore(tree(0), jnp.zeros(3)).step == 2
    assert names(run) == ["2", "3.damaged", "3.damaged2"]


@pytest.mark.parametrize("change", [("'w'", "'v'"), ("4.5", "6.5")])
def test_a_bit_that_turned_beside_the_state_is_damage_too(change, tmp_path):
    two_saved(tmp_path)
    (file,) = (tmp_path / "3" / "meta").glob("metadata*")
    text = file.read_text()
    assert text.count(change[0]) == 1
    file.write_text(text.replace(*change))
    told = []
    with keeper(tmp_path, told.append) as checkpoints:
        found = checkpoints.restore(tree(0), jnp.zeros(3))
    assert found.step == 2 and found.seconds == 3.0
    assert len(told) == 1 and "is damaged" in told[0]


def test_without_a_whole_checkpoint_the_run_starts(tmp_path):
    said = []
    two_saved(tmp_path / "run")
    for step in ("2", "3"):
        flip_a_bit(tmp_path / "run" / step / "state")
    with keeper(tmp_path / "run", said.append) as checkpoints:
        assert checkpoints.restore(tree(0), jnp.zeros(3)) is None
    assert len(said) == 2
    assert names(tmp_path / "run") == ["2.damaged", "3.damaged"]


PASSING = [OSError(24, "Too many open files"), MemoryError(), ValueError("busy")]


@pytest.mark.parametrize("error", PASSING, ids=lambda e: type(e).__name__)
def test_a_checkpoint_that_cannot_be_read_now_stays(error, tmp_path, monkeypatch):
    run = tmp_path / "run"
    two_saved(run)

    def fails(*args, **kwargs):
        raise error

    with keeper(run) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "restore", fails)
            with pytest.raises(
                CheckpointError, match=r"run/3 could not be read: "
            ) as e:
                checkpoints.restore(tree(0), jnp.zeros(3))
        assert (str(error) or "MemoryError") in str(e.value)
        assert "`--resume` again" in str(e.value)
        assert checkpoints.restore(tree(0), jnp.zeros(3)).step == 3  # it has passed
    assert names(run) == ["2", "3"]


def cut_short(place):
    """The largest file of a state ends in the middle."""
    files = [f for f in (place / "state").rglob("*") if f.is_file()]
    file = max(files, key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def falls_back(cut, run):
    """What must hold when a checkpoint cannot be read."""
    said = []
    two_saved(run)
    cut(run / "3")
    with keeper(run, said.append) as checkpoints:
        assert checkpoints.restore(tree(0), jnp.zeros(3)).step == 2
    assert names(run) == ["2", "3.damaged"]
    assert re.search(r"run/3 could not be read \(.*\) and is now called", said[0])
    cut(run / "2")  # the last one: whoever can mend it finds it in its place
    assert re.search(r"move .*run/2 elsewhere", error_of(run))
    assert names(run) == ["2", "3.damaged"]


@pytest.mark.parametrize("cut", [
    lambda place: (place / "meta" / "metadata").write_text('{"seconds": 4.5, "dig'),
    lambda place: shutil.rmtree(place / "state"),
])  # fmt: skip
def test_a_file_that_is_cut_or_gone_is_set_aside_for_the_one_before(cut, tmp_path):
    falls_back(cut, tmp_path / "run")


def test_an_array_that_is_cut_is_set_aside_for_the_one_before(tmp_path):
    """In a process of its own: when one of Orbax' readers fails it leaves the others,
    and what those say at their end would be taken for some later test's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(falls_back, cut_short, tmp_path / "run").result()


def error_of(run):
    """What is said when no checkpoint can be read."""
    with keeper(run) as checkpoints:
        try:
            checkpoints.restore(tree(0), jnp.zeros(3))
        except CheckpointError as error:
            return str(error)
    raise AssertionError("a checkpoint was read")


OTHER = {
    "more": ({"new": np.ones(2)}, r"1 leaves differ \(now: .*'new'"),
    "fewer": ({"n": None}, r"1 leaves differ \(it holds .*'n'"),
    "shape": ({"w": np.zeros((64, 3), "f")}, r"2 leaves .*\(64, 64\).*\(64, 3\)"),
    "dtype": (
        {"w": np.zeros((64, 64), np.float16)},
        r"it holds .*float32.*now: .*float16",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_checkpoint_of_another_state_stays(name, tmp_path):
    changed, message = OTHER[name]
    like = {**tree(0), **changed}
    two_saved(tmp_path / "run")
    with keeper(tmp_path / "run") as checkpoints:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(like, jnp.zeros(3))
    assert names(tmp_path / "run") == ["2", "3"]


def test_a_save_that_did_not_save_is_an_error(tmp_path):
    two_saved(tmp_path / "run")
    with pytest.raises(CheckpointError, match="there is one already"):
        with keeper(tmp_path / "run") as checkpoints:
            checkpoints.save(Saved(3, tree(9), jnp.zeros(3), 0.0))


def test_a_disk_that_is_full_is_one_clear_error(tmp_path, monkeypatch):
    with keeper(tmp_path / "run") as checkpoints:

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(CheckpointError, match=r"run: .*No space left on device\. "):
            checkpoints.save(Saved(1, tree(1), jnp.zeros(3), 0.0))


def test_a_digest_tells_values_types_and_places_apart():
    first = digest({"a": np.zeros(2, np.float32)})
    assert first == digest({"a": jnp.zeros(2)})
    others = [{"a": np.zeros(2, np.int32)}, {"b": np.zeros(2, np.float32)}]
    others += [{"a": np.zeros((1, 2), np.float32)}, {"a": -np.zeros(2, np.float32)}]
    assert first not in [digest(other) for other in others]


# Runs that diverge, and jobs that are asked to leave.


def test_a_diverged_run_names_step_and_leaf_and_keeps_what_was_good(
    tmp_path, open_tiny
):
    lab = open_tiny(tmp_path, steps_per_dispatch=1)  # two steps an epoch

    def breaks(_):
        """Sets one leaf to NaN in the fourth update."""

        def update(updates, count, params=None):
            bad = jnp.where(count == 3, jnp.nan, 0.0)
            updates["Dense_1"]["kernel"] += bad
            return updates, count + 1

        first = optax.GradientTransformation(lambda p: jnp.int32(0), update)
        return optax.chain(first, optax.sgd(0.1))

    with pytest.raises(Diverged) as caught:
        fit(lab, compile_program(lab, breaks), lab.run("run"), 9)
    text = str(caught.value)
    assert "`run` diverged at step 4: Dense_1/kernel is no longer finite" in text
    again = open_tiny(tmp_path, resume=True)
    with again.checkpoints(again.run("run")) as kept:
        program = compile_program(again, breaks)
        found = kept.restore(program.begin(*again.init(), None), jnp.zeros(3))
        assert found is not None and found.step == 2
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.state.params))


def test_a_diverged_job_writes_its_rows_and_stays_json(tmp_path, capsys):
    words = [*SMALL, "--set=dense.lr=1e30", "--set=dense.epochs=3"]
    assert train.main([*words, f"--out={tmp_path / 'o'}"]) == 3
    assert "error: run `dense` diverged at step " in capsys.readouterr().err

    def no(name):
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "o" / "result.json").read_text()
    assert "diverged" in json.loads(text, parse_constant=no)["stopped"]


@pytest.mark.slow
def test_a_signal_saves_within_an_epoch_and_the_rest_is_the_same(tmp_path, open_tiny):
    whole = open_tiny(tmp_path / "a", batch=280, steps_per_dispatch=2)
    unbroken = fit(whole, compile_program(whole, sgd), whole.run("run"), 3)
    lab = open_tiny(tmp_path / "b", batch=280, steps_per_dispatch=2)
    program, calls = compile_program(lab, sgd), 0

    def raised_in_the_fifth_call(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 5:
            signal.raise_signal(signal.SIGTERM)
        return program.advance(*args, **kwargs)

    with stopping.listening(), pytest.raises(stopping.Stopped):
        changed = program._replace(advance=raised_in_the_fifth_call)
        fit(lab, changed, lab.run("run"), 3)
    assert calls == 5  # of 3 x 3: the first epoch, and four steps of the second
    again = open_tiny(tmp_path / "b", batch=280, steps_per_dispatch=2, resume=True)
    resumed = fit(again, compile_program(again, sgd), again.run("run"), 3)
    jax.tree.map(np.testing.assert_array_equal, resumed, resumed)
    for x, y in zip(
        jax.tree.leaves((resumed.params, resumed.opt)),
        jax.tree.leaves((unbroken.params, unbroken.opt)),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    logs = [results.history(tmp_path / name / "log.jsonl")["run"] for name in "ab"]
    losses = [[e["loss"] for e in log] for log in logs]
    assert losses[0] == losses[1]


def test_a_job_of_runs_of_one_call_each_leaves_too(open_tiny, tmp_path):
    lab = open_tiny(tmp_path)
    program = compile_program(lab, sgd)
    with stopping.listening():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(stopping.Stopped, match="before run `second`"):
            fit(lab, program, lab.run("second"), 1)


def test_sigterm_has_an_exit_status_of_its_own(tmp_path, monkeypatch, capsys):
    def asked(lab, **settings):
        raise stopping.Stopped("asked to leave in run `dense`")

    monkeypatch.setattr(train, "train_dense", asked)
    before = signal.getsignal(signal.SIGINT)
    assert train.main([*SMALL, f"--out={tmp_path / 'o'}"]) == 75
    assert "`--resume` goes on from here" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_real_sigterm(tmp_path):
    words = [sys.executable, "-m", "experiments.train", *SMALL, f"--out={tmp_path}"]
    job = subprocess.Popen(
        [*words, "--set=dense.epochs=100000"], stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "log.jsonl"
    while job.poll() is None and not (log.exists() and log.stat().st_size):
        pass
    job.terminate()
    _, said = job.communicate(timeout=300)
    assert job.returncode == 75 and "stopped: asked to leave" in said, said
    assert list((tmp_path / "checkpoints").glob("dense-*/[0-9]*"))


# The folder of a job and its files.


def test_a_second_job_in_one_folder_is_refused(tmp_path, capsys):
    with (tmp_path / files.LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert train.main([*SMALL, f"--out={tmp_path}"]) == 2
    assert "another job is running there" in capsys.readouterr().err


def test_out_that_is_a_file(tmp_path, capsys):
    file = tmp_path / "f"
    file.write_text("precious")
    for out in (file, file / "x"):
        assert train.main([*SMALL, f"--out={out}"]) == 2
        assert "it must be a folder" in capsys.readouterr().err
    assert file.read_text() == "precious"


@pytest.mark.parametrize("text", ["", "[]", '{"seed": 0}', '{"seed": 0, "ru'])
def test_a_damaged_config_names_the_file(text, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert train.main([*SMALL, f"--out={tmp_path}", "--resume"]) == 2
    assert str(tmp_path / "config.json") in capsys.readouterr().err


def test_json_is_written_whole_and_without_nan(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": float("nan"), "y": (1, float("inf")), "z": 0.5})
    assert json.loads(path.read_text()) == {"x": None, "y": [1, None], "z": 0.5}
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    with pytest.raises(RuntimeError), files.replacing(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text())["z"] == 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(FileError, match="it lacks rows"):
        files.read_json(path, "rows")


def test_a_torn_log_line_is_cut(tmp_path):
    log = tmp_path / "log.jsonl"
    line = '{"run": "a", "epoch": 1, "step": 1}\n'
    other = '{"run": ["a"], "epoch": 1}\n[1]\n'
    log.write_text(line + other + line[:17])
    assert len(results.history(log)["a"]) == 1
    log.write_text(line + '{"run": "a", "epo')
    assert len(results.history(log)["a"]) == 1
    with Journal(tmp_path, resume=True) as journal:
        journal.write({"run": "a", "epoch": 2, "loss": float("nan")})
    first, second = log.read_text().splitlines()
    assert first + "\n" == line and json.loads(second)["loss"] is None


# Data.


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04 cut", "other keys"])
def test_a_damaged_graph_names_its_file(data, tmp_path):
    file = tmp_path / "cora.npz"
    if isinstance(data, str):
        np.savez(file, x=1)
    else:
        file.write_bytes(data)
    with pytest.raises(DataError, match=r"cora\.npz is damaged"):
        graphs.load_graph("cora", str(tmp_path))


def test_a_folder_without_records_is_named(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="the optional extra `data`")
    (tmp_path / "mnist").mkdir()
    with pytest.raises(DataError, match="mnist is damaged"):
        images.load_mnist(str(tmp_path))


class Evil:
    """Its pickle calls a function."""

    def __reduce__(self):
        return zipfile.Path, ("somewhere",)


def test_a_pickle_that_is_not_the_published_one_is_not_opened(tmp_path):
    for part in ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index"):
        (tmp_path / f"ind.cora.{part}").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="SHA-256 differs"):
        planetoid.convert(tmp_path, "cora")
    with pytest.raises(DataError, match="asks for zipfile"):
        planetoid.convert(tmp_path, "cora", digests=None)
