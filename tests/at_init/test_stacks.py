"""A stack of layers is pruned before training as its layers would be as leaves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import at_init, masks
from jprune.at_init._random_mask import random_mask

LAYERS, KEY = 3, jax.random.key(7)
PLACES = pytest.mark.parametrize(
    ("name", "axis", "said"),
    [
        pytest.param("layers", 0, None, marks=pytest.mark.slow, id="found"),
        pytest.param("decoder", 1, {"decoder/": 1}, id="said"),
    ],
)


def tree(name, axis, seed=0):
    """Layers of unlike scale, and a plain leaf."""
    rng = np.random.default_rng(seed)
    scale = np.array([0.1, 1.0, 10.0])[:, None, None]
    deep = rng.normal(size=(LAYERS, 6, 6)) * scale
    out = jnp.float32(rng.normal(size=(6, 4)))
    return {name: {"kernel": jnp.float32(np.moveaxis(deep, 0, axis))}, "out": out}


def apart(tree, name, axis):
    """The same with a subtree for each layer."""
    kernel = jnp.moveaxis(tree[name]["kernel"], axis, 0)
    return {
        **{f"l{i}": {"kernel": kernel[i]} for i in range(LAYERS)},
        "out": tree["out"],
    }


def net(name, axis, params, x):
    for kernel in jnp.moveaxis(params[name]["kernel"], axis, 0):
        x = jax.nn.relu(x @ kernel)
    return x @ params["out"]


def unrolled(params, x):
    for i in range(LAYERS):
        x = jax.nn.relu(x @ params[f"l{i}"]["kernel"])
    return x @ params["out"]


@PLACES
def test_synflow_divides_each_layer_by_its_own(name, axis, said):
    params, x = tree(name, axis), jnp.ones((1, 6))
    how = {"normalize": True, "stacked": said}
    fn = partial(net, name, axis)
    got = at_init.synflow(fn, params, x, **how)
    want = at_init.synflow(unrolled, apart(params, name, axis), x, normalize=True)
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, apart(got, name, axis), want)
    # Divided by one number for all, R has another scale.
    whole = at_init.synflow(fn, params, x, normalize=True, stacked={})
    assert not np.allclose(whole["out"], want["out"], rtol=0.1)
    shape = {"rounds": 4, "normalize": True, "min_keep": 2, "keep": 12}
    mask = at_init.synflow_mask(fn, params, x, stacked=said, **shape)
    plain = at_init.synflow_mask(unrolled, apart(params, name, axis), x, **shape)
    jax.tree.map(np.testing.assert_array_equal, apart(mask, name, axis), plain)
    with pytest.raises(ValueError, match="keep at least 8 weights; got 7"):
        at_init.synflow_mask(fn, params, x, stacked=said, **shape | {"keep": 7})


@PLACES
def test_what_a_mask_is_worth(name, axis, said):
    params = tree(name, axis)
    flat = apart(params, name, axis)
    mask = masks.unstructured(params, 0.7, min_keep=0, stacked=said)
    assert at_init.emptied(mask, stacked=said) == (f"{name}/kernel[0]",)
    assert at_init.critical_sparsity(params, stacked=said) == at_init.critical_sparsity(
        flat
    )
    drawn = at_init.shuffle(KEY, mask, stacked=said)
    counts = [
        [int(k.sum()) for k in jnp.moveaxis(m[name]["kernel"], axis, 0)]
        for m in (mask, drawn)
    ]
    assert counts[0] == counts[1]
    x = jnp.ones((1, 6))
    one = at_init.flow(partial(net, name, axis), params, x, stacked=said)
    many = at_init.flow(unrolled, flat, x)
    ones = jax.tree.map(lambda m: m.astype(float), masks.full(params))
    some = {**ones, name: {"kernel": ones[name]["kernel"].at[0, 0, 0].set(0)}}
    for weights in (ones, some):
        got, want = one(weights), many(apart(weights, name, axis))
        np.testing.assert_allclose(got, want, rtol=1e-5)


@PLACES
def test_robust_pruning_draws_and_rescales_each_layer(name, axis, said):
    params = {name: tree(name, axis)[name]}
    flat = [{"kernel": k} for k in jnp.moveaxis(params[name]["kernel"], axis, 0)]
    mask = masks.unstructured(params, 0.5, stacked=said)
    kept = [{"kernel": k} for k in jnp.moveaxis(mask[name]["kernel"], axis, 0)]
    got = at_init.rescale(params, mask, stacked=said)[name]["kernel"]
    want = at_init.rescale(flat, kept)
    for i, layer in enumerate(jnp.moveaxis(got, axis, 0)):
        np.testing.assert_allclose(layer, want[i]["kernel"], rtol=1e-5)
    fresh = at_init.initialize(KEY, params, 2.0, stacked=said)[name]["kernel"]
    np.testing.assert_allclose(6 * jnp.var(fresh), 2, rtol=0.4)

    def loss(params, x):
        return jnp.mean(net(name, axis, {**params, "out": jnp.ones((6, 1))}, x))

    how = {"scope": name, "min_keep": 3, "stacked": said}
    pruned, mask = at_init.sbp(loss, params, jnp.ones((2, 6)), keep=10, **how)
    each = jnp.moveaxis(mask[name]["kernel"], axis, 0).sum((1, 2))
    assert each.sum() == 10 and each.min() >= 3
    v = 6 * jnp.mean(jnp.moveaxis(pruned[name]["kernel"], axis, 0) ** 2, (1, 2))
    np.testing.assert_allclose(v, 2, rtol=1e-5)


def share_kept(mask, w, g):
    """Fitness by hand, in float64."""
    mask, w, g = (np.asarray(x, float) for x in (mask, w, g))
    return sum((mask * abs(x)).sum() / abs(x).sum() for x in (w, g)) / 2


@PLACES
def test_each_layer_chooses_its_start(name, axis, said):
    params, grads, k = tree(name, axis), tree(name, axis, 1), 12
    layers = partial(jnp.moveaxis, source=axis, destination=0)
    draw = jax.jit(
        jax.vmap(lambda j: random_mask(KEY, params, 0.5, start=j, stacked=said))
    )
    drawn = np.moveaxis(draw(jnp.arange(k))[name]["kernel"], axis + 1, 1)
    assert (drawn.sum((2, 3)) == 18).all()
    mask = at_init.k_starts(KEY, params, grads, 0.5, k=k, stacked=said)
    rows = [layers(t[name]["kernel"]) for t in (mask, params, grads)]
    best = []
    for i, (got, w, g) in enumerate(zip(*rows, strict=True)):
        rated = [share_kept(drawn[j, i], w, g) for j in range(k)]
        best.append(int(np.argmax(rated)))
        np.testing.assert_array_equal(got, drawn[best[-1], i])
    assert len(set(best)) > 1  # not one choice for all
    # A layer of four weights keeps one, whatever is asked.
    thin = {name: {"kernel": jnp.ones((2, 2, 2))}}
    kept = at_init.k_starts(KEY, thin, None, 0.99, k=2, balance=1.0, stacked=said)
    assert layers(kept[name]["kernel"]).sum((1, 2)).tolist() == [1, 1]


@pytest.mark.slow
@PLACES
def test_each_channel_of_each_layer_chooses(name, axis, said):
    params, grads = ({name: tree(name, axis, s)[name]} for s in (0, 1))
    how = {"share": "channel", "stacked": said}
    one, many = (
        at_init.k_starts(KEY, params, grads, 0.5, k=k, **how)[name]["kernel"]
        for k in (1, 30)
    )
    rows = [jnp.moveaxis(x, axis, 0) for x in (one, many)]
    assert all((r.sum(1) == 3).all() for r in rows)
    w, g = (np.moveaxis(t[name]["kernel"], axis, 0) for t in (params, grads))
    rated = [
        [
            share_kept(r[i, :, c], w[i, :, c], g[i, :, c])
            for i in range(LAYERS)
            for c in range(6)
        ]
        for r in rows
    ]
    assert all(b >= a - 1e-6 for a, b in zip(*rated, strict=True))
    assert sum(b > a + 1e-6 for a, b in zip(*rated, strict=True)) > 12


@pytest.mark.slow
@PLACES
def test_what_stood_still_leaves_each_layer_its_floor(name, axis, said):
    params = {name: {"kernel": tree(name, axis)[name]["kernel"]}}
    kernel = jnp.moveaxis(params[name]["kernel"], axis, 0)
    far = jnp.array([1e-4, 1e-4, 1.0])[:, None, None]  # only the last layer moves
    moved = far * kernel * jax.random.uniform(KEY, kernel.shape, minval=0.5)
    window = {name: {"kernel": jnp.moveaxis(moved, 0, axis)}}

    def loss(params, batch):
        return jnp.sum(params[name]["kernel"] * batch[name]["kernel"])

    batches = jax.tree.map(lambda x: x[None], window)
    for rule, floor in (
        (at_init.dissipating(0.1, min_keep=2, stacked=said), 2),
        (at_init.dissipating(sparsity=0.75, stacked=said), 9),
        (at_init.dissipating_k_starts(KEY, 0.75, stacked=said, k=2)[0], 6),
        (at_init.dissipating_k_starts(KEY, 0.75, stacked=said, k=2)[-1], 9),
    ):
        early = at_init.train_early(loss, optax.sgd(9.0), params, [batches], [rule])
        kept = jnp.moveaxis(early.mask[name]["kernel"], axis, 0).sum((1, 2)).tolist()
        assert kept[:2] == [floor, floor]
