"""The table in docs/language_models.md: what is removable in which language model.

It is made from the groups of small networks (`language_nets`), compared with the page,
and every removable cell is removed and compared with the zeroed network in float64.
`python -m tests.surgery.test_language_table` writes it.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from jprune import surgery
from jprune.surgery import Group
from tests.surgery.language_nets import (
    VOCABULARY,
    Form,
    decoder,
    mamba,
    mamba_parameters,
    parameters,
)
from tests.surgery.nets import tokens
from tests.surgery.proof import QUICK

PAGE = Path(__file__).parents[2] / "docs" / "language_models.md"
MARK = "<!-- what is removable -->"
TEXT = tokens(2, 5, VOCABULARY)
MIXTURE = tuple(rf"layers/(\d)/{x}" for x in ("router:1", "up:0", "down:0"))

FORMS = {
    "multi-head attention, plain MLP": Form(),
    "grouped queries (GQA)": Form(kv=2),
    "one key head (MQA)": Form(kv=1),
    "RoPE by halves": Form(rotary="halves"),
    "RoPE in pairs": Form(rotary="pairs"),
    "ALiBi": Form(bias="alibi"),
    "T5 biases": Form(bias="t5"),
    "sliding window": Form(window=3),
    "SwiGLU": Form(mlp="gated"),
    "tied head": Form(tied=True),
    "untied head": Form(tied=False),
    "experts, all weighted": Form(mlp="soft"),
    "experts, top 2 by a mask": Form(mlp="top"),
    "experts, top 2 looked up": Form(mlp="gather"),
}
MAMBA = "Mamba"
ROWS = (*FORMS, MAMBA)


pytestmark = pytest.mark.usefixtures("double")


class Net(NamedTuple):
    """A network and its groups, without and with a request for what is looked up."""

    fn: Callable[..., Any]
    params: Any
    plain: surgery.Groups
    asked: surgery.Groups


@cache
def net(row: str) -> Net:
    """The network of a row."""
    if row == MAMBA:
        fn, params, lookups = mamba, mamba_parameters(), ["embedding:0"]
    else:
        form = FORMS[row]
        fn, params = partial(decoder, form=form), parameters(form)
        tied = ("embedding:0",) if form.tied else ("embedding:0", "head:1")
        lookups = [tied, *([MIXTURE] if "experts" in row else [])]
    plain = surgery.groups(fn)(params, TEXT)
    return Net(fn, params, plain, surgery.groups(fn, lookups=lookups)(params, TEXT))


def on(deps: surgery.Groups, axis: str) -> dict[str, tuple[Group, int]]:
    """The groups on an axis of a parameter, and how many positions a coordinate has."""
    found = {}
    for group in deps:
        for ref in group.members:
            if f"{'/'.join(map(str, ref.path))}:{ref.axis}" == axis:
                where = ref.coordinates(group.size)
                found[group.id] = (group, int((where == 0).sum()))
    return found


def axes_of(row: str) -> dict[str, list[str]]:
    """For each column the parameter axes that show it, in the first layer."""
    at = "layers/0/"
    columns = {"stream": ["embedding:1"], "vocabulary": ["embedding:0"]}
    if row == MAMBA:
        return {**columns, "head or state dims": [f"{at}a:1"], "inner": [f"{at}in:1"]}
    form, expert = FORMS[row], "experts" in row
    columns["head or state dims"] = [f"{at}key:2", f"{at}value:2"]
    columns["inner"] = [f"{at}up:{2 if expert else 1}"]
    columns["heads"] = [f"{at}query:1"]
    if form.kv < form.heads:
        columns["key heads"] = [f"{at}key:1"]
    if expert:
        columns["experts"] = [f"{at}router:1"]
    return columns


COLUMNS = (
    "heads",
    "key heads",
    "head or state dims",
    "inner",
    "stream",
    "vocabulary",
    "experts",
)


def groups_of(row: str, column: str) -> list[dict[str, tuple[Group, int]]]:
    """The groups of a cell, for each of its axes; on request where nothing else."""
    out = []
    for axis in axes_of(row).get(column, []):
        found = on(net(row).plain, axis) or on(net(row).asked, axis)
        if column == "heads" and "key heads" in axes_of(row):
            shared = on(net(row).plain, axis.replace("query", "key"))
            found = {name: x for name, x in found.items() if name not in shared}
        out.append(found)
    return out


def cell(row: str, column: str) -> str:
    """What a cell of the table says."""
    parts = []
    axes = axes_of(row).get(column, [])
    for axis, found in zip(axes, groups_of(row, column), strict=True):
        (text,) = [_size(g, n) for g, n in found.values()] or [_why(row, axis)]
        asked = found and not on(net(row).plain, axis)
        parts.append(text + (" if asked" if asked else ""))
    if len(parts) == 2 and parts[0] != parts[1]:
        return f"q, k: {parts[0]}; v: {parts[1]}"
    return parts[0] if parts else "-"


def _size(group: Group, positions: int) -> str:
    return str(group.size) + (f" x {positions}" if positions > 1 else "")


def _why(row: str, axis: str) -> str:
    """The reason why an axis stays."""
    name, _, number = axis.rpartition(":")
    for item in net(row).asked.frozen():
        if ("/".join(map(str, item.path)), item.axis) == (name, int(number)):
            return f"no: {item.why}"
    return "no: there is one"


def table() -> str:
    """The table as Markdown."""
    lines = ["| network | " + " | ".join(COLUMNS) + " |", "|---" * 8 + "|"]
    for row in ROWS:
        lines.append("| " + " | ".join([row, *(cell(row, c) for c in COLUMNS)]) + " |")
    return "\n".join(lines)


def test_the_page_has_the_table():
    before, inside, after = PAGE.read_text().split(MARK)
    assert before and after
    assert inside.strip() == table(), f"run: python -m {__spec__.name}\n{table()}"


def test_every_removable_group_is_exact():
    for row in ROWS:
        found = {name for c in COLUMNS for g in groups_of(row, c) for name in g}
        assert len(found) >= 4
        ways = {name: net(row).asked.exactness[name] for name in found}
        assert all(e.exact for e in ways.values()), (row, ways)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_each_cell_removed(row: str):
    """Forward for each cell, forward and gradient for all of them at once."""
    fn, params, _, deps = net(row)
    every: dict[str, np.ndarray] = {}
    run = partial(jax.jit, compiler_options=QUICK)
    dense = run(fn)
    for column in COLUMNS:
        keep = {}
        for found in groups_of(row, column):
            for name, (group, _) in found.items():
                keep[name] = np.arange(group.size) % 2 == 0
        if not keep:
            assert cell(row, column).startswith(("-", "no"))
            continue
        every |= keep
        plan = surgery.plan_from_keep(deps, keep)
        got = run(surgery.shrink(fn, plan))(plan.pack(params), TEXT)
        want = dense(plan.zero(params), TEXT)
        if column == "vocabulary":
            want = want[..., plan.numbering("embedding:0").old]
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-10 * np.abs(want).max()
    plan = surgery.plan_from_keep(deps, every)
    report = surgery.verify(fn, plan, params, TEXT, gradient=True, limit=1.0)
    assert report.ok and report.error <= 1e-10, report
    assert report.gradient_error is not None and report.gradient_error <= 1e-10


if __name__ == "__main__":
    before, _, after = PAGE.read_text().split(MARK)
    PAGE.write_text(f"{before}{MARK}\n\n{table()}\n\n{MARK}{after}")
