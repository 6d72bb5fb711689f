"""Runs one experiment.

    python -m experiments.train CONFIG [--set key=value ...] [--seed N]
        [--data-dir FOLDER] [--out FOLDER] [--resume] [--only RUN,...]

`CONFIG` is a file of `experiments/configs`. The dense network is trained first, then
each run of the configuration adds its rows. The job leaves in `--out`: `log.jsonl`
(every epoch), `result.json` (settings, versions, device, rows), `figure.png`, and
checkpoints from which `--resume` goes on exactly where it stopped.

The same command runs on one CPU, one GPU or many devices: a batch is sharded over all
of them. Several hosts find each other through the environment: JAX_COORDINATOR_ADDRESS
with JAX_NUM_PROCESSES and JAX_PROCESS_ID, or a cluster that `jax.distributed` knows
together with JAX_DISTRIBUTED=1. When one of them is gone the others give up after
`--give-up` seconds.

Exit status: 0; 1 when `--strict` and a claim fails; 2 for a mistake in the command or
in a file that it reads; 3 when a run diverged; 4 when something could not be written,
or a checkpoint not read; 75 when SIGTERM or Ctrl-C came and all that was done is saved:
`--resume` goes on.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax

from experiments import build, config, figures, files, report, results, rules
from experiments.checkpoints import CheckpointError, Checkpoints
from experiments.config import Config, ConfigError
from experiments.data.dataset import DataError
from experiments.files import FileError
from experiments.journal import Journal
from experiments.lab import Lab, Run
from experiments.loop import Diverged, Fit
from experiments.methods import removal
from experiments.methods.dense import train_dense
from experiments.results import Row
from experiments.stopping import Stopped, listening
from jprune import masks

RUNS = Path(__file__).parent / "runs"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status, see above.

    Args:
      argv: arguments; None for the process's own.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(words)
    try:
        claims = _job(args, shlex.join(["python", "-m", "experiments.train", *words]))
    except Stopped as error:
        return _leave(f"stopped: {error}. `--resume` goes on from here.", 75)
    except (ConfigError, DataError, FileError) as error:
        return _leave(f"error: {error}", 2)
    except Diverged as error:
        return _leave(f"error: {error}", 3)
    except CheckpointError as error:
        return _leave(f"error: {error}", 4)
    except OSError as error:
        return _leave(f"error: {error.filename or 'a file'}: {error.strerror}.", 4)
    except KeyboardInterrupt:
        return _leave("stopped at once: what was saved before stays.", 130)
    return int(args.strict and not all(claims.values()))


def _leave(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


def _job(args: argparse.Namespace, command: str) -> dict[str, bool]:
    """Everything, from the settings to the files; the claims."""
    rules.check_seed(args.seed)
    chosen = config.override(config.load(args.config, small=args.small), args.set)
    chosen = config.only(chosen, args.only.split(",")) if args.only else chosen
    build.check(chosen)
    connect(os.environ, args.give_up)
    form = "_small" if args.small else ""
    out = args.out or RUNS / f"{args.config}{form}_seed{args.seed}"
    with holding(out), listening():
        prepare(out, chosen, args.seed, resume=args.resume)
        return run(chosen, args, out, command)


def run(
    chosen: Config, args: argparse.Namespace, out: Path, command: str
) -> dict[str, bool]:
    """Trains everything, writes the files, prints the table.

    Returns:
      For each claim of the configuration, whether it holds.

    Raises:
      Diverged: if a run did; the rows before it are written.
      Stopped: if the job was asked to leave; likewise.
    """
    rows: list[Row] = []
    claims: dict[str, bool] = {}
    ended: Diverged | Stopped | None = None
    with Journal(out, resume=args.resume, tensorboard=args.tensorboard) as journal:
        try:
            _train(chosen, args, out, journal, rows, claims)
        except (Diverged, Stopped) as error:
            ended = error
        seconds = round(journal.seconds, 1)
    facts = {
        "config": args.config,
        "seed": args.seed,
        "command": command,
        "commit": results.commit(),
        "settings": chosen.settings(),
        "seconds": seconds,
        "claims": claims,
        "split": "validation" if args.tune else "test",
        "small": args.small,
    }
    if ended:
        facts["stopped"] = str(ended)
    if jax.process_index() == 0:
        results.save(out / "result.json", rows, **facts)
        figures.draw(out / "figure.png", rows, results.history(out / "log.jsonl"))
        print("\n" + report.text(*results.load(out / "result.json")))
        print(f"\nwritten to {out}")
    if ended:
        raise ended
    return claims


def _train(
    chosen: Config,
    args: argparse.Namespace,
    out: Path,
    journal: Journal,
    rows: list[Row],
    claims: dict[str, bool],
) -> None:
    """Every part with its own lab: adds its rows, and which claims hold.

    All data and networks are there before the first step of any.
    """
    parts = chosen.parts()
    places: set[Path] = set()
    labs = [
        (build.open_runner if part.runner else build.open_lab)(
            part,
            seed=args.seed,
            data_dir=args.data_dir,
            journal=journal,
            checkpoints=partial(
                _checkpoints,
                out,
                args.resume,
                part.checkpoint_every,
                journal,
                places,
                prefix,
            ),
            prefix=prefix,
            **({} if part.runner else {"tune": args.tune}),
        )
        for part, prefix in zip(parts, prefixes(parts), strict=True)
    ]
    for lab in labs:
        for row in _rows(lab):
            rows.append(row._replace(run=lab.prefix + row.run))
        for one in labs:
            claims |= results.verdicts(one.config.claims, rows, one.prefix)


def prefixes(parts: Sequence[Config]) -> list[str]:
    """What the names of each part's runs begin with, no two parts the same.

    Nothing for the first part; then the model's name, numbered where an earlier part
    trains the same model.
    """
    models = [part.model for part in parts]
    found = [""]
    for index, model in enumerate(models[1:], start=1):
        earlier = models[:index].count(model)
        found.append(f"{model} {earlier + 1} " if earlier else f"{model} ")
    return found


def _rows(lab: Lab) -> Iterator[Row]:
    """The dense row, then those of every run, each said as it comes."""
    if lab.config.runner:
        yield from _runner_rows(lab)
        return
    entry = {"method": "dense", **lab.config.dense}
    dense = train_dense(lab._replace(settings=entry), **lab.config.dense)
    first = removal.row(
        lab,
        dense.params,
        after=lab.logits(dense.params, dense.stats),
        run="dense",
        method="dense",
        kept=masks.size(dense.params),
        seconds=dense.seconds,
    )
    taken: set[str] = set()
    for name, found in chain([("dense", first)], _pruned(lab, dense)):
        if found.run in taken:  # another entry of the same method
            found = found._replace(run=f"{found.run} [{name}]")
        taken.add(found.run)
        _say(lab, found)
        yield found


def _pruned(lab: Lab, dense: Fit) -> Iterator[tuple[str, Row]]:
    """The rows of every run, with the run's name in the configuration."""
    for name, settings in lab.config.runs.items():
        for found in build.rows(lab, dense, settings):
            yield name, found


