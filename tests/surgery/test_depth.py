"""Whole residual branches go; the tree of parameters keeps its form."""

from typing import Any

import jax
import numpy as np
import pytest

from jprune import surgery
from jprune.surgery import _flops
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
        flops = _flops.count(jax.make_jaxpr(small)(packed, *case.args))
        assert flops < deps.flops()


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
