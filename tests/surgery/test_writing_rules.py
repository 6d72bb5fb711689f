"""The page on rules runs as printed; kinds of programs that had no rule at first."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jprune import analysis, surgery
from jprune.surgery.rules import RULES

pytestmark = pytest.mark.usefixtures("broadcasting")


PAGE = Path(__file__).parents[2] / "docs" / "surgery_rules.md"


def test_the_page_on_rules_runs_as_printed(monkeypatch):
    """Its rule replaces ours while it runs, and gives the same groups."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 3
    ours = RULES["triangular_solve"]
    monkeypatch.setitem(RULES, "triangular_solve", ours)
    space: dict = {}
    for block in blocks:
        exec(block, space)
    assert RULES["triangular_solve"] is not ours
    theirs = [g.id for g in space["deps"]]
    RULES["triangular_solve"] = ours
    assert [g.id for g in surgery.groups(space["fn"])(space["params"], space["x"])] == (
        theirs
    )


def test_every_file_that_the_page_names_exists():
    root = Path(surgery.__file__).parent
    names = re.findall(r"`((?:\.\./)?[\w/]+\.py)`", PAGE.read_text())
    files = [n for n in names if not n.startswith("tests/")]
    assert len(files) > 10 and all((root / n).exists() for n in files), files


# -- an axis contracted between two parameters ---------------------------------------


def adapted(p, x):
    return jax.nn.relu(x @ (p["w"] + p["a"] @ p["b"])) @ p["v"]


def test_the_rank_of_an_adapter_is_coupled_and_removable(getkey):
    shapes = {"w": (5, 8), "a": (5, 4), "b": (4, 8), "v": (8, 3)}
    params = {k: jax.random.normal(getkey(), s) for k, s in shapes.items()}
    x = jax.random.normal(getkey(), (2, 5))
    deps = surgery.groups(adapted)(params, x)
    rank = deps["a:1"]
    assert rank.kind == "coupled" and rank.size == 4
    assert {(m.path, m.axis, m.role) for m in rank.members} == {
        (("a",), 1, "out"),
        (("b",), 0, "in"),
    }
    plan = surgery.plan_from_keep(deps, {"a:1": [1, 3]})
    report = surgery.verify(adapted, plan, params, x, gradient=True)
    assert report.ok, report
    assert plan.pack(params)["a"].shape == (5, 2)


# -- symbolic sizes ------------------------------------------------------------------


def tokens(p, x):
    """A convolution, a norm, attention over the batch's tokens, a mean over them."""
    names = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(x, p["k"], (2, 2), "SAME", dimension_numbers=names)
    mean, var = h.mean((0, 1, 2)), h.var((0, 1, 2))
    h = jax.nn.relu((h - mean) * lax.rsqrt(var + 1e-3) * p["g"] + p["b"])
    h = h.reshape(h.shape[0], -1, h.shape[-1])
    q, k, v = (h @ p[n] for n in "qtv")
    h = h + jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v
    return h.reshape(-1, h.shape[-1]).reshape(h.shape).mean(1) @ p["o"]


def test_a_compact_function_exports_with_a_symbolic_batch(getkey):
    shapes = {"k": (3, 3, 2, 6), "g": (6,), "b": (6,), "o": (6, 2)}
    shapes.update({"q": (6, 4), "t": (6, 4), "v": (6, 6)})
    params = {k: jax.random.normal(getkey(), s) for k, s in shapes.items()}
    x = jax.random.normal(getkey(), (3, 6, 6, 2))
    deps = surgery.groups(tokens)(params, x)
    plan = surgery.plan_from_keep(deps, {"k:3": [0, 2, 5], "q:1": [1, 2]})
    small, packed = surgery.shrink(tokens, plan), plan.pack(params)
    (batch,) = export.symbolic_shape("batch")
    free = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    exported = export.export(jax.jit(small))(packed, free)
    for n in (1, 2, 5):
        y = jax.random.normal(getkey(), (n, *x.shape[1:]))
        want = tokens(plan.zero(params), y)
        np.testing.assert_allclose(exported.call(packed, y), want, rtol=2e-4, atol=2e-4)