def _runner_rows(shared: Any) -> Iterator[Row]:
    """The same of a part with a `runner`; a dense run is what `runs` start from."""
    runner = build.RUNNERS[shared.config.runner]
    dense, rows = runner.dense(shared, **shared.config.dense)
    found = (
        row
        for settings in shared.config.runs.values()
        for row in runner.methods[settings["method"]](
            shared, dense, **build.keywords(settings)
        )
    )
    for row in chain(rows, found):
        _say(shared, row)
        yield row


def _say(lab: Lab, found: Row) -> None:
    found = found._replace(run=lab.prefix + found.run)
    lab.journal.write({"row": found._asdict()})
    before = "" if found.before is None else f"{100 * found.before:.2f} -> "
    lab.journal.say(
        f"{found.run}: {before}{100 * found.after:.2f} %, {found.nonzero:,} weights, "
        f"{found.seconds:.1f} s"
    )


def prepare(out: Path, chosen: Config, seed: int, *, resume: bool) -> None:
    """Makes the folder of a job; an old job in it is continued or cleared.

    A job that is continued may have got further runs since; those it had must be as
    they were.

    Raises:
      ConfigError: if the folder holds something else, whatever it is, or if what is to
        be resumed is missing or had other settings.
    """
    note = out / _NOTE
    settings = json.loads(json.dumps({"seed": seed, **chosen.settings()}))
    if resume:
        if not note.is_file():
            raise ConfigError(f"`--resume`: there is no job in {out}.")
        _require_ours(out)
        old = config.complete(files.read_json(note))
        if not _grown(old, settings):
            differ = sorted(
                k for k in settings.keys() | old.keys() if old.get(k) != settings.get(k)
            )
            raise ConfigError(
                f"`--resume`: the job in {out} had other settings "
                f"({', '.join(differ)}). Give the same ones, or another `--out`."
            )
        if jax.process_index() == 0:
            files.write_json(note, settings)
        return
    _require_ours(out)
    if jax.process_index() == 0:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
        (out / "result.json").unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(note, settings)


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


