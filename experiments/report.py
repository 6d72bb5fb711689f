"""Tables and figures again, from the files that jobs left.

    python -m experiments.report [RUN ...]

Without a `RUN` the page `docs/results.md` is written from `experiments/results`. A
`RUN` is a job's folder or a result file. With several runs of one configuration that
differ in their seeds alone a last table gives the mean and the range of every row, and
of how many seeds where some lack it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import config, figures, page, results
from experiments.files import FileError
from experiments.results import Row


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; returns 2 when there is nothing to read."""
    try:
        status = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.report")
    parser.add_argument("run", nargs="*", type=Path, help="folder or result file")
    found, runs = [], parser.parse_args(argv).run
    if not runs:
        return _page()
    for run in runs:
        path = run / "result.json" if run.is_dir() else run
        if not path.is_file():
            print(f"no result in {run}: the job writes {path.name} when it is done.")
            return 2
        try:
            facts, rows = results.load(path, *results.FACTS)
        except FileError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        found.append((facts, rows))
        print(text(facts, rows), end="\n\n")
        if run.is_dir() and (run / "log.jsonl").exists():
            try:
                log = results.history(run / "log.jsonl")
                figures.draw(run / "figure.png", rows, log)
            except OSError as error:
                name = error.filename or run / "figure.png"
                print(f"error: {name}: {error.strerror}.", file=sys.stderr)
                return 2
    if len(found) > 1 and len({facts["config"] for facts, _ in found}) == 1:
        print(_apart([facts for facts, _ in found]) or spread([r for _, r in found]))
    return 0


def _apart(jobs: Sequence[dict[str, Any]]) -> str:
    """Why jobs are not the seeds of one experiment; nothing if they are."""
    kinds = [
        {
            "split": facts.get("split", "test"),
            "small": facts.get("small", False),
            **_flat(config.complete(facts.get("settings", {}))),
        }
        for facts in jobs
    ]
    names = {name: None for kind in kinds for name in kind}
    differ = [n for n in names if len({repr(kind.get(n)) for kind in kinds}) > 1]
    if differ:
        told = ", ".join(differ[:5]) + ", ..." * (len(differ) > 5)
        return f"no mean: these jobs differ in more than their seed ({told})."
    seeds = [facts["seed"] for facts in jobs]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        return f"no mean: seed {', '.join(map(str, twice))} comes more than once."
    return ""


def _flat(tree: Any, place: str = "") -> dict[str, Any]:
    """The literals of settings by their places, "runs.swd.lr"."""
    if not isinstance(tree, dict):
        return {place: tree}
    dot = f"{place}." if place else ""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{dot}{name}")
    return found


def _page() -> int:
    try:
        print(f"written: {page.write()}")
    except FileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {error.filename or 'a file'}: {error.strerror}.", file=sys.stderr
        )
        return 2
    return 0


def text(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """One job: its heading, table and claims."""
    device = facts["device"]
    heading = (
        f"{facts['config']}, seed {facts['seed']}, {device['count']} x "
        f"{device['kind']}, {facts['seconds']:.0f} s\n{facts['command']}"
    )
    if facts.get("small"):
        heading += f"\n{_SMALL}"
    if facts.get("split") == "validation":
        heading += "\nMeasured on validation examples, not on the test set."
    if facts.get("stopped"):
        heading += f"\nNot finished, {facts['stopped']}: rows are missing."
    parts = [heading, results.table(rows), results.verdict_text(facts["claims"])]
    return "\n\n".join(part for part in parts if part)


_SMALL = "A small form: it shows that every part runs. No accuracy of it is evidence."


def spread(runs: Sequence[Sequence[Row]]) -> str:
    """Accuracy after removal over seeds: mean, least and greatest, in percent."""
    lines = [f"accuracy after removal, % of {len(runs)} seeds: mean [least, greatest]"]
    by_run: dict[str, list[float]] = {}
    for row in (row for rows in runs for row in rows):
        if row.after is not None:  # written as null: it was no number
            by_run.setdefault(row.run, []).append(100 * row.after)
    width = max(map(len, by_run), default=0)
    for run, values in by_run.items():
        mean = sum(values) / len(values)
        fewer = f"  ({len(values)} of {len(runs)})" * (len(values) < len(runs))
        lines.append(
            f"{run:{width}}  {mean:6.2f}  [{min(values):.2f}, {max(values):.2f}]{fewer}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
