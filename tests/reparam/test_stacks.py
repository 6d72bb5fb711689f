"""A stack of layers learns what the same layers learn as leaves of their own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import reparam
from jprune.reparam._learned_attention import remaining
from jprune.reparam._learned_thresholds import ThresholdTheta, budget_penalty

LAYERS = 3


def stack(name, axis, seed=0):
    """Layers of unlike scale and mean, with biases, and a plain leaf."""
    rng = np.random.default_rng(seed)
    scale = np.array([0.1, 1.0, 10.0], np.float32)
    kernel = (rng.normal(size=(LAYERS, 4, 6)) + 0.3) * scale[:, None, None]
    bias = rng.normal(size=(LAYERS, 6)) * scale[:, None]
    deep = {
        key: jnp.asarray(np.moveaxis(x, 0, axis), jnp.float32)
        for key, x in (("kernel", kernel), ("bias", bias))
    }
    out = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    return {name: deep, "out": {"kernel": out}}


def unrolled(tree, name, axis):
    """The same numbers with a subtree for each layer; a 0-d mask is that of all."""

    def layer(x, i):
        return jnp.take(x, i, axis) if x.ndim else x

    each = {
        f"l{i}": jax.tree.map(partial(layer, i=i), tree[name]) for i in range(LAYERS)
    }
    return {**each, "out": tree["out"]}


def by_layer(learned, name):
    """What was learned of a stack, by the paths of the unrolled network."""
    apart = {k: v for k, v in learned.items() if k != f"{name}/kernel"}
    deep = learned[f"{name}/kernel"]
    assert deep.shape == (LAYERS,)
    return {**apart, **{f"l{i}/kernel": deep[i] for i in range(LAYERS)}}


MAKE = {
    "thresholds": partial(reparam.learned_thresholds, 0.6, min_size=1),
    "thresholds of each": partial(
        reparam.learned_thresholds,
        0.6,
        min_size=20,
        budget="leaf",
        one_sided=True,
        center=False,
    ),
    "attention": partial(reparam.learned_attention, start=0.45, alpha=2, target=0.2),
}
PLACES = [("layers", 0, None), ("decoder", 1, {"decoder/": 1})]


@pytest.mark.parametrize(("name", "axis", "said"), PLACES, ids=["found", "said"])
@pytest.mark.parametrize("method", MAKE)
def test_a_stack_learns_as_its_layers_do(method, name, axis, said):
    apart = partial(unrolled, name=name, axis=axis)
    r, plain = MAKE[method](stacked=said), MAKE[method](stacked={})
    theta = r.init(stack(name, axis))
    flat = plain.init(apart(stack(name, axis)))
    learned = by_layer(theta[1], name)
    assert learned.keys() == flat[1].keys()
    # Each layer has come to a number of its own.
    moved = {n: x * (1 + i / 9) for i, (n, x) in enumerate(sorted(learned.items()))}
    flat = flat._replace(**{flat._fields[1]: moved})
    own = dict(theta[1])
    own[f"{name}/kernel"] = jnp.stack([moved[f"l{i}/kernel"] for i in range(LAYERS)])
    own["out/kernel"] = moved["out/kernel"]
    theta = theta._replace(**{theta._fields[1]: own})
    to, flat_to = stack(name, axis, 1), apart(stack(name, axis, 1))

    def loss(params, to):
        miss = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, to)
        return sum(jax.tree.leaves(miss))

    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    (params, mask), (flat_params, flat_mask) = r.export(theta), plain.export(flat)
    jax.tree.map(np.testing.assert_array_equal, apart(mask), flat_mask)
    gone = [int(jnp.sum(~flat_mask[f"l{i}"]["kernel"])) for i in range(LAYERS)]
    assert 0 < min(gone) and max(gone) < 24 and len(set(gone)) > 1
    jax.tree.map(close, apart(params), flat_params)
    close(r.penalty(theta), plain.penalty(flat))
    got, want = (
        jax.jit(jax.grad(reparam.wrap(loss, m)))(t, to)
        for m, t, to in [(r, theta, to), (plain, flat, flat_to)]
    )
    jax.tree.map(close, apart(got.weights), want.weights)
    jax.tree.map(close, by_layer(got[1], name), want[1])
    got, want = (
        m.project(jax.tree.map(lambda x, g: x - 0.1 * g, t, g), t, jnp.int32(0))
        for m, t, g in [(r, theta, got), (plain, flat, want)]
    )
    jax.tree.map(close, apart(got.weights), want.weights)
    jax.tree.map(close, by_layer(got[1], name), want[1])


def test_thresholds_of_a_stack_by_hand():
    layer = jnp.array([[-1.5, -0.5, 0.5, 1.5]])
    kernel = jnp.stack([layer, 10 * layer + 7])
    r = reparam.learned_thresholds(0.9, min_size=4)
    theta = r.init({"layers": {"kernel": kernel}})
    assert theta.thresholds["layers/kernel"].shape == (2,)
    theta = theta._replace(thresholds={"layers/kernel": jnp.array([0.5, 0.5])})
    used, mask = r.export(theta)
    want = [[[-1.5, 0, 0, 1.5]], [[-15, 0, 0, 15]]]
    np.testing.assert_allclose(used["layers"]["kernel"], want, rtol=1e-6)
    kept = [[[True, False, False, True]]] * 2
    np.testing.assert_array_equal(mask["layers"]["kernel"], kept)
    # Densities 0.3173105 and 0.1336144, of which 0.1 are wanted.
    two = {"w": jnp.array([1.0, 1.5])}
    price = partial(budget_penalty, two, {"w": 1000}, target=0.9, weight=10.0)
    np.testing.assert_allclose(price(), 10 * 0.12546245**2, rtol=1e-5)
    np.testing.assert_allclose(price(budget="leaf"), 0.241769, rtol=1e-5)
    as_one = reparam.learned_thresholds(0.9, min_size=8, stacked={})
    assert as_one.init(theta.weights).thresholds["layers/kernel"].shape == ()


def test_the_largest_weight_of_each_layer_stays():
    kernel = jnp.stack([jnp.array([[3.0, 1, 1, 1]]), jnp.array([[0.1, 0.3, 0.1, 0.1]])])
    r = reparam.learned_thresholds(0.9, min_size=1, center=False)
    theta = ThresholdTheta(
        {"layers": {"kernel": kernel}}, {"layers/kernel": jnp.full(2, 5.0)}
    )
    _, mask = r.export(theta)
    kept = [[[True, False, False, False]], [[False, True, False, False]]]
    np.testing.assert_array_equal(mask["layers"]["kernel"], kept)


def test_min_size_is_that_of_a_layer():
    params = stack("layers", 0)
    with pytest.raises(ValueError, match="No leaf in scope has `min_size`=31"):
        reparam.learned_thresholds(0.5, min_size=31).init(params)
    theta = reparam.learned_thresholds(0.5, min_size=25).init(params)
    assert list(theta.thresholds) == ["out/kernel"]


def test_attention_of_a_stack_by_hand():
    layer = jnp.array([[0.5, -0.1, 0.3, -0.05]])
    kernel, bias = jnp.stack([layer, 100 * layer]), jnp.ones((2, 4))
    r = reparam.learned_attention(decay=0.0)
    theta = r.init({"layers": {"kernel": kernel, "bias": bias}})
    theta = theta._replace(attention={"layers/kernel": jnp.array([0.5, 0.75])})
    used = r.apply(theta)["layers"]
    want = [[[0.25, 0, 0.15, 0]], [[37.5, -7.5, 22.5, 0]]]
    np.testing.assert_allclose(used["kernel"], want, rtol=1e-6)
    np.testing.assert_array_equal(used["bias"], [[0.5] * 4, [0.75] * 4])
    left = remaining(theta.attention, {"layers/kernel": 4})
    np.testing.assert_allclose(left, 0.625, rtol=1e-6)
    np.testing.assert_allclose(r.penalty(theta), 5 * 0.625**2, rtol=1e-6)


def test_the_bias_of_a_stack():
    kernel = jnp.ones((2, 3, 4))
    one = {"layers": {"kernel": kernel, "bias": jnp.ones(4)}}
    r = reparam.learned_attention(start=0.5, stacked="kernel")
    with pytest.raises(ValueError, match=r"bias layers/bias of shape \(4,\) must have"):
        r.init(one)
    other = {"layers": {"kernel": kernel, "bias": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match=r"layers/kernel, \(2,\) along axes \(0,\)"):
        r.init(other)
    said = reparam.learned_attention(start=0.5, stacked={"kernel": 0, "bias": 1})
    theta = said.init(other)
    theta = theta._replace(attention={"layers/kernel": jnp.array([0.5, 1.0])})
    want = [[0.5, 1.0]] * 4
    np.testing.assert_array_equal(said.apply(theta)["layers"]["bias"], want)


@pytest.mark.parametrize("method", ["thresholds", "attention"])
def test_a_stack_that_is_none(method):
    with pytest.raises(ValueError, match="`stacked`: 'nowhere' matches no leaf"):
        MAKE[method](stacked="nowhere").init(stack("layers", 0))


@pytest.mark.parametrize(
    ("name", "axis", "said"),
    [pytest.param(*PLACES[0], marks=pytest.mark.slow), PLACES[1]],
    ids=["found", "said"],
)
def test_each_layer_of_a_stack_has_its_own_n(name, axis, said):
    """Masks, price, gradients and the end of the search are those of the layers."""
    apart = partial(unrolled, name=name, axis=axis)
    make = partial(
        reparam.learned_n_of_m,
        4,
        target=0.6,
        weight=2.0,
        pad=True,
        steps_per_epoch=1,
        rank_every=1,
    )
    r, plain = make(stacked=said), make(stacked={})
    theta, flat = r.init(stack(name, axis)), plain.init(apart(stack(name, axis)))
    deep = jnp.array([[1.0, 0.4, 1.0], [0.3, 1.0, 1.0], [1.0, 1.0, 0.9]])
    assert theta.priorities[f"{name}/kernel"].shape == deep.shape
    out = jnp.array([0.9, 0.8, 0.6])
    theta = theta._replace(priorities={f"{name}/kernel": deep, "out/kernel": out})
    each = {f"l{i}/kernel": deep[i] for i in range(LAYERS)}
    flat = flat._replace(priorities={**each, "out/kernel": out})
    to, flat_to = stack(name, axis, 1), apart(stack(name, axis, 1))

    def loss(params, to):
        miss = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, to)
        return sum(jax.tree.leaves(miss))

    def priorities(theta):
        own = theta.priorities
        return [*own[f"{name}/kernel"], own["out/kernel"]]

    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    (params, mask), (flat_params, flat_mask) = r.export(theta), plain.export(flat)
    jax.tree.map(np.testing.assert_array_equal, apart(mask), flat_mask)
    jax.tree.map(np.testing.assert_array_equal, apart(params), flat_params)
    ns = [int(flat_mask[f"l{i}"]["kernel"][:, 0].sum()) for i in range(LAYERS)]
    assert ns == [2, 1, 4]
    assert mask["out"]["kernel"].sum() == 5 * (3 + 2)
    jax.tree.map(np.testing.assert_array_equal, apart(r.apply(theta)), flat_params)
    # 24 weights a layer, 30 outside: (2 + 1 + 4) / 4 x 24 + 3 / 4 x 30.
    close(r.penalty(theta), 2 * 64.5 / 102)
    got, want = (
        jax.jit(jax.grad(reparam.wrap(loss, m)))(t, to)
        for m, t, to in [(r, theta, to), (plain, flat, flat_to)]
    )
    jax.tree.map(close, apart(got.weights), want.weights)
    jax.tree.map(close, priorities(got), list(want.priorities.values()))
    for cost in (1.0, 0.0):  # above the target, and below it
        theta, flat = (
            t._replace(priorities=jax.tree.map(lambda x, c=cost: x * c, t.priorities))
            for t in (theta, flat)
        )
        stepped = [
            m.project(jax.tree.map(lambda x, g: x - 0.01 * g, t, g), t, jnp.int32(0))
            for m, t, g in [(r, theta, got), (plain, flat, want)]
        ]
        jax.tree.map(close, apart(stepped[0].weights), stepped[1].weights)
        jax.tree.map(
            close, priorities(stepped[0]), list(stepped[1].priorities.values())
        )
        close(stepped[0].ratio, stepped[1].ratio)
    np.testing.assert_array_equal(stepped[0].priorities["out/kernel"], 0)