def test_a_scan_exports_with_a_symbolic_length(getkey):
    shapes = {"i": (5, 6), "h": (6, 6), "o": (6, 2)}
    params = {k: jax.random.normal(getkey(), s) / 4 for k, s in shapes.items()}
    x = jax.random.normal(getkey(), (4, 5))

    def net(p, x):
        def step(h, row):
            h = jnp.tanh(row @ p["i"] + h @ p["h"])
            return h, h

        return lax.scan(step, jnp.zeros(6), x)[1].mean(0) @ p["o"]

    deps = surgery.groups(net)(params, x)
    plan = surgery.plan_from_keep(deps, {deps[0].id: [0, 3, 4]})
    (time,) = export.symbolic_shape("time")
    free = jax.ShapeDtypeStruct((time, 5), x.dtype)
    packed = plan.pack(params)
    exported = export.export(jax.jit(surgery.shrink(net, plan)))(packed, free)
    y = jax.random.normal(getkey(), (7, 5))
    want = net(plan.zero(params), y)
    np.testing.assert_allclose(exported.call(packed, y), want, rtol=1e-4, atol=1e-5)


def test_a_budget_needs_an_example_of_known_size():
    (batch,) = export.symbolic_shape("batch")
    params = {"a": jnp.ones((8, 16)), "b": jnp.ones((16, 3))}
    x = jax.ShapeDtypeStruct((batch, 8), jnp.float32)
    deps = surgery.groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])(params, x)
    with pytest.raises(ValueError, match="`flops` needs numbers.*batch"):
        surgery.select(deps, deps.scores(params), flops=0.5)
    assert surgery.select(deps, deps.scores(params), params=0.5)


def test_a_norm_over_cut_channels_exports_with_symbolic_sizes(getkey):
    """The removed channels weigh in the mean by their number, at every batch."""

    def net(p, x):
        h = x @ p["a"]
        h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
        return jax.nn.gelu(h) @ p["b"]

    p = {n: jax.random.normal(getkey(), s) for n, s in (("a", (6, 8)), ("b", (8, 3)))}
    x = jax.random.normal(getkey(), (3, 5, 6))
    deps = surgery.groups(net)(p, x)
    plan = surgery.select(deps, deps.scores(p), sparsity=0.5)
    packed = plan.pack(p)
    like = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), packed)
    any_x = jax.ShapeDtypeStruct((*export.symbolic_shape("b, t"), 6), x.dtype)
    exported = export.export(jax.jit(surgery.shrink(net, plan)))(like, any_x)
    np.testing.assert_allclose(
        exported.call(packed, x), net(plan.zero(p), x), rtol=1e-4, atol=1e-5
    )


def test_a_symbolic_size_is_a_reason_of_its_own(getkey):
    (n,) = export.symbolic_shape("n")
    w = jax.ShapeDtypeStruct((4, n), jnp.float32)
    deps = surgery.groups(lambda p, x: (x @ p).sum(-1))(w, jnp.ones((2, 4)))
    assert "a symbolic size" in {f.why for f in deps.frozen()}


# -- programs inside a shard_map -----------------------------------------------------


def synced(p, x):
    """Batch norm whose statistics are those of the whole batch."""
    h = x @ p["w"]
    mean = lax.pmean(h.mean(0), "data")
    var = lax.pmean((h * h).mean(0), "data") - mean**2
    h = (h - mean) * lax.rsqrt(var + 1e-3) * p["g"] + p["b"]
    return jax.nn.relu(h) @ p["v"]


