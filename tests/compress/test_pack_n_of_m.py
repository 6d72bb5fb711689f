"""N:M weights as values and indices: exact round trips, bytes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jprune import compress, masks


def pruned(shape, n, m, axis, dtype=np.float32):
    rng = np.random.default_rng(m)
    params = {"q": jnp.asarray(rng.normal(size=shape), dtype)}
    return masks.apply(masks.n_of_m(params, n, m, axis=axis), params)


@pytest.mark.parametrize(
    ("n", "m", "shape", "axis", "dtype"),
    [
        (2, 4, (8, 3), 0, np.float32),
        (1, 4, (3, 3, 8, 2), 2, jnp.bfloat16),
        (5, 6, (2, 12), -1, np.float32),
        (1, 1, (3, 2), 0, np.float32),
    ],
)
def test_nm_g10_round_trip(n, m, shape, axis, dtype):
    params = pruned(shape, n, m, axis, dtype)
    packed = compress.pack_n_of_m(params, n, m, axis=axis)
    back = jax.jit(compress.unpack_n_of_m)(packed)["q"]
    assert back.dtype == params["q"].dtype
    np.testing.assert_array_equal(back, params["q"])
    leaf, size = packed["q"], int(np.prod(shape))
    assert leaf.shape == shape
    places = np.asarray(leaf.places())
    assert places.min() >= 0 and places.max() < m
    assert bool(np.all(np.diff(places, axis=-1) > 0))
    bits = max(int(np.ceil(np.log2(m))), 1)
    stored = size * n // m
    itemsize = params["q"].dtype.itemsize
    assert leaf.nbytes == stored * itemsize + -(-stored * bits // 8)
    assert leaf.dense_nbytes == size * itemsize


def test_against_a_walk_over_the_groups():
    params = pruned((8, 5), 2, 4, 0)
    w = np.asarray(params["q"])
    leaf = compress.pack_n_of_m(params, 2, 4, axis=0)["q"]
    values, places = np.asarray(leaf.values), np.asarray(leaf.places())
    for c in range(5):
        for g in range(2):
            [at] = np.nonzero(w[4 * g : 4 * g + 4, c])
            np.testing.assert_array_equal(places[c, g], at)
            np.testing.assert_array_equal(values[c, g], w[4 * g + at, c])
    # Two bits each, first place in the high bits.
    word = places.reshape(-1, 4)
    want = word @ np.array([64, 16, 4, 1])
    np.testing.assert_array_equal(leaf.indices, want)


def test_groups_with_fewer_and_leaves_out_of_scope():
    params = {
        "kernel": jnp.array([[0.0], [0.0], [7.0], [0.0], [0.0], [0.0], [0.0], [0.0]]),
        "bias": jnp.ones(3),
    }
    packed = compress.pack_n_of_m(params, 2, 4)
    np.testing.assert_array_equal(packed["bias"], params["bias"])
    back = compress.unpack_n_of_m(packed)
    np.testing.assert_array_equal(back["kernel"], params["kernel"])
    kernel = packed["kernel"]
    assert (kernel.nbytes, kernel.dense_nbytes) == (4 * 4 + 1, 32)


def test_what_is_not_finite_comes_back():
    params = {"w": jnp.array([[jnp.nan], [0.0], [0.0], [-jnp.inf]])}
    back = compress.unpack_n_of_m(compress.pack_n_of_m(params, 2, 4))
    np.testing.assert_array_equal(back["w"], params["w"])


def test_refusals():
    params = {"a": {"kernel": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match="not 2:4; .*\n  a/kernel: 4 weights more"):
        compress.pack_n_of_m(params, 2, 4)
    with pytest.raises(ValueError, match="m=3 does not divide"):
        compress.pack_n_of_m(params, 1, 3)
    with pytest.raises(ValueError, match="a traced array at a/kernel"):
        jax.eval_shape(lambda p: compress.pack_n_of_m(p, 4, 4), params)


@pytest.mark.parametrize(
    ("name", "stacked", "shape"),
    [
        ("layers", None, (3, 8, 6)),
        ("decoder", "decoder/", (3, 8, 6)),
        ("decoder", {"decoder/": 1}, (8, 3, 6)),
        ("layers", None, (2, 3, 3, 4, 5)),
    ],
)
def test_stacks_of_layers_come_back(name, stacked, shape):
    """As `masks.n_of_m` cuts them, along the contracted axis of each layer."""
    rng = np.random.default_rng(0)
    params = {name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}}
    params = masks.apply(masks.n_of_m(params, 2, 4, stacked=stacked), params)
    packed = compress.pack_n_of_m(params, 2, 4, stacked=stacked)
    leaf = packed[name]["kernel"]
    assert leaf.shape == shape and leaf.values.size == np.prod(shape) // 2
    assert leaf.axis == (0 if isinstance(stacked, dict) else len(shape) - 2)
    back = compress.unpack_n_of_m(packed)[name]["kernel"]
    np.testing.assert_array_equal(back, params[name]["kernel"])


def test_subnormal_weights_count_and_come_back():
    tiny = np.float32(1e-40)
    three = np.array([[tiny], [2 * tiny], [3 * tiny], [0]], np.float32)
    with pytest.raises(ValueError, match="w: 1 weights more than 2 of 4"):
        compress.pack_n_of_m({"w": jnp.asarray(three)}, 2, 4)
    two = three * np.array([[0], [1], [1], [0]], np.float32)
    back = compress.unpack_n_of_m(compress.pack_n_of_m({"w": jnp.asarray(two)}, 2, 4))
    found = np.asarray(back["w"]).view(np.int32)
    np.testing.assert_array_equal(found, two.view(np.int32))


def test_a_leaf_on_a_mesh_of_explicit_axes():
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    w = jax.random.normal(jax.random.key(0), (8, 6))
    dense = masks.apply(masks.n_of_m({"w": w}, 2, 4), {"w": w})
    place = NamedSharding(mesh, PartitionSpec("x", "y"))
    packed = compress.pack_n_of_m(jax.device_put(dense, place), 2, 4)
    back = compress.unpack_n_of_m(packed)
    np.testing.assert_array_equal(back["w"], dense["w"])
