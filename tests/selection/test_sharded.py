"""Sharded leaves: the mask of one device, small collectives, shardings kept."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jprune import selection
from tests.selection.oracle import flat, top

AXES = ("x", "y")
SPECS = {"a": P("x", "y"), "b": P(None, None, ("y", "x")), "c": P("x"), "d": P()}
COUNTS = [40, 50, 1, 2]  # of a, b, c, d
TOTAL = 100
COLLECTIVE = re.compile(
    r"= (\S.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|"
    r"collective-broadcast|reduce-scatter)(?:-start)?\("
)


def tree():
    """Ties within and across leaves; the last two are (partly) replicated."""
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 12), "b": (4, 3, 8), "c": (2,), "d": (6,)}
    rows = {name: np.round(4 * rng.standard_normal(s)) for name, s in shapes.items()}
    return {name: jnp.asarray(row / 2, jnp.float32) for name, row in rows.items()}


def collectives(compiled: jax.stages.Compiled) -> list[int]:
    """The number of elements of the largest result of each collective."""
    sizes = []
    for found in COLLECTIVE.finditer(compiled.as_text() or ""):
        shapes = re.findall(r"\[([\d,]*)\]", found.group(1))
        sizes.append(max(math.prod(map(int, s.split(","))) if s else 1 for s in shapes))
    return sizes


def mesh_of(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2), AXES, axis_types=(kind, kind))


def placed(mesh, whole=None):
    """The tree laid out as `SPECS` say."""
    return jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
        tree() if whole is None else whole,
        SPECS,
    )


def want(ranking: str) -> np.ndarray:
    if ranking == "global":
        return top(tree(), TOTAL)
    pairs = zip(jax.tree.leaves(tree()), COUNTS, strict=True)
    return np.concatenate([top([leaf], k) for leaf, k in pairs])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("ranking", ["global", "leaf"])
def test_under_jit(kind, ranking):
    def run(tree, k, within):
        found = selection.kth_magnitude(tree, k, ranking=ranking, within=within)
        return found, selection.keep_mask(tree, found, k, within=within)

    mesh = mesh_of(kind)
    shards = placed(mesh)
    within = placed(mesh, jax.tree.map(lambda x: jnp.ones(x.shape, bool), tree()))
    k = jnp.int32(TOTAL) if ranking == "global" else jnp.array(COUNTS)
    compiled = jax.jit(run).lower(shards, k, within).compile()
    found, mask = compiled(shards, k, within)
    np.testing.assert_array_equal(flat(mask), want(ranking))
    assert (found.count > k).any()  # a tie was broken
    sizes = collectives(compiled)
    assert sizes and max(sizes) <= 64
    for kept, leaf in zip(mask.values(), shards.values(), strict=True):
        assert kept.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit]
)
def test_outside_jit_and_under_set_mesh(kind):
    mesh = mesh_of(kind)
    shards = placed(mesh)
    found = selection.kth_magnitude(shards, TOTAL)
    mask = selection.keep_mask(shards, found, TOTAL)
    np.testing.assert_array_equal(flat(mask), want("global"))
    with jax.set_mesh(mesh):
        again = jax.jit(lambda t: selection.kth_magnitude(t, TOTAL))(shards)
    assert int(again.bits) == int(found.bits) and int(again.count) == int(found.count)


@pytest.mark.parametrize(
    ("ranking", "check_vma"),
    [
        ("global", True),
        pytest.param("global", False, marks=pytest.mark.slow),
        pytest.param("leaf", True, marks=pytest.mark.slow),
    ],
)
def test_under_shard_map(ranking, check_vma):
    mesh = mesh_of(AxisType.Auto)
    within = jax.tree.map(lambda x: jnp.ones(x.shape, bool), tree())

    def run(tree, k, within):
        options = {"axis_name": AXES, "specs": SPECS, "within": within}
        found = selection.kth_magnitude(
            tree, k, ranking=ranking, snap=check_vma, **options
        )
        return found, selection.keep_mask(tree, found, k, **options)

    mapped = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(SPECS, P(), SPECS),
        out_specs=(P(), SPECS),
        check_vma=check_vma,
    )
    k = jnp.int32(TOTAL) if ranking == "global" else jnp.array(COUNTS)
    shards, within = placed(mesh), placed(mesh, within)
    compiled = jax.jit(mapped).lower(shards, k, within).compile()
    found, mask = compiled(shards, k, within)
    np.testing.assert_array_equal(flat(mask), want(ranking))
    assert (found.count > k).any()
    assert max(collectives(compiled)) <= 64
    alone = selection.kth_magnitude(tree(), np.asarray(k), ranking=ranking)
    np.testing.assert_array_equal(found.count, alone.count)


def test_without_specs_leaves_are_split_along_their_first_axis():
    mesh = mesh_of(AxisType.Auto)
    x = {"a": jnp.asarray(np.arange(48.0).reshape(16, 3) % 7, jnp.float32)}

    def run(tree):
        found = selection.kth_magnitude(tree, 9, axis_name=AXES)
        return selection.keep_mask(tree, found, 9, axis_name=AXES)

    spec = {"a": P(AXES)}
    mapped = jax.shard_map(run, mesh=mesh, in_specs=(spec,), out_specs=spec)
    np.testing.assert_array_equal(flat(jax.jit(mapped)(x)), top(x, 9))


def test_sharded_temporaries_are_small():
    """Neither images nor positions are hoisted out of a loop, on any device."""
    mesh = mesh_of(AxisType.Auto)
    spec = P("x", "y")
    layout = NamedSharding(mesh, spec)
    big = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=layout)

    def run(x, **options):
        found = selection.kth_magnitude(x, 1000, **options)
        return selection.keep_mask(x, found, 1000, **options)

    mapped = jax.shard_map(
        lambda x: run(x, axis_name=AXES, specs=spec),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )
    for fn in (run, mapped):
        memory = jax.jit(fn).lower(big).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes <= 0.01 * memory.argument_size_in_bytes


def test_specs_must_fit():
    def run(x):
        return selection.kth_magnitude(x, 1, axis_name="x", specs=P(None, "x")).count

    mesh = mesh_of(AxisType.Auto)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P())
    with pytest.raises(ValueError, match=r"at \S* ?\(rank 1\) got"):
        mapped(jnp.ones(4))
