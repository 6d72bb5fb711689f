"""Later moves of a stack of layers are those of the same layers as leaves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import masks, reparam, transforms

LAYERS = 3
SCALES = np.array([0.01, 1.0, 100.0], np.float32)[:, None, None]


def stacked(seed, name="layers"):
    rng = np.random.default_rng(seed)
    deep = rng.normal(size=(LAYERS, 4, 5)).astype(np.float32) * SCALES
    return {name: {"kernel": jnp.asarray(deep)}, "out": jnp.asarray(deep[0].T)}


def apart(tree, name="layers"):
    each = {f"{name}{i}": tree[name]["kernel"][i] for i in range(LAYERS)}
    return {**each, "out": tree["out"]}


def rigl(stack):
    """A given mask, so that the draw of the first does not matter."""

    def half(params):
        return jax.tree.map(lambda p: jnp.abs(p) % 0.02 < 0.01, params)

    return transforms.drop_and_grow(
        optax.sgd(0.1), mask=half, drop_fraction=0.4, every=2, begin=0, stacked=stack
    )


MAKE = {
    "drop_and_grow": rigl,
    "shrink_softly": lambda stack: optax.chain(
        optax.sgd(0.1), transforms.shrink_softly(0.61, end=3, stacked=stack)
    ),
    "add_growing_decay": lambda stack: optax.chain(
        transforms.add_growing_decay(0.1, 0.61, every=1, limit=0.25, stacked=stack),
        optax.sgd(0.1),
    ),
    "prune_gradually": lambda stack: optax.chain(
        optax.sgd(0.1),
        transforms.prune_gradually(0.61, end=3, ranking="leaf", stacked=stack),
    ),
    "prune_by_weight_history": lambda stack: optax.chain(
        optax.sgd(0.1),
        transforms.prune_by_weight_history(
            0.7, end=3, every=1, gamma=2.0, layer_norm=True, min_keep=2, stacked=stack
        ),
    ),
    "grow_and_prune": lambda stack: transforms.grow_and_prune(
        optax.sgd(0.1),
        0.61,
        partitions=1,
        period=2,
        steps=2,
        mask=masks.full,
        stacked=stack,
    ),
    "prune_unmoved": lambda stack: optax.chain(
        optax.sgd(1e-3),
        transforms.prune_unmoved(9.0, every=1, end=3, min_keep=7, stacked=stack),
    ),
    "swd": lambda stack: transforms.swd(
        0.1, mu=0.1, a_max=1.0, total_steps=4, sparsity=0.8, min_keep=3, stacked=stack
    ),
}


SLOW = ("prune_gradually", "swd", "grow_and_prune", "prune_unmoved")
CASES = [
    *(pytest.param(m, "layers", None) for m in MAKE if m not in SLOW),
    *(pytest.param(m, "layers", None, marks=pytest.mark.slow) for m in SLOW),
    pytest.param("drop_and_grow", "decoder", "decoder/", marks=pytest.mark.slow),
    pytest.param("shrink_softly", "decoder", "decoder/", marks=pytest.mark.slow),
    pytest.param("prune_by_weight_history", "decoder", "decoder/"),
    pytest.param("grow_and_prune", "decoder", "decoder/"),
    pytest.param("prune_unmoved", "decoder", "decoder/"),
]


@pytest.mark.parametrize(("method", "name", "said"), CASES)
def test_a_stack_moves_as_its_layers_do(method, name, said):
    """Under a name of the rule the stack is found; another one is given."""
    got = apart(run(MAKE[method](said), lambda i: stacked(i, name)), name)
    want = run(MAKE[method]({}), lambda i: apart(stacked(i, name), name))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), got, want)
    zeros = [jax.tree.map(lambda x: x == 0, tree) for tree in (got, want)]
    jax.tree.map(np.testing.assert_array_equal, *zeros)


def run(tx, tree):
    params = tree(0)
    state, step = tx.init(params), jax.jit(tx.update)
    for i in range(5):
        updates, state = step(tree(i + 1), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_layers_of_unlike_scale_keep_their_counts():
    """As one leaf, the layer of large weights would take what the others drop."""
    tree = stacked(0)
    tx, state = rigl(None), None
    state = tx.init(tree)
    before = state.mask["layers"]["kernel"].sum((1, 2))
    for i in range(3):
        _, state = jax.jit(tx.update)(stacked(i + 1), state, tree)
    assert state.mask["layers"]["kernel"].sum((1, 2)).tolist() == before.tolist()
    whole = rigl({})
    other = whole.init(tree)
    for i in range(3):
        _, other = jax.jit(whole.update)(stacked(i + 1), other, tree)
    assert other.mask["layers"]["kernel"].sum((1, 2)).tolist() != before.tolist()
    assert int(masks.count(other.mask)) == int(masks.count(state.mask))


def test_a_run_in_which_no_mask_moves_is_an_error():
    make = transforms.rigl
    with pytest.raises(ValueError, match=r"No mask would move.* `every`=20"):
        make(0.1, sparsity=0.5, total_steps=10, every=20)
    with pytest.raises(ValueError, match="No mask would move"):
        transforms.sparse_evolutionary(0.1, sparsity=0.5, total_steps=5, every=5)
    with pytest.raises(ValueError, match="No mask would move.* hold the mask"):
        transforms.drop_and_grow(optax.sgd(0.1), 0.5, every=100, end=50)
    with pytest.raises(ValueError, match="`begin` must lie before .* step `end`=10"):
        transforms.issr(0.1, sparsity=0.5, total_steps=30, begin=20)
    make(0.1, sparsity=0.5, total_steps=10, every=20, drop_fraction=0.0)
    # The period that nobody gave fits a short run: 7 // 4 steps.
    params = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
    tx = make(0.1, sparsity=0.5, total_steps=10, scope="w")
    state, before = tx.init(params), None
    before = state.mask["w"]
    for _ in range(3):
        _, state = jax.jit(tx.update)({"w": 1 - params["w"]}, state, params)
    assert bool(jnp.any(state.mask["w"] != before))


RATES = {
    "rigl": lambda x: transforms.rigl(
        0.1, sparsity=0.5, total_steps=900, weight_decay=x
    ),
    "gap": lambda x: transforms.gap(
        0.1, 0.5, partitions=1, steps=1, period=2, weight_decay=x
    ),
    "sr_ste": lambda x: transforms.sr_ste(0.1, 2, 4, weight_decay=x),
    "trp": lambda x: transforms.trp(0.1, every=9, weight_decay=x),
    "csgd": lambda x: transforms.csgd(0.1, [], {}, strength=0.1, weight_decay=x),
}


@pytest.mark.parametrize("recipe", RATES)
def test_a_negative_decay_is_an_error(recipe):
    with pytest.raises(ValueError, match="`weight_decay` must be finite and >= 0"):
        RATES[recipe](-1e-4)


def test_negative_strengths_of_tpp():
    with pytest.raises(ValueError, match="`strength` must be finite and >= 0"):
        transforms.add_decorrelation([], {}, -1.0)
    with pytest.raises(ValueError, match="`ceiling` must be finite and >= 0"):
        transforms.tpp(0.1, [], {}, weight_decay=0, total_steps=99, ceiling=-1.0)


def test_rewinding_and_top_kast_rank_layer_by_layer():
    """A name that the rule does not know: said, or as one leaf."""
    tree = {"decoder": stacked(0, "decoder")["decoder"]}
    mask = transforms.prune_iteratively(
        lambda p, m: p, tree, [0.5], ranking="leaf", stacked="decoder"
    )[1]["decoder"]["kernel"]
    assert mask.sum((1, 2)).tolist() == [10, 10, 10]
    r = reparam.top_kast(0.5, 0.25, stacked="decoder")
    assert r.export(tree)[1]["decoder"]["kernel"].sum((1, 2)).tolist() == [10, 10, 10]
    whole = reparam.top_kast(0.5, 0.25).export(tree)[1]["decoder"]["kernel"]
    assert whole.sum((1, 2)).tolist() != [10, 10, 10] and int(whole.sum()) == 30
