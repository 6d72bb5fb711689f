"""The figure of a job: accuracy over epochs, vanishing weights, cost of removal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.files import replacing
from experiments.results import Row

_GREY = "0.6"


def draw(
    path: Path, rows: Sequence[Row], history: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes the figure.

    Args:
      path: of the image.
      rows: the table.
      history: the epochs of each run, as `results.history` reads them.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [["accuracy", "removal"], ["vanishing", "removal"]],
        figsize=(12, max(7.0, 0.2 * len(rows))),
        layout="constrained",
    )
    _curves(axes["accuracy"], history, "test_accuracy", 100)
    axes["accuracy"].set(xlabel="epoch", ylabel="test accuracy, %")
    _curves(axes["vanishing"], history, "largest_targeted", 1)
    axes["vanishing"].set(xlabel="epoch", ylabel="largest weight marked for removal")
    axes["vanishing"].set_yscale("log")
    _removal(axes["removal"], rows)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120)
    plt.close(figure)


def _curves(axis: Any, history: dict, name: str, scale: float) -> None:
    for index, (run, epochs) in enumerate(history.items()):
        points = [
            (e["epoch"], scale * e[name])
            for e in epochs
            if isinstance(e.get(name), int | float)
        ]
        if points:
            axis.plot(*zip(*points, strict=True), label=run, color=f"C{index}", lw=1)
    axis.grid(alpha=0.3)
    if len(axis.lines) > 30:
        axis.set_title(f"{len(axis.lines)} runs", fontsize=8)
    elif axis.lines:
        axis.legend(fontsize=8 if len(history) < 12 else 5)


def _removal(axis: Any, rows: Sequence[Row]) -> None:
    """Before (ring) and after (dot) removal, one line of the table a line."""
    for y, row in enumerate(rows):
        if row.after is None:  # written as null: it was no number
            continue
        if row.before is not None:
            axis.plot([100 * row.before, 100 * row.after], [y, y], color=_GREY)
            axis.plot(100 * row.before, y, "o", color=_GREY, fillstyle="none", ms=9)
        axis.plot(100 * row.after, y, "o", color="C0")
    left = [row.nonzero if row.nonzero is not None else "-" for row in rows]
    labels = [
        f"{row.run}  ({n if isinstance(n, str) else format(n, ',')})"
        for row, n in zip(rows, left, strict=True)
    ]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.margins(y=0.5 / max(len(rows), 1))
    axis.invert_yaxis()
    axis.set(xlabel="test accuracy before (ring) and after removal (dot), %")
    axis.grid(alpha=0.3)
