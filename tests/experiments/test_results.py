"""The table, the result file, the log read back, the report."""

import json
import re

import pytest

from experiments import figures, files, report, results
from experiments.results import Row

DENSE = Row("dense", "dense", 0.0, 0.0, kept=100, nonzero=100, after=0.99, seconds=1.23)
PRUNED = Row(
    "swd 90%",
    "swd",
    asked=0.9,
    got=0.9,
    kept=10,
    nonzero=10,
    after=0.97,
    before=0.975,
    changed=1,
    logit_change=0.0123,
    seconds=12.0,
    extra={"speed": 2.0},
)


def test_table_by_hand():
    lines = results.table([DENSE, PRUNED]).splitlines()
    assert lines[0].split("  ")[0] == "run" and set(lines[1]) == {"-"}
    assert lines[2].split() == "dense 0.00 0.00 - 99.00 - - 100 1.2".split()
    assert lines[3].split() == "swd 90% 90.00 90.00 97.50 97.00 1 0.012 10 12.0".split()
    assert len(lines[0]) == len(lines[2]) == len(lines[3])
    assert lines[4] == "swd 90%: speed 2"


def test_result_file_round_trip(tmp_path):
    path = tmp_path / "result.json"
    results.save(path, [DENSE, PRUNED], config="digits", seed=3)
    facts, rows = results.load(path)
    assert rows == [DENSE, PRUNED]
    assert facts["config"] == "digits" and facts["seed"] == 3
    assert facts["device"]["platform"] == "cpu" and facts["device"]["count"] == 4
    assert set(facts["versions"]) >= {"python", "jax", "jaxlib", "flax", "optax"}


def test_history_counts_a_repeated_epoch_once(tmp_path):
    log = tmp_path / "log.jsonl"
    entries = [
        {"run": "a", "epoch": 1, "loss": 3.0},
        {"run": "a", "epoch": 2, "loss": 2.0},
        {"row": {}},
        {"run": "b", "epoch": 1, "loss": 9.0},
        {"run": "a", "epoch": 2, "loss": 1.0},
    ]
    log.write_text("\n".join(map(json.dumps, entries)))
    found = results.history(log)
    assert [e["loss"] for e in found["a"]] == [3.0, 1.0] and len(found["b"]) == 1


def _job(folder, seed, after):
    folder.mkdir()
    facts = {"config": "digits", "seed": seed, "command": "python -m it", "seconds": 5}
    rows = [DENSE, PRUNED._replace(after=after)]
    results.save(folder / "result.json", rows, **facts, claims={"a claim": True})
    epoch = {"run": "swd 90%", "epoch": 1, "test_accuracy": 0.5, "step": 2}
    (folder / "log.jsonl").write_text(json.dumps({**epoch, "largest_targeted": 0.1}))


def test_report_of_two_seeds(tmp_path, capsys):
    _job(tmp_path / "a", 0, 0.96)
    _job(tmp_path / "b", 1, 0.98)
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b" / "result.json")]) == 0
    text = capsys.readouterr().out
    assert "digits, seed 0, 4 x cpu, 5 s" in text and "holds  a claim" in text
    assert "swd 90%   97.00  [96.00, 98.00]" in text
    assert (tmp_path / "a" / "figure.png").stat().st_size > 1000
    assert not (tmp_path / "b" / "figure.png").exists()


def test_report_without_a_result(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "no result in" in capsys.readouterr().out


WRONG = {
    "a fact is missing": (lambda r: r.pop("claims"), "it lacks claims"),
    "an empty device": (lambda r: r.update(device={}), "it lacks device.count"),
    "a device in words": (lambda r: r.update(device="cpu"), "`device` must be .* dict"),
    "seconds in words": (lambda r: r.update(seconds="5 s"), "`seconds` must .* '5 s'"),
    "a list of claims": (lambda r: r.update(claims=["it"]), "`claims` must be .* dict"),
    "rows by name": (lambda r: r.update(rows={"swd": 1}), "`rows` must be .* list"),
    "a row that is a number": (lambda r: r["rows"].append(3), r"`rows\[2\]` must"),
    "a row without a name": (lambda r: r["rows"][1].pop("run"), r"rows\[1\].*'run'"),
    "an accuracy in words": (
        lambda r: r["rows"][1].update(after="97 %"),
        r"`rows\[1\].after` must be .* '97 %'",
    ),
    "an extra in words": (
        lambda r: r["rows"][1].update(extra={"speed": "2 x"}),
        r"`rows\[1\].extra.speed` must be",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_report_names_what_is_no_result_of_a_job(name, tmp_path, capsys):
    change, message = WRONG[name]
    _job(tmp_path / "a", 0, 0.96)
    path = tmp_path / "a" / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))
    assert report.main([str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path} is") and re.search(message, said), said


def test_report_of_an_accuracy_that_was_no_number(tmp_path, capsys):
    """Such a one is null in the file, a dash in the table, and in no mean."""
    _job(tmp_path / "a", 0, float("nan"))
    _job(tmp_path / "b", 1, 0.98)
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "swd 90%   98.00  [98.00, 98.00]" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [[], [DENSE]])
def test_figure_without_epochs(rows, tmp_path):
    figures.draw(tmp_path / "figure.png", rows, {})
    assert (tmp_path / "figure.png").exists()


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("seconds", "1" + "0" * 400, "too large a number"),
        ("seconds", "true", "`seconds` must be"),
        ("seconds", "NaN", "`seconds` must be"),
        ("claims", '{"it": "yes"}', "`claims.it` must be of the kind bool"),
        ("settings", "null", "`settings` must be"),
        ("small", '"no"', "`small` must be"),
        ("stopped", "3", "`stopped` must be"),
    ],
)
def test_report_of_facts_of_another_kind(place, text, message, tmp_path, capsys):
    _job(tmp_path / "a", 0, 0.96)
    path = tmp_path / "a" / "result.json"
    result = json.loads(path.read_text())
    result[place] = "HERE"
    path.write_text(json.dumps(result).replace('"HERE"', text))
    assert report.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path} is") and message in said


def test_constants_that_are_no_json_are_null(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": NaN, "b": [-Infinity, 1e999, 1.5]}')
    assert files.read_json(path) == {"a": None, "b": [None, None, 1.5]}
