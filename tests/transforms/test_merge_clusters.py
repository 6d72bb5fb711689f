"""C-SGD against hand-computed numbers (g1 to g4, g8, g9) and against a NumPy twin.

The numbers of merging itself (g5, g6, g7, g10) are in tests/compress/test_merge.py.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import compress, transforms
from jprune.compress._clusters import (
    even_clusters,
    imbalanced_clusters,
    kmeans_clusters,
)
from jprune.surgery import AxisRef, Group
from jprune.transforms._merge_clusters import collapse_factor
from tests.transforms.table import gradients, tree

W = np.array([[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]])
G = np.array([[0.2, 0.4, 1.0], [0.6, 0.0, -1.0]])
GROUP = Group("h", 3, (AxisRef(("kernel",), 1, "out"), AxisRef(("next",), 0, "in")))
PAIR = {"h": [0, 0, 1]}


def hand(clusters=PAIR, strength=0.5, weight_decay=0.1):
    return transforms.merge_clusters(
        [GROUP], clusters, strength=strength, weight_decay=weight_decay
    )


def hand_step(gradient=G):
    params = {"kernel": jnp.array(W), "next": jnp.ones((3, 2))}
    grads = {"kernel": jnp.array(gradient), "next": jnp.full((3, 2), 0.7)}
    tx = optax.chain(hand(), optax.scale(-0.1))
    updates, _ = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates)


def test_csgd_g1_hand_step():
    params = {"kernel": jnp.array(W), "next": jnp.ones((3, 2))}
    grads = {"kernel": jnp.array(G), "next": jnp.full((3, 2), 0.7)}
    direction, _ = hand().update(grads, hand().init(params), params)
    gamma = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    lam = np.array([[0.35, -0.25, 0], [-0.25, 0.35, 0], [0, 0, 0.1]])
    by_matrices = G @ gamma + W @ lam
    np.testing.assert_allclose(
        by_matrices, [[-0.1, 1.1, 1.5], [0, 1.2, -0.4]], atol=1e-12
    )
    np.testing.assert_allclose(direction["kernel"], by_matrices, atol=1e-6)
    np.testing.assert_array_equal(direction["next"], grads["next"])
    np.testing.assert_allclose(
        hand_step()["kernel"], [[1.01, 2.89, 4.85], [2.00, 3.88, 6.04]], rtol=1e-6
    )


@pytest.mark.parametrize("gradient", [G, np.random.default_rng(0).normal(size=(2, 3))])
def test_csgd_g2_difference_shrinks_whatever_the_gradient(gradient):
    new = np.asarray(hand_step(gradient)["kernel"])
    np.testing.assert_allclose(
        (new[:, 1] - new[:, 0]) / (W[:, 1] - W[:, 0]), 1 - 0.1 * 0.6, rtol=1e-5
    )


def test_csgd_g3_mean_is_plain_sgd():
    new = np.asarray(hand_step()["kernel"])
    mean = W[:, :2].mean(1)
    np.testing.assert_allclose(new[:, :2].mean(1), [1.95, 2.94], rtol=1e-6)
    np.testing.assert_allclose(
        new[:, :2].mean(1), mean - 0.1 * (np.array([0.3, 0.3]) + 0.1 * mean), rtol=1e-6
    )


def test_csgd_g4_singletons_are_weight_decay():
    params, grads = {"kernel": jnp.array(W)}, {"kernel": jnp.array(G)}
    got, _ = hand({"h": [2, 0, 1]}).update(grads, hand().init(params), params)
    plain = optax.add_decayed_weights(0.1)
    want, _ = plain.update(grads, plain.init(params), params)
    chex.assert_trees_all_equal(got, want)


def test_csgd_g8_cluster_makers():
    even = even_clusters(10, 4)
    np.testing.assert_array_equal(even, [0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    large = imbalanced_clusters(10, 4)
    np.testing.assert_array_equal(large, [0] * 7 + [1, 2, 3])
    columns = np.array([[0, 0, 5], [0, 0.1, 5]])
    np.testing.assert_array_equal(kmeans_clusters(columns, 2), [0, 0, 1])


def test_csgd_g9_momentum_collapse():
    left = collapse_factor(0.03, 3.1e-3, 782)
    assert abs(left - 0.4841) < 1e-3
    # The transformation itself, without a data gradient, does the same.
    with jax.enable_x64(True):
        group = Group("h", 2, (AxisRef(("w",), 0, "out"),))
        tx = transforms.csgd(
            0.03, [group], {"h": [0, 0]}, strength=3e-3, weight_decay=1e-4, scope="w"
        )
        params = {"w": jnp.array([[1.0], [2.0]])}
        zero = jax.tree.map(jnp.zeros_like, params)

        def body(carry, _):
            updates, state = tx.update(zero, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        start = (params, tx.init(params))
        (end, _), _ = jax.jit(lambda c: jax.lax.scan(body, c, length=782))(start)
    np.testing.assert_allclose(float(end["w"][1, 0] - end["w"][0, 0]), left, rtol=1e-9)


def test_collapse_of_the_first_epoch_on_cifar():
    """Kernels lose .725 and vectors .0697 (natural logarithm) in 782 steps."""
    kernels = -np.log(collapse_factor(0.03, 3.1e-3, 782))
    vectors = -np.log(collapse_factor(0.03, 3e-4, 782))
    np.testing.assert_allclose([kernels, vectors], [0.725, 0.0697], rtol=2e-3)
    by_schedule = collapse_factor(optax.constant_schedule(0.03), 3.1e-3, 782)
    np.testing.assert_allclose(-np.log(by_schedule), kernels, rtol=1e-6)


NET = [
    Group(
        "a",
        6,
        (
            AxisRef(("conv", "kernel"), 3, "out"),
            AxisRef(("conv", "bias"), 0, "bias"),
            AxisRef(("norm", "scale"), 0, "scale"),
            AxisRef(("stats", "mean"), 0, "stat"),
            AxisRef(("out", "kernel"), 0, "in", tuple(range(6)) * 4),
        ),
    ),
]


def test_csgd_twin_40_steps():
    """Nesterov, kernels and vectors, doubled bias rate: the authors' matrices."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        shapes = {
            ("conv", "kernel"): (3, 3, 2, 6),
            ("conv", "bias"): (6,),
            ("norm", "scale"): (6,),
            ("out", "kernel"): (24, 3),
            ("out", "bias"): (3,),
        }
        theirs = {k: rng.normal(size=s) for k, s in shapes.items()}
        velocity = {k: np.zeros(s) for k, s in shapes.items()}
        a = np.array([0, 1, 0, 2, 1, 0])
        same = a[:, None] == a
        gamma = same / same.sum(0)
        eta, eps, mu = 0.02, 0.3, 0.9
        lr = optax.cosine_decay_schedule(0.05, 40)
        lam = {
            "kernel": (eta + eps) * np.eye(6) - eps * gamma,
            "vector": 0.1 * eps * (np.eye(6) - gamma),
        }

        def nested(flat):
            out: dict = {}
            for (a, b), x in flat.items():
                out.setdefault(a, {})[b] = jnp.asarray(x)
            return out

        ours = nested(theirs)
        tx = transforms.csgd(
            lr, NET, {"a": a}, strength=eps, weight_decay=eta, bias_rate=2.0
        )
        state, update = tx.init(ours), jax.jit(tx.update)
        for t in range(40):
            grads = {k: rng.normal(size=s) for k, s in shapes.items()}
            updates, state = update(nested(grads), state, ours)
            ours = optax.apply_updates(ours, updates)
            for key, w in theirs.items():
                d = grads[key]
                if key == ("out", "kernel"):
                    d = d + eta * w
                elif key[0] != "out":
                    kind = "kernel" if key[1] == "kernel" else "vector"
                    flat = d.reshape(-1, 6) @ gamma + w.reshape(-1, 6) @ lam[kind]
                    d = flat.reshape(w.shape)
                velocity[key] = mu * velocity[key] + d
                step = 0.05 * 0.5 * (1 + np.cos(np.pi * t / 40))
                step *= 2 if key[1] == "bias" else 1
                theirs[key] = w - step * (d + mu * velocity[key])
            chex.assert_trees_all_close(ours, nested(theirs), rtol=1e-6, atol=1e-9)


