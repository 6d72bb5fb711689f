"""The figure of a comparison of compact networks: accuracy against what they cost."""

from collections.abc import Sequence
from pathlib import Path

from experiments.files import replacing
from experiments.results import Row

Point = tuple[Row, float, float]
"""A row, its mean accuracy, and the error of that."""


def costed(points: Sequence[Point]) -> list[Point]:
    """The rows that a cut to a budget left, with their FLOPs and latency."""

    def cut(row: Row) -> bool:
        named = set(row.extra or {})
        return {"flops", "ms", "dense ms"} <= named and bool(
            named & {"at the cut", "energy"}
        )

    return [found for found in points if cut(found[0])]


def draw(
    path: Path, points: Sequence[Point], dense: float | None, *, title: str, label: str
) -> None:
    """Two panels, FLOPs and measured latency, a marker for each method.

    Args:
      path: of the image.
      points: of `costed`; the name of a method ends at the comma.
      dense: accuracy of the dense network, a dashed line; None for none.
      title: above both.
      label: of the accuracy.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True)
    names = list(dict.fromkeys(row.run.partition(",")[0] for row, _, _ in points))
    for axis, share in zip(axes, (flops_left, time_left), strict=True):
        for at, name in enumerate(names):
            mine = [p for p in points if p[0].run.partition(",")[0] == name]
            axis.errorbar(
                [100 * share(row) for row, _, _ in mine],
                [100 * mean for _, mean, _ in mine],
                [100 * error for _, _, error in mine],
                fmt="osD^v<>PX*hd8p"[at % 14],
                ms=5,
                capsize=2,
                label=name,
            )
        if dense is not None:
            axis.axhline(100 * dense, color="0.4", ls="--", lw=1, label="dense")
        axis.grid(alpha=0.3)
    axes[0].set(xlabel="FLOPs left, % of the dense network's", ylabel=label)
    axes[1].set(xlabel="time for 200 images, % of the dense network's")
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    drawn.suptitle(title, fontsize=9)
    with replacing(path) as beside:
        drawn.savefig(beside, dpi=90, bbox_inches="tight")
    plt.close(drawn)


def flops_left(row: Row) -> float:
    """FLOPs over the dense network's."""
    return float((row.extra or {})["flops"] or 0)


def time_left(row: Row) -> float:
    """Time over the dense network's, both measured in turns."""
    extra = row.extra or {}
    return float(extra["ms"] or 0) / float(extra["dense ms"] or 1)
