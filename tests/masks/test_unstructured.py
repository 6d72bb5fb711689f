"""The k largest scalars, against NumPy's stable sort."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jprune import masks, scores, selection
from jprune.masks._rank import _rank
from jprune.masks._target import keep_counts
from jprune.masks._unstructured import ranked
from tests.masks import oracle

SHAPES = {"a": {"kernel": (6, 5), "bias": (5,)}, "b": {"kernel": (2, 3, 4)}}
N = 30 + 24


def tree(make=np.ones, shapes=SHAPES):
    """A tree of the shapes above; only the two kernels are prunable."""
    return jax.tree.map(make, shapes, is_leaf=lambda x: isinstance(x, tuple))


def normal(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return tree(lambda shape: rng.normal(size=shape).astype(dtype))


def kernels(params):
    return [np.asarray(params[k]["kernel"]) for k in "ab"]


def kept_of(mask):
    return sum(int(np.sum(x)) for x in kernels(mask))


@pytest.mark.parametrize("s", [0, 0.1, 0.5, 0.57, 0.9, 0.95])
def test_counts_are_exact_and_the_largest_stay(s):
    params = normal()
    mask = masks.unstructured(params, s)
    want = oracle.top(kernels(params), masks.kept_count(N, s))
    for got, kept in zip(kernels(mask), want, strict=True):
        np.testing.assert_array_equal(got, kept)
    assert mask["a"]["bias"].shape == () and bool(mask["a"]["bias"])
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert {x.dtype.name for x in jax.tree.leaves(mask)} == {"bool"}


def test_allocation_g7_constant_scores_go_by_position():
    ones = {"w": jnp.ones((1, 7))}
    mask = masks.unstructured(ones, keep=3)
    assert mask["w"].tolist() == [[True] * 3 + [False] * 4]


def test_ties_go_to_the_first_leaf_then_row_major():
    mask = masks.unstructured(tree(), keep=33)
    a, b = kernels(mask)
    assert a.all()
    np.testing.assert_array_equal(b.ravel(), np.arange(24) < 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, N), st.integers(1, 6))
def test_ties_against_the_oracle(seed, keep, levels):
    """Few distinct values, so that ties lie everywhere."""
    rng = np.random.default_rng(seed)
    params = tree(lambda s: rng.integers(-levels, levels + 1, s).astype(np.float32))
    mask = masks.unstructured(params, keep=keep)
    want = oracle.top(kernels(params), keep, floors=[1, 1])
    for got, kept in zip(kernels(mask), want, strict=True):
        np.testing.assert_array_equal(got, kept)


def test_monotone_in_keep_and_idempotent():
    params = normal(3)
    previous = [np.zeros(x.shape, bool) for x in kernels(params)]
    for keep in range(2, N + 1, 4):
        mask = masks.unstructured(params, keep=keep)
        for small, large in zip(previous, kernels(mask), strict=True):
            assert not np.any(small & ~large)
        again = masks.unstructured(masks.apply(mask, params), keep=keep)
        for x, y in zip(kernels(mask), kernels(again), strict=True):
            np.testing.assert_array_equal(x, y)
        previous = kernels(mask)


def test_weights_rank_by_magnitude_and_signed_scores_by_value():
    params = normal(4)
    plain = masks.unstructured(params, 0.5)
    by_score = masks.unstructured(scores.magnitude(params), 0.5)
    signed = masks.unstructured(params, 0.5, signed=True)
    for x, y in zip(kernels(plain), kernels(by_score), strict=True):
        np.testing.assert_array_equal(x, y)
    want = oracle.top(kernels(params), 27, signed=True)
    for x, y in zip(kernels(signed), want, strict=True):
        np.testing.assert_array_equal(x, y)


def test_within_nests():
    params = normal(5)
    first = masks.unstructured(params, 0.4)
    moved = normal(6)
    second = masks.unstructured(moved, 0.7, within=first)
    assert kept_of(second) == masks.kept_count(N, 0.7)
    want = oracle.top(kernels(moved), masks.kept_count(N, 0.7), within=kernels(first))
    for x, y in zip(kernels(second), want, strict=True):
        np.testing.assert_array_equal(x, y)


def test_within_may_hold_fewer_than_asked():
    first = masks.unstructured(normal(5), 0.9)
    second = masks.unstructured(normal(6), 0.5, within=first)
    for x, y in zip(kernels(second), kernels(first), strict=True):
        np.testing.assert_array_equal(x, y)


def test_within_of_another_structure():
    with pytest.raises(ValueError, match="`within` must have exactly the structure"):
        masks.unstructured(normal(), 0.5, within={"a": True})


def test_ranking_by_leaf():
    params = normal(7)
    mask = masks.unstructured(params, 0.75, ranking="leaf")
    for x, kept in zip(kernels(params), kernels(mask), strict=True):
        want = oracle.top([x], masks.kept_count(x.size, 0.75))[0]
        np.testing.assert_array_equal(kept, want)


def test_sparsity_trees():
    params = normal(8)
    asked = {"a": {"kernel": 0.9, "bias": 0.0}, "b": {"kernel": 0.25}}
    mask = masks.unstructured(params, asked)
    assert [int(x.sum()) for x in kernels(mask)] == [3, 18]
    # The whole leaf may be asked for; min_keep leaves one and takes it elsewhere.
    asked["a"]["kernel"] = 1.0
    mask = masks.unstructured(params, asked)
    assert [int(x.sum()) for x in kernels(mask)] == [1, 17]
    mask = masks.unstructured(params, asked, min_keep=0)  # the same program
    assert [int(x.sum()) for x in kernels(mask)] == [0, 18]


def test_sparsity_tree_errors():
    params = normal()
    for bad, text in [
        ({"a": {"kernel": 0.9, "bias": 0.5}, "b": {"kernel": 0.5}}, "out of `scope`"),
        ({"a": {"kernel": 1.5, "bias": 0.0}, "b": {"kernel": 0.5}}, r"a/kernel: 1.5"),
    ]:
        with pytest.raises(ValueError, match=text):
            masks.unstructured(params, bad)
    with pytest.raises(ValueError, match="`sparsity` must have exactly the structure"):
        masks.unstructured(params, {"a": 0.5})


def test_half_precision_has_many_ties():
    rng = np.random.default_rng(9)
    params = tree(lambda s: jnp.asarray(rng.normal(size=s), jnp.bfloat16))
    mask = masks.unstructured(params, 0.6)
    want = oracle.top(
        [x.astype(np.float32) for x in kernels(params)], masks.kept_count(N, 0.6)
    )
    for x, y in zip(kernels(mask), want, strict=True):
        np.testing.assert_array_equal(x, y)


def test_nan_and_infinity_never_rank():
    params = normal(10)
    params["a"]["kernel"][0, 0] = np.nan
    params["b"]["kernel"][1, 2, 3] = -np.inf
    params["b"]["kernel"][0, 0, 0] = -0.0
    for ranking in ("global", "leaf", "output"):
        axis = (0,) if ranking == "output" else None
        mask = masks.unstructured(params, 0.3, ranking=ranking, axis=axis)
        a, b = kernels(mask)
        assert not a[0, 0] and not b[1, 2, 3]
    assert kept_of(masks.unstructured(params, 0.3)) == masks.kept_count(N, 0.3)


@pytest.mark.parametrize("ranking", ["global", "leaf", "output"])
def test_more_kept_than_there_are_numbers_is_an_error(ranking):
    w = np.full((4, 4), np.nan, np.float32)
    w[:2] = 1
    axis = (0,) if ranking == "output" else None
    how: Any = {"ranking": ranking, "axis": axis}
    mask = masks.unstructured({"w": w}, 0.5, **how)
    np.testing.assert_array_equal(mask["w"], np.isfinite(w))
    with pytest.raises(ValueError, match="got 8 numbers of 16: 4 would be kept"):
        masks.unstructured({"w": w}, 0.25, **how)
    signed = masks.unstructured({"w": -w}, 0.5, signed=True, **how)
    np.testing.assert_array_equal(signed["w"], np.isfinite(w))


def test_traced_targets_compile_once():
    traces = []

    @jax.jit
    def pruned(params, keep, s):
        traces.append(None)
        counted, ranking = keep_counts(params, s)
        by_leaf, _ = keep_counts(params, s, ranking="leaf")
        assert ranking == "global"
        return masks.unstructured(params, keep=keep), counted, by_leaf

    params = normal(11)
    for s in (0.1, 0.57, 0.9):
        keep = masks.kept_count(N, s)
        mask, counted, by_leaf = pruned(params, jnp.int32(keep), s)
        assert int(counted) == keep
        assert [int(k) for k in by_leaf] == [masks.kept_count(n, s) for n in (30, 24)]
        want = oracle.top(kernels(params), keep, floors=[1, 1])
        for x, y in zip(kernels(mask), want, strict=True):
            np.testing.assert_array_equal(x, y)
    # A traced budget below the floors is met without them.
    mask, _, _ = pruned(params, jnp.int32(1), 0.5)
    want = oracle.top(kernels(params), 1)
    for x, y in zip(kernels(mask), want, strict=True):
        np.testing.assert_array_equal(x, y)
    assert len(traces) == 1


def test_a_call_outside_jit_is_compiled_once_for_all_counts():
    params = normal(12)
    masks.unstructured(params, 0.5)
    compiled: Any = _rank
    before = compiled._cache_size()
    for s in (0.1, 0.3, 0.8):
        masks.unstructured(params, s)
    assert compiled._cache_size() == before


def test_vmap_over_ensembles():
    members = [normal(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
    several = jax.jit(jax.vmap(lambda p, k: masks.unstructured(p, keep=k)))
    keeps = [5, 20, 50]
    got = several(stacked, jnp.array(keeps))
    for i, keep in enumerate(keeps):
        want = oracle.top(kernels(members[i]), keep, floors=[1, 1])
        for x, y in zip(kernels(got), want, strict=True):
            np.testing.assert_array_equal(x[i], y)


def test_empty_trees_and_leaves():
    assert masks.unstructured({}, 0.5) == {}
    assert masks.unstructured((), keep=0) == ()
    empty = {"w": jnp.zeros((0, 3)), "v": jnp.ones((1, 7))}
    mask = masks.unstructured(empty, 0.5)
    assert mask["w"].shape == (0, 3) and int(mask["v"].sum()) == 3


def test_scope_forms_agree():
    params = normal(13)
    only_b = {"a": {"kernel": False, "bias": False}, "b": {"kernel": True}}
    for scope in ("b/kernel", only_b, lambda p: only_b):
        mask = masks.unstructured(params, 0.5, scope=scope)
        assert mask["a"]["kernel"].shape == ()
        assert int(mask["b"]["kernel"].sum()) == 12


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "exactly one of `sparsity`"),
        ({"sparsity": 0.5, "keep": 3}, "exactly one of `sparsity`"),
        ({"sparsity": 1.0}, r"`sparsity` must be in \[0, 1\)"),
        ({"sparsity": -0.1, "ranking": "leaf"}, r"`sparsity` must be in \[0, 1\)"),
        ({"keep": 55}, r"`keep` must be in \[0, 54\], got 55"),
        ({"keep": 5, "ranking": "leaf"}, "`keep` is one number for all leaves"),
        (
            {"sparsity": 0.5, "ranking": "row"},
            "`ranking` must be 'global', 'leaf' or 'output'",
        ),
        ({"keep": 1}, "keep 1 in all, but `min_keep` guarantees 2 over 2 leaves"),
        ({"keep": 5, "min_keep": -1}, "`min_keep` must be an integer >= 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        masks.unstructured(normal(), **arguments)


def test_keep_counts():
    params = normal()
    counts = functools.partial(keep_counts, params)
    assert counts(0.9) == (5, "global")
    assert counts(keep=7) == (7, "global")
    assert counts(0.9, ranking="leaf") == ([3, 2], "leaf")
    assert counts(0.9, scope="b/") == (2, "global")
    assert counts(keep=7, scope="b/", ranking="leaf") == ([7], "leaf")
    asked = {"a": {"kernel": 0.5, "bias": 0.0}, "b": {"kernel": 0.75}}
    assert counts(asked) == ([15, 6], "leaf")


@pytest.mark.parametrize("ranking", ["global", "leaf"])
def test_ranked_carries_a_warm_start(ranking):
    params = normal(14)
    counts, by = keep_counts(params, 0.8, ranking=ranking)
    warm = selection.WarmStart.cold(kernels(params), ranking=by)
    want = masks.unstructured(params, 0.8, ranking=ranking)
    steps = []
    for _ in range(3):
        mask, warm, passes = ranked(params, counts, ranking=by, init=warm)
        steps.append(int(passes))
        assert passes.shape == () and passes.dtype == jnp.int32
        for x, y in zip(kernels(mask), kernels(want), strict=True):
            np.testing.assert_array_equal(x, y)
    assert steps[-1] < steps[0]


def test_ranked_of_no_leaves():
    mask, warm, passes = ranked({}, 0, init=selection.WarmStart.cold())
    assert mask == {} and int(passes) == 0 and warm == selection.WarmStart.cold()


@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit]
)
def test_sharded_leaves_give_the_same_mask(kind):
    """Four devices, each leaf split; at 95 % the floor of the second leaf is needed."""
    rng = np.random.default_rng(15)
    params = {
        "a": {"kernel": rng.normal(size=(8, 6)).astype(np.float32)},
        "b": {"kernel": 1e-3 * rng.normal(size=(4, 4)).astype(np.float32)},
    }
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    place = NamedSharding(mesh, P("d", None))
    with jax.set_mesh(mesh):
        split = jax.device_put(params, place)
        mask = jax.jit(lambda p: masks.unstructured(p, 0.95))(split)
    for x in jax.tree.leaves(mask):
        assert x.sharding.is_equivalent_to(place, 2)
    want = oracle.top(kernels(params), 3, floors=[1, 1])
    assert want[1].sum() == 1
    for x, y in zip(kernels(mask), want, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("ranking", ["leaf", "output"])
def test_rows_of_sharded_leaves_on_an_explicit_mesh(ranking):
    """Layers and outputs of a kernel that is split along both axes; with ties."""
    rng = np.random.default_rng(3)
    stack = np.round(rng.normal(size=(2, 4, 6)), 1).astype(np.float32)
    params = {"layers": {"kernel": stack}}
    want = masks.unstructured(params, 0.5, ranking=ranking)["layers"]["kernel"]
    types = (AxisType.Explicit,) * 2
    mesh = jax.make_mesh((2, 2), ("d", "m"), axis_types=types)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, P(None, "d", "m"))
        split = jax.device_put(params, place)
        choose = functools.partial(masks.unstructured, sparsity=0.5, ranking=ranking)
        mask = jax.jit(choose)(split)
    found = mask["layers"]["kernel"]
    assert found.sharding.is_equivalent_to(place, 3)
    np.testing.assert_array_equal(found, want)
