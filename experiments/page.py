"""The page of results: every file of `experiments/results`, every claim judged.

    python -m experiments.report

writes `docs/results.md` and its figures. Files of one configuration and one set of
settings, told apart by their seeds alone, make one section.

A claim is judged by its rows drawn anew: each accuracy gets the error that a test set
of that size leaves (or, where a row is a mean over seeds, the error of that mean), and
the claim is asked again, many times. It holds if it does in 95 % of the draws, does not
if in 5 %, and otherwise cannot be told here. Errors of two networks on one test set are
taken as independent, which is cautious.
"""

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import config, costs, files, panels, results
from experiments.config import Claim, ConfigError
from experiments.results import Row

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
TEST_SIZES = {
    "cifar10": 10_000,
    "cifar100": 10_000,
    "cifar10_part": 2_000,
    "cifar10_small": 2_000,
    "citeseer": 1_000,
    "cora": 1_000,
    "digits": 360,
    "fashion_mnist": 10_000,
    "mnist": 10_000,
}
"""Test examples, by data set."""

_DRAWS = 400


class Section(NamedTuple):
    """The results of one configuration with one set of settings.

    Attributes:
      name: of the configuration, with what was changed in it.
      files: the result files, one a seed.
      facts: of each.
      rows: of each.
    """

    name: str
    files: tuple[Path, ...]
    facts: tuple[dict[str, Any], ...]
    rows: tuple[list[Row], ...]

    @property
    def data(self) -> str:
        return self.facts[0]["settings"].get("data", "")

    @property
    def tests(self) -> int | None:
        """How many test examples; None where it is not known."""
        settings = self.facts[0]["settings"]
        return settings.get("test_examples") or TEST_SIZES.get(self.data)

    @property
    def chosen(self) -> config.Config | None:
        """The configuration as it is now; None if it is no more."""
        try:
            return config.load(self.facts[0]["config"])
        except ConfigError:
            return None


class Verdict(NamedTuple):
    """A claim, the share of draws in which it holds, and how many there were."""

    text: str
    share: float
    drawn: bool

    @property
    def word(self) -> str:
        if self.share >= 0.95:
            return "holds"
        return "does not" if self.share <= 0.05 else "cannot be told here"


def write(folder: Path = RESULTS, docs: Path = DOCS) -> Path:
    """Writes the page and its figures; the path of the page.

    Args:
      folder: of the result files.
      docs: where the page goes, its figures in `figures` beside it.

    Raises:
      FileError: if a result file is damaged, no evidence, or comes twice.
    """
    found = sections(folder)
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    judged = [verdicts(section) for section in found]
    parts = [_HEAD, _summary(found, judged)]
    for section, claims in zip(found, judged, strict=True):
        picture = figure(section, docs / "figures")
        parts += [_text(section, claims, picture)]
    page = docs / "results.md"
    files.write_text(page, "\n".join(parts))
    return page


def sections(folder: Path) -> list[Section]:
    """The result files, those that differ in their seed alone together, by name."""
    groups: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(("bench_", "digits_all_")):
            continue  # benchmarks have pages of their own; the sum repeats the parts
        facts, rows = results.load(path, *results.FACTS, "settings")
        if facts.get("small"):
            raise files.FileError(f"{path} is of a small form, which is no evidence.")
        if facts.get("split", "test") != "test":
            raise files.FileError(f"{path} is of validation examples, no evidence.")
        name = re.sub(r"_seed\d+$", "", path.stem)
        settings = config.complete(facts["settings"])
        key = f"{name} {json.dumps(settings, sort_keys=True)}"
        members = groups.setdefault(key, [])
        for other, old, _ in members:
            if old["seed"] == facts["seed"]:
                raise files.FileError(
                    f"{path} and {other.name} are of one seed: leave one of them."
                )
        members.append((path, facts, rows))
    found = []
    for key, members in groups.items():
        paths, facts, rows = zip(*members, strict=True)
        found.append(Section(key.partition(" ")[0], paths, facts, rows))
    return found


