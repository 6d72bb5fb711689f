"""What a job that is meant to run for days promises: nothing lost, nothing mixed."""

import argparse
import errno
import fcntl
import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    config,
    figures,
    files,
    folder,
    lanes,
    loop,
    report,
    results,
    rules,
    stopping,
    train,
)
from experiments.checkpoints import digest
from experiments.config import Claim, ConfigError
from experiments.files import FileError
from experiments.journal import Journal
from experiments.results import Row

ROW = Row("dense", "dense", 0.0, 0.0, kept=9, nonzero=9, after=0.5)


def snapshot(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def old_job(out, name="mnist_powerprop"):
    """The folder of a job that has run."""
    train.prepare(out, config.load(name), 0, resume=False)
    (out / "checkpoints" / "dense" / "1").mkdir(parents=True)
    (out / "checkpoints" / "dense" / "1" / "state").write_text("a day's work")
    (out / "result.json").write_text("{}")
    (out / "log.jsonl").write_text('{"run": "dense", "epoch": 1}\n')
    return out


# The folder.


def test_a_job_without_its_data_leaves_the_old_one(tmp_path, capsys):
    out = old_job(tmp_path / "out")
    before = snapshot(out)
    (tmp_path / "nothing").mkdir()
    words = ["mnist_powerprop", f"--data-dir={tmp_path / 'nothing'}", f"--out={out}"]
    assert train.main(words) == 2
    assert "no `mnist` in" in capsys.readouterr().err
    after = snapshot(out)
    after.pop(out / files.LOCK)
    assert after == before


def test_checkpoints_on_another_disk_are_cleared_there(tmp_path):
    out, disk = old_job(tmp_path / "out"), tmp_path / "disk"
    (out / "checkpoints").rename(disk)
    (out / "checkpoints").symlink_to(disk)
    train.prepare(out, config.load("mnist_powerprop"), 0, resume=False)
    assert (out / "checkpoints").is_symlink() and not any(disk.iterdir())


def test_a_folder_that_another_job_would_clear_is_refused(tmp_path):
    out = old_job(tmp_path / "out")
    (tmp_path / "link").symlink_to(out / "checkpoints")
    for inside in (out / "checkpoints" / "mine", tmp_path / "link" / "a" / "b"):
        with pytest.raises(ConfigError, match="lies among the checkpoints"):
            with folder.holding(inside):
                pass
    with folder.holding(out / "beside"):
        pass


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(train, "run", lambda *given: seen.append(given[2]) or {})
    assert train.main(["digits", "--out=~/new"]) == 0
    assert seen == [tmp_path / "new"] and seen[0].is_dir()


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch):
    def none(*ignored):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(FileError, match="keeps no locks"):
        with folder.holding(tmp_path / "out"):
            pass


def test_tuning_is_not_resumed_as_testing(tmp_path):
    chosen = config.load("digits")
    for first, then in ((True, False), (False, True)):
        out = tmp_path / str(first)
        train.prepare(out, chosen, 0, resume=False, tune=first)
        train.prepare(out, chosen, 0, resume=True, tune=first)
        with pytest.raises(ConfigError, match=r"other settings \(tune\)"):
            train.prepare(out, chosen, 0, resume=True, tune=then)


def test_other_data_are_not_resumed(tmp_path):
    chosen = config.load("digits")

    def prepare(*data, resume=True):
        train.prepare(tmp_path, chosen, 0, resume=resume, data=data)

    prepare("a", "b", resume=False)
    prepare("a", "b")
    prepare("c", "a", "b")  # a further part
    with pytest.raises(ConfigError, match="had other data"):
        prepare("a", "b", "d")
    note = json.loads((tmp_path / "config.json").read_text())
    note.pop("data_digests")  # an older job
    (tmp_path / "config.json").write_text(json.dumps(note))
    prepare("e")


def test_the_data_of_a_part_are_known_by_every_array(open_tiny, tmp_path):
    lab = open_tiny(tmp_path)
    found = {digest(train._data(lab))}
    data = lab.dataset
    for name in ("inputs", "labels", "train", "test"):
        array = np.array(getattr(data, name))
        array[-1] = array[0]
        found.add(
            digest(train._data(lab._replace(dataset=data._replace(**{name: array}))))
        )
    assert len(found) == 5


# What is done stays.


def a_job(tmp_path, monkeypatch, error):
    """`train.run` of a job that makes one row and then meets an error."""

    def training(labs, rows, claims):
        rows.append(ROW)
        raise error

    args = argparse.Namespace(
        config="digits", seed=0, resume=False, tensorboard=False, tune=False
    )
    args.small = False
    monkeypatch.setattr(train, "_open", lambda *ignored: [])
    monkeypatch.setattr(train, "_train", training)
    monkeypatch.setattr(figures, "draw", lambda *ignored: None)
    train.run(config.load("digits"), args, tmp_path, "a command")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ConfigError("late"), OSError])