def test_sync_batch_norm_inside_a_shard_map(getkey):
    """With JAX's check of varying axes on, which is its default; and its gradient."""
    shapes = {"w": (5, 8), "g": (8,), "b": (8,), "v": (8, 3)}
    params = {k: jax.random.normal(getkey(), s) for k, s in shapes.items()}
    x = jax.random.normal(getkey(), (8, 5))
    deps = surgery.groups(synced)(params, x[:2])  # outside: the axis is not bound
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 2, 5]})
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def loss(fn):
        def mean(p, x):
            return lax.pmean((fn(p, x) ** 2).mean(), "data")

        specs = {"in_specs": (P(), P("data")), "out_specs": P()}
        return jax.jit(jax.shard_map(jax.value_and_grad(mean), mesh=mesh, **specs))

    want, slope = loss(synced)(plan.zero(params), x)
    got, found = loss(surgery.shrink(synced, plan))(plan.pack(params), x)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (found, plan.pack(slope))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_shard_map_inside_the_function(getkey):
    """What is not split may shrink; ghosts that move cross the boundary, too."""
    shapes = {"w": (5, 8), "g": (8,), "b": (8,), "v": (8, 3)}
    params = {k: jax.random.normal(getkey(), s) for k, s in shapes.items()}
    x = jax.random.normal(getkey(), (8, 5))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def body(h, p):
        h = jnp.cos(h) * p["g"]
        return h - lax.pmean(h.mean(), "data")

    def fn(p, x):
        specs = {"in_specs": (P("data"), P()), "out_specs": P("data")}
        h = jax.shard_map(body, mesh=mesh, **specs)(x @ p["w"] + p["b"], p)
        return jax.nn.sigmoid(h).mean(-1, keepdims=True) + jnp.tanh(h) @ p["v"]

    deps = surgery.groups(fn)(params, x)
    assert deps["w:1"].kind == "coupled" and deps["w:1"].size == 8
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 2, 5]})
    report = surgery.verify(fn, plan, params, x, gradient=True)
    assert report.ok, report


# -- FLOPs against XLA's own count ---------------------------------------------------


def conv(stride=1, pad="VALID", dilate=1, holes=1, groups=1):
    return lambda x, k: lax.conv_general_dilated(
        x,
        k,
        (stride, stride),
        pad,
        lhs_dilation=(holes, holes),
        rhs_dilation=(dilate, dilate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def slope(fn):
    return jax.grad(lambda x, k: (fn(x, k) ** 2).sum(), (0, 1))


def transposed(stride, pad):
    return lambda x, k: lax.conv_transpose(x, k, (stride, stride), pad)


IMAGE, KERNEL = (2, 9, 9, 4), (3, 3, 4, 6)
WORK = {
    "conv": (conv(), IMAGE, KERNEL),
    "stride": (conv(2), IMAGE, KERNEL),
    "dilated": (conv(dilate=2), IMAGE, KERNEL),
    "grouped": (conv(groups=2), IMAGE, (3, 3, 2, 6)),
    "depthwise": (conv(groups=4), IMAGE, (3, 3, 1, 4)),
    "transposed": (transposed(2, "VALID"), IMAGE, KERNEL),
    "transposed same": (transposed(2, "SAME"), IMAGE, KERNEL),
    "transposed by 3": (transposed(3, "SAME"), IMAGE, (5, 5, 4, 6)),
    "transposed, stride 1": (transposed(1, "VALID"), IMAGE, KERNEL),
    "gradient": (slope(conv()), IMAGE, KERNEL),
    "gradient of stride": (slope(conv(2)), IMAGE, KERNEL),
    "gradient of dilated": (slope(conv(dilate=2)), IMAGE, KERNEL),
    "gradient of depthwise": (slope(conv(groups=4)), IMAGE, (3, 3, 1, 4)),
    "gradient of transposed": (slope(transposed(2, "VALID")), IMAGE, KERNEL),
    "dot": (lambda x, k: jnp.einsum("bhwc,cd->bhwd", x, k), IMAGE, (4, 5)),
    "batched dot": (lambda x, k: jnp.einsum("bij,bjk", x, k), (3, 4, 5), (3, 5, 6)),
}


@pytest.mark.parametrize("name", WORK)
def test_operations_are_those_that_xla_counts(name: str):
    """XLA also counts element-wise work, which is a few per element."""
    fn, *shapes = WORK[name]
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    ours = analysis.flops(fn)(*args)
    lowered = jax.jit(fn).lower(*args)
    theirs = (lowered.cost_analysis() or {})["flops"]
    outputs = sum(int(np.prod(o.shape)) for o in jax.tree.leaves(lowered.out_info))
    slack = 0 if "gradient" not in name else 6 * outputs + 6 * 2 * 81 * 20
    assert ours <= theirs * (1 + 1e-6) and theirs - ours <= slack, (ours, theirs)
