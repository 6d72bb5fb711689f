"""The report of `Groups.table()`."""

from typing import Any

import numpy as np

from jprune._tree import keys_text


def table(deps: Any) -> str:
    """Groups, frozen axes, ties: one line each."""
    lines = [_row("group", "size", "kind", "exact", "members")]
    for group in deps:
        exact = deps.exactness[group.id]
        way = exact.way if exact.exact else f"no: {exact.why}"
        members = ", ".join(
            f"{keys_text(m.path)}:{m.axis} ({m.role})" for m in group.members
        )
        lines.append(_row(group.id, group.size, group.kind, way, members))
    if len(deps) == 0:
        lines.append("no group can be removed")
    lines += _frozen(deps) + _chunks(deps) + _ties(deps)
    return "\n".join(lines)


def _row(name: Any, size: Any, kind: Any, exact: Any, members: Any) -> str:
    return f"{name:<40} {size!s:>6}  {kind:<9} {exact:<9} {members}"


def _frozen(deps: Any) -> list[str]:
    lines = ["", "frozen:"]
    for item in deps.frozen():
        by = f" [{item.primitive}]" if item.primitive else ""
        where = f"{keys_text(item.path)}:{item.axis}[{item.start}:{item.stop}]"
        lines.append(f"  {where}  {item.why}{by}")
    return lines if len(lines) > 2 else []


def _chunks(deps: Any) -> list[str]:
    """The smallest removable number of positions on axes where it is not 1."""
    lines = ["", "smallest removable chunk (positions):"]
    for path, axes in deps.params.items():
        for axis in range(len(axes)):
            sizes = [
                int(np.bincount(m.coordinates(group.size) + 1)[1:].min())
                for group in deps
                for m in group.members
                if m.path == path and m.axis == axis and m.labels is not None
            ]
            if sizes and min(sizes) > 1:
                name = keys_text(path)
                lines.append(f"  {name}:{axis}  {min(sizes)} of {axes[axis].size}")
    return lines if len(lines) > 2 else []


def _ties(deps: Any) -> list[str]:
    lines = ["", "outputs tied to parameters (state):"]
    for out, param in deps.program.ties:
        lines.append(f"  {keys_text(out)} = {keys_text(param)}")
    return lines if len(lines) > 2 else []
