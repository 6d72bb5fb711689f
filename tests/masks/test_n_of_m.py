"""N:M masks against a sort of each group."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jprune import masks


def by_sort(x, n, m, axis, within=None):
    """The same in NumPy, one group at a time."""
    moved = np.moveaxis(np.abs(x), axis, -1)
    rows = moved.reshape(-1, m)
    key = np.where(~np.isfinite(rows), 0, rows)
    allowed = np.ones_like(rows, bool)
    if within is not None:
        allowed = np.moveaxis(within, axis, -1).reshape(-1, m)
    kept = np.zeros_like(rows, bool)
    for i, row in enumerate(key):
        order = [j for j in np.argsort(-row, kind="stable") if allowed[i, j]]
        kept[i, order[:n]] = True
    return np.moveaxis(kept.reshape(moved.shape), -1, axis)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def n_of_m(x, n, m, axis):
    return masks.n_of_m({"q": x}, n, m, axis=axis)["q"]


@pytest.mark.parametrize(
    "n, m, shape, axis",
    [
        (2, 4, (8, 3), 0),
        (1, 4, (3, 8, 2), -2),
        (3, 8, (2, 2, 8, 3), 2),
        (4, 4, (3, 8), 1),
        (1, 1, (3, 2), 0),
    ],
)
def test_against_a_sort(n, m, shape, axis):
    x = np.random.default_rng(m).normal(size=shape).astype(np.float32)
    mask = n_of_m(x, n, m, axis)
    np.testing.assert_array_equal(mask, by_sort(x, n, m, axis))
    assert mask.dtype == bool


def test_ties_go_to_the_lower_index_and_what_is_not_finite_goes_first():
    x = jnp.array([[1.0, 1.0, 1.0, 1.0], [-2.0, jnp.nan, 2.0, jnp.inf]])
    np.testing.assert_array_equal(n_of_m(x, 2, 4, 1), [[1, 1, 0, 0], [1, 0, 1, 0]])
    zeros = n_of_m(jnp.array([[0.0, -0.0, 0.0, -0.0]] * 2), 2, 4, 1)
    np.testing.assert_array_equal(zeros, [[1, 1, 0, 0]] * 2)


def test_nm_g1_groups_and_ties():
    w = jnp.array([[0.4, -0.1, 0.3, 0.05, -1, 2, 2, -1], [1, -1, 1, 1, 0, 0, 0, 0]])
    want = [[1, 0, 1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 1, 1, 0, 0]]
    np.testing.assert_array_equal(n_of_m(w, 2, 4, 1), want)


def test_nm_g2_outputs_do_not_mix():
    kernel = jnp.array([[1.0, 4.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0]])[None, None]
    mask = masks.n_of_m({"kernel": kernel}, 2, 4)["kernel"]
    np.testing.assert_array_equal(mask[0, 0].T, [[0, 0, 1, 1], [1, 1, 0, 0]])
    swapped = masks.n_of_m({"kernel": kernel[..., ::-1]}, 2, 4)["kernel"]
    np.testing.assert_array_equal(swapped, mask[..., ::-1])


def test_n_may_be_traced():
    x = jnp.asarray(np.random.default_rng(4).normal(size=(8, 3)), jnp.float32)
    traced = jax.jit(lambda n: masks.n_of_m({"w": x}, n, 4)["w"])
    for n in (1, 3):
        np.testing.assert_array_equal(traced(n), by_sort(np.asarray(x), n, 4, 0))


def test_signed_scores():
    x = jnp.array([[1.0, -3.0, 2.0, -4.0]])
    signed = masks.n_of_m({"q": x}, 2, 4, axis=1, signed=True)["q"]
    np.testing.assert_array_equal(signed, [[1, 0, 1, 0]])


def test_within():
    rng = np.random.default_rng(0)
    x, within = rng.normal(size=(8, 5)).astype(np.float32), rng.random((8, 5)) < 0.5
    mask = masks.n_of_m({"w": x}, 2, 4, within={"w": within})["w"]
    np.testing.assert_array_equal(mask, by_sort(x, 2, 4, 0, within))
    assert not np.any(mask & ~within)


def test_default_axes_are_the_contracted_ones():
    params = {
        "dense": {"kernel": np.random.default_rng(1).normal(size=(8, 3))},
        "conv": {"w": np.random.default_rng(2).normal(size=(3, 3, 4, 2))},
        "norm": {"scale": np.ones(4)},
    }
    params = jax.tree.map(np.float32, params)
    mask = jax.jit(lambda p: masks.n_of_m(p, 2, 4))(params)
    for path, axis in ((("dense", "kernel"), 0), (("conv", "w"), 2)):
        x, got = (t[path[0]][path[1]] for t in (params, mask))
        np.testing.assert_array_equal(got, by_sort(x, 2, 4, axis))
    assert mask["norm"]["scale"].shape == ()
    assert masks.is_n_of_m(mask, 2, 4)
    assert not masks.is_n_of_m(mask, 1, 4)


def test_a_tree_of_axes():
    params = {"kernel": jnp.ones((4, 3)), "q": jnp.ones((3, 4))}
    mixed = {"kernel": None, "q": 1}
    mask = jax.jit(lambda p: masks.n_of_m(p, 2, 4, axis=mixed))(params)
    np.testing.assert_array_equal(mask["kernel"].sum(0), [2, 2, 2])
    np.testing.assert_array_equal(mask["q"].sum(1), [2, 2, 2])
    axes = {"kernel": 0, "q": 1}
    assert masks.is_n_of_m(mask, 2, 4, axis=axes)
    assert masks.is_n_of_m(masks.apply(mask, params), 2, 4, axis=axes)


def test_is_n_of_m_counts_at_most_n():
    sparse = {"w": jnp.array([[1.0], [0.0], [0.0], [0.0], [2.0], [3.0], [0.0], [0.0]])}
    assert masks.is_n_of_m(sparse, 2, 4) and not masks.is_n_of_m(sparse, 1, 4)
    assert jax.jit(lambda p: masks.is_n_of_m(p, 2, 4))(sparse)


@pytest.mark.parametrize(
    "params, n, m, axis, message",
    [
        ({"w": (6, 2)}, 2, 4, None, r"m=4 does not divide axis 0 of w, shape \(6, 2\)"),
        ({"w": (8, 2)}, 5, 4, None, "N:M needs integers 1 <= n <= m, got n=5, m=4"),
        ({"w": (8, 2)}, 0, 4, None, "N:M needs integers 1 <= n <= m"),
        ({"w": (8, 2)}, 1.5, 4, None, "`n` must be an integer, got 1.5"),
        ({"w": (8, 2)}, True, 4, None, "`n` must be an integer, got True"),
        ({"w": (8, 2)}, 2, "4", None, "`m` must be an integer, got '4'"),
        ({"w": (8, 2)}, 2, 4, True, "`axis` must be a number or a tree of numbers"),
        (
            {"q": (8, 2)},
            2,
            4,
            None,
            r"No default contracted axis for q of shape \(8, 2\)",
        ),
        ({"kernel": (4, 2, 8)}, 2, 4, None, "No default contracted axis for kernel"),
        ({"w": (8, 2)}, 2, 4, 2, r"`axis` 2 is out of range for w of shape \(8, 2\)"),
        ({"w": (8, 2)}, 2, 4, {"v": 0}, "`axis` must be a number or a tree of numbers"),
        ({"w": (8, 2)}, 2, 4, {"w": "in"}, "`axis` must hold a number or None.*'in'"),
    ],
)
def test_errors(params, n, m, axis, message):
    params = {k: jnp.ones(v) for k, v in params.items()}
    with pytest.raises(ValueError, match=message):
        masks.n_of_m(params, n, m, axis=axis)
    with pytest.raises(ValueError, match=message):
        masks.is_n_of_m(params, n, m, axis=axis)


def test_a_sharded_axis_is_made_whole_and_split_again():
    x = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = {"w": jax.device_put(x, NamedSharding(mesh, P("d", None)))}
        mask = jax.jit(lambda p: masks.n_of_m(p, 2, 4))(split)
        pruned = jax.jit(masks.apply)(mask, split)["w"]
    assert mask["w"].sharding.is_equivalent_to(split["w"].sharding, 2)
    np.testing.assert_array_equal(mask["w"], by_sort(x, 2, 4, 0))
    np.testing.assert_array_equal(pruned, np.where(mask["w"], x, 0))


@pytest.mark.parametrize("scope", [None, "proj/kernel", lambda p: masks.prunable(p)])
def test_is_n_of_m_takes_what_its_sibling_took(scope):
    """The axis tree has None where there is no default; a scope may be a text."""
    params = {
        "proj": {"kernel": jnp.arange(128.0).reshape(8, 16), "bias": jnp.zeros(16)},
        "out": {"kernel": jnp.ones((16, 4))},
    }
    axis = {"proj": {"kernel": 0, "bias": None}, "out": {"kernel": 0}}
    mask = masks.n_of_m(params, 2, 4, axis=axis, scope=scope)
    assert bool(masks.is_n_of_m(mask, 2, 4, axis=axis, scope=scope))
    assert not bool(masks.is_n_of_m(mask, 1, 4, axis=axis, scope=scope))


def test_pruned_weights_are_n_of_m_beside_wide_biases_and_embeddings():
    """The default leaves are those that `n_of_m` takes by default."""
    params = {
        "embed": {"embedding": jnp.ones((8, 4))},
        "layer": {
            "kernel": jnp.arange(32.0).reshape(8, 4) + 1,
            "bias": jnp.ones((4, 4)),
        },
    }
    pruned = masks.apply(masks.n_of_m(params, 2, 4), params)
    assert masks.is_n_of_m(pruned, 2, 4) and not masks.is_n_of_m(params, 2, 4)
    assert not masks.is_n_of_m(params, 2, 4, axis=0, scope="embedding")


def test_a_check_of_no_leaf_is_an_error():
    """Whole leaves out of a mask's scope, or biases alone, prove nothing."""
    for tree in ({"kernel": jnp.array(True)}, {"bias": jnp.ones((4, 4), bool)}):
        with pytest.raises(ValueError, match="finds no leaf to check"):
            masks.is_n_of_m(tree, 2, 4)
    assert masks.is_n_of_m({}, 2, 4)


