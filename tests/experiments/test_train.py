"""The command: its files, its mistakes, its resumption."""

import dataclasses
import json
import subprocess
import sys

import pytest

from experiments import train
from experiments.config import ConfigError, combine, load, only, override

SMALL = [
    "digits",
    "--set=model=lenet300",
    "--set=batch=716",
    "--set=dense.epochs=1",
    "--set=one_shot.sparsity=0.98",
    "--set=one_shot.stats_momentum=0.0",
    "--only=one_shot",
]


def test_a_small_job_leaves_its_files_and_resumes(tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main([*SMALL, f"--out={out}", "--tensorboard"]) == 0
    said = capsys.readouterr()
    assert "one-shot 98%" in said.out and "FAILS  dense reaches" in said.out
    assert "one-shot 98%: " in said.err
    result = json.loads((out / "result.json").read_text())
    names = ["dense", "one-shot 98%", "one-shot 98%, recalibrated"]
    assert [row["run"] for row in result["rows"]] == names
    assert result["rows"][1]["nonzero"] == 1004  # 50,200 - floor(49,196 + 1/2)
    assert result["settings"]["dense"]["epochs"] == 1
    assert result["command"].startswith("python -m experiments.train digits --set")
    assert (out / "figure.png").stat().st_size > 1000
    (events,) = (out / "tensorboard").iterdir()
    assert b"dense/test_accuracy" in events.read_bytes()
    first = (out / "log.jsonl").read_text()
    assert train.main([*SMALL, f"--out={out}", "--resume"]) == 0
    again = json.loads((out / "result.json").read_text())
    for old, new in zip(result["rows"], again["rows"], strict=True):
        assert {**old, "seconds": 0} == {**new, "seconds": 0}
    assert (out / "log.jsonl").read_text().startswith(first)


def test_strict_reports_a_claim_that_fails(tmp_path):
    words = [*SMALL, "--set=one_shot.sparsity=()", f"--out={tmp_path}"]
    assert train.main([*words, "--strict"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digit"], "unknown configuration `digit`: did you mean digits"),
        (["digits", "--set", "bach=1"], "unknown key `bach`: did you mean batch"),
        (["digits", "--only", "sdw"], "unknown run `sdw`: did you mean swd"),
        (["digits", "--set", "data=cora"], "no `cora.npz` in"),
        (["digits", "--set", "batch=63"], "among 4 devices"),
    ],
)
def test_mistakes_are_said_in_one_line(words, message, tmp_path, capsys):
    words = [*words, "--out", str(tmp_path / "o"), "--data-dir", str(tmp_path)]
    assert train.main(words) == 2
    error = capsys.readouterr().err.lstrip()  # rich 13 ends its line first
    assert error.startswith("error: ") and message in error


def test_parts_are_told_apart_also_where_they_share_a_model():
    parts = load("digits_all").parts()
    found = train.prefixes(parts)
    assert len(set(found)) == len(parts)
    assert found[0] == "" and "lenet300 " in found and "lenet300 2 " in found


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_text()
        for file in folder.rglob("*")
        if file.is_file()
    }


JOB = {"seed": 0, "data": "d", "model": "m", "batch": 1, "dense": {}, "runs": {}}
STRANGERS = {
    "a file": {"thesis.tex": "years of work"},
    "a published model": {"config.json": '{"model_type": "gpt2"}', "model.bin": "0"},
    "another program's settings": {"config.json": '{"seed": 1, "runs": ["a"]}'},
    "no JSON": {"config.json": '{"seed": 1,'},
    "an empty file": {"config.json": ""},
    "a list": {"config.json": "[1, 2]"},
    "runs of another kind": {"config.json": json.dumps({**JOB, "runs": {"a": {}}})},
    "parts of another kind": {"config.json": json.dumps({**JOB, "beside": [{}]})},
    "our names alone": {"log.jsonl": "{}", "figure.png": "art"},
}
OURS_BY_NAME = {"checkpoints/1/weights": "w", "tensorboard/e": "e", "result.json": "{}"}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", STRANGERS)
def test_a_folder_that_is_not_a_job_is_left_alone(name, resume, tmp_path, capsys):
    for file, text in {**OURS_BY_NAME, **STRANGERS[name]}.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"is not the folder|there is no job in"):
        train.prepare(tmp_path, load("digits"), 0, resume=resume)
    words = [*SMALL, f"--out={tmp_path}", *["--resume"] * resume]
    assert train.main(words) == 2
    assert f"`--out {tmp_path}` is not the folder of a job" in capsys.readouterr().err
    assert contents(tmp_path) == before  # not even a lock