def test_two_clustered_axes_of_one_leaf():
    """Heads and their inner size: the mean over both, in either order."""
    heads = Group("heads", 4, (AxisRef(("q",), 1, "out"),))
    inner = Group("inner", 3, (AxisRef(("q",), 2, "out"),))
    w = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    clusters = {"heads": [0, 1, 0, 1], "inner": [0, 0, 1]}
    tx = transforms.merge_clusters(
        [heads, inner], clusters, strength=0.0, weight_decay=0.0
    )
    got, _ = tx.update({"q": w}, tx.init({"q": w}), {"q": w})
    means = np.stack([w[:, [0, 2]].mean(1), w[:, [1, 3]].mean(1)], 1)[:, [0, 1, 0, 1]]
    means = np.stack([means[:, :, :2].mean(2), means[:, :, 2]], 2)[:, :, [0, 0, 1]]
    np.testing.assert_allclose(got["q"], means, rtol=1e-5)
    # Members of a cluster receive the same bits.
    np.testing.assert_array_equal(got["q"][:, 0], got["q"][:, 2])


def test_norm_over_a_concatenation():
    """Two groups on one axis, each with its own positions; the rest is left alone."""
    first = Group("first", 2, (AxisRef(("scale",), 0, "scale", (0, 1, -1, -1, -1)),))
    second = Group("second", 2, (AxisRef(("scale",), 0, "scale", (-1, -1, 0, 1, -1)),))
    tx = transforms.merge_clusters(
        [first, second],
        {"first": [0, 0], "second": [7, 7]},
        strength=0.0,
        weight_decay=0.0,
    )
    g = {"scale": jnp.array([1.0, 3.0, 5.0, 9.0, 11.0])}
    got, _ = tx.update(g, tx.init(g), g)
    np.testing.assert_array_equal(got["scale"], [2, 2, 7, 7, 11])


