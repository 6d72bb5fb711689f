"""Merging equal units loses nothing, deletion does (C-SGD's numbers by hand)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import compress, surgery
from jprune.compress._merge import deviation, snap
from tests.surgery.flax_nets import OPTION_A, RESNET
from tests.surgery.nets import fill
from tests.surgery.proof import coupled, difference
from tests.surgery.sequence_nets import VIT


def mlp(p, x):
    return jax.nn.relu(x @ p["k1"] + p["b1"]) @ p["k2"]


HAND = {
    "k1": jnp.array([[1.0, 1.0, 2.0], [0.5, 0.5, -1.0]]),
    "b1": jnp.array([0.1, 0.1, 0.0]),
    "k2": jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]),
}
HAND_X = jnp.array([1.0, -1.0])


def test_csgd_g5():
    deps = surgery.groups(mlp)(HAND, HAND_X)
    merged = compress.merge(mlp, deps, HAND, {"k1": [0, 0, 1]}, HAND_X)
    np.testing.assert_allclose(merged.variables["k2"], [[4, 1], [0.5, 4]], rtol=1e-6)
    np.testing.assert_array_equal(merged.variables["k1"], HAND["k1"][:, [0, 2]])
    np.testing.assert_array_equal(merged.variables["b1"], HAND["b1"][np.array([0, 2])])
    small = surgery.shrink(mlp, merged.plan)
    np.testing.assert_allclose(small(merged.variables, HAND_X), [3.9, 12.6], rtol=1e-6)
    assert merged.deviation == {deps[0].id: 0.0}
    # Plain deletion of the second unit gives another output.
    deleted = merged.plan.pack(HAND)
    np.testing.assert_allclose(small(deleted, HAND_X), [2.1, 13.2], rtol=1e-6)


class ConvNet(nn.Module):
    """Conv 3x3, batch norm, ReLU, conv 3x3, flatten, dense: csgd g6."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(4, (3, 3))(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def duplicated(variables, pairs):
    """Copies slice `a` into slice `b` of the last axis of the leaves named."""

    def leaf(path, value):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for start, a, b in pairs:
            if name.startswith(start):
                value = np.array(value)
                value[..., b] = value[..., a]
        return value

    return jax.tree_util.tree_map_with_path(leaf, variables)


def flax_case(model, x):
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    single = partial(jnp.asarray, dtype=jnp.float32)
    return model.apply, jax.tree.map(single, fill(shapes)), x


def test_csgd_g6():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    apply, variables, x = flax_case(ConvNet(), x)
    first = ("params/Conv_0", "params/BatchNorm_0", "batch_stats/BatchNorm_0")
    variables = duplicated(variables, [(name, 1, 3) for name in first])
    deps = surgery.groups(apply)(variables, x)
    clusters = {"params/Conv_0/kernel": [0, 1, 2, 1, 3, 4]}
    merged = compress.merge(apply, deps, variables, clusters, x)
    small = jax.jit(surgery.shrink(apply, merged.plan))
    found, expected = small(merged.variables, x), apply(variables, x)
    assert np.abs(found - expected).max() < 1e-5
    second = merged.variables["params"]["Conv_1"]["kernel"]
    dense = variables["params"]["Conv_1"]["kernel"]
    assert second.shape == (3, 3, 5, 4)
    np.testing.assert_allclose(
        second[:, :, 1], dense[:, :, 1] + dense[:, :, 3], rtol=1e-6
    )
    deleted = small(merged.plan.pack(variables), x)
    assert np.abs(deleted - expected).max() > 1e-2


