"""A leaf that is a stack of layers is treated as the same network unrolled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import at_init, masks, scores, selection, transforms
from jprune._stacks import stacked_axes
from jprune.masks._rows import largest_of_rows
from jprune.masks._target import keep_counts
from jprune.masks._unstructured import ranked

LAYERS, SHAPE = 3, (8, 4)


def stack(seed=0):
    """Layers of unlike scale, as networks have them, and a head."""
    rng = np.random.default_rng(seed)
    scale = np.array([0.01, 1.0, 100.0])[:, None, None]
    deep = (rng.normal(size=(LAYERS, *SHAPE)) * scale).astype(np.float32)
    head = rng.normal(size=(4, 8)).astype(np.float32)
    return {"layers": {"kernel": deep}, "zhead": {"kernel": head}}


def unrolled(tree):
    deep = tree["layers"]["kernel"]
    each = {f"layer_{i}": {"kernel": deep[i]} for i in range(LAYERS)}
    return {**each, "zhead": tree["zhead"]}


def rolled(tree):
    deep = [tree[f"layer_{i}"]["kernel"] for i in range(LAYERS)]
    return {"layers": {"kernel": np.stack(deep)}, "zhead": tree["zhead"]}


def same(stacked, apart):
    jax.tree.map(np.testing.assert_array_equal, stacked, rolled(apart))


PATTERNS = {
    "leaf": partial(masks.unstructured, sparsity=0.7, ranking="leaf"),
    "leaf, odd counts": partial(masks.unstructured, sparsity=0.61, ranking="leaf"),
    "global": partial(masks.unstructured, sparsity=0.7),
    "global, floors": partial(masks.unstructured, sparsity=0.8, min_keep=3),
    "leaf, floors": partial(
        masks.unstructured, sparsity=0.97, ranking="leaf", min_keep=1
    ),
    "output": partial(masks.unstructured, sparsity=0.5, ranking="output"),
    "channels": partial(masks.channels, sparsity=0.5),
    "channels, global": partial(masks.channels, sparsity=0.5, ranking="global"),
    "blocks": partial(masks.blocks, block=(2, 2), sparsity=0.5),
    "n:m": partial(masks.n_of_m, n=2, m=4),
    "above": partial(masks.above, threshold=0.5),
    "above, floors": partial(masks.above, threshold=5.0, min_keep=None),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_stack_is_masked_as_its_layers(name):
    tree = scores.magnitude(stack())
    same(PATTERNS[name](tree), PATTERNS[name](unrolled(tree)))


@pytest.mark.parametrize("pattern", ["leaf, odd counts", "global, floors", "output"])
def test_inside_a_mask_signed_and_under_jit(pattern):
    tree = stack(1)
    within = jax.tree.map(lambda x: jnp.asarray(x > -0.5), tree)
    make = partial(PATTERNS[pattern], signed=True)
    got = jax.jit(lambda t, w: make(t, within=w))(tree, within)
    same(got, make(unrolled(tree), within=unrolled(within)))


def test_traced_sparsities():
    tree = stack(2)
    for ranking in ("leaf", "global"):
        make = jax.jit(lambda t, s, r=ranking: masks.unstructured(t, s, ranking=r))
        same(make(tree, 0.7), masks.unstructured(unrolled(tree), 0.7, ranking=ranking))


@pytest.mark.parametrize("kind", [masks.uniform, masks.erk, masks.erdos_renyi])
def test_allocations_count_layers(kind):
    tree, s = stack(), 0.83
    stacked, apart = kind(tree, s), kind(unrolled(tree), s)
    assert stacked["zhead"]["kernel"] == apart["zhead"]["kernel"]
    np.testing.assert_array_equal(
        stacked["layers"]["kernel"],
        [apart[f"layer_{i}"]["kernel"] for i in range(LAYERS)],
    )
    mask = masks.unstructured(tree, stacked)
    same(mask, masks.unstructured(unrolled(tree), apart))
    assert int(masks.count(mask)) == masks.kept_count(masks.size(tree), s)


@pytest.mark.parametrize("score", [scores.lamp, scores.normalized, scores.channel_norm])
def test_scores_count_layers(score):
    tree = stack()
    got, want = score(tree), rolled(score(unrolled(tree)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, want)


def test_wanda_of_a_stack_has_norms_for_each_layer():
    tree, rng = stack(), np.random.default_rng(0)
    norms = {"layers": {"kernel": rng.random((3, 8))}, "zhead": {"kernel": np.ones(4)}}
    same(scores.wanda(tree, norms), scores.wanda(unrolled(tree), unrolled(norms)))


def test_other_stack_axes_are_named():
    tree = stack()
    moved = {**tree, "layers": {"kernel": np.moveaxis(tree["layers"]["kernel"], 0, 1)}}
    got = masks.unstructured(moved, 0.7, ranking="leaf", stacked={"layers/": 1})
    want = masks.unstructured(tree, 0.7, ranking="leaf")["layers"]["kernel"]
    np.testing.assert_array_equal(np.moveaxis(got["layers"]["kernel"], 1, 0), want)


def test_a_chain_ranks_layers_too():
    """Several rankings with the warm start carried, stacks and others."""

    def run(params):
        prune = transforms.prune_gradually(0.75, end=4, ranking="leaf")
        tx = optax.chain(optax.sgd(0.1), prune)
        state = tx.init(params)
        for i in range(5):
            grads = jax.tree.map(lambda p, i=i: jnp.sin(7.0 * i + 100 * p), params)
            updates, state = jax.jit(tx.update)(grads, state, params)
            params = optax.apply_updates(params, updates)
        return jax.tree.map(lambda p: p != 0, params)

    tree = stack(3)
    same(run(jax.tree.map(jnp.asarray, tree)), run(unrolled(tree)))


def test_a_warm_start_serves_leaves_beside_stacks():
    tree = jax.tree.map(jnp.asarray, stack(4))
    counts, _ = keep_counts(tree, 0.5, ranking="leaf")
    cold = selection.WarmStart.cold(tree, ranking="leaf")
    one = ranked(tree, counts, ranking="leaf", init=cold)
    two = ranked(tree, counts, ranking="leaf", init=one[1])
    jax.tree.map(np.testing.assert_array_equal, one[0], two[0])
    assert one[1].bits.shape == cold.bits.shape and int(two[2]) <= int(one[2])


def test_reports_of_a_collapse_name_the_layer():
    tree = stack()
    mask = jax.tree.map(lambda x: np.ones(x.shape, bool), tree)
    mask["layers"]["kernel"][1] = False
    assert at_init.emptied(mask) == ("layers/kernel[1]",)
    got = at_init.critical_sparsity(tree)
    assert float(got) == float(at_init.critical_sparsity(unrolled(tree)))
    shuffled = at_init.shuffle(jax.random.key(0), jax.tree.map(jnp.asarray, mask))
    assert shuffled["layers"]["kernel"].sum((1, 2)).tolist() == [32, 0, 32]


def shapes(**leaves):
    tree = {}
    for path, shape in leaves.items():
        at = tree
        *parents, last = path.split("__")
        for key in parents:
            at = at.setdefault(key, {})
        at[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


ATTENTION, CONVOLUTION = (64, 8, 8), (3, 16, 32)


@pytest.mark.parametrize(
    ("tree", "axes"),
    [
        # scan over layers: kernels and biases with one first axis
        (shapes(layers__mlp__bias=(6, 8), layers__mlp__kernel=(6, 4, 8)), [(), (0,)]),
        (shapes(ScanBlock_0__Dense_0__kernel=(6, 4, 8)), [(0,)]),
        (shapes(VmapDense_0__kernel=(6, 4, 8)), [(0,)]),
        (shapes(dec__layer_stack__w=(2, 4, 8), other=(3, 4, 8)), [(0,), ()]),
        # a list, an attention kernel, a convolution: none is a stack
        ({"layers": [{"kernel": np.ones(ATTENTION)}]}, [()]),
        (shapes(attention__query__kernel=ATTENTION), [()]),
        (shapes(conv__kernel=CONVOLUTION), [()]),
        # biases of one axis, or other first axes, show that there is no stack
        (shapes(layers__bias=(32,), layers__kernel=CONVOLUTION), [(), ()]),
        (shapes(blocks__a=(64, 8, 8), blocks__b=(8, 8, 64)), [(), ()]),
        (shapes(scanner__kernel=(6, 4, 8)), [()]),
        # a gate and a counter of each layer, beside the norms of the layers
        (shapes(layers__g=(6,), layers__k=(6, 4, 8), layers__s=(6, 8)), [(), (0,), ()]),
        (
            {"layers": {"k": np.ones((6, 4, 8)), "n": np.zeros(6, np.uint32)}},
            [(0,), ()],
        ),
        # a gate, or a counter, is no norm of the layers: the bias may be one layer's
        (shapes(layers__b=(6,), layers__k=(6, 4, 8)), [(), ()]),
        (
            {"layers": {"b": np.ones(6), "k": np.ones((6, 4, 8)), "n": np.arange(6)}},
            [(), (), ()],
        ),
    ],
)
def test_what_is_taken_for_a_stack(tree, axes):
    assert stacked_axes(tree) == axes


def test_bad_stacks():
    tree = stack()
    with pytest.raises(ValueError, match="'decoder' matches no leaf path"):
        masks.unstructured(tree, 0.5, stacked="decoder")
    with pytest.raises(ValueError, match=r"axes \(3,\) do not fit layers/kernel"):
        masks.unstructured(tree, 0.5, stacked={"layers": 3})
    with pytest.raises(TypeError, match="`stacked` must be a regular expression"):
        masks.unstructured(tree, 0.5, stacked=0)
    with pytest.raises(ValueError, match="`block` .* spans the stack"):
        masks.blocks(tree, (2, 2), 0.5, stacked={"layers": 1})
    assert stacked_axes(tree, {}) == [(), ()]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 13), st.sampled_from([0, 1, 2]))
def test_rows_against_a_stable_sort(seed, keep, axis):
    rng = np.random.default_rng(seed)
    images = rng.integers(-3, 4, (3, 4, 5)).astype(np.int32)
    images[rng.random(images.shape) < 0.2] = np.iinfo(np.int32).min  # takes no part
    got = np.moveaxis(np.asarray(largest_of_rows(images, keep, (axis,))), axis, 0)
    rows = np.moveaxis(images, axis, 0).reshape(images.shape[axis], -1)
    for row, kept in zip(rows, got.reshape(rows.shape), strict=True):
        part = row > np.iinfo(np.int32).min
        order = [i for i in np.argsort(-row.astype(np.int64), kind="stable") if part[i]]
        want = np.zeros(row.size, bool)
        want[order[:keep]] = True
        np.testing.assert_array_equal(kept, want)