def test_flattened_axis_is_averaged_pixel_by_pixel():
    group = Group("c", 2, (AxisRef(("w",), 1, "out", (0, 1, 0, 1)),))
    tx = transforms.merge_clusters(
        [group], {"c": [0, 0]}, strength=0.0, weight_decay=0.0
    )
    g = {"w": jnp.array([[1.0, 3.0, 10.0, 30.0]])}
    got, _ = tx.update(g, tx.init(g), g)
    np.testing.assert_array_equal(got["w"], [[2, 2, 20, 20]])


def test_members_stay_equal_in_bfloat16():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree("dict"))
    params["one"]["kernel"] = (
        params["one"]["kernel"].at[:, 1].set(params["one"]["kernel"][:, 0])
    )
    group = Group("g", 4, (AxisRef(("one", "kernel"), 1, "out"),))
    tx = optax.chain(
        transforms.merge_clusters(
            [group], {"g": [0, 0, 1, 2]}, strength=0.1, weight_decay=0.01
        ),
        optax.sgd(0.1, 0.9),
    )
    state = tx.init(params)
    for t in range(5):
        updates, state = tx.update(gradients(params, t), state, params)
        params = optax.apply_updates(params, updates)
    kernel = params["one"]["kernel"]
    np.testing.assert_array_equal(kernel[:, 0], kernel[:, 1])
    assert kernel.dtype == jnp.bfloat16


