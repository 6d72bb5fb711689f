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
or a checkpoint not read; 75 when SIGTERM, SIGHUP or Ctrl-C came and all that was done
is saved: `--resume` goes on.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import jax

from experiments import build, config, figures, report, results, rules
from experiments.checkpoints import CheckpointError, Checkpoints, digest
from experiments.config import Config, ConfigError
from experiments.data.dataset import DataError
from experiments.files import FileError
from experiments.folder import holding, prepare
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
        why = error.strerror or error
        return _leave(f"error: {error.filename or 'a file'}: {why}.", 4)
    except KeyboardInterrupt:
        return _leave("stopped at once: what was saved before stays.", 130)
    return int(args.strict and not all(claims.values()))


def _leave(text: str, status: int) -> int:
    _tell(text, sys.stderr)
    return status


def _tell(text: str, to: TextIO) -> None:
    """Prints; that nobody reads any more (a closed pipe or terminal) is no error."""
    try:
        print(text, file=to, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())


def _job(args: argparse.Namespace, command: str) -> dict[str, bool]:
    """Everything, from the settings to the files; the claims."""
    rules.check_seed(args.seed)
    chosen = config.override(config.load(args.config, small=args.small), args.set)
    chosen = config.only(chosen, args.only.split(",")) if args.only else chosen
    build.check(chosen)
    for name in ["matplotlib"] + ["tensorboardX"] * args.tensorboard:
        if find_spec(name) is None:  # its absence would be noticed at the end
            raise ConfigError(
                f"`{name}` is not installed: it comes with the extra `experiments`."
            )
    runs = [run for part in chosen.parts() for run in (part.setup, *part.runs.values())]
    rules.check_seed(args.seed, max(run.get("seeds", 1) for run in runs))
    connect(os.environ, args.give_up)
    form = "_small" if args.small else ""
    out = (
        args.out.expanduser()
        if args.out
        else RUNS / f"{args.config}{form}_seed{args.seed}"
    )
    with holding(out), listening():
        return run(chosen, args, out, command)


def run(
    chosen: Config, args: argparse.Namespace, out: Path, command: str
) -> dict[str, bool]:
    """Trains everything, writes the files, prints the table.

    What an older job left in the folder stays until all data are read.

    Returns:
      For each claim of the configuration, whether it holds.

    Raises:
      Diverged: if a run did; the rows before it are written, as after any error.
      Stopped: if the job was asked to leave; likewise.
    """
    rows: list[Row] = []
    claims: dict[str, bool] = {}
    ended: Exception | None = None
    journal = Journal(out, resume=args.resume, tensorboard=args.tensorboard)
    labs = _open(chosen, args, out, journal)
    data = [digest(_data(lab)) for lab in labs]
    prepare(out, chosen, args.seed, resume=args.resume, tune=args.tune, data=data)
    with journal:
        sessions = _session(out / "log.jsonl", journal)
        try:
            _train(labs, rows, claims)
        except Exception as error:
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
    if len(sessions) > 1:
        facts["sessions"] = sessions
    if ended:
        facts["stopped"] = str(ended) or type(ended).__name__
    try:
        _write(out, rows, facts)
    except OSError:
        if not ended:
            raise
    if ended:
        raise ended
    return claims


def _write(out: Path, rows: list[Row], facts: dict[str, Any]) -> None:
    """The result, its figure, and the table for the reader."""
    if jax.process_index() > 0:
        return
    results.save(out / "result.json", rows, **facts)
    figures.draw(out / "figure.png", rows, results.history(out / "log.jsonl"))
    table = report.text(*results.load(out / "result.json"))
    _tell(f"\n{table}\n\nwritten to {out}", sys.stdout)


