"""Whole residual branches go; the tree of parameters keeps its form."""

from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import analysis, surgery
from jprune._jaxpr import _compat
from tests.surgery.flax_nets import FLAX_NETS
from tests.surgery.sequence_nets import SEQUENCE_NETS

NETS = {net.name: net for net in (*FLAX_NETS, *SEQUENCE_NETS)}


def branches(deps: Any, words: tuple[str, ...]) -> dict[str, Any]:
    """Scores that make the inner groups named by `words` the worst."""
    return {
        g.id: np.full(g.size, 0.0 if any(w in g.id for w in words) else 1.0)
        for g in deps
        if g.kind == "coupled"
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ResNet bottleneck", ("Conv_1/", "Conv_2/")),
        ("ViT (Flax attention)", ("Block_1/Dense_0", "Block_1/Attention_0")),
    ],
)
def test_blocks_are_removed(name: str, words: tuple[str, ...]):
    with jax.enable_x64(True):
        case = NETS[name].make()
        deps = surgery.groups(case.apply)(case.variables, *case.args)
        scores = branches(deps, words)
        low = sum(int(s.size) for s in scores.values() if s[0] == 0)
        total = sum(int(s.size) for s in scores.values())
        assert low > 0
        plan = surgery.select(
            deps, scores, sparsity=low / total, allow_empty=True, ranking="global"
        )
        packed = plan.pack(case.variables)
        assert jax.tree.structure(packed) == jax.tree.structure(case.variables)
        assert any(0 in leaf.shape for leaf in jax.tree.leaves(packed))
        small = surgery.shrink(case.apply, plan)
        got = jax.jit(small)(packed, *case.args)
        want = jax.jit(case.apply)(plan.zero(case.variables), *case.args)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
        flops = analysis.flops(small)(packed, *case.args)
        assert flops < deps.flops()


@pytest.mark.filterwarnings("ignore:.*nine tenths:UserWarning")
def test_the_stream_is_never_emptied():
    """Everything scores 0: the stem and the stream still keep a coordinate."""
    case = NETS["ResNet bottleneck"].make()
    deps = surgery.groups(case.apply)(case.variables, *case.args)
    scores = {g.id: np.zeros(g.size) for g in deps if g.kind == "coupled"}
    total = sum(s.size for s in scores.values())
    most = 0
    for removed in range(total, 0, -1):
        try:
            plan = surgery.select(
                deps,
                scores,
                sparsity=removed / total,
                allow_empty=True,
                ranking="global",
            )
        except ValueError:
            continue
        most = removed
        break
    assert most > 0
    left = [int(np.prod(s)) for s in plan.compact_shapes.values()]
    assert 0 in left
    small = surgery.shrink(case.apply, plan)
    jaxpr = jax.make_jaxpr(small)(plan.pack(case.variables), *case.args).jaxpr
    read = [v for eqn in jaxpr.eqns for v in eqn.invars]
    assert any(v is jaxpr.invars[-1] for v in read)  # the output still needs the input


def rms(h: Any, scale: Any) -> Any:
    return h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) * scale


def mlp(p: Any, h: Any) -> Any:
    h = rms(h, p["scale"])
    return (jax.nn.silu(h @ p["gate"]) * jax.nn.relu(h @ p["up"])) @ p["down"]


def attention(p: Any, h: Any) -> Any:
    h = rms(h, p["scale"])
    q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[n]) for n in "qkv")
    a = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    return jnp.einsum("bhts,bshk,hkd->btd", a, v, p["o"])


def dropped(p: Any, h: Any) -> Any:
    """A branch in calls of its own, with a cast and a factor behind it."""
    return 0.5 * jax.checkpoint(mlp)(p, h).astype(jnp.bfloat16).astype(h.dtype)


BRANCHES = {"mlp": mlp, "attention": attention, "in a call": dropped}


def branch_parameters(rng: np.random.Generator) -> dict[str, Any]:
    shapes = {n: (6, 2, 4) for n in "qkv"}
    shapes |= {"o": (2, 4, 6), "scale": (1, 1, 6), "down": (8, 6)}
    shapes |= {"gate": (6, 8), "up": (6, 8)}
    return {n: jnp.asarray(rng.standard_normal(s), "f4") for n, s in shapes.items()}


def primitives(fn: Any, *args: Any) -> Counter[str]:
    """How often each primitive occurs, calls opened."""

    def count(jaxpr: Any) -> Counter[str]:
        out = Counter(eqn.primitive.name for eqn in jaxpr.eqns)
        for eqn in jaxpr.eqns:
            for inner in _compat.sub_jaxprs(eqn.params):
                out += count(inner)
        return out

    return count(jax.make_jaxpr(fn)(*args).jaxpr)


@pytest.mark.parametrize("name", BRANCHES)
def test_an_emptied_branch_leaves_no_equation(name: str):
    """The compact program has the primitives of a network built without the branch."""
    rng, branch = np.random.default_rng(0), BRANCHES[name]
    p = {"in": jnp.ones((3, 6)), "out": jnp.ones((6, 2))}
    p |= {f"b{i}": branch_parameters(rng) for i in range(3)}
    x = jnp.asarray(rng.standard_normal((2, 4, 3)), "f4")

    def net(p: Any, x: Any, blocks: str = "012") -> Any:
        h = x @ p["in"]
        for i in blocks:
            h = h + branch(p[f"b{i}"], h)
        return h @ p["out"]

    deps = surgery.groups(net)(p, x)
    inner = [g for g in deps.find("^b1/") if all(m.path[0] == "b1" for m in g.members)]
    assert inner
    plan = surgery.plan_from_keep(deps, {g.id: np.zeros(g.size, bool) for g in inner})
    small = surgery.shrink(net, plan)
    without = primitives(lambda p, x: net(p, x, "02"), p, x)
    assert primitives(small, plan.pack(p), x) == without
    assert surgery.verify(net, plan, p, x, gradient=True).ok


def test_behind_an_emptied_convolution_only_its_norm_is_left():
    """Shift and scale of the last norm are a constant for each channel."""
    rng = np.random.default_rng(0)
    p = {
        "a": jnp.asarray(rng.standard_normal((3, 3, 4, 8)), "f4"),
        "b": jnp.asarray(rng.standard_normal((3, 3, 8, 4)), "f4"),
        **{n: jnp.ones((1, 1, 1, 4)) for n in ("mean", "scale", "bias")},
        "out": jnp.ones((4, 2)),
    }
    x = jnp.asarray(rng.standard_normal((2, 5, 5, 4)), "f4")
    conv = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def net(p: Any, x: Any) -> Any:
        h = conv(jax.nn.relu(conv(x, p["a"])), p["b"])
        return (x + (h - p["mean"]) * p["scale"] + p["bias"]).mean((1, 2)) @ p["out"]

    deps = surgery.groups(net)(p, x)
    plan = surgery.plan_from_keep(deps, {"a:3": np.zeros(8, bool)})
    small = surgery.shrink(net, plan)
    found = primitives(small, plan.pack(p), x)
    assert not found["conv_general_dilated"] and not found["max"]
    assert (found["sub"], found["mul"], found["add"]) == (1, 1, 2)
    compiled = jax.jit(small).lower(plan.pack(p), x).compile().as_text()
    assert " convolution(" not in compiled and "__onednn" not in compiled
    assert surgery.verify(net, plan, p, x, gradient=True).ok
