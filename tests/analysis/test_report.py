"""`analysis.report`: exact counts, sizes, the table, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import masks
from jprune.analysis import report
from jprune.analysis._table import byte_size, percent


@pytest.fixture
def params():
    kernel = np.zeros((3, 3, 1, 16), np.float32)
    kernel.reshape(-1)[:14] = 1.0
    return {
        "conv": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(16)},
        "dense": {"kernel": jnp.ones((16, 10), jnp.bfloat16)},
    }


SCOPE = {"conv": {"kernel": True, "bias": False}, "dense": {"kernel": True}}


def test_counts_non_zero_entries_of_parameters(params):
    result = report(params, scope=".*")
    assert [(r.path, r.shape, r.size, r.kept) for r in result.rows] == [
        ("conv/bias", (16,), 16, 0),
        ("conv/kernel", (3, 3, 1, 16), 144, 14),
        ("dense/kernel", (16, 10), 160, 160),
    ]
    assert (result.total.size, result.total.kept) == (320, 174)
    assert result.total.sparsity == 146 / 320
    assert result.in_scope._replace(path="total") == result.total


def test_the_default_scope_is_what_pruning_ranks(params):
    assert report(params) == report(params, scope=SCOPE)
    # Zeros that nobody removed: a fresh bias, an integer.
    cut = masks.apply(masks.unstructured(params, 0.75), params)
    result = report(cut | {"step": jnp.zeros((2, 2), jnp.int32)})
    assert [row.in_scope for row in result.rows] == [False, True, True, False]
    assert result.in_scope.sparsity == 0.75
    assert result.total.size - result.total.kept == 228
    with pytest.raises(ValueError, match=r"No leaf is prunable(.|\n)*conv/bias"):
        report({"conv": {"bias": params["conv"]["bias"]}})


def test_a_leaf_out_of_scope_counts_as_kept_whole(params):
    result = report(params, scope=SCOPE)
    bias = result.rows[0]
    assert not bias.in_scope and bias.kept == 16
    assert (result.in_scope.kept, result.in_scope.size) == (174, 304)
    assert (result.total.kept, result.total.size) == (190, 320)


def test_a_mask_decides_whatever_the_values_are(params):
    mask = {
        "conv": {"kernel": np.zeros((3, 3, 1, 16), bool), "bias": np.array(True)},
        "dense": {"kernel": np.eye(16, 10, dtype=bool)},
    }
    result = report(params, mask)
    assert [r.kept for r in result.rows] == [16, 0, 10]
    assert [r.in_scope for r in result.rows] == [False, True, True]
    abstract = jax.eval_shape(lambda: params)
    assert report(abstract, mask) == result


def test_a_bare_mask_has_no_bytes_and_no_row_out_of_scope():
    result = report({"a": np.array([[True, False]]), "b": np.array(True)})
    assert [(r.path, r.kept, r.size) for r in result.rows] == [("a", 1, 2)]
    assert result.total.bytes_dense is None and result.total.bytes_stored is None
    assert " -" in str(result).splitlines()[-1]


@pytest.mark.parametrize(
    ("dtype", "size", "kept", "dense", "stored"),
    [
        (np.float32, 1000, 20, 4000, 20 * 4 + 125),  # 98 %: 19.5 times less
        (np.float32, 1001, 0, 4004, 126),  # the bits of positions, rounded up
        (np.float32, 1000, 1000, 4000, 4000),  # dense: no bits are needed
        (np.float32, 1000, 970, 4000, 4000),  # positions would cost more than zeros
        (np.float32, 1000, 968, 4000, 968 * 4 + 125),
        (np.float16, 1000, 500, 2000, 500 * 2 + 125),
        (np.float32, 0, 0, 0, 0),
    ],
)
def test_stored_bytes_by_hand(dtype, size, kept, dense, stored):
    leaf = np.zeros(size, dtype)
    leaf[:kept] = 1
    row = report([leaf], scope=".*").rows[0]
    assert (row.bytes_dense, row.bytes_stored) == (dense, stored)


def test_special_values_and_dtypes_count_as_numpy_counts_them():
    values = np.array([0.0, -0.0, np.nan, np.inf, 1e-45, 2.0], np.float32)
    trees = (values, jnp.asarray(values), values.astype(jnp.bfloat16))
    kept = [row.kept for row in report(trees, scope=".*").rows]
    # -0.0 is zero; NaN is not. The smallest float32 is lost in bfloat16; on a device
    # that flushes subnormals it may be lost there too.
    assert kept[0] == 4 and kept[1] in (3, 4)
    assert kept[2] == np.count_nonzero(trees[2])


def test_sharded_leaves_are_counted_where_they_are():
    mesh = jax.make_mesh((4,), ("x",))
    leaf = jax.device_put(
        jnp.arange(32.0) % 4, jax.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    )
    assert report({"w": leaf}, scope=".*").total.kept == 24


def test_the_table(params):
    assert str(report(params, scope=SCOPE)).splitlines() == [
        "leaf          shape     dtype     kept   of  sparsity %  dense  stored",
        "----------------------------------------------------------------------",
        "conv/bias     16        float32     16   16           -   64 B    64 B",
        "conv/kernel   3x3x1x16  float32     14  144       90.28  576 B    74 B",
        "dense/kernel  16x10     bfloat16   160  160        0.00  320 B   320 B",
        "----------------------------------------------------------------------",
        "in scope                           174  304       42.76  896 B   394 B",
        "total                              190  320       40.62  960 B   458 B",
    ]
    assert "in scope" not in str(report(params, scope=".*"))


def test_percent_never_rounds_to_all_or_nothing():
    assert percent(99_999, 100_000) == ">99.99"
    assert percent(1, 100_000) == "<0.01"
    assert (percent(0, 9), percent(9, 9), percent(0, 0)) == ("0.00", "100.00", "-")
    assert percent(69_365, 77_072) == "90.00"


def test_byte_sizes():
    sizes = [0, 999, 1000, 308_288, 999_949, 999_950, 102_400_000, 5 * 10**9, 10**15]
    assert [byte_size(n) for n in sizes] == [
        *("0 B", "999 B", "1.0 kB", "308.3 kB", "999.9 kB", "1.0 MB", "102.4 MB"),
        *("5.0 GB", "1000.0 TB"),
    ]


def test_keys_pass_and_abstract_leaves_are_named():
    # A random key is no weight: it passes, uncounted.
    with_key = report({"rng": jax.random.key(0), "w": np.ones((2, 2))})
    assert with_key.in_scope == report({"w": np.ones((2, 2))}).in_scope
    with pytest.raises(TypeError, match=r"only with `mask`(.|\n)*w: ShapeDtypeStruct"):
        report({"w": jax.ShapeDtypeStruct((2,), np.float32)})


def test_empty_tree_is_an_error():
    with pytest.raises(ValueError, match=r"at least one array, got none"):
        report({})


def test_a_mask_that_does_not_fit_is_an_error(params):
    with pytest.raises(ValueError, match=r"`mask` must have exactly(.|\n)*conv/bias"):
        report(params, {"conv": {"kernel": np.array(True)}, "dense": SCOPE["dense"]})
    wrong = jax.tree.map(lambda p: np.ones(3, bool), params)
    with pytest.raises(ValueError, match=r"conv/bias: bool\[3\] for .* \[16\]"):
        report(params, wrong)
    floats = jax.tree.map(jnp.ones_like, params)
    with pytest.raises(ValueError, match=r"`mask` must hold bool arrays(.|\n)*float32"):
        report(params, floats)


def test_a_scope_is_a_tree_a_pattern_or_a_function(params):
    tree = report(params, scope=SCOPE)
    assert report(params, scope="kernel$") == tree
    assert report(params, scope=masks.prunable) == tree
    bare = jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    assert [r.in_scope for r in report(bare, scope="kernel$").rows] == [
        *(False, True, True)
    ]


def test_a_scope_that_does_not_fit_is_an_error(params):
    with pytest.raises(ValueError, match=r"`scope` must have exactly"):
        report(params, scope={"conv": True})
    with pytest.raises(TypeError, match=r"`scope` must hold Python bools"):
        report(params, scope=jax.tree.map(jnp.ones_like, params))
    with pytest.raises(ValueError, match=r"matches no leaf(.|\n)*dense/kernel"):
        report(params, scope="weights")


def test_random_keys_are_listed_and_kept_whole(params):
    """NNX states and train states carry keys beside the weights."""
    plain, keyed = report(params), report({**params, "rng": jax.random.key(0)})
    row = next(row for row in keyed.rows if row.path == "rng")
    assert row.size == row.kept == 1 and row.bytes_dense == row.bytes_stored == 8
    assert keyed.in_scope == plain.in_scope and "key<fry>" in str(keyed)


def test_leaves_that_are_no_arrays_have_no_row():
    """Functions, names and Python numbers, as in a module of Equinox."""
    params = {"w": jnp.eye(4), "act": jax.nn.relu, "eps": 1e-5, "name": "layer"}
    alone = report({"w": params["w"]})
    assert report(params) == alone
    assert report(params, scope="w") == alone
    mask = {"w": params["w"] != 0, "act": True, "eps": jnp.array(True), "name": None}
    mask["name"] = jnp.array(True)
    assert report(params, mask).rows == alone.rows
    with pytest.raises(ValueError, match="at least one array, got none"):
        report({"eps": 1e-5, "act": jax.nn.relu})
    with pytest.raises(TypeError, match="names: <U1|numeric or bool"):
        report({"w": params["w"], "names": np.array(["a"])})
