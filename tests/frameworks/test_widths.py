"""What must change in a constructor, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jprune import frameworks, surgery
from jprune.frameworks import nnx as jnnx
from tests.frameworks.nnx_nets import Qwen, QwenBlock


def test_heads_groups_and_features_of_a_block():
    with jax.numpy_rank_promotion("allow"):
        model = Qwen(nnx.Rngs(0))
        deps = jnnx.groups(model, np.zeros((1, 6), int))
        hidden = next(g for g in deps if g.size == 24)
        heads = next(g for g in deps if g.size == 2 and g.kind != "unused")
        keep = {hidden.id: range(10), heads.id: [1]}
        plan = surgery.plan_from_keep(deps, keep)
        found = frameworks.widths(deps, plan)
        by_group = {w.group: w for w in found}
        assert set(by_group) == {hidden.id, heads.id}
        w = by_group[hidden.id]
        assert (w.before, w.after, w.chunk) == (24, 10, 1)
        layer = hidden.members[0].path[1]
        assert (f"blocks/{layer}/gate/kernel/value", 1, 24, 10) in w.axes
        w = by_group[heads.id]
        assert (w.before, w.after) == (2, 1)  # key and value heads; two queries each
        lengths = {p.split("/")[2]: (a, b) for p, _, a, b in w.axes}
        assert lengths == {k: (16, 8) for k in "kv"} | {k: (32, 16) for k in "qo"}
        assert "24 -> 10\n" in str(found)
        # The block built by these numbers computes the shrunk one: no norm was cut.
        block = QwenBlock(16, 2, 1, 8, 10, nnx.Rngs(1))
        dense = model.blocks[int(str(layer))]
        state = nnx.state(dense)
        fn = lambda s, x: nnx.merge(nnx.graphdef(dense), s)(x)  # noqa: E731
        x = np.random.default_rng(0).standard_normal((2, 6, 16)).astype(np.float32)
        part = surgery.groups(fn)(state, x)
        keep = {g.id: kept for g in part if (kept := _kept(g)) is not None}
        narrow = lambda s, x: nnx.merge(nnx.graphdef(block), s)(x)  # noqa: E731
        plan = surgery.plan_from_keep(part, keep)
        report = surgery.verify(fn, plan, state, x, compact=narrow)
        assert report.ok and "equals mean='dense'" in str(report), str(report)


def _kept(group):
    if group.size == 24:
        return range(10)
    return (
        [1]
        if group.size == 2 and any(m.path[0] == "k" for m in group.members)
        else None
    )


def test_nothing_changes_and_another_plan():
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    params = {"a": jnp.ones((2, 4)), "b": jnp.ones((4, 3))}
    deps = surgery.groups(fn)(params, jnp.ones((1, 2)))
    assert str(frameworks.widths(deps, surgery.plan_from_keep(deps, {}))) == (
        "nothing changes"
    )
    params["a"] = jnp.ones((3, 4))
    other = surgery.groups(fn)(params, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="`plan` is not over the parameters"):
        frameworks.widths(deps, surgery.plan_from_keep(other, {}))