def test_rows_before_an_error_are_written(error, tmp_path, monkeypatch, capsys):
    with pytest.raises(error if isinstance(error, type) else type(error)):
        a_job(tmp_path, monkeypatch, error)
    facts, rows = results.load(tmp_path / "result.json")
    assert rows == [ROW] and facts["stopped"] in ("a bug", "late", "OSError")
    assert f"Not finished, {facts['stopped']}" in capsys.readouterr().out


def test_what_the_library_refuses_names_the_run():
    with pytest.raises(ConfigError, match=r"run `swd`: \[jprune\] no"):
        with train._blaming("swd"):
            raise ValueError("[jprune] no")
    with pytest.raises(ValueError, match="^a bug of ours$"):
        with train._blaming("swd"):
            raise ValueError("a bug of ours")


@pytest.mark.parametrize(
    "holds",
    [
        lambda row: row.before > 0.5,  # None
        lambda row: row.extra["flops"] < 1,  # no extra
        lambda row: row.after / row.got > 1,  # by zero
    ],
)
def test_a_claim_about_a_number_that_is_not_there_fails(holds):
    assert results.verdicts([Claim("it", ("dense",), holds)], [ROW]) == {"it": False}


# A session follows another.


def test_another_machine_is_told_and_noted(tmp_path, monkeypatch):
    told = []
    log = tmp_path / "log.jsonl"
    now = {"commit": "a", "versions": {"jax": "1"}, "device": {"count": 1}}
    monkeypatch.setattr(results, "machine", lambda: dict(now))
    monkeypatch.setattr(Journal, "say", lambda self, text: told.append(text))
    for resume in (False, True):
        with Journal(tmp_path, resume=resume) as journal:
            assert train._session(log, journal) == [now]
    assert not told
    first = dict(now)
    now["device"] = {"count": 8}
    with Journal(tmp_path, resume=True) as journal:
        assert train._session(log, journal) == [first, now]
    assert len(told) == 1 and "device differ" in told[0] and "bit for bit" in told[0]
    assert set(results.machine()) == {"commit", "versions", "device"}


def test_the_time_of_a_job_is_that_of_all_its_sessions(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"run": "a", "seconds": 3600.0}\n{"torn": ')
    with Journal(tmp_path, resume=True) as journal:
        assert 3600 <= journal.seconds < 3660
        journal.write({})
    assert (
        json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["seconds"]
        >= 3600
    )
    with Journal(tmp_path) as journal:
        assert journal.seconds < 60


def test_two_runs_of_one_name_are_two_in_the_log(tmp_path):
    entries = [
        {"run": "swd 90%", "id": "a", "epoch": 1, "loss": 1},
        {"run": "swd 90%", "id": "b", "epoch": 1, "loss": 2},
        {"run": "swd 90%", "id": "a", "epoch": 1, "loss": 3},
    ]
    (tmp_path / "log").write_text("\n".join(map(json.dumps, entries)))
    found = results.history(tmp_path / "log")
    assert {run: [e["loss"] for e in each] for run, each in found.items()} == {
        "swd 90%": [3],
        "swd 90% [2]": [2],
    }


# Signals and readers that are gone.


@contextmanager
def hangup(handler):
    """What SIGHUP does, however the tests themselves were started."""
    old = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_terminal_that_closes_is_a_wish_however_often():
    with hangup(signal.SIG_DFL), stopping.listening():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stopping.wanted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert not stopping.wanted()


def test_under_nohup_it_is_ignored():
    with hangup(signal.SIG_IGN), stopping.listening():
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stopping.wanted()


@pytest.fixture
def gone(monkeypatch):
    """Standard error and output whose readers have left."""
    ends = []
    for name in ("stdout", "stderr"):
        read, write = os.pipe()
        os.close(read)
        ends.append(os.fdopen(write, "w"))
        monkeypatch.setattr(sys, name, ends[-1])
    yield
    for end in ends:
        try:
            end.close()
        except OSError:
            pass


def test_nobody_reads_what_a_job_says(gone, tmp_path):
    with Journal(tmp_path) as journal:
        for _ in range(3):
            journal.say("a row")
        journal.write({"run": "a"})
    assert train._leave("stopped", 75) == 75
    train._tell("the table", sys.stdout)
    result(tmp_path / "result.json")
    assert report.main([str(tmp_path / "result.json")]) == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_a_full_disk_names_the_log(tmp_path):
    def full(*ignored):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space.*log\.jsonl"):
        with Journal(tmp_path) as journal:
            real = journal._file
            journal._file = SimpleNamespace(write=full, close=full, name=real.name)
            journal.write({})
    real.close()


# Nothing trained, or no numbers: no result.


def test_a_run_without_a_step_is_refused(open_tiny, tmp_path):
    lab = open_tiny(tmp_path)
    with pytest.raises(ConfigError, match="nothing would be trained"):
        loop.fit(lab, None, lab.run("none"), 0)
    shared = SimpleNamespace(per_epoch=0)
    with pytest.raises(ConfigError, match="nothing would be trained"):
        lanes.fit(shared, None, "none", 3)


def test_weights_that_are_no_numbers_are_found_behind_a_good_loss():
    tree = {"a": jnp.ones(3), "b": {"c": jnp.array([1.0, np.inf])}}
    assert loop.bad_leaf(tree) == "b/c" and loop.bad_leaf({"a": tree["a"]}) is None
    state = loop.State(jnp.int32(0), tree["a"], {}, (), average=tree)
    assert loop._bad_leaf(state) == "b/c"


# The report.


def result(path, seed=0, **facts):
    told = {"config": "digits", "seed": seed, "command": "it", "seconds": 5}
    told |= {"claims": {}, "settings": config.load("digits").settings()}
    results.save(path, facts.pop("rows", [ROW]), **{**told, **facts})
    return str(path)


def test_a_mean_is_over_seeds_of_one_setting(tmp_path, capsys):
    one = result(tmp_path / "one.json")
    other = config.load("digits").settings()
    other["dense"] = {**other["dense"], "lr": 3.0}
    for name, facts, told in (
        ("settings", {"seed": 1, "settings": other}, "their seed (dense.lr)"),
        ("split", {"seed": 1, "split": "validation"}, "their seed (split)"),
        ("small", {"seed": 1, "small": True}, "their seed (small)"),
        ("twice", {}, "seed 0 comes more than once"),
        ("fine", {"seed": 1}, "dense   50.00  [50.00, 50.00]\n"),
        ("stopped", {"seed": 1, "rows": [], "stopped": "it"}, "50.00]  (1 of 2)"),
    ):
        two = result(tmp_path / f"{name}.json", **facts)
        assert report.main([one, two]) == 0
        said = capsys.readouterr().out
        assert told in said and ("no mean" in said) == ("seed" in told), name
        assert ("Not finished" in said) == (name == "stopped")
        assert ("on validation examples" in said) == (name == "split")


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"split": "validation"}, "validation examples"), ({}, "of one seed")],
)
def test_the_page_takes_each_seed_of_the_test_set_once(facts, message, tmp_path):
    from experiments import page

    result(tmp_path / "digits_seed0.json")
    result(tmp_path / "digits_seed1.json", seed=1)
    assert len(page.sections(tmp_path)[0].files) == 2
    result(tmp_path / "digits_seed00.json", **facts)
    with pytest.raises(FileError, match=message):
        page.sections(tmp_path)


