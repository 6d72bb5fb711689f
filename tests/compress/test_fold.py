"""Constants of removed channels: folded exactly, or refused with the reason."""

from functools import partial
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import compress, surgery
from tests.surgery.nets import fill
from tests.surgery.proof import difference

GONE = [1, 4]
KEEP = np.array([True, False, True, True, False, True])


class Net(nn.Module):
    """Conv, batch norm, ReLU on 6 channels; then `reader` and a dense head."""

    reader: Any

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm(name="norm")(nn.Conv(6, (3, 3), name="conv")(x)))
        x = self.reader(norm, x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def dense_after_pooling(norm, x):
    return x


def pointwise_with_bias(norm, x):
    return nn.relu(nn.Conv(4, (1, 1), name="next")(x))


def pointwise_then_norm(norm, x):
    y = nn.Conv(4, (1, 1), use_bias=False, name="next")(x)
    return nn.relu(norm(name="next_norm")(y))


def valid_three_by_three(norm, x):
    return nn.relu(nn.Conv(4, (3, 3), padding="VALID", name="next")(x))


def same_three_by_three(norm, x):
    return nn.relu(nn.Conv(4, (3, 3), name="next")(x))


def no_bias(norm, x):
    return nn.relu(nn.Conv(4, (1, 1), use_bias=False, name="next")(x))


def depthwise_valid(norm, x):
    depth = nn.Conv(6, (3, 3), padding="VALID", feature_group_count=6, name="depth")
    x = depth(x)
    return nn.Conv(4, (1, 1), name="next")(nn.relu(x))


def two_readers(norm, x):
    y = nn.Conv(4, (1, 1), name="next")(x)
    z = nn.Conv(4, (1, 1), use_bias=False, name="other")(x)
    return nn.relu(y + norm(name="other_norm")(z))


def silenced(variables, layer="norm", stats="batch_stats", params="params"):
    """Scale 0 and shift 0.7 at two channels: they output relu(0.7), come what may."""
    found = jax.tree.map(np.array, variables)
    found[params][layer]["scale"][..., GONE] = 0.0
    shift = "bias" if "bias" in found[params][layer] else "offset"
    found[params][layer][shift][..., GONE] = 0.7
    return found


def built(reader):
    x = np.random.default_rng(0).normal(size=(3, 7, 7, 3)).astype(np.float32)
    model = Net(reader)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda v: v.astype(np.float32), fill(shapes))
    return model.apply, variables, x


def plan_for(apply, variables, x, owner="norm"):
    deps = surgery.groups(apply)(variables, x)
    (group,) = [g for g in deps if any(owner in m.path for m in g.members)]
    return surgery.plan_from_keep(deps, {group.id: KEEP})


FOLDABLE = {
    dense_after_pooling: {("params", "head", "bias")},
    pointwise_with_bias: {("params", "next", "bias")},
    pointwise_then_norm: {("batch_stats", "next_norm", "mean")},
    valid_three_by_three: {("params", "next", "bias")},
    depthwise_valid: {("params", "next", "bias")},
    two_readers: {("params", "next", "bias"), ("batch_stats", "other_norm", "mean")},
}


@pytest.mark.parametrize("reader", FOLDABLE, ids=lambda r: r.__name__)
def test_removal_changes_nothing(reader):
    apply, variables, x = built(reader)
    variables = silenced(variables)
    plan = plan_for(apply, variables, x)
    folded = compress.fold_constants(apply, plan, variables, x)
    small = jax.jit(surgery.shrink(apply, plan))
    other = np.random.default_rng(9).normal(size=(5, 7, 7, 3)).astype(np.float32)
    expected = apply(variables, other)
    assert difference(small(plan.pack(folded), other), expected) < 2e-6
    assert difference(small(plan.pack(variables), other), expected) > 1e-3
    pairs = jax.tree_util.tree_leaves_with_path(folded)
    before = jax.tree.leaves(variables)
    changed = {
        tuple(key.key for key in path)
        for (path, new), old in zip(pairs, before, strict=True)
        if not np.array_equal(new, old)
    }
    assert changed == FOLDABLE[reader]


