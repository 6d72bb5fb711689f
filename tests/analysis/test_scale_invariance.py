"""Scale-invariant filters: found, measured; what follows for training, by hand."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import analysis, compress, masks, scores, transforms
from jprune._scale_groups import Scaled, ScaleGroup, rescaled
from jprune.analysis._scale_invariance import ScaleInvariance

VECTOR = [ScaleGroup(Scaled(("w",), None, 1.0))]
FOUND = ScaleInvariance(VECTOR, {}, {})
W, V = jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])


def loss(p):
    return -(p["w"] @ V) / jnp.linalg.norm(p["w"])


def test_bn_g1_gradient():
    g = jax.grad(loss)({"w": W})["w"]
    np.testing.assert_allclose(g, [-0.128, 0.096], rtol=1e-5)
    assert float(g @ W) == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(jax.grad(loss)({"w": 2 * W})["w"], [-0.064, 0.048], 1e-5)


def test_bn_g2_one_step():
    p = {"w": W}
    new = {"w": W - jax.grad(loss)(p)["w"]}
    np.testing.assert_allclose(new["w"], [3.128, 3.904], rtol=1e-6)
    assert float(new["w"] @ new["w"]) == pytest.approx(25.0256, rel=1e-6)
    angle = FOUND.angular_update(p, new)["w"]
    assert float(angle) == pytest.approx(0.0319891, abs=1e-7)
    rate = FOUND.effective_learning_rate(1.0, p)["w"]
    assert float(rate) == pytest.approx(0.04)
    assert float(FOUND.filter_sizes(p)["w"]) == pytest.approx(5.0)


def test_bn_g3_equilibrium():
    size, angle = analysis.equilibrium(0.1, 5e-4)
    assert size**4 == pytest.approx(100.0025, rel=1e-6)
    assert size == pytest.approx(3.16230, abs=1e-5) and angle == pytest.approx(0.01)
    for n in (1.0, 100.0):  # n = |w|^2
        for _ in range(100_000):
            n = (1 - 0.1 * 5e-4) ** 2 * n + 0.1**2 / n
        assert n == pytest.approx(10.000125, rel=1e-6)


@pytest.mark.parametrize(
    ("lr", "decay", "momentum", "angle", "size"),
    [(0.1, 5e-3, 0.9, 0.022948, 3.16380), (0.05, 1e-2, 0.5, 0.025818, None)],
)
def test_equilibrium_with_momentum_is_that_of_simulations(
    lr, decay, momentum, angle, size
):
    """The values were simulated at dimension 2,000."""
    found = analysis.equilibrium(lr, decay, momentum)
    assert found[1] == pytest.approx(angle, rel=1e-3)
    if size is not None:
        assert found[0] == pytest.approx(size, rel=1e-3)


def test_norms_and_rectifiers_written_by_hand():
    """`jnp.var` chooses between the variance and NaN, `where` between x and 0."""

    def fn(p, x):
        h = x @ p["w"]
        h = (h - h.mean(0)[None]) / jnp.sqrt(h.var(0) + 1e-5)[None]
        return jnp.where(h > 0, h, 0.0) @ p["v"]

    p = {"w": jax.random.normal(jax.random.key(0), (3, 5)), "v": jnp.ones((5, 2))}
    found = analysis.scale_invariance(fn, p, jnp.arange(12.0).reshape(4, 3) % 5)
    assert [g.name for g in found.groups] == ["w"]
    # A number is none of these: what is chosen beside it has to scale.
    one = lambda p, x: jnp.where(x @ p["w"] > 0, x @ p["w"], 1.0)  # noqa: E731
    found = analysis.scale_invariance(one, {"w": p["w"]}, jnp.ones((4, 3)))
    assert not found.groups and "`select_n` compares it" in found.why["w"]


class Net(nn.Module):
    """Convolution, batch norm, ReLU, mean, dense: as in the specification."""

    bias: bool = True

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(4, (3, 3), use_bias=self.bias)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def variables(model, x):
    v = dict(model.init(jax.random.key(0), x))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    shift = lambda y: y + 0.3 * jnp.abs(jax.random.normal(next(keys), y.shape))  # noqa: E731
    return jax.tree.map(shift, v)


def train_mode(model, v):
    def fn(params, x):
        rest = {n: y for n, y in v.items() if n != "params"}
        return model.apply({"params": params, **rest}, x, mutable=list(rest))[0]

    return fn


X = jax.random.normal(jax.random.key(7), (8, 6, 6, 3))


def test_bn_g4_the_detector_returns_exactly_the_convolution():
    model = Net()
    v = variables(model, X)
    fn = train_mode(model, v)
    found = analysis.scale_invariance(fn, v["params"], X)
    (group,) = found.groups
    assert group.name == "Conv_0/kernel" and group.kernel.axis == 3
    assert [m.path for m in group.others] == [("Conv_0", "bias")]
    assert list(found.why) == ["Dense_0/kernel"]
    assert (found.radial["Conv_0/kernel"] < 1e-3).all()

    def loss(params, scale):
        w = params["Conv_0"]["kernel"].at[..., 1].multiply(scale)
        p = dict(params, Conv_0=dict(params["Conv_0"], kernel=w))
        return (fn(p, X) ** 2).mean()

    at = [loss(v["params"], c) for c in (1.0, 7.0)]
    assert abs(at[0] - at[1]) < 1e-4 * (1 + abs(at[0]))


class Norms(nn.Module):
    """What hides a scale, and what does not."""

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(name="ln")(nn.Dense(6, name="layer")(x))
        h = nn.GroupNorm(2, name="gn")(nn.Dense(6, name="group")(h))
        h = nn.tanh(nn.Dense(6, name="tanh")(h))
        h = h + nn.BatchNorm(use_running_average=False, name="bn")(
            nn.relu(nn.Dense(6, use_bias=False, name="relu")(h))
        )
        y = nn.Conv(6, (3,), feature_group_count=6, use_bias=False, name="depth")(h)
        y = nn.BatchNorm(use_running_average=False, name="bn2")(y)
        summed = nn.Dense(6, use_bias=False, name="added")(h) + y
        return nn.BatchNorm(use_running_average=False, name="bn3")(summed)


@pytest.mark.slow
def test_norms_of_every_kind():
    x = jax.random.normal(jax.random.key(0), (4, 5, 6))
    model = Norms()
    v = variables(model, x)
    found = analysis.scale_invariance(train_mode(model, v), v["params"], x)
    axes = {g.name: g.kernel.axis for g in found.groups}
    assert axes == {
        "layer/kernel": None,  # all its filters share one scale
        "group/kernel": None,
        "relu/kernel": 1,  # ReLU hands a positive scale on
        "depth/kernel": 2,
    }
    assert set(found.why) == {"tanh/kernel", "added/kernel"}
    members = {g.name: [m.path for m in g.others] for g in found.groups}
    assert members["layer/kernel"] == [("layer", "bias")]


def test_in_evaluation_the_statistics_scale_too():
    model = Net()
    v = variables(model, X)
    fn = lambda v, x: model.apply(v, x, train=False)  # noqa: E731
    (group,) = analysis.scale_invariance(fn, v, X).groups
    assert {m.path[-1]: m.degree for m in group.others} == {
        "bias": 1.0,
        "mean": 1.0,
        "var": 2.0,
    }


def test_bn_g6_canonical_networks_compute_the_same():
    model = Net()
    v = variables(model, X)
    fn = lambda v, x: model.apply(v, x, train=False)  # noqa: E731
    found = analysis.scale_invariance(fn, v, X)
    new = compress.canonicalize(v, groups := found.groups)
    norms = found.filter_sizes(new)["params/Conv_0/kernel"]
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    np.testing.assert_allclose(fn(new, X), fn(v, X), atol=1e-4)
    kernel = new["params"]["Conv_0"]["kernel"]
    again = compress.canonicalize(rescaled(v, groups, [jnp.arange(1.0, 5)]), groups)
    np.testing.assert_allclose(again["params"]["Conv_0"]["kernel"], kernel, rtol=1e-5)


def test_a_scale_that_epsilon_sees_is_an_error():
    model = Net(bias=False)
    v = variables(model, X)
    kernel = v["params"]["Conv_0"]["kernel"] * 1e-3
    params = dict(v["params"], Conv_0={"kernel": kernel})
    with pytest.raises(ValueError, match="epsilon"):
        analysis.scale_invariance(train_mode(model, v), params, X)
    with pytest.raises(ValueError, match="no parameter in a contraction"):
        analysis.scale_invariance(lambda p, x: x + p["a"], {"a": X}, X)


def test_bn_g5_criteria():
    group = [ScaleGroup(Scaled(("w",), 1, 1.0))]
    p = {"w": jnp.array([[1.0, 10.0], [2.0, 20.0]])}
    s = scores.invariant_magnitude(p, group, kind="unit")
    np.testing.assert_allclose(s["w"], [[0.4472] * 2, [0.8944] * 2], atol=1e-4)
    other = rescaled(p, group, [jnp.array([100.0, 1.0])])

    def kept(tree):
        return masks.unstructured(tree, keep=2)["w"].tolist()

    assert kept(s) == [[False, False], [True, True]]
    assert kept(scores.invariant_magnitude(other, group, kind="unit")) == kept(s)
    assert kept(p) == [[False, True]] * 2 and kept(other) == [[True, False]] * 2
    rms = scores.invariant_magnitude(p, group)["w"]
    np.testing.assert_allclose(rms, np.sqrt(2) * s["w"], rtol=1e-6)


def test_masked_weights_do_not_count():
    group = [ScaleGroup(Scaled(("w",), 1, 1.0))]
    p = {"w": jnp.array([[3.0], [4.0], [100.0]])}
    mask = {"w": jnp.array([[True], [True], [False]])}
    s = scores.invariant_magnitude(p, group, kind="unit", mask=mask)["w"]
    np.testing.assert_allclose(s[:2, 0], [0.6, 0.8], rtol=1e-6)
    p["head"] = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="head"):
        scores.invariant_magnitude(p, group)
    s = scores.invariant_magnitude(p, group, rest="magnitude")
    np.testing.assert_array_equal(s["head"], 1)


def test_bn_g7_weights_of_a_dead_input_stay():
    x = jnp.concatenate([jnp.zeros((8, 1)), X[:, 0, 0]], 1)
    start = jax.random.normal(jax.random.key(3), (4, 2))
    step = lambda w, decay: (  # noqa: E731
        w - 0.1 * (jax.grad(lambda w: ((x @ w) ** 2).mean())(w) + decay * w)
    )
    for decay, factor in ((0.0, 1.0), (0.01, (1 - 0.001) ** 20)):
        w = start
        for _ in range(20):
            w = step(w, decay)
        np.testing.assert_allclose(w[0], start[0] * factor, rtol=1e-5)


def test_bn_g8_rescaled_filters_have_length_one():
    model = Net()
    v = variables(model, X)
    fn = train_mode(model, v)
    found = analysis.scale_invariance(fn, v["params"], X)
    groups = found.groups
    grad = jax.jit(jax.grad(lambda p: (fn(p, X) ** 2).mean()))
    tx = optax.chain(optax.sgd(0.1, 0.9), transforms.rescale_filters(groups))
    params = v["params"]
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(grad(params), state, params)
        moved = optax.apply_updates(params, updates)
        plain, _ = optax.sgd(0.1, 0.9).update(grad(params), state[0], params)
        params = moved
        sizes = found.filter_sizes(params)["Conv_0/kernel"]
        np.testing.assert_allclose(sizes, 1, atol=1e-6)
    # the function is that of the step as it was, and other parameters are untouched
    alone = optax.sgd(0.1)
    updates, _ = alone.update(grad(params), alone.init(params), params)
    both = optax.chain(alone, transforms.rescale_filters(groups, radius=3.0))
    projected, _ = both.update(grad(params), both.init(params), params)
    ends = [optax.apply_updates(params, u) for u in (updates, projected)]
    np.testing.assert_allclose(fn(ends[0], X), fn(ends[1], X), atol=2e-4)
    for a, b in zip(*(jax.tree.leaves(e["Dense_0"]) for e in ends), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bn_g9_angles_of_equal_and_opposite_filters():
    p = {"w": W}
    assert float(FOUND.angular_update(p, p)["w"]) == 0
    other = {"w": -W}
    angle = float(FOUND.angular_update(p, other)["w"])
    assert angle == pytest.approx(math.pi, rel=1e-6)
    assert float(FOUND.angular_update({"w": 0 * W}, p)["w"]) == 0


def test_the_log_says_how_filters_move():
    group = [ScaleGroup(Scaled(("w",), 1, 1.0))]
    p = {"w": jnp.array([[3.0, 1.0], [4.0, 0.0]])}
    tx = transforms.log_filters(group)
    u = {"w": jnp.array([[0.128, 0.0], [-0.096, 1.0]])}
    same, state = tx.update(u, tx.init(p), p)
    assert same is u
    np.testing.assert_allclose(state.angle["w"], [0.0319891, math.pi / 4], atol=1e-6)
    np.testing.assert_allclose(state.norm["w"], np.sqrt([25.0256, 2.0]), rtol=1e-6)
    np.testing.assert_allclose(
        state.radial["w"], np.sqrt([25.0256 / 25, 2.0]) - 1, rtol=1e-3
    )


@pytest.mark.slow
def test_angles_settle_where_the_formula_says():
    """Noise on a sphere, SGD with decay, drawn with the log and the line."""
    lr, decay = 0.1, 5e-3
    group = [ScaleGroup(Scaled(("w",), 1, 1.0))]
    tx = optax.chain(
        optax.add_decayed_weights(decay), optax.sgd(lr), transforms.log_filters(group)
    )
    start = {"w": jax.random.normal(jax.random.key(0), (2000, 3)) / 30}

    def step(carry, key):
        params, state = carry
        w = params["w"]
        size = jnp.linalg.norm(w, axis=0, keepdims=True)
        noise = jax.random.normal(key, w.shape) / np.sqrt(2000)
        noise -= w * (w * noise).sum(0, keepdims=True) / size**2
        updates, state = tx.update({"w": noise / size}, state, params)
        return (optax.apply_updates(params, updates), state), state[-1]

    keys = jax.random.split(jax.random.key(1), 4000)
    (params, _), logs = jax.lax.scan(step, (start, tx.init(start)), keys)
    size, angle = analysis.equilibrium(lr, decay)
    np.testing.assert_allclose(logs.angle["w"][-500:].mean(0), angle, rtol=0.03)
    np.testing.assert_allclose(jnp.linalg.norm(params["w"], axis=0), size, rtol=0.03)
    kept = [jax.tree.map(lambda x, i=i: x[i], logs) for i in (0, 2000, 3999)]
    figure = analysis.plot_filters(kept, angle=angle, steps=(0, 2000, 3999))
    curves = figure.axes[0].get_lines()
    assert [line.get_label() for line in curves] == ["w", "equilibrium"]
    assert curves[0].get_ydata()[-1] == pytest.approx(angle, rel=0.1)
    with pytest.raises(ValueError, match="`logs` is empty"):
        analysis.plot_filters([])


def test_what_cannot_be_is_an_error():
    with pytest.raises(ValueError, match="must be positive"):
        analysis.equilibrium(0.0, 1.0)
    with pytest.raises(ValueError, match="another network"):
        transforms.rescale_filters(VECTOR).init({"v": W})
    with pytest.raises(ValueError, match="`radius` must be positive"):
        transforms.rescale_filters(VECTOR, radius=0.0)
    with pytest.raises(ValueError, match="another network"):
        compress.canonicalize({"v": W}, VECTOR)
