"""Residual branches found from the program: names, what closes them, what is inside."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.digits_resnet import DigitsResNet
from jprune import analysis, masks, reparam, surgery


def test_blocks_of_a_residual_network_with_projections():
    """As the lists by hand have it: the norm behind the convolution that reads it."""
    model, x = DigitsResNet(width=4), jnp.zeros((2, 8, 8, 1))
    v = dict(model.init(jax.random.key(0), x))
    fn = lambda v, x: model.apply(v, x)  # noqa: E731
    deps = surgery.groups(fn)(v, x)
    found = analysis.residual_branches(fn, deps, v, x, at="params")
    by_hand = {}
    for group in deps:
        if sum(r.role == "out" for r in group.members) == 1:
            (reader,) = [r.path[1] for r in group.members if r.role == "in"]
            norm = reader.replace("Conv", "BatchNorm")
            by_hand[norm] = ({f"{norm}/scale", f"{norm}/bias"}, [group.id])
    assert len(found.branches) == 3 == len(by_hand)
    for branch in found.branches.values():
        leaves, inner = by_hand[branch.leaves[0].split("/")[0]]
        assert set(branch.leaves) == leaves
        assert [g.id for g in branch.inner] == inner
    assert set(found.entries.values()) == {
        ("Conv_1/kernel",),
        ("Conv_3/kernel",),
        ("Conv_6/kernel",),
    }


class Block(nn.Module):
    """Pre-norm attention and MLP; in parallel, or one after the other."""

    parallel: bool = False

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        a = nn.MultiHeadDotProductAttention(2, name="attention")(h, h)
        h = h if self.parallel else nn.LayerNorm()(x + a)
        m = nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(h)))
        return x + a + m


@pytest.mark.parametrize("parallel", [False, True])
def test_attention_and_mlp(parallel):
    model, x = Block(parallel), jnp.ones((2, 5, 8))
    v = model.init(jax.random.key(0), x)
    fn = lambda v, x: model.apply(v, x).sum(-1)  # noqa: E731
    deps = surgery.groups(fn)(v, x)
    found = analysis.residual_branches(fn, deps, v, x, at="params")
    closing = [set(b.leaves) for b in found.branches.values()]
    assert closing == [
        {"attention/out/kernel", "attention/out/bias"},
        {"down/kernel", "down/bias"},
    ]
    attention, mlp = found.branches.values()
    assert [g.size for g in mlp.inner] == [16]
    assert 2 in [g.size for g in attention.inner]
    names = list(found.entries.values())
    assert {n.split("/")[1] for n in names[0]} == {"query", "key", "value"}
    assert names[1] == ("up/kernel",)


@pytest.mark.slow
def test_a_closed_branch_is_removed_exactly():
    """Zeros on `leaves` close it, whatever is inside; the groups inside then go."""
    model, x = DigitsResNet(width=4), jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    v = dict(model.init(jax.random.key(0), x))
    v = jax.tree.map(lambda y: y + 0.1, v)
    fn = lambda v, x: model.apply(v, x)  # noqa: E731
    deps = surgery.groups(fn)(v, x)
    branch = list(analysis.residual_branches(fn, deps, v, x).branches.values())[0]
    mask = masks.from_groups(
        v, branch.inner, {g.id: jnp.zeros(g.size, bool) for g in branch.inner}
    )
    paths = {tuple(leaf.split("/")) for leaf in branch.leaves}
    mask = jax.tree_util.tree_map_with_path(
        lambda path, m, y: (
            m & jnp.zeros(y.shape, bool) if tuple(k.key for k in path) in paths else m
        ),
        mask,
        v,
    )
    plan = surgery.plan_from_masks(deps, mask, allow_empty=True)
    zeroed = masks.apply(mask, v)
    small = surgery.shrink(fn, plan)
    np.testing.assert_allclose(small(plan.pack(zeroed), x), fn(zeroed, x), atol=1e-4)
    gates = reparam.learned_gates([], {"b": branch}, price=1.0, cost=deps.flops)
    gates.init(v)  # every leaf is a parameter, every branch frees something


def test_nested_branches_keep_their_own_groups():
    def net(p, x):
        h = x @ p["stem"]
        y = h @ p["in"]
        y = y + jax.nn.relu(y @ p["deep"]) @ p["up"]
        return (h + y @ p["out"]) @ p["head"]

    shapes = {"stem": (3, 8), "in": (8, 6), "deep": (6, 5), "up": (5, 6)}
    shapes |= {"out": (6, 8), "head": (8, 2)}
    p, x = {n: jnp.ones(s) for n, s in shapes.items()}, jnp.ones((2, 3))
    deps = surgery.groups(net)(p, x)
    found = analysis.residual_branches(net, deps, p, x).branches
    inner = {n: {len(g.members) for g in b.inner} for n, b in found.items()}
    assert {n: [g.size for g in b.inner] for n, b in found.items()} == {
        "up": [5],
        "out": [6],
    }, inner


def test_sums_that_are_no_branches():
    def net(p, x):
        q, k = x @ p["q"], x @ p["k"]
        scores = jnp.tanh(q @ k.T + x[:, :1] * x[:, :1].T)
        return (p["t"][None] + scores @ x) @ p["head"] + x @ p["other"]

    p = {n: jnp.ones((3, 3)) for n in ("q", "k", "head", "other")} | {"t": jnp.ones(3)}
    x = jnp.ones((4, 3))
    deps = surgery.groups(lambda p, x: net(p, x).sum(-1))(p, x)
    found = analysis.residual_branches(net, deps, p, x).branches
    assert list(found) == ["head"]  # the deeper of two ways, the other is a projection
    plain = lambda p, x: jax.nn.relu(x @ p["q"]) @ p["k"]  # noqa: E731
    with pytest.raises(ValueError, match="no residual branch"):
        analysis.residual_branches(plain, deps, p, x)
