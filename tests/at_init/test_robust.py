"""Edge of chaos, the rescaling trick and stable branches, by hand and by drawing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.resnet import ResNet
from jprune import at_init, masks

W = jnp.array([[1.0, -2.0], [0.5, 0.1], [-1.0, 0.3], [2.0, -0.4]])


def settled(sigma_w2, sigma_b2):
    """Of tanh layers: the variance that they settle at, and chi there."""
    z, weight = np.polynomial.hermite_e.hermegauss(100)
    weight, q = weight / weight.sum(), 1.0
    for _ in range(1000):
        q = sigma_b2 + sigma_w2 * (weight @ np.tanh(np.sqrt(q) * z) ** 2)
    return q, sigma_w2 * (weight @ np.cosh(np.sqrt(q) * z) ** -4)


def test_robust_init_g5():
    """Drawn: chi of ReLU at 2 is 1. Solved: tanh at 0.05 needs 1.76095."""
    relu = at_init.edge_of_chaos()
    z = np.random.default_rng(0).normal(size=1_000_000)
    drawn = relu.sigma_w2 * np.mean(np.heaviside(z, 0.5) ** 2)
    assert drawn == pytest.approx(1, abs=5e-3)
    assert relu.sigma_w2 == pytest.approx(2, abs=1e-12) and relu.sigma_b2 == 0
    assert at_init.edge_of_chaos(jnp.tanh).sigma_w2 == pytest.approx(1, abs=1e-9)
    edge = at_init.edge_of_chaos(jnp.tanh, 0.05)
    assert edge.sigma_w2 == pytest.approx(1.76095, abs=1e-3)


@pytest.mark.parametrize(
    ("sigma_b2", "sigma_w2", "q"),
    [
        (0.01, 1.42421, 0.27330),
        (0.05, 1.76095, 0.57005),
        (0.1, 1.98607, 0.80580),
        (0.2, 2.28515, 1.16450),
    ],
)
def test_the_curve_of_tanh(sigma_b2, sigma_w2, q):
    edge = at_init.edge_of_chaos(jnp.tanh, sigma_b2)
    assert edge.sigma_w2 == pytest.approx(sigma_w2, abs=1e-5)
    assert edge.q == pytest.approx(q, abs=1e-5)
    # The variance that the layers settle at is the edge's, and chi is 1 there.
    assert settled(edge.sigma_w2, sigma_b2) == pytest.approx((q, 1), abs=1e-4)


def test_edge_errors():
    with pytest.raises(ValueError, match="no edge of chaos with `sigma_b2`=0.1"):
        at_init.edge_of_chaos(jax.nn.relu, 0.1)
    with pytest.raises(ValueError, match="no edge of chaos with `sigma_b2`=0.1"):
        at_init.edge_of_chaos(jnp.sign, 0.1)
    with pytest.raises(ValueError, match="no edge of chaos with `sigma_b2`=0"):
        at_init.edge_of_chaos(lambda x: jax.nn.relu(x) ** 2)
    with pytest.raises(ValueError, match="`sigma_b2` must not be negative, got -1"):
        at_init.edge_of_chaos(jnp.tanh, -1)


def test_deep_networks_on_the_edge_keep_their_sensitivities():
    """30 wide tanh layers: even on the edge, geometric with factor chi below it."""
    layer = {"kernel": jnp.ones((100, 100)), "bias": jnp.ones(100)}
    shapes = [layer] * 30

    def loss(params, x):
        for one in params:
            x = jnp.tanh(x @ one["kernel"] + one["bias"][None])
        return jnp.sum(x**2)

    @jax.jit
    def moments(params):
        x = jax.random.normal(jax.random.key(1), (8, 100))
        found = at_init.snip(loss, params, x)
        return jnp.stack([jnp.mean(s["kernel"] ** 2) for s in found])

    edge = at_init.edge_of_chaos(jnp.tanh, 0.05)
    on, off = (
        np.asarray(moments(at_init.initialize(jax.random.key(0), shapes, point, 0.05)))
        for point in (edge.sigma_w2, 0.7)
    )
    assert on.max() / on.min() < 30
    per_layer = (off[2] / off[-1]) ** (1 / 27)
    assert per_layer == pytest.approx(settled(0.7, 0.05)[1], rel=0.15)


def test_initialize_draws_kernels_and_biases_and_nothing_else():
    edge = at_init.edge_of_chaos(jnp.tanh, 0.2)
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 20, 100)), "bias": jnp.ones(20_000)},
        "norm": {"scale": jnp.full(7, 3.0)},
        "head": {"w": jnp.ones((500, 100), jnp.bfloat16), "b": jnp.ones(9)},
    }
    got = jax.jit(lambda k: at_init.initialize(k, params, edge.sigma_w2, 0.2))(
        jax.random.key(0)
    )
    want = edge.sigma_w2
    assert np.var(got["conv"]["kernel"]) * 180 == pytest.approx(want, rel=0.03)
    head = np.float32(got["head"]["w"])
    assert got["head"]["w"].dtype == jnp.bfloat16
    assert np.var(head) * 500 == pytest.approx(want, rel=0.03)
    assert np.var(got["conv"]["bias"]) == pytest.approx(0.2, rel=0.04)
    assert not np.any(got["head"]["b"] == 1)
    np.testing.assert_array_equal(got["norm"]["scale"], params["norm"]["scale"])
    with pytest.raises(ValueError, match="No default output axis for one.*`fan_in`"):
        at_init.initialize(jax.random.key(0), {"one": jnp.ones((2, 2))})


def test_robust_init_g6():
    """v = 5.125, rho = 0.624695, and a second call gives 1."""
    params, mask = {"kernel": W}, {"kernel": jnp.abs(W) >= 0.5}
    kept = np.where(mask["kernel"], W, 0)
    assert np.mean(kept**2) == 1.28125
    got = at_init.rescale(params, mask)
    np.testing.assert_allclose(got["kernel"], 0.624695 * kept, rtol=1e-6)
    assert 4 * np.mean(got["kernel"] ** 2) == pytest.approx(2, rel=1e-6)
    again = at_init.rescale(got, mask)
    np.testing.assert_allclose(again["kernel"], got["kernel"], rtol=1e-6)


def test_rescaling_touches_what_the_mask_covers():
    params = {
        "conv": jnp.full((3, 3, 2, 4), 0.5),
        "gone": jnp.ones((4, 4)),
        "half": jnp.full((4, 4), 2.0, jnp.bfloat16),
        "bias": jnp.arange(4),
    }
    mask = {
        "conv": jnp.arange(72).reshape(3, 3, 2, 4) % 2 == 0,
        "gone": jnp.zeros((4, 4), bool),
        "half": jnp.ones((4, 4), bool),
        "bias": jnp.array(True),
    }
    fans = {"conv": 18, "gone": 4, "half": 4, "bias": 1}
    rescale = jax.jit(lambda p, m: at_init.rescale(p, m, 2.0, fan_in=fans))
    got = rescale(params, mask)
    assert 18 * np.mean(got["conv"] ** 2) == pytest.approx(2, rel=1e-6)
    assert not np.any(got["gone"]) and got["half"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got["half"]) ** 2, 0.5, rtol=1e-2)
    np.testing.assert_array_equal(got["bias"], np.arange(4))
    some = at_init.rescale(params, mask, fan_in=fans, scope="half")
    np.testing.assert_array_equal(some["conv"], params["conv"] * mask["conv"])
    # A target for each layer.
    targets = {"conv": 1.0, "gone": 1.0, "half": 8.0, "bias": 0.0}
    each = at_init.rescale(params, mask, targets, fan_in=fans)
    want = 0.5 * (1 / (18 / 8)) ** 0.5 * mask["conv"]
    np.testing.assert_allclose(each["conv"], want, rtol=1e-6)
    np.testing.assert_allclose(np.float32(each["half"]), 2 * 0.5**0.5, rtol=1e-2)


def test_rescaling_errors():
    mask = jnp.abs(W) >= 0.5
    with pytest.raises(ValueError, match="No default output axis for.*Pass `fan_in`"):
        at_init.rescale(W, mask)
    with pytest.raises(ValueError, match="`fan_in` at .* must be a positive integer"):
        at_init.rescale(W, mask, fan_in=0)
    with pytest.raises(ValueError, match="`fan_in` must have exactly the structure"):
        at_init.rescale({"a": W}, {"a": mask}, fan_in={"b": 1})
    with pytest.raises(ValueError, match="`sigma_w2` must have exactly the structure"):
        at_init.rescale({"a": W}, {"a": mask}, {"b": 2.0}, fan_in=4)
    with pytest.raises(ValueError, match="`mask` must have exactly the structure"):
        at_init.rescale({"a": W}, {"b": mask}, fan_in=4)


@pytest.mark.slow
def test_sbp_is_the_mask_of_snip_on_the_edge_again():
    rng = np.random.default_rng(0)
    shapes = {"one": (20, 50), "two": (50, 30)}
    params = {
        k: {"kernel": jnp.float32(rng.normal(size=s) * np.sqrt(2 / s[0]))}
        for k, s in shapes.items()
    }
    x = jnp.float32(rng.normal(size=(16, 20)))

    def loss(p, x):
        return jnp.mean((jax.nn.relu(x @ p["one"]["kernel"]) @ p["two"]["kernel"]) ** 2)

    pruned, mask = jax.jit(lambda p: at_init.sbp(loss, p, x, 0.9))(params)
    want = masks.unstructured(at_init.snip(loss, params, x), 0.9)
    jax.tree.map(np.testing.assert_array_equal, mask, want)
    for layer, (fan, _) in shapes.items():
        kept, old = np.asarray(pruned[layer]["kernel"]), params[layer]["kernel"]
        assert fan * np.mean(kept**2) == pytest.approx(2, rel=1e-5)
        ratio = kept[kept != 0] / np.asarray(old)[kept != 0]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_robust_init_g7_the_model_scales_its_branches():
    """With a scale of 0 a block is its shortcut: the branches get no gradient."""
    plain = dict(stages=(1, 1), width=4, classes=2, bottleneck=False, stem="small")
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    net = ResNet(**plain, branch_scale=2**-0.5)
    variables = jax.jit(net.init)(jax.random.key(1), x)

    @jax.jit
    def outputs(v):
        return [ResNet(**plain, branch_scale=s).apply(v, x) for s in (0.0, 0.5, 1.0)]

    none, half, full = outputs(variables)
    assert not np.allclose(half, full) and not np.allclose(half, none)
    cut = jax.tree.map(jnp.copy, variables)
    for name in ("BatchNorm_2", "BatchNorm_4"):  # the last norm of each branch
        cut["params"][name] = jax.tree.map(lambda s: 0.5 * s, cut["params"][name])
    np.testing.assert_allclose(outputs(cut)[2], half, rtol=1e-5)


def test_a_stack_of_layers_is_initialized_and_rescaled_as_its_layers():
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 2, 3])[:, None, None]
    w = jnp.asarray(rng.normal(size=(3, 64, 32)) * scale, jnp.float32)
    stack, each = {"layers": {"kernel": w}}, [{"kernel": x} for x in w]
    fresh = at_init.initialize(jax.random.key(0), stack, 2.0)["layers"]["kernel"]
    np.testing.assert_allclose(jnp.var(fresh), 2 / 64, rtol=0.05)
    mask = masks.unstructured(stack, 0.5)
    one = at_init.rescale(stack, mask)["layers"]["kernel"]
    for i, params in enumerate(each):
        own = at_init.rescale(params, {"kernel": mask["layers"]["kernel"][i]})
        np.testing.assert_allclose(one[i], own["kernel"], rtol=1e-6)
    # Four axes of a stack are no convolution: 8 x 2 numbers enter each output.
    with pytest.raises(ValueError, match=r"of shape \(5, 8, 2, 4\).*`fan_in`"):
        at_init.initialize(
            jax.random.key(0), {"layers": {"kernel": jnp.ones((5, 8, 2, 4))}}, 2.0
        )