def verdicts(section: Section) -> list[Verdict]:
    """Every claim of the configuration, or of the files where it has none of them."""
    told = {text: holds for facts in section.facts for text, holds in _told(facts)}
    random, size = np.random.default_rng(0), section.tests
    found: dict[str, Verdict] = {}
    for prefix, claim in _claims(section):
        text = prefix + claim.text
        shares = [
            share
            for rows in section.rows
            if (share := _share(claim, prefix, rows, size, random)) is not None
        ]
        if shares and text not in found:
            found[text] = Verdict(text, float(np.mean(shares)), size is not None)
    for text in told.keys() - found.keys():
        all_ = [dict(_told(facts)).get(text) for facts in section.facts]
        known = [holds for holds in all_ if holds is not None]
        found[text] = Verdict(text, float(np.mean(known)), False)
    return [found[text] for text in [*told, *(t for t in found if t not in told)]]


def _told(facts: dict[str, Any]) -> list[tuple[str, bool]]:
    return list(facts["claims"].items())


def _claims(section: Section) -> Iterator[tuple[str, Claim]]:
    """The claims of each part, with what the names of its rows begin with."""
    from experiments.train import prefixes

    chosen = section.chosen
    parts = chosen.parts() if chosen else ()
    for part, prefix in zip(parts, prefixes(parts), strict=True):
        yield from ((prefix, claim) for claim in part.claims)


def _share(
    claim: Claim,
    prefix: str,
    rows: Sequence[Row],
    size: int | None,
    random: np.random.Generator,
) -> float | None:
    """The share of draws in which a claim holds; None without its rows."""
    by_run = {row.run: row for row in rows}
    named = results.rows_of(claim, by_run, prefix)
    if named is None:
        return None
    count = _DRAWS if size else 1
    draws = [_drawn(named, size, random) for _ in range(count)]
    try:
        return float(np.mean([bool(claim.holds(*rows)) for rows in draws]))
    except (KeyError, TypeError, ZeroDivisionError):  # a row of an older job
        return None


def _drawn(rows: Sequence[Any], size: int | None, random: Any) -> list[Row]:
    """The rows with accuracies drawn anew, as another test set would give them."""
    found = []
    for row in rows:
        shift = error(row, size) * random.standard_normal()
        extra = {
            name: value + error(row, size) * random.standard_normal()
            if name in _ACCURACIES and value is not None
            else value
            for name, value in (row.extra or {}).items()
        }
        before = None if row.before is None else row.before + shift
        found.append(row._replace(after=row.after + shift, before=before, extra=extra))
    return found


_ACCURACIES = {
    "tuned",
    "trained on",
    "recalibrated",
    "accuracy by one shot",
    "accuracy by deletion",
    "accuracy at the cut",
    "at the cut",
    "accuracy uncut",
}
"""Extra numbers that are accuracies on the test set."""


def error(row: Row, size: int | None) -> float:
    """Standard error of a row's accuracy."""
    extra = row.extra or {}
    count = extra.get("seeds") or sum(name.startswith("seed ") for name in extra)
    spread = extra.get("sd", extra.get("deviation"))
    if spread is not None and count and count > 1:
        return float(spread) / float(count) ** 0.5
    p = min(max(row.after, 0.0), 1.0)
    return (p * (1 - p) / size) ** 0.5 if size else 0.0


def merged(section: Section) -> list[tuple[Row, float, float]]:
    """Of each row: its first form, mean accuracy over the files, and its error."""
    size, by_run = section.tests, {}
    for rows in section.rows:
        for row in rows:
            by_run.setdefault(row.run, []).append(row)
    found = []
    for rows in by_run.values():
        after = [row.after for row in rows]
        many = len(after) > 1
        spread = np.std(after, ddof=1) if many else error(rows[0], size)
        before = [row.before for row in rows if row.before is not None]
        first = rows[0]._replace(before=float(np.mean(before)) if before else None)
        found.append((first, float(np.mean(after)), float(spread)))
    return found