def test_a_job_starts_over_in_its_own_folder(tmp_path):
    """What it wrote goes, what others laid beside it stays, settings may change."""
    leftovers = {".lock": "", ".config.123.json": '{"se'}  # killed before the settings
    for file, text in leftovers.items():
        (tmp_path / file).write_text(text)
    train.prepare(tmp_path, load("digits"), 0, resume=False)
    for file, text in {**OURS_BY_NAME, "note.txt": "good"}.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    train.prepare(tmp_path, load("digits_all"), 1, resume=False)
    left = contents(tmp_path)
    assert left.keys() == {*leftovers, "config.json", "note.txt"}
    assert json.loads(left["config.json"])["seed"] == 1


def test_resume_refuses_other_settings(tmp_path):
    train.prepare(tmp_path, load("digits"), 0, resume=False)
    train.prepare(tmp_path, load("digits"), 0, resume=True)
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        train.prepare(tmp_path, load("digits"), 1, resume=True)


def test_a_field_that_came_since_has_its_default_in_an_older_job(tmp_path):
    chosen = load("digits_all")
    train.prepare(tmp_path, chosen, 0, resume=False)
    note = tmp_path / "config.json"
    old = json.loads(note.read_text())
    for part in (old, *old["beside"]):
        del part["smoothing"], part["setup"]
    note.write_text(json.dumps(old))
    train.prepare(tmp_path, chosen, 0, resume=True)
    assert json.loads(note.read_text())["smoothing"] == 0.0
    note.write_text(json.dumps(old))
    changed = dataclasses.replace(chosen, smoothing=0.1)
    with pytest.raises(ConfigError, match=r"other settings \(smoothing\)"):
        train.prepare(tmp_path, changed, 0, resume=True)
    note.write_text(json.dumps({**old, "gone": 1}))
    with pytest.raises(ConfigError, match=r"other settings \(gone\)"):
        train.prepare(tmp_path, chosen, 0, resume=True)


def test_resume_takes_further_runs_and_refuses_changed_ones(tmp_path):
    digits, other = load("digits"), load("digits_aswl")
    part = only(digits, ["swd"])
    train.prepare(tmp_path, part, 0, resume=False)
    train.prepare(tmp_path, combine([digits, other]), 0, resume=True)
    note = json.loads((tmp_path / "config.json").read_text())
    assert "gsm" in note["runs"] and "aswl" in note["beside"][0]["runs"]
    with pytest.raises(ConfigError, match=r"other settings \(.*runs"):
        train.prepare(tmp_path, part, 0, resume=True)
    changed = override(combine([digits, other]), ["swd.mu=0.5"])
    with pytest.raises(ConfigError, match=r"other settings \(runs\)"):
        train.prepare(tmp_path, changed, 0, resume=True)


def test_the_environment_joins_the_hosts(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "jax.distributed.initialize", lambda *args, **more: calls.append((args, more))
    )
    train.connect({})
    assert calls == []
    address = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2"}
    train.connect({**address, "JAX_PROCESS_ID": "1"}, give_up=7)
    train.connect({"JAX_DISTRIBUTED": "1"})
    times = [{"heartbeat_timeout_seconds": seconds} for seconds in (7, 100)]
    assert calls == [(("host:1", 2, 1), times[0]), ((), times[1])]


def _command(*words):
    return subprocess.run(
        [sys.executable, "-m", "experiments.train", *words],
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.slow
def test_the_command_as_a_process(tmp_path):
    done = _command(*SMALL, "--set=one_shot.sparsity=()", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "dense" in done.stdout and f"written to {tmp_path}" in done.stdout


@pytest.mark.slow
def test_the_main_job_bears_out_its_claims(tmp_path):
    done = _command("digits", "--strict", f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_hosts_train_as_one(tmp_path):
    import os
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(2):
        environment = {
            **os.environ,
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        words = ["-m", "experiments.train", *SMALL, f"--out={tmp_path / 'two'}"]
        processes.append(subprocess.Popen([sys.executable, *words], env=environment))
    assert [process.wait(timeout=900) for process in processes] == [0, 0]
    assert _command(*SMALL, f"--out={tmp_path / 'one'}").returncode == 0
    one, two = (
        json.loads((tmp_path / name / "result.json").read_text())
        for name in ("one", "two")
    )
    assert two["device"]["processes"] == 2
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert a["nonzero"] == b["nonzero"]
        assert a["after"] == pytest.approx(b["after"], abs=0.02)
