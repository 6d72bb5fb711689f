"""The page of `first_call`: its table, and what follows from it, in words.

    python -m experiments.bench.first_call_page

Writes `docs/first_call.md` from `experiments/results/bench_first_call.json`; a test
compares the two.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.first_call import RESULT, TARGETS

PAGE = Path("docs/first_call.md")
REFERENCES = ("random, group", "Torch-Pruning", "Torch-Pruning, global")
DEFAULT = "default"
INTRO = """# What the first call costs

`surgery.select(deps, deps.scores(params), flops=0.5)`, nothing tuned: what does it take
from a stock network? Six small networks are trained, channels are removed to 3/4, 1/2
and 1/4 of the FLOPs, and nothing is trained afterwards; batch statistics are measured
anew where there are any. Losses are in points of accuracy, means over the seeds. Three
more networks were held out: the default was chosen before they were looked at.

The networks are small: they have little to spare, and a network that has just been cut
to half its FLOPs is meant to be trained on. The table compares ways to choose.
"""
WORDS = """
How to read a candidate. *L1, L2*: the norm. *product*: what a coordinate passes on, of
the kernels that write it, times the relative size of what scales it and of what reads
it; *sum*: over all trained members of a group (kernels, biases, norm scales); *out*:
over the kernels that write it. *group*: every group loses the same fraction of its
coordinates; *balanced*: the same share, and one that k layers write (a residual stream
has many) a k-th of it, a share being half of the coordinates and half of their squared
scores; *balanced count*, *balanced energy*: of the coordinates alone, of the squares
alone; *isomorphic*: layers of one shape compete; *global*: all compete, each group over
its mean; *by writers*: times the number of kernels that write it; *most 3/4*: no group
loses more; *per FLOP*: over a coordinate's cost; *raw*: not over the mean.
*Torch-Pruning*: the rule of its default, uniform by layer, with mean-normalized L2 of
weights without biases; *global*: the same in a single ranking. These are its rules in
our code, not its package. The default is *L2 product, balanced*.
"""
HINDSIGHT = """
How far behind the best candidate of each network at 1/2? *In hindsight* the best of
{count} candidates is read off the same figures, and some of them are best by luck: two
candidates differ by {spread:.0f} points from seed to seed (median over networks of the
standard deviation). *Foreseen* is what could be known: the candidate that is best on
the other seeds, measured on the seed left out. Negative: the default was better.