def figure(section: Section, folder: Path) -> str | None:
    """Accuracy against the share of weights left; the file's name, or None."""
    name = f"results_{section.name}.png"
    cells, whole = grid(section)
    if cells:
        title = f"{section.name}: bars are the deviation between seeds"
        label = f"{_measure(section)} after removal (dashed: dense)"
        panels.draw(folder / name, cells, whole, title=title, label=label)
        return name
    if cut := costs.costed(merged(section)):
        dense = [mean for row, mean, _ in merged(section) if row.method == "dense"]
        title = f"{section.name}: {_bars(section)}"
        label = _measure(section).rstrip(",")
        first = dense[0] if dense else None
        costs.draw(folder / name, cut, first, title=title, label=label)
        return name
    points: dict[str, list[tuple[float, float, float]]] = {}
    for row, mean, spread in merged(section):
        line = "dense" if row.method == "dense" else _series(row.run)
        points.setdefault(line, []).append((1 - row.got, mean, spread))
    dense = points.pop("dense", [])
    left = {x for group in points.values() for x, _, _ in group}
    if len(left) < 3:
        return None
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    drawn, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for (line, group), marker in zip(
        points.items(), "osD^v<>PX*hd+x123" * 3, strict=False
    ):
        x, y, spread = np.array(sorted(group)).T
        axis.errorbar(
            100 * x, 100 * y, 100 * spread, fmt=marker, ms=5, capsize=2, label=line
        )
    if dense:
        axis.axhline(100 * dense[0][1], color="0.4", ls="--", lw=1, label="dense")
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(*_ticks([100 * x for x in left]))
    axis.set_xlabel("weights left, % of the dense network's (log scale)")
    axis.set_ylabel(f"{_measure(section)} after removal")
    axis.set_title(f"{section.name}: {_bars(section)}", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7 if len(points) < 12 else 5)
    with files.replacing(folder / name) as beside:
        drawn.savefig(beside, dpi=90)
    plt.close(drawn)
    return name


def grid(section: Section) -> tuple[dict[str, Any], panels.Point | None]:
    """The methods of a large comparison by sparsity, and the dense row."""
    points = [panels.point(*found) for found in merged(section)]
    dense = [found for found in points if found[0].method == "dense"]
    return panels.grid(points), dense[0] if dense else None


def _measure(section: Section) -> str:
    """What `after` of the rows is, with its unit (of images a hundredth of the dB)."""
    rows = [row for file in section.rows for row in file]
    images = any("Set5 dB" in (row.extra or {}) for row in rows)
    return "PSNR on Set5, dB," if images else "test accuracy, %,"


def _series(run: str) -> str:
    """The name of a row without its sparsity: what its line in the figure is called."""
    return re.sub(r",? *\b[\d.]+ ?%", "", run).strip(" ,:")


def _ticks(values: Sequence[float]) -> tuple[list[float], list[str]]:
    """Of the values, those that stand apart on a logarithmic axis, and their labels."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value > 1.25 * found[-1]:
            found.append(value)
    return found, [f"{value:.3g}" for value in found]


def _bars(section: Section) -> str:
    if len(section.files) > 1:
        return f"bars are the deviation of {len(section.files)} seeds"
    return "bars are the standard error of the test set, or of the mean over seeds"


_HEAD = """# Results

This page is written by `python -m experiments.report` from the files under
`experiments/results/`. The command in each section makes its numbers again.

Accuracies are on the test set, in percent. The number behind ± is the standard
deviation over seeds where a section has several files, and otherwise the standard error
that the size of the test set leaves (or that of the mean, where a row is a mean over
seeds). `weights` are those that are not zero; of rows that remove channels, those of
the smaller network.

