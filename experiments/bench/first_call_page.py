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
anew where there are any. Losses are in points of accuracy, means over the seeds.

The networks are small: they have little to spare, and a network that has just been cut
to half its FLOPs is meant to be trained on. The table compares ways to choose.
"""
WORDS = """
How to read a candidate. *L1, L2*: the norm. *sum*: over all trained members of a group
(kernels that write it and read it, biases, norm scales); *out*: over the kernels that
write it; *product*: the geometric mean of what writes, scales and reads. *group*: every
group loses the same fraction; *balanced*: one that k layers write loses a k-th of it (a
residual stream has many); *isomorphic*: layers of one shape compete; *global*: all
compete, each group over its mean; *by writers*: times the number of kernels that write
it; *most 3/4*: no group loses more; *per FLOP*: over a coordinate's cost; *raw*: not
over the mean. *Torch-Pruning*: the rule of its default, uniform by layer, with
mean-normalized L2 of weights without biases; *global*: the same in a single ranking.
These are its rules in our code, not its package.
"""


def losses(result: dict[str, Any]) -> dict[str, dict[tuple[str, float], float]]:
    """By candidate, network and target the mean loss in points."""
    found: dict[str, dict[tuple[str, float], list[float]]] = {}
    for name, seeds in result["networks"].items():
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
    table, nets = losses(result), list(result["networks"])
    seeds = sorted({s for found in result["networks"].values() for s in found})
    order = sorted(table, key=lambda label: mean(table[label], 0.5))
    lines = [INTRO, _verdict(table, nets), WORDS]
    lines += [f"Seeds {', '.join(seeds)}. Accuracy before: {_dense(result)}.", ""]
    head = ["", *(f"{n}, 1/2" for n in nets), "mean, 3/4", "mean, 1/2", "mean, 1/4"]
    lines += [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for label in order:
        row = table[label]
        cells = [row[n, 0.5] for n in nets] + [mean(row, t) for t in TARGETS]
        mark = "**" if label == DEFAULT or label in REFERENCES else ""
        lines.append(_row([f"{mark}{label}{mark}", *(f"{c:.1f}" for c in cells)]))
    lines += ["", "Figures: `experiments/results/bench_first_call.json`, made by"]
    lines += ["`python -m experiments.bench.first_call`.", ""]
    return "\n".join(lines)


def _dense(result: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {np.mean([cells['dense'] for cells in seeds.values()]):.1f}"
        for name, seeds in result["networks"].items()
    )


def _verdict(table: dict[str, Any], nets: list[str]) -> str:
    """What the table says of the default, counted."""
    ours = table[DEFAULT]
    lines = ["The default against the reference lines, mean loss at 3/4, 1/2, 1/4:", ""]
    for label in (DEFAULT, *REFERENCES):
        figures = ", ".join(f"{mean(table[label], t):.1f}" for t in TARGETS)
        lines.append(f"- {label}: {figures}")
    rest = [label for label in table if label not in (DEFAULT, *REFERENCES)]
    lines += [
        "",
        "Behind the best candidate of each network at 1/2:",
        "",
    ]
    for name in nets:
        best = min(rest, key=lambda label: table[label][name, 0.5])
        gap = ours[name, 0.5] - table[best][name, 0.5]
        lines.append(f"- {name}: {gap:.1f} points ({best})")
    fine = [name for name in nets if ours[name, 0.5] <= 3]
    lines += [
        "",
        f"At 1/2 the default costs at most 3 points on {len(fine)} of {len(nets)} "
        f"networks ({', '.join(fine) or 'none'}).",
    ]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    PAGE.write_text(page(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
