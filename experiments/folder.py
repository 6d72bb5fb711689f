"""The folder of a job: taken for one job alone, known by its settings, cleared.

Nothing else tells that a folder is a job's: `checkpoints`, `result.json` and
`config.json` are names that others give as well. Another program's folder is left as it
is, whatever its files are called.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from experiments import config, files
from experiments.config import Config, ConfigError
from experiments.files import FileError


def prepare(
    out: Path,
    chosen: Config,
    seed: int,
    *,
    resume: bool,
    tune: bool = False,
    data: Sequence[str] = (),
) -> None:
    """Makes the folder of a job; an old job in it is continued or cleared.

    A job that is continued may have got further runs since; those it had must be as
    they were.

    Args:
      out: the folder.
      chosen: what the job does.
      seed: of everything random.
      resume: whether it goes on with the job that is there.
      tune: whether it measures on validation examples.
      data: digests of what each part trains and tests on.

    Raises:
      ConfigError: if the folder holds something else, whatever it is, or if what is to
        be resumed is missing or had other settings.
    """
    note = out / _NOTE
    settings = json.loads(json.dumps({"seed": seed, **chosen.settings()}))
    settings |= {"tune": True} if tune else {}
    if resume:
        if not note.is_file():
            raise ConfigError(f"`--resume`: there is no job in {out}.")
        _require_ours(out)
        old = config.complete(files.read_json(note))
        seen = old.pop(_DATA, [])
        if not isinstance(seen, list) or {*map(str, seen)} - {*data}:
            raise ConfigError(
                f"`--resume`: the job in {out} had other data. Give the `--data-dir` "
                "that it had, or another `--out`."
            )
        if not _grown(old, settings):
            differ = sorted(
                k for k in settings.keys() | old.keys() if old.get(k) != settings.get(k)
            )
            raise ConfigError(
                f"`--resume`: the job in {out} had other settings "
                f"({', '.join(differ)}). Give the same ones, or another `--out`."
            )
        if jax.process_index() == 0:
            files.write_json(note, {**settings, _DATA: [*data]})
        return
    _require_ours(out)
    if jax.process_index() == 0:
        for name in _OWN:
            _clear(out / name)
        for name in ("result.json", "figure.png", "log.jsonl"):
            (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(note, {**settings, _DATA: [*data]})


_OWN = ("checkpoints", "tensorboard")
"""Folders within that of a job, which a new job clears."""


def _clear(folder: Path) -> None:
    """Removes a folder; of one that is a link to another disk, all that it holds."""
    if not folder.exists():
        return
    if not folder.is_symlink():
        shutil.rmtree(folder)
        return
    for part in folder.iterdir():
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink()


_DATA = "data_digests"

_NOTE = "config.json"
"""The settings of a folder's job, by which the folder is known for one."""

_LEFTOVER = re.compile(rf"{re.escape(files.LOCK)}|\.config\.\d+\.json")
"""What a job leaves that is killed before its settings are written."""


def _require_ours(out: Path) -> None:
    """Raises unless a folder is not there, empty, or that of a job.

    Nothing else tells: `checkpoints`, `result.json` and `config.json` are names that
    others give as well.

    Raises:
      ConfigError: if it holds files, and no settings of a job.
    """
    note, found = out / _NOTE, list(out.iterdir()) if out.is_dir() else []
    why = "it holds other files."
    whole = out.resolve()
    for above in whole.parents:
        inside = whole.relative_to(above).parts[0]
        if inside in _OWN and (above / _NOTE).is_file():
            raise ConfigError(
                f"`--out {out}` lies among the {inside} of the job in {above}, which "
                "clears them. Name another folder."
            )
    if note.is_file():
        try:
            if _is_job(files.read_json(note)):
                return
            why = f"{note} does not hold the settings of one."
        except FileError as error:
            why = str(error)
    elif all(_LEFTOVER.fullmatch(file.name) for file in found):
        return
    raise ConfigError(
        f"`--out {out}` is not the folder of a job: {why} Name an empty folder, or one "
        "that a job made."
    )


def _is_job(found: dict[str, Any], seed: bool = True) -> bool:
    """Whether this is what a job notes of itself, in this version or an older one."""
    kinds = {"data": str, "model": str, "batch": int, "dense": dict, "runs": dict}
    kinds |= {"seed": int} if seed else {}
    beside = found.get("beside", [])
    return (
        all(isinstance(found.get(key), kind) for key, kind in kinds.items())
        and all(
            isinstance(run, dict) and "method" in run for run in found["runs"].values()
        )
        and isinstance(beside, list)
        and all(isinstance(part, dict) and _is_job(part, seed=False) for part in beside)
    )


@contextmanager
def holding(out: Path) -> Iterator[None]:
    """The folder of a job, made if it is not there, for this job alone.

    Raises:
      ConfigError: if it cannot be a folder, or holds what no job left.
      FileError: if another job has it.
    """
    if jax.process_index() > 0:  # the first process holds it for all
        yield
        return
    try:
        if not out.exists() or not any(out.iterdir()):
            out.mkdir(parents=True, exist_ok=True)
        _require_ours(out)
        lock = (out / files.LOCK).open("a")
    except OSError as error:
        raise ConfigError(
            f"`--out {out}`: it must be a folder that can be written to "
            f"({error.strerror})."
        ) from error
    with lock:
        files.hold(lock, out)
        yield


def _grown(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether every part and run of the old settings stands unchanged in the new."""

    def parts(settings: dict[str, Any]) -> list[tuple[dict, dict]]:
        own = {k: v for k, v in settings.items() if k not in ("runs", "beside")}
        beside = settings.get("beside", [])
        return [(own, settings["runs"]), *(p for b in beside for p in parts(b))]

    before, after = parts(old), parts(new)
    return before[0][0] == after[0][0] and all(
        any(own == mine and runs.items() <= more.items() for mine, more in after)
        for own, runs in before
    )