def test_the_report_says_what_it_cannot_write_or_read(tmp_path, capsys):
    result(tmp_path / "result.json", rows=[ROW._replace(nonzero=None, after=None)])
    entries = [
        {"run": "a", "epoch": 1, "test_accuracy": 0.5},
        {"run": "a", "epoch": 2, "test_accuracy": "0.5"},
        {"run": "a", "epoch": 3, "test_accuracy": [1]},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "figure.png").stat().st_size > 1000
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").mkdir()
    assert report.main([str(tmp_path)]) == 2
    assert "log.jsonl: Is a directory" in capsys.readouterr().err


def test_no_seed_of_several_is_folded_onto_another(tmp_path, capsys):
    words = ["digits_kstarts", f"--seed={2**32 - 1}", f"--out={tmp_path / 'o'}"]
    assert train.main(words) == 2
    assert "is the first of" in capsys.readouterr().err
    rules.check_seed(2**32 - 3, 3)
    with pytest.raises(ConfigError, match=r"at most 2\*\*32 - 3"):
        rules.check_seed(2**32 - 2, 3)


@pytest.mark.parametrize(
    ("more", "give_up", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, 100, "`JAX_NUM_PROCESSES` must be a whole"),
        ({"JAX_PROCESS_ID": "-1"}, 100, "`JAX_PROCESS_ID` must be a whole number"),
        ({"JAX_PROCESS_ID": "2"}, 100, "of 2 processes they are 0 to 1"),
        ({}, 100, "`JAX_PROCESS_ID` must be .* got ''"),
        ({}, 0, "`--give-up` must be at least 1"),
    ],
)
def test_hosts_that_are_not_numbered(more, give_up, message):
    names = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2"}
    with pytest.raises(ConfigError, match=message):
        train.connect({**names, **more}, give_up)


@pytest.mark.parametrize("name", ["matplotlib", "tensorboardX"])
def test_what_is_needed_at_the_end_is_asked_for_first(
    name, tmp_path, monkeypatch, capsys
):
    real = train.find_spec
    monkeypatch.setattr(train, "find_spec", lambda n: None if n == name else real(n))
    words = ["digits", "--tensorboard", f"--out={tmp_path / 'o'}"]
    assert train.main(words) == 2
    assert f"`{name}` is not installed" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_no_label_of_a_run_rounds_its_settings():
    """A runner's names are its checkpoints and keys: 98.1 % and 98.4 % are two."""
    root = Path(train.__file__).parent
    found = [
        f"{file.name}:{number}"
        for folder in ("systems", "methods")
        for file in (root / folder).glob("*.py")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if ":.0%}" in line
    ]
    assert not found and rules.percent(0.981) != rules.percent(0.984)
