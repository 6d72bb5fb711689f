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
together with JAX_DISTRIBUTED=1.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments import build, config, figures, report, results
from experiments.checkpoints import Checkpoints
from experiments.config import Config, ConfigError
from experiments.data.dataset import DataError
from experiments.journal import Journal
from experiments.lab import Lab
from experiments.methods import removal
from experiments.methods.dense import train_dense
from experiments.results import Row
from jprune import masks

RUNS = Path(__file__).parent / "runs"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status.

    Args:
      argv: arguments; None for the process's own.

    Returns:
      0; 1 when `--strict` and a claim fails; 2 for a mistake in the command.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(words)
    connect(os.environ)
    try:
        chosen = config.override(config.load(args.config), args.set)
        chosen = config.only(chosen, args.only.split(",")) if args.only else chosen
        build.check(chosen)
        out = args.out or RUNS / f"{args.config}_seed{args.seed}"
        prepare(out, chosen, args.seed, resume=args.resume)
        command = shlex.join(["python", "-m", "experiments.train", *words])
        claims = run(chosen, args, out, command)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(args.strict and not all(claims.values()))


def run(
    chosen: Config, args: argparse.Namespace, out: Path, command: str
) -> dict[str, bool]:
    """Trains everything, writes the files, prints the table.

    Returns:
      For each claim of the configuration, whether it holds.
    """
    with Journal(out, resume=args.resume, tensorboard=args.tensorboard) as journal:
        rows, claims = _train(chosen, args, out, journal)
        seconds = round(journal.seconds, 1)
    facts = {
        "config": args.config,
        "seed": args.seed,
        "command": command,
        "settings": chosen.settings(),
        "seconds": seconds,
        "claims": claims,
    }
    if jax.process_index() == 0:
        results.save(out / "result.json", rows, **facts)
        figures.draw(out / "figure.png", rows, results.history(out / "log.jsonl"))
        print("\n" + report.text(*results.load(out / "result.json")))
        print(f"\nwritten to {out}")
    return claims


def _train(
    chosen: Config, args: argparse.Namespace, out: Path, journal: Journal
) -> tuple[list[Row], dict[str, bool]]:
    """Every part with its own lab: all rows, and which claims hold."""
    rows: list[Row] = []
    claims: dict[str, bool] = {}
    parts = chosen.parts()
    for part, prefix in zip(parts, prefixes(parts), strict=True):
        open_part = build.open_runner if part.runner else build.open_lab
        lab = open_part(
            part,
            seed=args.seed,
            data_dir=args.data_dir,
            journal=journal,
            checkpoints=partial(_checkpoints, out, args.resume, part.checkpoint_every),
            prefix=prefix,
        )
        found = _rows(lab)
        rows += [row._replace(run=lab.prefix + row.run) for row in found]
        for text, holds in results.verdicts(part.claims, found).items():
            claims[lab.prefix + text] = holds
    return rows, claims


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


def _rows(lab: Lab) -> list[Row]:
    """The dense row, then those of every run, each said as it comes."""
    if lab.config.runner:
        return _runner_rows(lab)
    dense = train_dense(lab, **lab.config.dense)
    first = removal.row(
        lab,
        dense.params,
        after=lab.logits(dense.params, dense.stats),
        run="dense",
        method="dense",
        kept=masks.size(dense.params),
        seconds=dense.seconds,
    )
    rows = [first]
    _say(lab, rows[0])
    for settings in lab.config.runs.values():
        method = build.METHODS[settings["method"]]
        for found in method(lab, dense, **build.keywords(settings)):
            rows.append(found)
            _say(lab, found)
    return rows


def _runner_rows(shared: Any) -> list[Row]:
    """The same of a part with a `runner`; a dense run is what `runs` start from."""
    runner = build.RUNNERS[shared.config.runner]
    dense, rows = runner.dense(shared, **shared.config.dense)
    for found in rows:
        _say(shared, found)
    for settings in shared.config.runs.values():
        method = runner.methods[settings["method"]]
        for found in method(shared, dense, **build.keywords(settings)):
            rows.append(found)
            _say(shared, found)
    return rows


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
      ConfigError: if the folder holds something else, or if what is to be resumed is
        missing or had other settings.
    """
    note = out / "config.json"
    settings = json.loads(json.dumps({"seed": seed, **chosen.settings()}))
    if resume:
        if not note.is_file():
            raise ConfigError(f"`--resume`: there is no job in {out}.")
        old = json.loads(note.read_text())
        if not _grown(old, settings):
            differ = sorted(k for k in settings if old.get(k) != settings[k])
            raise ConfigError(
                f"`--resume`: the job in {out} had other settings "
                f"({', '.join(differ)}). Give the same ones, or another `--out`."
            )
        if jax.process_index() == 0:
            note.write_text(json.dumps(settings, indent=1) + "\n")
    elif out.exists() and any(out.iterdir()) and not note.is_file():
        raise ConfigError(
            f"`--out {out}` holds files that are no job's. Name an empty folder."
        )
    elif jax.process_index() == 0:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
        (out / "result.json").unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(settings, indent=1) + "\n")


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


def connect(environment: Mapping[str, str]) -> None:
    """Joins the other hosts when the environment says that there are any."""
    if "JAX_COORDINATOR_ADDRESS" in environment and "JAX_NUM_PROCESSES" in environment:
        jax.distributed.initialize(
            environment["JAX_COORDINATOR_ADDRESS"],
            int(environment["JAX_NUM_PROCESSES"]),
            int(environment["JAX_PROCESS_ID"]),
        )
    elif environment.get("JAX_DISTRIBUTED") == "1":
        jax.distributed.initialize()


def _checkpoints(out: Path, resume: bool, every: int, run: str) -> Checkpoints:
    folder = re.sub(r"[^a-z0-9.]+", "-", run.lower()).strip("-")
    return Checkpoints(out / "checkpoints" / folder, resume=resume, every=every)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train",
        description="Run one experiment: dense training, then each pruning method.",
        epilog=f"configurations: {', '.join(config.names())}",
    )
    add = parser.add_argument
    add("config", help="a file of experiments/configs, without .py")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="swd.epochs=2")
    add("--only", default="", metavar="RUN,...", help="these runs of it alone")
    add("--seed", type=int, default=0, help="of initialization, order and dropout")
    add("--data-dir", help="folder of the data sets; default TFDS_DATA_DIR")
    add("--out", type=Path, help="default experiments/runs/CONFIG_seedN")
    add("--resume", action="store_true", help="go on with the job in --out")
    add("--strict", action="store_true", help="exit status 1 when a claim fails")
    add("--tensorboard", action="store_true", help="write event files too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