def test_find_clusters_over_all_producers_of_a_group():
    """Two layers are added: filters must be near in both to belong together."""
    group = Group("sum", 4, (AxisRef(("a",), 1, "out"), AxisRef(("b",), 1, "out")))
    params = {
        "a": jnp.array([[0.0, 0.1, 0.0, 0.1]]),
        "b": jnp.array([[0.0, 9.0, 0.1, 9.1]]),
    }
    found = compress.find_clusters(params, [group], sparsity=0.5)
    np.testing.assert_array_equal(found["sum"], [0, 1, 0, 1])
    params["a"] = jnp.array([[0.0, 0.0, 5.0, 5.0]])
    led = compress.find_clusters(params, [group], sparsity=0.5, pacesetter="^a$")
    np.testing.assert_array_equal(led["sum"], [0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"`pacesetter`='\*/a' is not a regular"):
        compress.find_clusters(params, [group], sparsity=0.5, pacesetter="*/a")
    even = compress.find_clusters(params, [group], keep={"sum": 3}, how="even")
    np.testing.assert_array_equal(even["sum"], [0, 0, 1, 2])
    alone = compress.find_clusters(params, [group], sparsity=0.9, how="imbalanced")
    np.testing.assert_array_equal(alone["sum"], [0, 0, 0, 0])


def test_kmeans_finds_separated_clusters_and_fills_every_one():
    rng = np.random.default_rng(3)
    truth = rng.permutation(np.repeat(np.arange(5), 6))
    points = 10 * np.eye(5)[truth].T + 0.1 * rng.normal(size=(5, 30))
    found = kmeans_clusters(points, 5)
    assert len({(a, b) for a, b in zip(truth, found, strict=True)}) == 5
    _, first = np.unique(found, return_index=True)
    assert np.all(np.diff(first) > 0)  # numbered by first member
    # More clusters than distinct points: still none is empty.
    same = kmeans_clusters(np.ones((2, 7)), 4)
    assert set(same) == {0, 1, 2, 3}


def test_csgd_warns_when_it_will_not_collapse():
    make = lambda **kw: transforms.csgd(  # noqa: E731
        0.01, NET, {"a": [0, 0, 1, 1, 2, 2]}, weight_decay=1e-4, total_steps=400, **kw
    )
    with pytest.warns(UserWarning, match="kernels: 8.*vectors: 9.*Raise `strength`"):
        make(strength=3e-3)
    with pytest.warns(UserWarning, match="wanted: vectors: "):
        make(strength=0.4)
    make(strength=0.4, vector_multiplier=1.0)


@pytest.mark.parametrize(
    "clusters, message",
    [
        ({"x": [0, 0, 1]}, "names 'x', which is no group.*\n  h"),
        ({"h": [0, 0]}, "must be 3 integers"),
        ({"h": [0.0, 0.0, 1.0]}, "must be 3 integers"),
        ({}, "`clusters` is empty"),
    ],
)
def test_bad_clusters(clusters, message):
    with pytest.raises(ValueError, match=message):
        hand(clusters)


NAMES = {
    "nnx": lambda w, v: {"a": {"kernel": {"value": w}, "bias": {"value": v}}},
    "haiku": lambda w, v: {"a": {"w": w, "b": v}},
    "role": lambda w, v: {"a": {"weight": w, "shift": v}},
}


@pytest.mark.parametrize("name", NAMES)
def test_bias_rate_finds_the_biases_of_every_framework(name):
    """By the role, where the clustered group knows it, or by the name."""
    params = NAMES[name](jnp.ones((2, 3)), jnp.ones(3))
    (bias, _), (kernel, _) = sorted(
        jax.tree_util.tree_leaves_with_path(params), key=lambda leaf: leaf[1].ndim
    )
    members = [AxisRef(tuple(k.key for k in kernel), 1, "out")]
    if name == "role":
        members.append(AxisRef(tuple(k.key for k in bias), 0, "bias"))
    group = Group("h", 3, tuple(members))

    def step(rate):
        tx = transforms.csgd(
            0.1, [group], PAIR, strength=0.1, weight_decay=0.0, bias_rate=rate
        )
        return tx.update(params, tx.init(params), params)[0]

    factors = jax.tree.map(lambda x, y: y / x, step(1.0), step(2.0))
    want = NAMES[name](jnp.ones((2, 3)), jnp.full(3, 2.0))
    chex.assert_trees_all_close(factors, want)


def test_bias_rate_without_a_bias():
    tx = transforms.csgd(
        0.1, [GROUP], PAIR, strength=0.1, weight_decay=0.0, bias_rate=2.0
    )
    with pytest.raises(ValueError, match="`bias_rate` must be 1.*\n  kernel$"):
        tx.init({"kernel": jnp.array(W)})


def test_a_schedule_is_injected():
    params, zero = {"kernel": jnp.array(W)}, {"kernel": jnp.zeros((2, 3))}
    strength = optax.linear_schedule(0.0, 0.5, 1)
    with pytest.raises(ValueError, match="`strength` must be a number.*inject_hyper"):
        hand(strength=strength)
    with pytest.raises(ValueError, match="`strength` must be a number.*inject_hyper"):
        transforms.csgd(
            0.1, [GROUP], PAIR, strength=strength, weight_decay=0.1, total_steps=9
        )
    tx = optax.inject_hyperparams(transforms.merge_clusters)(
        [GROUP], PAIR, strength=strength, weight_decay=0.1
    )
    state = tx.init(params)
    for s in (0.0, 0.5):
        updates, state = tx.update(zero, state, params)
        want, _ = hand(strength=s).update(zero, hand().init(params), params)
        chex.assert_trees_all_close(updates, want)


def test_errors():
    with pytest.raises(ValueError, match="nothing would be merged.*\n  kernel\n  next"):
        hand().init({"other": jnp.ones((2, 3))})
    params = {"kernel": jnp.array(W)}
    with pytest.raises(ValueError, match="exactly one of `sparsity`"):
        compress.find_clusters(params, [GROUP])
    with pytest.raises(ValueError, match="`keep` must name groups"):
        compress.find_clusters(params, [GROUP], keep={"x": 1})
    with pytest.raises(ValueError, match="1 <= n <= 3, got 4"):
        compress.find_clusters(params, [GROUP], keep={"h": 4})
    with pytest.raises(ValueError, match="no producing kernel"):
        compress.find_clusters({"next": jnp.ones((3, 2))}, [GROUP], sparsity=0.5)
    with pytest.raises(ValueError, match="`how` must be"):
        how: Any = "best"
        compress.find_clusters(params, [GROUP], sparsity=0.5, how=how)
    with pytest.raises(ValueError, match="no group that parameters both"):
        compress.find_clusters(
            params, [Group("p", 3, GROUP.members, "producer")], sparsity=0.5
        )
    with pytest.raises(ValueError, match="1 <= n <= 3"):
        even_clusters(3, 0)
