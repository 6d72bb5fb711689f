"""Figures of structure: the groups of a network, widths before and after, fronts.

Colors are helped by letters, hatches and markers, so that a figure reads in black and
white.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jprune._errors import type_error, value_error
from jprune._groups import Group
from jprune.analysis._plots import _figure
from jprune.surgery import Groups, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FROZEN = "0.92"
_COLORS = [f"C{i}" for i in range(10)]
_HATCHES = ("", "//", "..", "xx", "\\\\")
_MARKERS = "os^Dv<>PX*"


def plot_groups(deps: Groups, plan: Plan | None = None, *, most: int = 40) -> Figure:
    """The parameters of a network with their axes; axes of one group look alike.

    A row is a parameter, a box one of its axes with its length. Boxes with the same
    letter and color shrink together; gray boxes may not go.

    Args:
      deps: what `surgery.groups(fn)(params, *args)` returns.
      plan: if given, the removed share of an axis is drawn as a white part of its box,
        and the box says how many coordinates stay.
      most: the most parameters drawn; the others are counted below the figure.

    Returns:
      A matplotlib figure.

    Raises:
      ImportError: if matplotlib is missing; names the extra that brings it.
      TypeError: if `deps` is not what `surgery.groups(fn)` returns when called.
      ValueError: if no parameter has an axis.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import analysis, surgery
      >>> net = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
      >>> p = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> figure = analysis.plot_groups(surgery.groups(net)(p, jnp.ones((1, 4))))
      >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
      ['a', 'b']
    """
    _require_groups(deps)
    marks = dict(zip((g.id for g in deps), _marks(), strict=False))
    owners = _owners(deps)
    shapes = {path: shape for path, shape in deps.shapes.items() if shape}
    if not shapes:
        raise value_error("`deps` must have a parameter with an axis, got none.")
    shown = list(shapes.items())[:most]
    columns = max(len(shape) for _, shape in shown)
    figure = _figure(3.5 + 1.1 * columns, 0.9 + 0.32 * len(shown))
    axes = figure.add_subplot()
    for row, (path, shape) in enumerate(shown):
        for axis, length in enumerate(shape):
            letters = [marks[g] for g in owners.get((path, axis), ())]
            kept = length if plan is None else int(plan.keep[path][axis].sum())
            _box(axes, row, axis, length, kept, letters)
    axes.set_yticks(range(len(shown)), ["/".join(map(str, path)) for path, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(-0.05, columns)
    axes.set_xticks(
        [i + 0.45 for i in range(columns)], [f"axis {i}" for i in range(columns)]
    )
    left = len(shapes) - len(shown)
    axes.set_xlabel(f"and {left} more parameters" if left else "")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def plot_widths(deps: Groups, plan: Plan, *, most: int = 40) -> Figure:
    """Bars of the size of each group before the cut and after.

    Args:
      deps: the groups.
      plan: what is removed.
      most: the most groups drawn, in the order of the parameters.

    Returns:
      A matplotlib figure: the outline is the dense size, the filled part what stays.

    Raises:
      ImportError: if matplotlib is missing; names the extra that brings it.
      TypeError: if `deps` is not what `surgery.groups(fn)` returns when called.
      ValueError: if there are no groups.
    """
    _require_groups(deps)
    shown = [group for group in deps if group.kind == "coupled"][:most]
    if not shown:
        raise value_error("`deps` must have a coupled group, got none.")
    figure = _figure(8.0, 1.2 + 0.28 * len(shown))
    axes = figure.add_subplot()
    at = range(len(shown))
    dense = [group.size for group in shown]
    axes.barh(at, dense, 0.7, fill=False, edgecolor="0.3", label="before")
    axes.barh(at, [_kept(plan, group) for group in shown], 0.7, label="after")
    axes.set_yticks(at, [group.id for group in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("coordinates (channels, heads, units)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def plot_front(
    runs: Mapping[str, Sequence[Sequence[float]]],
    *,
    x: str = "FLOPs left (%)",
    y: str = "test accuracy (%)",
    dense: float | None = None,
) -> Figure:
    """Quality against cost: one line for each method, with error bars if given.

    Args:
      runs: for each method its points, `(cost, quality)` or `(cost, quality, spread)`;
        drawn in the order of the cost.
      x: label of the cost, with its unit.
      y: label of the quality, with its unit.
      dense: quality of the dense network, as a dashed line.

    Returns:
      A matplotlib figure.

    Raises:
      ImportError: if matplotlib is missing; names the extra that brings it.
      ValueError: if there is no point, or points with other than two or three numbers.

    Examples:
      >>> from jprune.analysis import plot_front
      >>> figure = plot_front({"L1": [(50, 97.1), (25, 95.0)]}, dense=97.9)
      >>> figure.axes[0].get_xlabel()
      'FLOPs left (%)'
    """
    if not any(len(points) for points in runs.values()):
        raise value_error("`runs` must hold at least one point, got none.")
    figure = _figure(7.0, 4.6)
    axes = figure.add_subplot()
    for i, (label, points) in enumerate(runs.items()):
        sizes = {len(point) for point in points}
        if len(sizes) > 1 or not sizes <= {2, 3}:
            raise value_error(
                f"`runs[{label!r}]` must hold points (cost, quality) or all of them "
                f"(cost, quality, spread); got points of {sorted(sizes)} numbers."
            )
        columns = (
            np.asarray(sorted(map(tuple, points)), np.float64)
            .reshape(len(points), -1)
            .T
        )
        spread = columns[2] if len(columns) == 3 else None
        axes.errorbar(
            columns[0], columns[1], spread, label=label, capsize=2,
            marker=_MARKERS[i % len(_MARKERS)], markersize=5, linewidth=1,
        )  # fmt: skip
    if dense is not None:
        axes.axhline(dense, color="0.4", linestyle="--", linewidth=1, label="dense")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _require_groups(deps: Any) -> None:
    if not isinstance(deps, Groups):
        raise type_error(
            "`deps` must be what `surgery.groups(fn)(params, *args)` returns, got "
            f"{type(deps).__name__}."
        )


def _marks() -> list[str]:
    """A, B, ..., Z, AA, AB, ...: a name for each of up to 702 groups."""
    letters = string.ascii_uppercase
    return [*letters, *(a + b for a in letters for b in letters)]


def _owners(deps: Groups) -> dict[tuple[Any, int], list[str]]:
    """For each parameter axis the groups that lie on it."""
    found: dict[tuple[Any, int], list[str]] = {}
    for group in deps:
        for ref in group.members:
            found.setdefault((ref.path, ref.axis), []).append(group.id)
    return found


def _kept(plan: Plan, group: Group) -> int:
    ref = group.members[0]
    keep = plan.keep[ref.path][ref.axis]
    labels = ref.coordinates(group.size)
    return len(set(labels[keep].tolist()) - {-1})


def _box(
    axes: Axes, row: int, axis: int, length: int, kept: int, letters: Sequence[str]
) -> None:
    """One axis of one parameter: kept part filled, removed part white."""
    index = _marks().index(letters[0]) if letters else None
    face = _FROZEN if index is None else _COLORS[index % len(_COLORS)]
    hatch = "" if index is None else _HATCHES[index // len(_COLORS) % len(_HATCHES)]
    axes.barh(row, 0.9, 0.7, axis, align="center", fill=False, edgecolor="0.5")
    axes.barh(
        row, 0.9 * kept / max(length, 1), 0.7, axis,
        color=face, alpha=0.55 if letters else 1.0, hatch=hatch, edgecolor="0.5",
    )  # fmt: skip
    count = str(length) if kept == length else f"{length} → {kept}"
    name = f"{'+'.join(letters[:3])}: " if letters else ""
    axes.text(axis + 0.45, row, name + count, ha="center", va="center", fontsize=8)