**How claims are judged.** The accuracies of a claim's rows are drawn anew, with those
errors, and the claim is asked again: it *holds* if it does in 95 % of the draws, *does
not* if in 5 %, and otherwise it *cannot be told here*: the test set is too small, or
the seeds too few. Errors of two networks on one test set are taken as independent,
which is cautious. What is not a question of accuracy (counts, FLOPs) is as it was
found. The words of each section say what the paper reports, in which setting, where
ours leaves it, and what is behind a claim that does not hold.
"""


def _summary(found: Sequence[Section], judged: Sequence[list[Verdict]]) -> str:
    lines = [
        "| configuration | seeds | claims | hold | do not | cannot be told here |",
        "|---|---|---|---|---|---|",
    ]
    for section, claims in zip(found, judged, strict=True):
        words = [claim.word for claim in claims]
        seeds = ", ".join(str(facts["seed"]) for facts in section.facts)
        counts = (words.count(w) for w in ("holds", "does not", "cannot be told here"))
        link = f"[{section.name}](#{_anchor(section.name)})"
        cells = [link, seeds, len(words), *counts]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9_ -]", "", name.lower()).replace(" ", "-")


def _text(section: Section, claims: Sequence[Verdict], picture: str | None) -> str:
    """One section: words, where the numbers come from, table, figure, claims."""
    lines = [f"## {section.name}", ""]
    if section.chosen is not None:
        module = inspect.getdoc(_module(section.facts[0]["config"])) or ""
        title, _, rest = module.partition("\n")
        lines += [title, "", "```text", rest.strip(), "```", ""]
    for path, facts in zip(section.files, section.facts, strict=True):
        device = facts["device"]
        commit = f", commit {facts['commit']}" if facts.get("commit") else ""
        lines.append(
            f"- `{path.name}`: `{facts['command']}`, {device['count']} x "
            f"{device['kind']}, jax {facts['versions']['jax']}{commit}, "
            f"{facts['seconds']:.0f} s"
        )
        if facts.get("stopped"):
            lines.append(f"- **Not finished**, {facts['stopped']}: rows are missing.")
    changed = _changed(section)
    if changed:
        lines.append(f"- Since then the configuration has changed: {changed}.")
    lines += ["", *_table(section), ""]
    if picture:
        words = f"{_measure(section)} after removal against what is left."
        lines += [f"![{section.name}. {words}](figures/{picture})", ""]
    for claim in claims:
        how = f" (in {claim.share:.0%} of the draws)" if claim.drawn else ""
        how = how if claim.word == "cannot be told here" else ""
        lines.append(f"- **{claim.word}{how}**: {claim.text}")
    again = _again(section)
    if again and any(claim.word != "holds" for claim in claims):
        lines += [
            "",
            f"Asked again of more data, or in the authors' setting: {again}.",
        ]
    return "\n".join(lines) + "\n"


def _again(section: Section) -> str:
    """What asks the same of more data: `AGAIN` of a config, names of sections."""
    if section.chosen is None:
        return ""
    names = getattr(_module(section.facts[0]["config"]), "AGAIN", ())
    run = {path.stem.partition("_seed")[0] for path in RESULTS.glob("*_seed*.json")}
    told = [
        f"[{name}](#{_anchor(name)})" if name in run else f"`{name}` (not run here)"
        for name in names
    ]
    return ", ".join(told)


def _module(name: str) -> Any:
    import importlib

    return importlib.import_module(f"experiments.configs.{name}")


def _paper(section: Section) -> dict[str, str]:
    """The paper's figure for rows that are in its own setting: `PAPER` of a config."""
    if section.chosen is None:
        return {}
    return getattr(_module(section.facts[0]["config"]), "PAPER", {})


def _table(section: Section) -> list[str]:
    paper = _paper(section)
    cells, dense = grid(section)
    lines = [*panels.table(cells, dense), ""] if cells else []
    beside = ("paper | ", "---:|") if paper else ("", "")
    lines += [
        f"*before*, *after*: {_measure(section).rstrip(',')}",
        "",
        f"| run | weights | sparsity | before | after | {beside[0]}further numbers |",
        f"|---|---:|---:|---:|---:|{beside[1]}---|",
    ]
    for row, mean, spread in merged(section):
        before = "" if row.before is None else f"{100 * row.before:.2f}"
        extra = ", ".join(
            f"{name} {value:.4g}"
            for name, value in (row.extra or {}).items()
            if value is not None and not name.startswith("seed ")
        )
        run = panels.in_cell(row.run)
        told = f"{paper.get(row.run, '')} | " if paper else ""
        bars = f" ± {100 * spread:.2f}" if spread else ""  # of one run of images: none
        lines.append(
            f"| {run} | {row.nonzero:,} | {100 * row.got:.2f} % | {before} | "
            f"{100 * mean:.2f}{bars} | {told}{extra} |"
        )
    return lines


def _changed(section: Section) -> str:
    """The names of settings that the configuration has otherwise now."""
    if section.chosen is None:
        return "it is no more"
    if (
        "--set" in section.facts[0]["command"]
        or "--only" in section.facts[0]["command"]
    ):
        return ""
    now = json.loads(json.dumps(section.chosen.settings()))
    then = section.facts[0]["settings"]
    keys = [key for key in then if key not in ("runs", "beside")]
    found = [key for key in keys if now.get(key) != then[key]]
    runs, old = now.get("runs", {}), then.get("runs", {})
    found += [f"run {name}" for name in old if old[name] != runs.get(name)]
    return ", ".join(found)
