"""Tables for people: repeated blocks are one line, nothing is lost."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import surgery
from jprune.surgery._table import fold


def net(p: Any, x: Any) -> Any:
    """A stream with three equal branches."""
    h = x @ p["embed"]
    for block in p["blocks"]:
        h = h + jnp.tanh(h @ block["up"]) @ block["down"]
    return h @ p["head"]


def deps_of(widths: list[int]) -> Any:
    def shape(*s: int) -> Any:
        return jax.ShapeDtypeStruct(s, jnp.float32)

    blocks = [{"up": shape(6, n), "down": shape(n, 6)} for n in widths]
    params = {"embed": shape(4, 6), "blocks": blocks, "head": shape(6, 3)}
    return surgery.groups(net)(params, shape(2, 4))


def test_rows_that_differ_in_numbers_are_one():
    rows = [("a/0/w:1", 8), ("a/1/w:1", 8), ("a/1/w:0", 8), ("a/2/w:1", 9), ("b_3", 8)]
    assert fold(rows) == [
        ("a/*/w:1", 8, 2),
        ("a/1/w:0", 8, 1),
        ("a/2/w:1", 9, 1),
        ("b_3", 8, 1),
    ]
    # A number that is the same in all of them stays.
    assert fold([("a_1/b_0", 0), ("a_1/b_4", 0)]) == [("a_1/b_*", 0, 2)]


def test_groups_of_equal_blocks_are_one_line():
    lines = deps_of([8, 8, 8]).table().splitlines()
    assert any(line.startswith("blocks/*/up:1 x 3") for line in lines)
    (stream,) = [line for line in lines if "embed:1 (out)" in line]
    assert "blocks/*/up:0 (in) x 3" in stream and "blocks/*/down:1 (out) x 3" in stream
    lines = deps_of([8, 8, 5]).table().splitlines()
    assert any(line.startswith("blocks/*/up:1 x 2") for line in lines)
    assert any(line.startswith("blocks/2/up:1 ") for line in lines)


def test_the_table_of_a_plan_says_what_goes():
    deps = deps_of([8, 8, 8])
    (stream,) = [g.id for g in deps.find("embed:1")]
    keep = {"blocks/0/up:1": range(4), "blocks/1/up:1": range(4), stream: range(5)}
    plan = surgery.plan_from_keep(deps, keep)
    rows = {tuple(line.split()) for line in plan.table().splitlines()}
    assert ("blocks/*/up", "x", "2", "6x8", "5x4") in rows
    assert ("blocks/2/up", "6x8", "5x8") in rows
    assert ("head", "6x3", "5x3") in rows
    assert ("blocks/*/up:1", "x", "2", "8", "4", "50%") in rows
    assert (stream, "6", "5", "17%") in rows
    before = sum(int(np.prod(s)) for s in plan.dense_shapes.values())
    after = sum(int(np.prod(s)) for s in plan.compact_shapes.values())
    assert ("scalars", str(before), "->", str(after)) in rows
    whole = surgery.plan_from_keep(deps, {}).table()
    assert "group" not in whole and "blocks/*/up x 3" in whole