def test_by_hand():
    """delta = K[gone]^T relu(beta), into the bias."""
    apply, variables, x = built(pointwise_with_bias)
    variables = silenced(variables)
    plan = plan_for(apply, variables, x)
    folded = compress.fold_constants(apply, plan, variables, x)
    layer = variables["params"]["next"]
    expected = layer["bias"] + 0.7 * layer["kernel"][0, 0, GONE].sum(0)
    np.testing.assert_allclose(folded["params"]["next"]["bias"], expected, rtol=1e-5)


def test_flattened_rows():
    """A flattened (position, channel) axis: the constant is the sum over positions."""

    def net(p, x):
        y = jnp.einsum("bpi,io->bpo", x, p["a"]) * p["scale"][None, None]
        y = jax.nn.relu(y + p["shift"][None, None])
        return y.reshape(x.shape[0], -1) @ p["w"] + p["b"][None]

    rng = np.random.default_rng(0)
    params = {
        "a": rng.normal(size=(2, 3)).astype("f"),
        "scale": np.array([1.0, 0.0, 2.0], "f"),
        "shift": np.array([0.1, 0.5, 0.2], "f"),
        "w": rng.normal(size=(12, 2)).astype("f"),
        "b": np.zeros(2, "f"),
    }
    x = rng.normal(size=(3, 4, 2)).astype("f")
    deps = surgery.groups(net)(params, x)
    (group,) = deps
    plan = surgery.plan_from_keep(deps, {group.id: [True, False, True]})
    folded = compress.fold_constants(net, plan, params, x)
    rows = params["w"].reshape(4, 3, 2)[:, 1].sum(0)
    np.testing.assert_allclose(folded["b"], 0.5 * rows, rtol=1e-5)


def test_haiku_statistics_take_it():
    def net(x, train):
        norm = partial(hk.BatchNorm, True, True, 0.9)
        x = jax.nn.relu(norm(name="norm")(hk.Conv2D(6, 3, name="conv")(x), train))
        x = hk.Conv2D(4, 1, with_bias=False, name="next")(x)
        x = jax.nn.relu(norm(name="next_norm")(x, train))
        return hk.Linear(3)(x.mean((1, 2)))

    x = np.random.default_rng(0).normal(size=(3, 6, 6, 3)).astype(np.float32)
    model = hk.transform_with_state(net)
    shapes = jax.eval_shape(partial(model.init, train=True), jax.random.key(0), x)
    values = fill(dict(zip(("params", "state"), shapes, strict=True)))
    values = jax.tree.map(
        lambda v: v.astype(np.float32) if v.dtype == np.float64 else v, values
    )
    variables = silenced(values)

    def apply(v, x):
        return model.apply(v["params"], v["state"], None, x, False)[0]

    plan = plan_for(apply, variables, x)
    folded = compress.fold_constants(apply, plan, variables, x)
    small = surgery.shrink(apply, plan)
    expected = apply(variables, x)
    assert difference(small(plan.pack(folded), x), expected) < 2e-6


def test_padding_is_refused_with_the_layer_named():
    apply, variables, x = built(same_three_by_three)
    variables = silenced(variables)
    plan = plan_for(apply, variables, x)
    with pytest.raises(
        ValueError, match=r"params/next/kernel: their constant depends on"
    ):
        compress.fold_constants(apply, plan, variables, x)


def test_channels_that_vary_are_refused():
    apply, variables, x = built(pointwise_with_bias)
    plan = plan_for(apply, variables, x)
    with pytest.raises(ValueError, match="next/kernel: the removed channels vary with"):
        compress.fold_constants(apply, plan, variables, x)


def test_no_place_for_the_constant_is_refused():
    apply, variables, x = built(no_bias)
    variables = silenced(variables)
    plan = plan_for(apply, variables, x)
    with pytest.raises(
        ValueError, match=r"next/kernel: .*before any bias or running mean"
    ):
        compress.fold_constants(apply, plan, variables, x)