def test_csgd_g7():
    """Rows of channel 1 in a flattened (2, 2, 3) axis are 1, 4, 7, 10."""

    def net(p, x):
        y = jnp.einsum("bhwi,io->bhwo", x, p["a"])
        return y.reshape(x.shape[0], -1) @ p["b"]

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3)).astype("f"), rng.normal(size=(12, 5)).astype("f")
    a[:, 2] = a[:, 1]
    params, x = {"a": a, "b": b}, rng.normal(size=(4, 2, 2, 2)).astype("f")
    deps = surgery.groups(net)(params, x)
    (group,) = deps
    (reader,) = [m for m in group.members if m.path == ("b",)]
    rows = np.flatnonzero(reader.coordinates(3) == 1)
    assert rows.tolist() == [1, 4, 7, 10]
    merged = compress.merge(net, deps, params, {"a": [5, 7, 7]}, x)
    grid = b.reshape(4, 3, 5)
    expected = np.stack([grid[:, 0], grid[:, 1] + grid[:, 2]], 1).reshape(8, 5)
    np.testing.assert_allclose(merged.variables["b"], expected, rtol=1e-6)


class Residual(nn.Module):
    """Two convolutions added, then two readers of the stream: csgd g10."""

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm(name="norm_a")(nn.Conv(6, (3, 3), name="conv_a")(x)))
        y = nn.relu(nn.Conv(5, (3, 3), name="inner")(x))
        x = nn.relu(x + norm(name="norm_b")(nn.Conv(6, (3, 3), name="conv_b")(y)))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


RESIDUAL_PRODUCERS = ("conv_a", "norm_a", "conv_b", "norm_b")


@pytest.fixture(scope="module")
def residual():
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype(np.float32)
    apply, variables, x = flax_case(Residual(), x)
    places = [f"{c}/{n}" for c in ("params", "batch_stats") for n in RESIDUAL_PRODUCERS]
    variables = duplicated(variables, [(place, 0, 4) for place in places])
    return apply, surgery.groups(apply)(variables, x), variables, x


SHARED = [0, 1, 2, 3, 0, 4]


def test_csgd_g10(residual):
    apply, deps, variables, x = residual
    clusters = {"params/conv_a/kernel": SHARED, "params/conv_b/kernel": SHARED}
    merged = compress.merge(apply, deps, variables, clusters, x)
    small = jax.jit(surgery.shrink(apply, merged.plan))
    expected = apply(variables, x)
    assert difference(small(merged.variables, x), expected) < 1e-5
    assert difference(small(merged.plan.pack(variables), x), expected) > 1e-2
    # The stream has two readers and each sums once, however many layers write it.
    for reader in ("inner", "head"):
        kernel = np.asarray(variables["params"][reader]["kernel"])
        found = np.asarray(merged.variables["params"][reader]["kernel"])
        both = kernel[..., 0, :] + kernel[..., 4, :]
        np.testing.assert_allclose(found[..., 0, :], both, rtol=1e-6)
    clusters["params/conv_b/kernel"] = [0, 1, 2, 3, 4, 0]
    with pytest.raises(
        ValueError, match=r"conv_a/kernel' and 'params/conv_b/kernel' d"
    ):
        compress.merge(apply, deps, variables, clusters, x)


def test_cluster_numbers_carry_no_meaning(residual):
    apply, deps, variables, x = residual
    clusters = {
        "params/conv_a/kernel": SHARED,
        "params/conv_b/kernel": [9, 4, 5, 6, 9, 2],
    }
    merged = compress.merge(apply, deps, variables, clusters, x)
    assert merged.variables["params"]["conv_a"]["kernel"].shape[-1] == 5


def test_deviation_and_snap(residual):
    apply, deps, variables, x = residual
    kernel = np.array(variables["params"]["conv_a"]["kernel"])
    gap = 0.1 * np.abs(kernel).max()
    kernel[0, 0, 0, 4] += gap  # the mean moves by half, so each is half a gap away
    params = {**variables["params"]}
    params["conv_a"] = {**params["conv_a"], "kernel": jnp.asarray(kernel)}
    apart = {**variables, "params": params}
    clusters = {"params/conv_a/kernel": SHARED}
    (found,) = deviation(deps, apart, clusters).values()
    assert found == pytest.approx(gap / 2 / np.abs(kernel).max(), rel=1e-4)
    snapped = snap(deps, apart, clusters)
    (after,) = deviation(deps, snapped, clusters).values()
    assert after < 1e-7
    middle = kernel[0, 0, 0, 0] + gap / 2
    new = np.asarray(snapped["params"]["conv_a"]["kernel"])
    np.testing.assert_allclose(new[0, 0, 0, [0, 4]], middle, rtol=1e-5)
    np.testing.assert_array_equal(new[..., 1:4], kernel[..., 1:4])
    head = snapped["params"]["head"]["kernel"]
    np.testing.assert_array_equal(head, apart["params"]["head"]["kernel"])
    with pytest.raises(ValueError, match=r"further apart than `tolerance` 1.0e-04"):
        compress.merge(apply, deps, apart, clusters, x)
    wide = compress.merge(apply, deps, apart, clusters, x, tolerance=0.1)
    assert wide.plan.pack(apart)["params"]["conv_a"]["kernel"].shape[-1] == 5


