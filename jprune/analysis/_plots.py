"""Figures: the sparsity of each leaf, and how a run went.

The only place in jprune where matplotlib is imported, inside the functions. A figure is
made without pyplot, so nothing global changes and no window system is needed; save it
with `figure.savefig(path)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jprune._errors import type_error, value_error
from jprune.analysis._report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sparsity(*reports: Report, labels: Sequence[str] | None = None) -> Figure:
    """Bars of the sparsity of each leaf in scope, one color per report.

    Args:
      *reports: what `report` returned, e.g. for several methods on one network.
      labels: a name for each report, for the legend.

    Returns:
      A matplotlib figure. Leaves run from top to bottom in the order of the reports; a
      dashed line marks each report's sparsity over all its leaves in scope.

    Raises:
      ImportError: if matplotlib is missing; names the extra that brings it.
      TypeError: if an argument is not a `Report`.
      ValueError: if there is nothing to draw or `labels` has another length.

    Examples:
      >>> import numpy as np
      >>> from jprune.analysis import plot_sparsity, report
      >>> figure = plot_sparsity(report({"kernel": np.eye(4)}))
      >>> figure.axes[0].get_xlabel()
      'sparsity (%)'
    """
    for given in reports:
        if not isinstance(given, Report):
            raise type_error(
                "`plot_sparsity` draws what `report` returns: call "
                f"`plot_sparsity(report(params))`, got {type(given).__name__}."
            )
    paths = list(
        dict.fromkeys(r.path for rep in reports for r in rep.rows if r.in_scope)
    )
    if not paths:
        raise value_error("`reports` must hold at least one leaf in scope, got none.")
    if labels is not None and len(labels) != len(reports):
        raise value_error(
            f"`labels` must name each of the {len(reports)} reports, got {len(labels)}."
        )
    figure = _figure(8.0, 1.2 + 0.28 * len(paths))
    axes = figure.add_subplot()
    height = 0.8 / len(reports)
    for i, given in enumerate(reports):
        found = {row.path: row.sparsity for row in given.rows if row.in_scope}
        at = [
            j + (i + 0.5) * height - 0.4
            for j, path in enumerate(paths)
            if path in found
        ]
        bars = axes.barh(
            at,
            [100 * found[path] for path in paths if path in found],
            height,
            label=labels[i] if labels else None,
        )
        axes.axvline(
            100 * given.in_scope.sparsity,
            color=bars.patches[0].get_facecolor() if bars.patches else None,
            linestyle="--",
            linewidth=1,
        )
    axes.set_yticks(range(len(paths)), paths)
    axes.set_ylim(len(paths) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("sparsity (%)")
    if labels:
        figure.legend(loc="outside upper center", ncols=min(4, len(labels)))
    return figure


def plot_history(
    history: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
    keys: Sequence[str] | None = None,
    *,
    x: str = "step",
) -> Figure:
    """Curves of logged numbers against the step, one panel per number.

    Args:
      history: records of one run, as read line by line from a JSON-lines log: each maps
        names to numbers and holds `x`. Or several runs, as `{label: records}`. A record
        need not hold every key.
      keys: what to draw. None: every key but `x` whose values are numbers, in the order
        of first appearance.
      x: the key of the horizontal axis.

    Returns:
      A matplotlib figure with one panel per key, stacked, sharing the horizontal axis.

    Raises:
      ImportError: if matplotlib is missing; names the extra that brings it.
      ValueError: if no record holds both `x` and a key to draw.

    Examples:
      >>> from jprune.analysis import plot_history
      >>> figure = plot_history([{"step": 0, "loss": 2.3}, {"step": 1, "loss": 1.9}])
      >>> [axes.get_ylabel() for axes in figure.axes]
      ['loss']
    """
    runs = history if isinstance(history, Mapping) else {"": history}
    records = [record for run in runs.values() for record in run if x in record]
    known = list(dict.fromkeys(k for record in records for k in record if k != x))
    if keys is None:
        keys = [k for k in known if _numeric(next(r[k] for r in records if k in r))]
    missing = [key for key in keys if key not in known]
    if missing or not keys:
        raise value_error(
            f"`history` must hold records with {x!r} and {missing or 'a number'}; its "
            f"records with {x!r} hold {known or 'nothing else'}."
        )
    figure = _figure(8.0, 0.8 + 1.8 * len(keys))
    panels = figure.subplots(len(keys), 1, sharex=True, squeeze=False)[:, 0]
    for key, axes in zip(keys, panels, strict=True):
        for label, run in runs.items():
            points = [(r[x], r[key]) for r in run if x in r and key in r]
            axes.plot(*zip(*points, strict=True), label=label) if points else None
        axes.set_ylabel(key)
    panels[-1].set_xlabel(x)
    if any(runs):
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=4)
    return figure


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "[jprune] Figures need matplotlib: `pip install 'jprune[plots]'`."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
