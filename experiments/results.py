"""What a job leaves behind: the rows, the table, the file `result.json`."""

import itertools
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import files
from experiments.config import Claim

FACTS = {
    "config": str,
    "seed": int,
    "command": str,
    "seconds": int | float,
    "claims": dict,
    "device": dict,
}
"""What a `result.json` tells of its job besides the rows, and of which kind it is."""

_MORE = {
    "settings": dict,
    "versions": dict,
    "small": bool,
    "split": str,
    "stopped": str,
    "commit": str | None,
    "sessions": list,
}
"""The same of what those of an older version lack."""

_PACKAGES = ("flax", "jax", "jaxlib", "numpy", "optax")


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      run: its label.
      method: its name in the configuration.
      asked: the sparsity asked for, over the prunable weights.
      got: the sparsity there is.
      kept: how many weights were to be kept.
      nonzero: how many there are that are not zero.
      after: test accuracy after removal, a fraction.
      before: before removal; None where there is no such moment.
      changed: test predictions that removal changed; None likewise.
      logit_change: the largest change of a logit; None likewise.
      seconds: wall time of the run, compilation included.
      extra: further numbers of this method, by name.
    """

    run: str
    method: str
    asked: float
    got: float
    kept: int
    nonzero: int
    after: float
    before: float | None = None
    changed: int | None = None
    logit_change: float | None = None
    seconds: float = 0.0
    extra: Mapping[str, float | None] | None = None


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "run": ("run", str),
    "asked %": ("asked", _percent),
    "got %": ("got", _percent),
    "before %": ("before", _percent),
    "after %": ("after", _percent),
    "changed": ("changed", str),
    "logit change": ("logit_change", lambda value: f"{value:.2g}"),
    "weights": ("nonzero", lambda value: f"{value:,}"),
    "seconds": ("seconds", lambda value: f"{value:.1f}"),
}


def table(rows: Iterable[Row]) -> str:
    """The rows in plain text, numbers to the right, a dash where there is none.

    Columns: sparsity asked and got; test accuracy before and after removal; test
    predictions that removal changed; its largest change of a logit; weights that are
    not zero; wall seconds. Numbers of one method alone follow in a line of their own.
    """
    lines = [list(_COLUMNS)]
    notes = []
    for row in rows:
        values = ((getattr(row, field), show) for field, show in _COLUMNS.values())
        lines.append(["-" if value is None else show(value) for value, show in values])
        if row.extra:
            numbers = ", ".join(
                f"{name} -" if x is None else f"{name} {x:.4g}"
                for name, x in row.extra.items()
            )
            notes.append(f"{row.run}: {numbers}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:], *notes])


def _aligned(line: list[str], widths: list[int]) -> list[str]:
    first, *rest = zip(line, widths, strict=True)
    return [first[0].ljust(first[1])] + [cell.rjust(width) for cell, width in rest]


def verdicts(
    claims: Iterable[Claim], rows: Iterable[Row], prefix: str = ""
) -> dict[str, bool]:
    """For each claim whose rows are there, whether they bear it out.

    Args:
      claims: of one part of a configuration.
      rows: of all parts.
      prefix: what the names of the part's rows begin with, and of its claims here.
    """
    by_run = {row.run: row for row in rows}
    found: dict[str, bool] = {}
    for claim in claims:
        if named := rows_of(claim, by_run, prefix):
            text = prefix + claim.text
            found[text] = found.get(text, True) and _holds(claim, named)
    return found


def _holds(claim: Claim, rows: Sequence[Row]) -> bool:
    """Whether rows bear a claim out; where one lacks the number asked for, not."""
    try:
        return bool(claim.holds(*rows))
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return False


def rows_of(claim: Claim, by_run: Mapping[str, Row], prefix: str) -> list[Row] | None:
    """The rows a claim of one part speaks of; None if one is missing.

    The first part has no prefix: its claims may speak of the rows of all.
    """
    named = [by_run.get(prefix + run) for run in claim.runs]
    found = [row for row in named if row is not None]
    return found if len(found) == len(named) else None


def verdict_text(found: Mapping[str, bool]) -> str:
    """One line per claim."""
    return "\n".join(
        f"{'holds' if ok else 'FAILS'}  {text}" for text, ok in found.items()
    )


def save(path: Path, rows: Sequence[Row], **facts: Any) -> None:
    """Writes `result.json`: facts of the job, versions, device, rows."""
    result = {**facts, **_machine(), "rows": [row._asdict() for row in rows]}
    files.write_json(path, result)


def load(path: Path, *keys: str) -> tuple[dict[str, Any], list[Row]]:
    """The facts, `keys` among them, and the rows of a `result.json`.

    Raises:
      FileError: if it is damaged, or something in it is not of its kind; names it.
    """
    facts = files.read_json(path, *keys, "rows")
    known = {key: kind for key, kind in (FACTS | _MORE).items() if key in facts}
    _require_kinds(path, "", facts, {**known, "rows": list})
    if "device" in facts:
        _require_kinds(path, "device.", facts["device"], {"count": int, "kind": str})
    if "claims" in facts:
        told = facts["claims"]
        _require_kinds(path, "claims.", told, dict.fromkeys(told, bool))
    found = facts.pop("rows")
    return facts, [_row(path, f"rows[{i}]", row) for i, row in enumerate(found)]


def _row(path: Path, place: str, given: Any) -> Row:
    """A row of the file; a number that was none is null there."""
    if not isinstance(given, dict):
        raise _wrong(path, place, dict, given)
    try:
        row = Row(**given)
    except TypeError as error:
        raise files.FileError(f"{path} is damaged: {place}: {error}.") from error
    number = int | float | None
    kinds = dict.fromkeys(Row._fields, number) | {"run": str, "method": str}
    _require_kinds(path, f"{place}.", row._asdict(), {**kinds, "extra": dict | None})
    extra = row.extra or {}
    _require_kinds(path, f"{place}.extra.", extra, dict.fromkeys(extra, number))
    return row


def _require_kinds(
    path: Path, place: str, found: Mapping[str, Any], kinds: Mapping[str, Any]
) -> None:
    """Raises unless each of these entries is there and of its kind."""
    for key, kind in kinds.items():
        if key not in found:
            raise files.FileError(f"{path} is damaged: it lacks {place}{key}.")
        flag = isinstance(found[key], bool) and kind is not bool
        if flag or not isinstance(found[key], kind):
            raise _wrong(path, place + key, kind, found[key])


def _wrong(path: Path, place: str, kind: Any, got: Any) -> files.FileError:
    name = getattr(kind, "__name__", str(kind))
    return files.FileError(
        f"{path} is no result of a job: `{place}` must be of the kind {name}, got "
        f"{got!r:.60}."
    )


def history(log: Path) -> dict[str, list[dict[str, Any]]]:
    """The epochs of each run from a `log.jsonl`; a repeated epoch counts once.

    A line that a crash cut is passed over. Two runs of one name and other settings, as
    their `id` tells, are two: "swd 90%" and "swd 90% [2]".
    """
    runs: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for entry in _entries(log):
        run, epoch = entry.get("run"), entry.get("epoch")
        if isinstance(run, str) and isinstance(epoch, int):
            runs.setdefault((run, str(entry.get("id"))), {})[epoch] = entry
    found: dict[str, list[dict[str, Any]]] = {}
    for (run, _), epochs in runs.items():
        names = itertools.chain([run], (f"{run} [{n}]" for n in itertools.count(2)))
        name = next(name for name in names if name not in found)
        found[name] = [epochs[e] for e in sorted(epochs)]
    return found


def sessions(log: Path) -> list[dict[str, Any]]:
    """What a job ran on so far, in order: `machine` of each time, equal ones once."""
    found: list[dict[str, Any]] = []
    for entry in _entries(log):
        session = entry.get("session")
        if isinstance(session, dict) and session not in found[-1:]:
            found.append(session)
    return found


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log."""
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def commit() -> str | None:
    """The commit that is checked out, with "+" behind it where files differ."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, Any]:
    """What a result depends on beside its settings: commit, versions, device."""
    return {"commit": commit(), **_machine()}


def _machine() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "machine": platform.machine(),
        },
    }