def even(group):
    """Contiguous clusters of two."""
    return np.arange(group.size) // 2


def check_pairs(case, names):
    """Merges the groups in pairs after a snap; float64, to rounding."""
    deps = surgery.groups(case.apply)(case.variables, *case.args)
    clusters = {group.id: even(group) for group in names(deps)}
    snapped = snap(deps, case.variables, clusters)
    merged = compress.merge(
        case.apply, deps, snapped, clusters, *case.args, tolerance=1e-10
    )
    assert max(merged.deviation.values()) < 1e-12
    small = jax.jit(surgery.shrink(case.apply, merged.plan))
    expected = jax.jit(case.apply)(snapped, *case.args)
    assert difference(small(merged.variables, *case.args), expected) <= 1e-10


@pytest.mark.parametrize(
    "net",
    [OPTION_A, pytest.param(RESNET, marks=pytest.mark.slow)],
    ids=lambda net: net.name,
)
def test_every_group_of_a_residual_network_at_once(net):
    """Streams, inner widths, pads: all merged in pairs, all snapped, one network."""
    with jax.enable_x64(True):
        check_pairs(net.make(), coupled)


@pytest.mark.slow
def test_whole_heads_and_hidden_units_of_a_vit_merge():
    def names(deps):
        return [_first(deps, "query", 1), _first(deps, "Dense_0", 1)]

    with jax.enable_x64(True):
        check_pairs(VIT.make(), names)


def normalized(p, x):
    y = x @ p["a"]
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
    return jax.nn.relu(y @ p["b"]) @ p["c"]


def self_similar(p, x):
    weights = jax.nn.relu((x @ p["a"]) @ (x @ p["b"]).T)
    return weights @ jax.nn.relu(x @ p["c"]) @ p["d"]