def connect(environment: Mapping[str, str], give_up: int = 100) -> None:
    """Joins the other hosts when the environment says that there are any.

    Args:
      environment: of the process.
      give_up: seconds without a sign of life after which another host is gone.
    """
    if "JAX_COORDINATOR_ADDRESS" in environment and "JAX_NUM_PROCESSES" in environment:
        jax.distributed.initialize(
            environment["JAX_COORDINATOR_ADDRESS"],
            int(environment["JAX_NUM_PROCESSES"]),
            int(environment["JAX_PROCESS_ID"]),
            heartbeat_timeout_seconds=give_up,
        )
    elif environment.get("JAX_DISTRIBUTED") == "1":
        jax.distributed.initialize(heartbeat_timeout_seconds=give_up)


def _checkpoints(
    out: Path,
    resume: bool,
    every: int,
    journal: Journal,
    places: set[Path],
    prefix: str,
    run: Run | str,
) -> Checkpoints:
    """The checkpoints of one run, in a folder that is made of its settings.

    A runner that has names alone gives those: each may come once in a job.
    """
    run = Run(run, {"name": run}) if isinstance(run, str) else run
    words = re.sub(r"[^a-z0-9.]+", "-", f"{prefix}{run.label}".lower()).strip("-.")
    place = out / "checkpoints" / f"{words[:80]}-{run.digest[:12]}"
    if place in places:
        raise ConfigError(f"run `{run.label}` comes twice in one job.")
    places.add(place)
    return Checkpoints(place, resume=resume, every=every, say=journal.say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train",
        description="Run one experiment: dense training, then each pruning method.",
        epilog=f"configurations: {', '.join(config.names())}",
    )
    add = parser.add_argument
    add("config", help="a file of experiments/configs, without .py")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="swd.epochs=2")
    add("--small", action="store_true", help="its small form, minutes on two cores")
    add("--only", default="", metavar="RUN,...", help="these runs of it alone")
    add("--seed", type=int, default=0, help="of initialization, order and dropout")
    add("--data-dir", help="folder of the data sets; default TFDS_DATA_DIR")
    add("--out", type=Path, help="default experiments/runs/CONFIG_seedN")
    add("--resume", action="store_true", help="go on with the job in --out")
    add(
        "--give-up",
        type=int,
        default=100,
        metavar="SECONDS",
        help="after which a host that is silent is gone",
    )
    add(
        "--tune",
        action="store_true",
        help="measure on `validation`, not on the test set",
    )
    add("--strict", action="store_true", help="exit status 1 when a claim fails")
    add("--tensorboard", action="store_true", help="write event files too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
