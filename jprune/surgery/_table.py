"""The reports of `Groups.table()` and `Plan.table()`: repeated blocks are one line.

Lines that differ only in the numbers of their paths (`blocks/0/mlp`, `blocks/1/mlp`)
are folded into one, `blocks/*/mlp x 2`, in the place of the first.
"""

import re
import textwrap
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from jprune._tree import keys_text
from jprune.surgery._axes import leaves


def table(deps: Any, folded: bool = True) -> str:
    """Groups, frozen axes, ties."""
    rows = []
    for group in deps:
        exact = deps.exactness[group.id]
        way = exact.way if exact.exact else f"no: {exact.why}"
        refs = [f"{keys_text(m.path)}:{m.axis} ({m.role})" for m in group.members]
        members = ", ".join(
            _times(text, n) for text, _, n in fold((m, 0) for m in refs)
        )
        head = (group.size, group.place, group.kind, way)
        rows.append((group.id, (head, _starred(members), members)))
    first = {name: rest[2] for name, rest in rows}
    if folded:
        alike = fold((name, rest[:2]) for name, rest in rows)
    else:
        alike = [(name, rest[:2], 1) for name, rest in rows]
    body = [
        (_times(name, n), *map(str, head), first.get(name, members))
        for name, (head, members), n in alike
    ]
    lines = _wrapped(("group", "size", "axis", "kind", "exact", "members"), body)
    if len(deps) == 0:
        lines.append("no group can be removed")
    lines += _frozen(deps) + _chunks(deps) + _ties(deps) + _state(deps)
    return "\n".join(lines)


def plan_table(plan: Any) -> str:
    """Shapes before and after, what each group lost, and the number of scalars."""
    after = plan.compact_shapes
    rows = [
        (keys_text(path) or "params", (_shape(shape), _shape(after[path])))
        for path, shape in plan.dense_shapes.items()
    ]
    smaller = [(name, shapes) for name, shapes in rows if shapes[0] != shapes[1]]
    body = [
        (_times(name, n), before, now if now != before else "")
        for name, (before, now), n in _beside(fold(smaller or rows))
    ]
    lines = _columns(("parameter", "before", "after"), body)
    if 0 < len(smaller) < len(rows):
        lines.append(f"{len(rows) - len(smaller)} more stay as they are")
    if plan.groups:
        groups = [(name, counts) for name, counts in plan.groups.items()]
        body = [
            (_times(name, n), str(size), str(kept), f"{1 - kept / size:.0%}")
            for name, (kept, size), n in fold(groups)
        ]
        lines += ["", *_columns(("group", "size", "kept", "lost"), body)]
    sizes = [
        sum(map(_product, shapes.values())) for shapes in (plan.dense_shapes, after)
    ]
    lines += ["", f"scalars {sizes[0]:,} -> {sizes[1]:,}"]
    if plan.measured is not None:
        lines.append(f"measured again, of the dense: {plan.measured}")
    return "\n".join(lines)


def changed(plan: Any) -> list[str]:
    """The leaves that a plan makes smaller, as lines `name  before -> after`."""
    after = plan.compact_shapes
    rows = [
        (keys_text(path) or "params", (_shape(shape), _shape(after[path])))
        for path, shape in plan.dense_shapes.items()
        if after[path] != shape
    ]
    body = [(_times(name, n), f"{a} -> {b}") for name, (a, b), n in fold(rows)]
    return _columns(("", ""), body)[1:] if body else ["nothing is removed"]


def fold(rows: Iterable[tuple[str, Hashable]]) -> list[tuple[str, Any, int]]:
    """Rows with equal rests whose texts differ in numbers only, as one.

    Returns:
      The text (with a star for each number that differs between the rows it stands
      for), the rest and how many, in the order of first appearance.
    """
    found: dict[Any, list[str]] = {}
    for text, rest in rows:
        found.setdefault((_starred(text), rest), []).append(text)
    return [(_together(texts), rest, len(texts)) for (_, rest), texts in found.items()]


_NUMBER = re.compile(r"(?<![:\d])(\d+)(?=[/_.\s]|$|:\d)")  # of a path, not an axis


def _beside(rows: list[tuple[str, Any, int]]) -> list[tuple[str, Any, int]]:
    """Leaves of one module with equal rests as one, `norm/{bias,scale}`."""
    found: dict[Any, list[str]] = {}
    for text, rest, n in rows:
        path, value = (text[:-6], "/value") if text.endswith("/value") else (text, "")
        parent, slash, name = path.rpartition("/")
        found.setdefault((parent + slash, value, rest, n), []).append(name)
    return [
        (f"{at}{names[0] if len(names) == 1 else _braced(names)}{value}", rest, n)
        for (at, value, rest, n), names in found.items()
    ]