| network | default loses | in hindsight | best | foreseen |
| --- | ---: | ---: | --- | ---: |
"""


def losses(
    result: dict[str, Any], which: str = "networks"
) -> dict[str, dict[tuple[str, float], float]]:
    """By candidate, network and target the mean loss in points."""
    found: dict[str, dict[tuple[str, float], list[float]]] = {}
    for name, seeds in result[which].items():
        for cells in seeds.values():
            for target in TARGETS:
                for label, accuracy in cells[str(target)].items():
                    row = found.setdefault(label, {})
                    row.setdefault((name, target), []).append(cells["dense"] - accuracy)
    return {
        label: {key: float(np.mean(values)) for key, values in row.items()}
        for label, row in found.items()
    }


def mean(row: dict[tuple[str, float], float], target: float) -> float:
    """Over the networks."""
    return float(np.mean([v for (_, t), v in row.items() if t == target]))


def page(result: dict[str, Any]) -> str:
    """The text of `docs/first_call.md`."""
    seeds = sorted({s for found in result["networks"].values() for s in found})
    lines = [INTRO, *_references(result), *_behind(result), WORDS]
    lines += [f"Seeds {', '.join(seeds)}. Accuracy before: {_dense(result)}.", ""]
    lines += [*_table(result, "networks"), "", "The networks held out:", ""]
    lines += [*_table(result, "held_out"), ""]
    lines += ["Figures: `experiments/results/bench_first_call.json`, made by"]
    lines += ["`python -m experiments.bench.first_call`.", ""]
    return "\n".join(lines)


def _table(result: dict[str, Any], which: str) -> list[str]:
    """Candidates by networks, the best on the mean at 1/2 first."""
    table, nets = losses(result, which), list(result[which])
    order = sorted(table, key=lambda label: mean(table[label], 0.5))
    head = ["", *(f"{n}, 1/2" for n in nets), "mean, 3/4", "mean, 1/2", "mean, 1/4"]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for label in order:
        row = table[label]
        cells = [row[n, 0.5] for n in nets] + [mean(row, t) for t in TARGETS]
        mark = "**" if label == DEFAULT or label in REFERENCES else ""
        lines.append(_row([f"{mark}{label}{mark}", *(f"{c:.1f}" for c in cells)]))
    return lines


def _dense(result: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {np.mean([cells['dense'] for cells in seeds.values()]):.1f}"
        for which in ("networks", "held_out")
        for name, seeds in result[which].items()
    )


def _references(result: dict[str, Any]) -> list[str]:
    """The default against the reference lines."""
    head = ["mean loss at 3/4, 1/2, 1/4", "six networks", "held out"]
    lines = [_row(head), _row(["---", "---:", "---:"])]
    tables = [losses(result, which) for which in ("networks", "held_out")]
    for label in (DEFAULT, *REFERENCES):
        cells = [
            ", ".join(f"{mean(table[label], t):.1f}" for t in TARGETS)
            for table in tables
        ]
        lines.append(_row([label, *cells]))
    return lines


def behind(seeds: dict[str, Any], target: float = 0.5) -> dict[str, Any]:
    """How far the default is behind the best candidate of one network.

    Args:
      seeds: the figures of the network, by seed.
      target: the FLOPs kept.

    Returns:
      The default's mean loss, the best candidate's name, the gap to it in hindsight,
      the gap to the candidate foreseen from the other seeds, and the median over
      candidates of the standard deviation of the difference to the default.
    """
    cells = [found[str(target)] for found in seeds.values()]
    dense = np.array([found["dense"] for found in seeds.values()])
    labels = [x for x in cells[0] if x not in (DEFAULT, *REFERENCES)]
    lost = {x: dense - [c[x] for c in cells] for x in [*labels, DEFAULT]}
    ours = lost[DEFAULT]
    best = min(labels, key=lambda x: lost[x].mean())
    foreseen = []
    for i in range(len(cells)):
        rest = np.arange(len(cells)) != i
        chosen = min(labels, key=lambda x: lost[x][rest].mean())
        foreseen.append(ours[i] - lost[chosen][i])
    return {
        "loss": float(ours.mean()),
        "best": best,
        "hindsight": float((ours - lost[best]).mean()),
        "foreseen": float(np.mean(foreseen)),
        "spread": float(np.median([(lost[x] - ours).std(ddof=1) for x in labels])),
        "count": len(labels),
    }


def _behind(result: dict[str, Any]) -> list[str]:
    """What the table says of the default, network by network, counted."""
    every = {**result["networks"], **result["held_out"]}
    rows = {name: behind(seeds) for name, seeds in every.items()}
    spread = float(np.median([row["spread"] for row in rows.values()]))
    count = next(iter(rows.values()))["count"]
    lines = [HINDSIGHT.format(count=count, spread=spread).rstrip("\n")]
    for name, row in rows.items():
        held = " (held out)" if name in result["held_out"] else ""
        figures = [f"{row[x]:.1f}" for x in ("loss", "hindsight")]
        cells = [name + held, *figures, row["best"], f"{row['foreseen']:.1f}"]
        lines.append(_row(cells))
    near = [n for n, row in rows.items() if row["hindsight"] <= 2]
    fair = [n for n, row in rows.items() if row["foreseen"] <= 2]
    fine = [n for n, row in rows.items() if row["loss"] <= 3]
    rivals = [
        (max(behind_of(every, label).values()), label)
        for label in losses(result)
        if label not in (DEFAULT, *REFERENCES)
    ]
    gap, label = min(rivals)
    return [
        *lines,
        "",
        f"The default is within 2 points of the best in hindsight on {len(near)} of "
        f"{len(rows)} networks ({', '.join(near) or 'none'}), and of the foreseen on "
        f"{len(fair)} ({', '.join(fair) or 'none'}). Of all candidates *{label}* is "
        f"the least behind on its worst network, by {gap:.1f} points"
        f"{': no one rule is best everywhere' if gap > 2 else ''}. At 1/2 the default "
        f"costs at most 3 points on {len(fine)} of them ({', '.join(fine) or 'none'}).",
    ]


def behind_of(every: dict[str, Any], label: str) -> dict[str, float]:
    """By network how far one candidate is behind the best in hindsight at 1/2."""
    gaps = {}
    for name, seeds in every.items():
        means = {
            x: np.mean([f["dense"] - f["0.5"][x] for f in seeds.values()])
            for x in next(iter(seeds.values()))["0.5"]
            if x not in (DEFAULT, *REFERENCES)
        }
        gaps[name] = float(means[label] - min(means.values()))
    return gaps


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    PAGE.write_text(page(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
