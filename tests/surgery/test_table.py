"""Tables for people: repeated blocks are one line, nothing is lost."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import surgery
from jprune._groups import AxisRef, Run
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
    text = deps_of([8, 8, 8]).table()
    assert max(map(len, text.splitlines())) <= 110
    lines = " ".join(text.split("\n  ")).splitlines()  # rows that are broken, whole
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
    fewer = surgery.plan_from_keep(deps, {"blocks/0/up:1": range(4)}).table()
    assert "embed" not in fewer and "\n6 more stay as they are\n" in fewer
    assert ("blocks/*/up:1", "x", "2", "8", "4", "50%") in rows
    assert (stream, "6", "5", "17%") in rows
    before = sum(int(np.prod(s)) for s in plan.dense_shapes.values())
    after = sum(int(np.prod(s)) for s in plan.compact_shapes.values())
    assert ("scalars", str(before), "->", str(after)) in rows
    whole = surgery.plan_from_keep(deps, {}).table()
    assert "group" not in whole and "blocks/*/up x 3" in whole


def test_every_id_is_shown_when_asked():
    ids = {line.split(" ")[0] for line in deps_of([8, 8, 8]).table().splitlines()}
    assert "blocks/*/up:1" in ids and "blocks/1/up:1" not in ids
    text = deps_of([8, 8, 8]).table(fold=False)
    ids = {line.split(" ")[0] for line in text.splitlines()}
    assert ids >= {"blocks/0/up:1", "blocks/1/up:1", "blocks/2/up:1"}


def test_a_group_says_where_it_lies_on_a_fused_axis():
    """An axis of 4 heads of 6: heads, their dimensions, pairs of dimensions."""
    coordinate = np.arange(24)
    for labels, size, place in (
        (coordinate // 6, 4, "[4] x 6"),
        (coordinate % 6, 6, "4 x [6]"),
        (coordinate % 6 // 2, 3, "4 x [3] x 2"),
        (coordinate % 3, 3, "8 x [3]"),
        (np.where(coordinate < 3, coordinate, -1), 3, "[3] in parts of 24"),
        (coordinate[::-1], 24, "[24] in parts of 24"),
    ):
        assert AxisRef(("w",), 1, "out", tuple(labels.tolist())).place(size) == place
    assert AxisRef(("w",), 1).place(24) == "[24]"
    assert AxisRef(("w",), 1, "out", Run(8, 4, 24)).place(4) == "[4] at 8 of 24"


def test_heads_are_told_from_their_dimensions():
    def attention(p: Any, x: Any) -> Any:
        q, k, v = ((x @ p[n]).reshape(2, 5, 4, 6) for n in "qkv")
        a = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", a, v).reshape(2, 5, 24) @ p["o"]

    shape = jax.ShapeDtypeStruct
    params = {n: shape((8, 24), jnp.float32) for n in "qkv"}
    params["o"] = shape((24, 8), jnp.float32)
    deps = surgery.groups(attention)(params, shape((2, 5, 8), jnp.float32))
    assert {g.id: g.place for g in deps} == {
        "k:1": "[4] x 6",
        "k:1#1": "4 x [6]",
        "v:1": "4 x [6]",
    }
    assert "k:1#1  6     4 x [6]  coupled" in deps.table()
    assert repr(deps["k:1"]) == "<Group 'k:1': [4] x 6, coupled, 4 axes>"


def test_leaves_of_one_module_are_one_line():
    def net_with_norm(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["w"] * p["norm"]["scale"] + p["norm"]["bias"])
        return h @ p["v"]

    norm = {"scale": jnp.ones((1, 8)), "bias": jnp.ones((1, 8))}
    params = {"w": jnp.ones((4, 8)), "norm": norm, "v": jnp.ones((8, 2))}
    deps = surgery.groups(net_with_norm)(params, jnp.ones((1, 4)))
    plan = surgery.plan_from_keep(deps, {g.id: [0, 2] for g in deps})
    rows = {tuple(line.split()) for line in plan.table().splitlines()}
    assert ("norm/{bias,scale}", "1x8", "1x2") in rows
