"""Many methods at a few sparsities: a table with a column each, a figure of panels.

Lines that cross are unreadable beyond a handful of methods. Here every sparsity has a
panel, every method a line of it, best on top: a dot at the mean and a bar of the
deviation between seeds. It needs no colors.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import files
from experiments.results import Row

_SHARE = re.compile(r",? *\b([\d.]+) ?%")
MANY = 5
"""From this many methods on."""

Point = tuple[Row, float, float]
"""A row, its mean accuracy and the deviation between seeds."""


def point(row: Row, mean: float, spread: float) -> Point:
    """Of what `page.merged` tells: a row that is a mean knows its own deviation."""
    extra = row.extra or {}
    own = extra.get("deviation", extra.get("sd"))
    return row, mean, spread if own is None else float(own)


def in_cell(text: str) -> str:
    """A text that stays inside its cell: a bar would end it."""
    return text.replace("|", r"\|")


def grid(points: Sequence[Point]) -> dict[str, dict[float, Point]]:
    """By method, by the percentage in a row's label; empty where it is no such table.

    A method needs every percentage that any of them has.
    """
    found: dict[str, dict[float, Point]] = {}
    for one in points:
        shares = _SHARE.findall(one[0].run)
        if len(shares) == 1:
            name = _SHARE.sub("", one[0].run).strip(" ,:")
            found.setdefault(name, {})[float(shares[0])] = one
    columns = {share for row in found.values() for share in row}
    whole = {name: row for name, row in found.items() if row.keys() == columns}
    return whole if len(whole) >= MANY and len(columns) >= 3 else {}


def ranked(cells: dict[str, dict[float, Point]]) -> list[str]:
    """The methods, best mean over all sparsities first."""
    return sorted(
        cells, key=lambda name: -sum(mean for _, mean, _ in cells[name].values())
    )


def table(cells: dict[str, dict[float, Point]], dense: Point | None) -> list[str]:
    """Lines of the table: accuracy and its spread, in percent."""
    shares = sorted(next(iter(cells.values())))
    head = " | ".join(f"{share:g} %" for share in shares)
    words = "Accuracy ± deviation between seeds, % removed across, best mean first:"
    lines = [words, "", f"| | {head} |", "|---|" + "---:|" * len(shares)]
    if dense is not None:
        lines.append(
            f"| dense, all weights | {_cell(dense)} |" + " |" * len(shares[1:])
        )
    for name in ranked(cells):
        values = " | ".join(_cell(cells[name][share]) for share in shares)
        lines.append(f"| {in_cell(name)} | {values} |")
    return lines


def _cell(point: Point) -> str:
    row, mean, spread = point
    bars = f" ± {100 * spread:.2f}" if spread else ""
    fewer = f" ({row.nonzero:,} weights)" if row.nonzero < row.kept else ""
    return f"{100 * mean:.2f}{bars}{fewer}"


def draw(
    path: Path,
    cells: dict[str, dict[float, Point]],
    dense: Point | None,
    *,
    title: str,
    label: str,
) -> None:
    """Writes the figure.

    Args:
      path: of the image.
      cells: of `grid`.
      dense: the dense network, a dashed line in every panel.
      title: above all panels.
      label: of the horizontal axes, with the unit.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    names, shares = ranked(cells), sorted(next(iter(cells.values())))
    figure, axes = plt.subplots(
        1,
        len(shares),
        sharey=True,
        figsize=(2.2 * len(shares) + 1.5, 0.24 * len(names) + 1.2),
        layout="constrained",
    )
    for axis, share in zip(axes, shares, strict=True):
        _panel(axis, [cells[name][share] for name in names], dense)
        axis.set_title(f"{share:g} % removed", fontsize=9)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    figure.supxlabel(label, fontsize=9)
    figure.suptitle(title, fontsize=9)
    with files.replacing(path) as beside:
        figure.savefig(beside, dpi=90)
    plt.close(figure)


def _panel(axis: Any, points: Sequence[Point], dense: Point | None) -> None:
    """One sparsity. What lies far below is an arrow at the edge, with its number."""
    means = sorted(100 * mean for _, mean, _ in points)
    best = 100 * dense[1] if dense else means[-1]
    floor = max(means[len(means) // 4] - 1.5 * (best - means[len(means) // 4]) - 0.2, 0)
    for y, (_, mean, spread) in enumerate(points):
        x = 100 * mean
        if x < floor:
            edge = axis.get_yaxis_transform()
            axis.plot(0, y, "<", color="0.4", ms=4, transform=edge)
            axis.text(0.05, y, f"{x:.1f}", fontsize=6, va="center", transform=edge)
            continue
        axis.errorbar(x, y, xerr=100 * spread, fmt="o", color="k", ms=3.5, capsize=2)
    if dense:
        axis.axvline(best, color="0.4", ls="--", lw=1)
    shown = [(m, s) for _, m, s in points if 100 * m >= floor]
    left = min([100 * (m - s) for m, s in shown] + [best])
    right = max([100 * (m + s) for m, s in shown] + [best])
    room = 0.05 * (right - left) or 1.0
    axis.set_xlim(left - room, right + room)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(alpha=0.3)
