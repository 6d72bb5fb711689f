"""Channel similarity: hand numbers, Monte Carlo, networks where merging is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import compress, surgery
from jprune.compress._distances import (
    channel_distances,
    cluster_by_distance,
    filter_correlation,
    relu_moments,
)

BETA, GAMMA = np.array([0, 0.1, 2, 2.05]), np.array([0.1, 0.1, 0.2, 1])


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_similarity_g1_distances_by_hand():
    g, b = [1.0, 2.0], [0.0, 1.0]
    assert channel_distances(g, b)[0, 1] == pytest.approx(6.0)
    assert channel_distances(g, b, "comonotone")[0, 1] == pytest.approx(2.0)
    half = np.array([[1, 0.5], [0.5, 1]])
    assert channel_distances(g, b, half)[0, 1] == pytest.approx(4.0)


def test_similarity_g2_relu_moments():
    m1, m2 = relu_moments(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(m1, [0.398942, 1.395593], atol=1e-6)
    np.testing.assert_allclose(m2, [0.5, 4.161443], atol=1e-6)
    g, b = [1.0, 2.0], [0.0, 1.0]
    found = channel_distances(g, b, relu=True)[0, 1]
    assert found == pytest.approx(3.547921, abs=1e-6)
    found = channel_distances(g, b, "comonotone", relu=True)[0, 1]
    assert found == pytest.approx(1.863558, abs=1e-4)


def test_constants_have_their_own_moments():
    m1, m2 = relu_moments(np.zeros(2), np.array([0.3, -0.3]))
    np.testing.assert_allclose(m1, [0.3, 0])
    np.testing.assert_allclose(m2, [0.09, 0])


@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("relu", [False, True])
def test_closed_forms_are_those_of_samples(rho, relu):
    g, b = np.array([0.7, -1.3]), np.array([0.2, -0.4])
    z = np.random.default_rng(0).multivariate_normal(
        [0, 0], [[1, rho], [rho, 1]], 400_000
    )
    y = b + g * z
    y = np.maximum(y, 0) if relu else y
    expected = ((y[:, 0] - y[:, 1]) ** 2).mean()
    matrix = np.array([[1, rho], [rho, 1]])
    found = channel_distances(g, b, matrix, relu=relu)[0, 1]
    assert found == pytest.approx(expected, rel=1e-2)


def test_similarity_g3_independent_clusters():
    d = channel_distances(GAMMA, BETA)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    expected = [0.03, 4.05, 5.2125, 3.66, 4.8125, 1.0425]
    np.testing.assert_allclose([d[p] for p in pairs], expected)
    by = cluster_by_distance
    assert by(d, height=0.5).tolist() == [0, 0, 1, 2]
    assert by(d, clusters=2).tolist() == [0, 0, 1, 1]
    for height, clusters in ((0.0299, 4), (0.0301, 3), (1.0424, 3), (1.0426, 2)):
        assert by(d, height=height).max() + 1 == clusters
    assert by(d, height=4.4337).max() == 1 and by(d, height=4.4338).max() == 0


def test_similarity_g4_comonotone_clusters():
    d = channel_distances(GAMMA, BETA, "comonotone")
    np.testing.assert_allclose([d[0, 1], d[2, 3]], [0.01, 0.6425])
    by = cluster_by_distance
    assert by(d, height=4.3137).max() == 1 and by(d, height=4.3138).max() == 0


@pytest.mark.parametrize("correlation", ["independent", "comonotone"])
def test_similarity_g5_symmetry_and_permutation(correlation):
    rng = np.random.default_rng(0)
    g, b, order = rng.normal(size=7), rng.normal(size=7), rng.permutation(7)
    d = channel_distances(g, b, correlation, relu=True)
    np.testing.assert_array_equal(d, d.T)
    np.testing.assert_array_equal(np.diag(d), 0)
    moved = channel_distances(g[order], b[order], correlation, relu=True)
    np.testing.assert_allclose(moved, d[np.ix_(order, order)], atol=1e-12)
    labels = cluster_by_distance(d, clusters=3)[order]
    again = cluster_by_distance(moved, clusters=3)
    same = labels[:, None] == labels
    np.testing.assert_array_equal(same, again[:, None] == again)


# Networks


def conv(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def norm(p, x):
    row = {n: v[None, None, None] for n, v in p.items()}
    scale = row["scale"] * lax.rsqrt(row["var"] + 1e-3)
    return (x - row["mean"]) * scale + row["bias"]


def net(p, x, act=jax.nn.relu):
    h = act(norm(p["n"], conv(x, p["a"])))
    return conv(h, p["b"]) + p["c"][None, None, None]


def linear(p, x):
    return net(p, x, lambda h: h)


def params(taps=3):
    p = {"a": normal(0, 3, 3, 2, 6), "b": normal(1, taps, taps, 6, 3)}
    p |= {"c": normal(2, 3)}
    p["n"] = {"scale": 1 + 0.3 * normal(3, 6), "bias": 0.3 * normal(4, 6)}
    p["n"] |= {"mean": 0.2 * normal(5, 6), "var": 1 + normal(6, 6) ** 2}
    return p


def duplicated(p):
    """Channel 4 says what channel 1 says."""
    p = dict(p, n={n: v.at[4].set(v[1]) for n, v in p["n"].items()})
    return p | {"a": p["a"].at[..., 4].set(p["a"][..., 1])}


def test_similarity_g6_a_duplicate_merges_without_loss():
    p, x = duplicated(params()), normal(9, 2, 5, 5, 2)
    deps = surgery.groups(net)(p, x)
    found = compress.similar_channels(deps, p, height=1e-6)
    assert found.distances["a:3"][1, 4] == pytest.approx(0, abs=1e-7)
    assert found.keep["a:3"].sum() == 5
    plan, new = compress.remove_similar(net, deps, p, found, x)
    small = surgery.shrink(net, plan)
    np.testing.assert_allclose(small(plan.pack(new), x), net(p, x), atol=1e-4)


def test_similarity_g7_affine_is_exact_for_a_linear_reader():
    """The second channel is 2 a + 1."""
    p, x = params(taps=1), normal(9, 2, 5, 5, 2)
    p = duplicated(p)
    p["n"]["scale"] = p["n"]["scale"].at[4].set(2 * p["n"]["scale"][1])
    p["n"]["bias"] = p["n"]["bias"].at[4].set(2 * p["n"]["bias"][1] + 1)
    deps = surgery.groups(linear)(p, x)
    found = compress.similar_channels(deps, p, height=1e9, relu=False)
    clusters = np.array([0, 1, 2, 3, 1, 4])
    keep = np.array([True, True, True, True, False, True])
    found = found._replace(clusters={"a:3": clusters}, keep={"a:3": keep})
    plan, new = compress.remove_similar(linear, deps, p, found, x, how="affine")
    small = surgery.shrink(linear, plan)
    np.testing.assert_allclose(small(plan.pack(new), x), linear(p, x), atol=1e-4)


def test_similarity_g8_the_ends_of_the_height():
    p, x = params(), normal(9, 2, 5, 5, 2)
    deps = surgery.groups(net)(p, x)
    assert compress.similar_channels(deps, p, height=0.0).keep["a:3"].all()
    assert compress.similar_channels(deps, p, height=np.inf).keep["a:3"].sum() == 1


def test_similarity_g9_a_constant_is_made_up_for():
    p, x = params(taps=1), normal(9, 2, 5, 5, 2)
    p["n"]["scale"] = p["n"]["scale"].at[2].set(0)
    p["n"]["bias"] = p["n"]["bias"].at[2].set(0.3)
    p["b"] = p["b"].at[0, 0, 2].set(jnp.array([1.0, -2.0, 0.0]))
    deps = surgery.groups(net)(p, x)
    found = compress.similar_channels(deps, p, height=0.0)
    keep, clusters = np.arange(6) != 2, np.array([0, 1, 0, 2, 3, 4])
    found = found._replace(clusters={"a:3": clusters}, keep={"a:3": keep})
    run = lambda **kw: compress.remove_similar(  # noqa: E731
        net, deps, p, found, x, how="remove", **kw
    )
    plan, new = run()
    small = surgery.shrink(net, plan)
    np.testing.assert_allclose(small(plan.pack(new), x), net(p, x), atol=1e-5)
    _, without = run(compensate=False)
    gap = small(plan.pack(without), x) - net(p, x)
    np.testing.assert_allclose(
        gap, np.broadcast_to([-0.3, 0.6, 0.0], gap.shape), atol=1e-5
    )


def test_measured_distances_agree_where_the_model_holds():
    """White inputs, a 1 x 1 kernel: outputs are Gaussian, correlated as filters."""
    x = normal(9, 64, 8, 8, 4)
    p = params(taps=1) | {"a": normal(0, 1, 1, 4, 6)}
    y = conv(x, p["a"])
    p["n"] |= {"mean": y.mean((0, 1, 2)), "var": y.var((0, 1, 2)) - 1e-3}
    deps = surgery.groups(net)(p, x)
    found = compress.similar_channels(deps, p, sparsity=0.5).distances["a:3"]
    seen = compress.data_distances(net, deps, p, [x], ["a:3"])["a:3"]
    np.testing.assert_allclose(found, seen, rtol=0.1, atol=0.03)


def test_a_budget_of_flops_is_met_by_one_height():
    p, x = params(), normal(9, 2, 5, 5, 2)
    deps = surgery.groups(net)(p, x)
    found = compress.similar_channels(deps, p, flops=0.6)
    counts = {i: int(k.sum()) for i, k in found.keep.items()}
    assert counts["a:3"] == 3 and deps.flops(counts) <= 0.6 * deps.flops()
    half = compress.similar_channels(deps, p, sparsity=0.5)
    np.testing.assert_array_equal(half.clusters["a:3"], found.clusters["a:3"])


def test_a_stream_adds_the_distances_of_its_norms():
    def stream(p, x):
        h = norm(p["n"], conv(x, p["a"])) + norm(p["m"], conv(x, p["d"]))
        return conv(jax.nn.relu(h), p["b"])

    p, x = params(), normal(9, 2, 5, 5, 2)
    p |= {"d": normal(7, 3, 3, 2, 6), "m": {n: v + 0.1 for n, v in p["n"].items()}}
    deps = surgery.groups(stream)(p, x)
    with pytest.raises(ValueError, match="give `groups`"):
        compress.similar_channels(deps, p, sparsity=0.5)
    ours = compress.similar_channels(
        deps, p, sparsity=0.5, groups=[deps[0].id], relu=False
    )
    rho = filter_correlation((p["a"], 3), (p["d"], 3))
    parts = [channel_distances(p[n]["scale"], p[n]["bias"], rho) for n in "nm"]
    second = sum(float((p[n]["scale"] ** 2 + p[n]["bias"] ** 2).mean()) for n in "nm")
    np.testing.assert_allclose(ours.distances[deps[0].id], sum(parts) / second)


def test_what_cannot_be_clustered_is_an_error():
    with pytest.raises(ValueError, match="one of them"):
        cluster_by_distance(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="from 1 to 2"):
        cluster_by_distance(np.zeros((2, 2)), clusters=3)
    with pytest.raises(ValueError, match="one length"):
        channel_distances([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="within"):
        channel_distances([1.0], [1.0], np.array([[2.0]]))
    p, x = params(), normal(9, 2, 5, 5, 2)
    deps = surgery.groups(net)(p, x)
    with pytest.raises(ValueError, match="exactly one"):
        compress.similar_channels(deps, p)
    with pytest.raises(ValueError, match="cannot be met") as error:
        compress.similar_channels(deps, p, flops=0.01)
    least = float(str(error.value).split("`flops=")[1].split("`")[0])
    compress.similar_channels(deps, p, flops=least)