@pytest.mark.parametrize(
    "net, guilty, innocent",
    [(normalized, ("a", 1), ("b", 1)), (self_similar, ("a", 1), ("c", 1))],
    ids=["norm", "product"],
)
def test_coordinates_that_meet_each_other_are_refused(net, guilty, innocent):
    """A norm, or q.k, sums over coordinates themselves: only the guilty is named."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5))
    shapes = {"a": (5, 4), "b": (4, 6), "c": (6, 2)}
    if net is self_similar:
        shapes = {"a": (5, 4), "b": (5, 4), "c": (5, 6), "d": (6, 2)}
    params = {name: jnp.asarray(rng.normal(size=n)) for name, n in shapes.items()}
    deps = surgery.groups(net)(params, x)
    guilty, innocent = (_first(deps, *place) for place in (guilty, innocent))
    clusters = {guilty.id: even(guilty), innocent.id: even(innocent)}
    snapped = snap(deps, params, clusters)
    with pytest.raises(ValueError, match="read by weights alone") as error:
        compress.merge(net, deps, snapped, clusters, x)
    assert f"\n  {guilty.id}: " in str(error.value)
    assert f"\n  {innocent.id}: " not in str(error.value)


def test_a_table_that_is_also_read_is_refused():
    """A tied embedding produces the coordinates and contracts them: no one choice."""

    def net(p, text):
        return jax.nn.relu(p["table"][text] @ p["a"]) @ p["b"] @ p["table"].T

    rng = np.random.default_rng(0)
    shapes = {"table": (7, 4), "a": (4, 4), "b": (4, 4)}
    params = {name: jnp.asarray(rng.normal(size=n)) for name, n in shapes.items()}
    text = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    deps = surgery.groups(net)(params, text)
    group = _first(deps, "table", 1)
    snapped = snap(deps, params, {group.id: even(group)})
    with pytest.raises(ValueError, match="both produces and reads"):
        compress.merge(net, deps, snapped, {group.id: even(group)}, text)


def _first(deps, layer, axis):
    """The first group on `axis` of the first weight of or below `layer`."""
    for group in deps:
        for member in group.members:
            below = member.path[-1] in ("kernel", layer)
            if below and layer in member.path and member.axis == axis:
                return group
    raise LookupError(layer)


def test_errors():
    deps = surgery.groups(mlp)(HAND, HAND_X)
    merge = partial(compress.merge, mlp, deps, HAND)
    with pytest.raises(
        ValueError, match=r"\[jprune\] `assignment\['nope'\]` names no gr"
    ):
        merge({"nope": [0, 1, 2]}, HAND_X)
    with pytest.raises(
        ValueError, match=r"must be 3 integers, one for each coordinate"
    ):
        merge({"k1": [0, 1]}, HAND_X)
    with pytest.raises(ValueError, match=r"must be 3 integers.*got float64"):
        merge({"k1": [0.0, 1.0, 1.0]}, HAND_X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="further apart"):
        merge({"k1": [0, 1, 0]}, HAND_X)


def test_the_first_member_may_stand_for_its_cluster():
    apart = {**HAND, "k1": HAND["k1"].at[:, 1].add(1e-3)}
    deps = surgery.groups(mlp)(apart, HAND_X)
    made = partial(
        compress.merge, mlp, deps, apart, {"k1": [0, 0, 1]}, HAND_X, tolerance=1e-2
    )
    mean, first = made().variables["k1"], made(keep="first").variables["k1"]
    np.testing.assert_array_equal(first, HAND["k1"][:, [0, 2]])
    np.testing.assert_allclose(mean[:, 0], HAND["k1"][:, 0] + 5e-4, rtol=1e-6)
    with pytest.raises(ValueError, match="`keep` must be 'mean' or 'first'"):
        made(keep="last")


@pytest.mark.parametrize("factor", [np.nan, 0.0, None], ids=["NaN", "zeros", "none"])
def test_outputs_that_show_nothing_are_refused(factor):
    """A softmax over the merged units: wrong, but equal on NaN and on no example."""

    def net(p, x):
        y = jax.nn.softmax(x @ p["a"], -1) @ p["b"]
        return y * jnp.abs(x).max(1, keepdims=True)

    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 4)).astype("f")
    a[:, 1] = a[:, 0]
    params = {"a": a, "b": rng.normal(size=(4, 2)).astype("f")}
    x = rng.normal(size=(5, 3)).astype("f")
    deps = surgery.groups(net)(params, x)
    few = x[:0] if factor is None else x * factor
    with pytest.raises(ValueError, match=r"`merge` compares .*finite and not 0, got"):
        compress.merge(net, deps, params, {deps[0].id: [0, 0, 1, 2]}, few)
    with pytest.raises(ValueError, match="differs from the snapped one"):
        compress.merge(net, deps, params, {deps[0].id: [0, 0, 1, 2]}, x)


def test_integers_that_differ_are_no_small_error():
    """The merged network gives 30001 where the other gives 30000."""

    def net(p, x):
        y = jax.nn.softmax(x @ p["a"], -1) @ p["b"]
        return {"bin": 30_000 + jnp.int32(jnp.round(y)), "one": x[:1] + 1}

    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 4)).astype("f")
    a[:, 1] = a[:, 0]
    params = {"a": a, "b": rng.normal(size=(4, 40)).astype("f")}
    x = rng.normal(size=(5, 3)).astype("f")
    deps = surgery.groups(net)(params, x)
    with pytest.raises(ValueError, match="differs from the snapped one by inf"):
        compress.merge(net, deps, params, {deps[0].id: [0, 0, 1, 2]}, x)
