"""Channels and blocks: whole units, counted in units, ragged edges included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jprune import masks
from tests.masks import oracle


def conv(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 4, 6)).astype(np.float32)},
        "dense": {"kernel": rng.normal(size=(5, 8)).astype(np.float32)},
        "norm": {"scale": np.ones(6, np.float32)},
    }


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("ranking", ["leaf", "global"])
def test_channels_against_numpy(reduce, ranking):
    params = conv()
    mask = masks.channels(params, 0.5, reduce=reduce, ranking=ranking)
    kernels = [np.float64(params[k]["kernel"]) for k in ("conv", "dense")]
    by_channel = [
        getattr(np.abs(x).reshape(-1, n), reduce)(0)
        for x, n in zip(kernels, (6, 8), strict=True)
    ]
    if ranking == "leaf":
        kept = [oracle.top([u], u.size // 2)[0] for u in by_channel]
    else:
        kept = oracle.top(by_channel, 7, floors=[1, 1])
    for key, x, k in zip(("conv", "dense"), kernels, kept, strict=True):
        np.testing.assert_array_equal(mask[key]["kernel"], np.broadcast_to(k, x.shape))
    assert mask["norm"]["scale"].shape == ()


def test_channels_along_a_given_axis():
    params = {"q": jnp.array([[1.0, 1.0, 1.0], [0.1, 9.0, 0.1], [0.5, 0.5, 0.5]])}
    by_row = masks.channels(params, keep=1, axis=0)["q"]
    np.testing.assert_array_equal(by_row, [[0] * 3, [1] * 3, [0] * 3])
    by_column = masks.channels(params, keep=1, axis={"q": -1})["q"]
    np.testing.assert_array_equal(by_column, [[0, 1, 0]] * 3)


def test_weights_count_by_magnitude():
    """Signs must not cancel: the first channel sums to 0 and is the larger."""
    params = {"w": jnp.array([[5.0, 1.0], [-5.0, 1.0]])}
    np.testing.assert_array_equal(masks.channels(params, 0.5)["w"], [[1, 0]] * 2)


def test_half_precision_units_are_reduced_in_float32():
    wide = np.zeros((2, 400), np.float32)
    wide[0], wide[1, 0] = 0.01, 3.9  # 4.0 against 3.9: bfloat16 sums stop growing
    mask = masks.channels({"q": jnp.asarray(wide, jnp.bfloat16)}, 0.5, axis=0)["q"]
    np.testing.assert_array_equal(mask[:, 0], [True, False])
    huge = {"q": jnp.array([[6e4, 6e4], [6e4, 5e4]], jnp.float16)}  # overflows float16
    np.testing.assert_array_equal(
        masks.channels(huge, 0.5, axis=0)["q"][:, 0], [True, False]
    )


def test_constant_channels_go_by_position():
    mask = masks.channels({"w": jnp.ones((2, 3))}, 0.3)["w"]
    np.testing.assert_array_equal(mask, [[1, 1, 0]] * 2)


@pytest.mark.parametrize(
    "block, reduce",
    [((2, 3), "sum"), ((4,), "mean"), ((2, 2, 2), "max"), ((9, 9), "mean")],
)
def test_blocks_against_numpy(block, reduce):
    """(5, 3, 7) divides by none of them: the last blocks are smaller."""
    x = np.random.default_rng(1).normal(size=(5, 3, 7)).astype(np.float32)
    full = (1,) * (3 - len(block)) + block
    grid = [range(0, n, b) for n, b in zip(x.shape, full, strict=True)]
    tiles = [
        tuple(slice(i, i + b) for i, b in zip(corner, full, strict=True))
        for corner in np.array(np.meshgrid(*grid, indexing="ij")).reshape(3, -1).T
    ]
    worth = np.array([getattr(np.abs(np.float64(x[t])), reduce)() for t in tiles])
    s = 0.6 if len(tiles) > 1 else 0.2
    want = np.zeros(x.shape, bool)
    for tile, kept in zip(
        tiles, oracle.top([worth], masks.kept_count(len(tiles), s))[0], strict=True
    ):
        want[tile] = kept
    mask = masks.blocks({"q": x}, block, s, reduce=reduce)["q"]
    np.testing.assert_array_equal(mask, want)


def test_blocks_under_a_global_ranking_keep_a_floor():
    params = {"a": jnp.full((4, 4), 0.1), "b": jnp.ones((4, 4))}
    mask = masks.blocks(params, (2, 2), keep=4, ranking="global")
    assert [int(mask[k].sum()) for k in "ab"] == [4, 12]


def test_within_keeps_units_that_still_have_something():
    params = {"w": jnp.array([[9.0, 5.0, 1.0], [9.0, 5.0, 1.0]])}
    within = {"w": jnp.array([[False, True, True], [False, False, True]])}
    mask = masks.channels(params, keep=1, within=within)["w"]
    np.testing.assert_array_equal(mask, [[0, 1, 0]] * 2)
    mask = masks.blocks(params, (1, 2), keep=1, within=within)["w"]
    np.testing.assert_array_equal(mask, [[1, 1, 0], [0, 0, 0]])


def test_empty_tree_and_sparsity_trees():
    assert masks.channels({}, 0.5) == {} == masks.blocks({}, (2, 2), 0.5)
    params = conv(3)
    asked = {
        "conv": {"kernel": 0.5},
        "dense": {"kernel": 0.25},
        "norm": {"scale": 0.0},
    }
    mask = masks.channels(params, asked)
    assert int(mask["conv"]["kernel"][0, 0, 0].sum()) == 3
    assert int(mask["dense"]["kernel"][0].sum()) == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sparsity": 0.5}, "No default output axis for q"),
        ({"sparsity": 0.5, "axis": 3}, "`axis` 3 is out of range for q"),
        (
            {"sparsity": 0.5, "axis": 0, "reduce": "min"},
            "`reduce` must be .* got 'min'",
        ),
        ({"sparsity": 1.5, "axis": 0}, r"`sparsity` must be in \[0, 1\)"),
        ({"axis": 0}, "exactly one of `sparsity`"),
        ({"keep": 9, "axis": 0}, r"`keep` must be in \[0, 4\]"),
    ],
)
def test_errors_of_channels(arguments, message):
    with pytest.raises(ValueError, match=message):
        masks.channels({"q": jnp.ones((4, 4))}, **arguments)


@pytest.mark.parametrize(
    "block, message",
    [
        ((2, 2, 2), "has more axes than q"),
        ((0, 2), r"`block` must be positive integers, got \(0, 2\)"),
        ((), "`block` must be positive integers"),
        ((2.0,), "`block` must be positive integers"),
        (2, r"`block` must be a tuple of lengths, such as \(4, 4\), got 2"),
    ],
)
def test_errors_of_blocks(block, message):
    with pytest.raises(ValueError, match=message):
        masks.blocks({"q": jnp.ones((4, 4))}, block, 0.5)


def test_keep_over_several_leaves_needs_a_global_ranking():
    with pytest.raises(ValueError, match="`keep` is one number for all leaves"):
        masks.channels(conv(), keep=3)
    mask = masks.channels(conv(), keep=3, ranking="global", reduce="mean")
    kept = [
        int(mask[k]["kernel"].any(tuple(range(n))).sum())
        for k, n in (("conv", 3), ("dense", 1))
    ]
    assert sum(kept) == 3


@pytest.mark.slow
def test_a_sharded_leaf_gives_the_same_blocks_and_channels():
    x = np.random.default_rng(4).normal(size=(8, 12)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))

    def both(p):
        return masks.channels(p, 0.5), masks.blocks(p, (1, 4), 0.5)

    with jax.set_mesh(mesh):
        split = {"w": jax.device_put(x, NamedSharding(mesh, P(None, "d")))}
        got = jax.jit(both)(split)
    jax.tree.map(np.testing.assert_array_equal, got, both({"w": x}))