def _session(log: Path, journal: Journal) -> list[dict[str, Any]]:
    """Notes what this job runs on; everything that it ran on so far.

    Another program, library or machine than before is said: the result is then not, bit
    for bit, that of an unbroken run.
    """
    now = results.machine()
    found = results.sessions(log) if log.is_file() else []
    if found and found[-1] != now:
        old = found[-1]
        names = ", ".join(k for k in now if old.get(k) != now[k])
        journal.say(
            f"`--resume`: {names} differ from when this job was left. It goes on, but "
            "its result may not be that of an unbroken run, bit for bit."
        )
    if now not in found:
        found.append(now)
    journal.write({"session": now})
    return found


def _open(
    chosen: Config, args: argparse.Namespace, out: Path, journal: Journal
) -> list[Any]:
    """The lab of every part: all data and networks, before the first step of any."""
    parts = chosen.parts()
    places: set[Path] = set()
    return [
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


def _data(lab: Any) -> Any:
    """The arrays that a part trains and tests on, of whatever kind it is."""
    if isinstance(lab, Lab):
        found = lab.dataset
        return found.inputs, found.labels, found.train, found.test
    names = ("data", "labels", "splits", "small", "large", "tests")
    return {name: getattr(lab, name, None) for name in names}


def _train(labs: list[Any], rows: list[Row], claims: dict[str, bool]) -> None:
    """Every part with its own lab: adds its rows, and which claims hold."""
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
        with _blaming(lab.prefix + name):
            for found in build.rows(lab, dense, settings):
                yield name, found


@contextmanager
def _blaming(run: str) -> Iterator[None]:
    """What the library refuses is a mistake in the settings of this run.

    Raises:
      ConfigError: naming the run.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if not str(error).startswith("[jprune]"):
            raise
        raise ConfigError(f"run `{run}`: {error}") from error


def _runner_rows(shared: Any) -> Iterator[Row]:
    """The same of a part with a `runner`; a dense run is what `runs` start from."""
    runner = build.RUNNERS[shared.config.runner]
    dense, rows = runner.dense(shared, **shared.config.dense)
    for row in chain(rows, _runner_pruned(shared, runner.methods, dense)):
        _say(shared, row)
        yield row


def _runner_pruned(shared: Any, methods: Mapping[str, Any], dense: Any) -> Any:
    for name, settings in shared.config.runs.items():
        with _blaming(shared.prefix + name):
            yield from methods[settings["method"]](
                shared, dense, **build.keywords(settings)
            )


def _say(lab: Lab, found: Row) -> None:
    found = found._replace(run=lab.prefix + found.run)
    lab.journal.write({"row": found._asdict()})
    before = "" if found.before is None else f"{100 * found.before:.2f} -> "
    lab.journal.say(
        f"{found.run}: {before}{100 * found.after:.2f} %, {found.nonzero:,} weights, "
        f"{found.seconds:.1f} s"
    )


def connect(environment: Mapping[str, str], give_up: int = 100) -> None:
    """Joins the other hosts when the environment says that there are any.

    Args:
      environment: of the process.
      give_up: seconds without a sign of life after which another host is gone.

    Raises:
      ConfigError: if the environment lacks a number, or one is none.
    """
    if give_up < 1:
        raise ConfigError(f"`--give-up` must be at least 1 second, got {give_up}.")
    if "JAX_COORDINATOR_ADDRESS" in environment and "JAX_NUM_PROCESSES" in environment:
        count, own = (_whole(environment, name) for name in _NUMBERS)
        if not 0 <= own < count:
            raise ConfigError(
                f"`JAX_PROCESS_ID` is {own}: of {count} processes they are 0 to "
                f"{count - 1}."
            )
        jax.distributed.initialize(
            environment["JAX_COORDINATOR_ADDRESS"],
            count,
            own,
            heartbeat_timeout_seconds=give_up,
        )
    elif environment.get("JAX_DISTRIBUTED") == "1":
        jax.distributed.initialize(heartbeat_timeout_seconds=give_up)


_NUMBERS = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise ConfigError(
            f"the environment variable `{name}` must be a whole number beside "
            f"JAX_COORDINATOR_ADDRESS, got {text!r}."
        )
    return int(text)


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