def test_is_n_of_m_of_no_weight_is_an_error_and_subnormals_count():
    empty = {"w": jnp.zeros((0, 4))}
    for scope in (None, "w"):
        with pytest.raises(ValueError, match="finds no leaf to check: .*empty"):
            masks.is_n_of_m(empty, 2, 4, axis=0, scope=scope)
    three = jnp.full((4, 1), np.float32(1e-40)).at[0].set(0)
    assert not masks.is_n_of_m(empty | {"kernel": three}, 2, 4, axis=0)
    assert masks.is_n_of_m(empty | {"kernel": three}, 3, 4, axis=0)


def test_a_group_without_enough_numbers_is_refused():
    """Its NaN and infinities would be kept by their position."""
    w = jnp.ones((8, 2)).at[4:7, 1].set(jnp.nan)
    with pytest.raises(ValueError, match="`scores` must be finite.*: 1 at kernel"):
        masks.n_of_m({"kernel": w}, 2, 4)
    kept = masks.n_of_m({"kernel": w}, 1, 4)["kernel"]  # the first to go
    assert kept[4:, 1].tolist() == [False, False, False, True]
    jitted = jax.jit(lambda w: masks.n_of_m({"kernel": w}, 2, 4))
    assert int(jitted(w)["kernel"].sum()) == 8  # a traced one cannot raise