def _braced(names: list[str]) -> str:
    return "{" + ",".join(names) + "}"


def _together(texts: list[str]) -> str:
    """One text for several: a star where their numbers differ."""
    parts = zip(*map(_NUMBER.split, texts), strict=True)
    return "".join(p[0] if len(set(p)) == 1 else "*" for p in parts)


def _starred(text: str) -> str:
    """The text with a star for each number in its paths, axes aside."""
    return _NUMBER.sub("*", text)


def _times(text: str, n: int) -> str:
    return text if n == 1 else f"{text} x {n}"


def _columns(head: tuple[str, ...], body: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return [
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (head, *body)
    ]


_WIDTH = 110
"""Of a line of members, where it can be broken."""

_NO_BREAK = "\N{NO-BREAK SPACE}"


def _wrapped(head: tuple[str, ...], body: list[tuple[str, ...]]) -> list[str]:
    """Columns, the last of which is broken into lines that begin below it.

    What does not fit the width of its column pushes the rest of its line to the right:
    a reason why a removal is not exact is a sentence.
    """
    cells = list(zip(head, *(row for row in body if len(row[4]) < 12), strict=True))
    widths = [max(map(len, column)) for column in cells[:-1]]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for row in (head, *body):
        fixed = zip(row[:-1], widths, strict=True)
        before = "".join(f"{cell:<{width}}  " for cell, width in fixed)
        whole = row[-1].replace(" ", _NO_BREAK).replace(f",{_NO_BREAK}", ", ")
        width = max(_WIDTH - indent, 40)
        broken = textwrap.wrap(whole, width, break_long_words=False) or [""]
        first, *rest = (line.replace(_NO_BREAK, " ") for line in broken)
        lines += [(before + first).rstrip(), *(" " * indent + line for line in rest)]
    return lines


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _product(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _frozen(deps: Any) -> list[str]:
    rows = []
    for item in deps.frozen():
        by = f" [{item.primitive}]" if item.primitive else ""
        where = f"[{item.start}:{item.stop}]  {item.why}{by}"
        rows.append((f"{keys_text(item.path)}:{item.axis}", where))
    lines = [f"  {name}{_end(rest, n)}" for name, rest, n in fold(rows)]
    return ["", "frozen:", *lines] if lines else []


def _end(rest: str, n: int) -> str:
    """The rest of a line, with how many it stands for behind the positions."""
    where, _, why = rest.partition("  ")
    return f"{_times(where, n)}  {why}"


def _chunks(deps: Any) -> list[str]:
    """The smallest removable number of positions on axes where it is not 1."""
    least: dict[Any, int] = {}
    for group in deps:
        for ref in group.members:
            if ref.labels is not None:
                held = np.bincount(ref.coordinates(group.size) + 1)[1:]
                at = (ref.path, ref.axis)
                least[at] = min(
                    int(held.min()), least.get(at, int(held.size * held.max()))
                )
    rows = [
        (f"{keys_text(path)}:{axis}", f"{n} of {deps.shapes[path][axis]}")
        for (path, axis), n in sorted(least.items(), key=lambda item: str(item[0]))
        if n > 1
    ]
    lines = [f"  {_times(name, n)}  {rest}" for name, rest, n in fold(rows)]
    return ["", "smallest removable chunk (positions):", *lines] if lines else []


def _ties(deps: Any) -> list[str]:
    rows = [(f"{keys_text(a)} = {keys_text(b)}", "") for a, b in deps.program.ties]
    lines = [f"  {_times(text, n)}" for text, _, n in fold(rows)]
    return ["", "outputs tied to parameters (state):", *lines] if lines else []


def _state(deps: Any) -> list[str]:
    """The axes of declared arguments that shrink, and with what."""
    name = {atom: group for group, atom in deps.atoms.items()}
    rows = []
    for path, axes in deps.program.inputs.items():
        for axis, term in enumerate(axes):
            found = dict.fromkeys(name[a] for a in leaves(term) if a in name)
            if found:
                rows.append((f"{keys_text(path)}:{axis} with {', '.join(found)}", ""))
    lines = [f"  {_times(text, n)}" for text, _, n in fold(rows)]
    return ["", "arguments that shrink (state):", *lines] if lines else []