def test_other_ways_out_are_seen_by_the_check():
    """A mean over the channels reads the constant too, and no weight is involved."""

    def net(p, x):
        y = jax.nn.relu(x @ p["a"] + p["shift"][None])
        return y @ p["b"] + p["c"][None] + y.sum(1, keepdims=True)

    rng = np.random.default_rng(0)
    params = {
        "a": rng.normal(size=(3, 4)).astype("f"),
        "shift": np.array([0.1, 0.9, 0.1, 0.1], "f"),
        "b": rng.normal(size=(4, 2)).astype("f"),
        "c": np.zeros(2, "f"),
    }
    params["a"][:, 1] = 0
    x = rng.normal(size=(5, 3)).astype("f")
    deps = surgery.groups(net)(params, x)
    plan = surgery.plan_from_keep(deps, {deps[0].id: [True, False, True, True]})
    with pytest.raises(ValueError, match="no bias can absorb"):
        compress.fold_constants(net, plan, params, x)


def test_silent_channels_need_nothing():
    apply, variables, x = built(same_three_by_three)
    variables = silenced(variables)
    variables["params"]["norm"]["bias"][GONE] = -0.3  # relu gives 0
    plan = plan_for(apply, variables, x)
    folded = compress.fold_constants(apply, plan, variables, x)
    jax.tree.map(np.testing.assert_array_equal, folded, variables)


SHOWN_BY = {
    "one": (lambda x: x[:1], "two or more examples"),
    "none": (lambda x: x[:0], "two or more examples"),
    "equal": (lambda x: np.tile(x[:1], (6, 1)), "6 equal ones, shape"),
    "zeros": (np.zeros_like, "two or more examples"),
    "NaN": (lambda x: x * np.nan, "finite and not 0"),
    "unread": (lambda x: np.c_[x[[0] * 6, :3], x[:6, 3:]], "the examples are alike"),
}


@pytest.mark.parametrize("kind", SHOWN_BY)
def test_examples_that_show_nothing_are_refused(kind):
    """On each of these every channel, the moving ones too, looks constant."""

    def net(p, x):
        return jax.nn.relu(x[:, :3] @ p["a"] + 1) @ p["b"] + p["c"][None]

    rng = np.random.default_rng(0)
    shapes = {"a": (3, 6), "b": (6, 2), "c": (2,)}
    params = {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}
    x = rng.normal(size=(6, 4)).astype("f")
    deps = surgery.groups(net)(params, x)
    plan = surgery.plan_from_keep(deps, {deps[0].id: [0, 1, 3]})
    few, why = SHOWN_BY[kind]
    with pytest.raises(ValueError, match=why):
        compress.fold_constants(net, plan, params, few(x))
    params["a"][:, [2, 4, 5]] = 0.0  # now they are constant, which examples show
    folded = compress.fold_constants(net, plan, params, x)
    other = rng.normal(size=(9, 4)).astype("f")
    found = surgery.shrink(net, plan)(plan.pack(folded), other)
    np.testing.assert_allclose(found, net(params, other), atol=1e-5)
    params["b"][2] = params["b"][4] = params["b"][5] = 0.0  # nobody reads them
    same = compress.fold_constants(net, plan, params, np.ones_like(x) * x[:, :1])
    np.testing.assert_array_equal(same["c"], params["c"])


def test_a_model_with_functions_in_its_tree_is_folded_and_merged():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 4), (4, 2)))
    a = a.at[:, 1].set(a[:, 0])  # units 0 and 1 are one
    model = {"act": jax.nn.relu, "a": a, "bias": jnp.ones(4), "b": b, "c": jnp.zeros(2)}

    def net(m, x):
        return m["act"](x @ m["a"] + m["bias"][None]) @ m["b"] + m["c"][None]

    x = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    deps = surgery.groups(net)(model, x)
    merged = compress.merge(net, deps, model, {deps[0].id: [0, 0, 1, 2]}, x)
    assert merged.variables["act"] is jax.nn.relu
    small = surgery.shrink(net, merged.plan)(merged.variables, x)
    np.testing.assert_allclose(small, net(model, x), rtol=1e-5, atol=1e-5)
    plan = surgery.plan_from_keep(deps, {})
    assert compress.fold_constants(net, plan, model, x)["act"] is jax.nn.relu
