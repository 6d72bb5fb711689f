"""Surgery of functions whose parameters, or intermediate values, are split over a mesh.

An Auto mesh takes any width. On an Explicit one the layout is part of the type: packing
keeps it where the kept coordinates divide evenly, and a split that the function asks
for by name and that no longer divides is an error that says what would.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jprune import surgery
from jprune.surgery import _split

SPECS = {"w": P(None, "m"), "b": P("m"), "v": P("m", None)}
KEPT = [[0, 2, 3, 5], [0, 2, 3]]


def mesh_of(kind: AxisType) -> Any:
    return jax.make_mesh((2, 2), ("d", "m"), axis_types=(kind, kind))


def placed(mesh: Any) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 8), "b": (8,), "v": (8, 4)}
    params = {
        k: jax.device_put(
            rng.standard_normal(s).astype(np.float32), NamedSharding(mesh, SPECS[k])
        )
        for k, s in shapes.items()
    }
    x = rng.standard_normal((4, 4)).astype(np.float32)
    return params, jax.device_put(x, NamedSharding(mesh, P("d", None)))


def check(fn: Any, plan: Any, params: Any, x: Any) -> None:
    """Compact against zeroed, output and gradient, and the way there and back."""

    def loss(f: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(f(p, x) ** 2)))

    packed = plan.pack(params)
    value, slope = loss(surgery.shrink(fn, plan))(packed)
    want, dense = loss(fn)(plan.zero(params))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for name, array in plan.pack(dense).items():
        np.testing.assert_allclose(slope[name], array, rtol=1e-4, atol=1e-5)
    for name, array in plan.unpack(packed).items():
        np.testing.assert_array_equal(array, plan.zero(params)[name])


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_a_constraint_on_a_pruned_axis_of_an_auto_mesh(kept: list[int]):
    mesh = mesh_of(AxisType.Auto)
    params, x = placed(mesh)

    def fn(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["w"] + p["b"][None])
        h = lax.with_sharding_constraint(h, NamedSharding(mesh, P("d", "m")))
        return h @ p["v"]

    deps = surgery.groups(fn)(params, x)
    assert [g.size for g in deps] == [8]
    check(fn, surgery.plan_from_keep(deps, {deps[0].id: kept}), params, x)


def by_name(p: Any, x: Any) -> Any:
    """Says where its values live."""
    h = jnp.einsum("ab,bc->ac", x, p["w"], out_sharding=P("d", "m"))
    h = jax.nn.relu(h + lax.broadcast_in_dim(p["b"], (4, 8), (1,), out_sharding=P()))
    return jnp.einsum("ab,bc->ac", h, p["v"], out_sharding=P("d", None))


def whole(p: Any, x: Any) -> Any:
    """Gathers what it contracts."""
    h = x @ jax.sharding.reshard(p["w"], P()) + jax.sharding.reshard(p["b"], P())[None]
    return jax.nn.relu(h) @ jax.sharding.reshard(p["v"], P())


def test_explicit_mesh_even():
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params, x = placed(mesh)
        deps = surgery.groups(by_name)(params, x)
        plan = surgery.plan_from_keep(deps, {deps[0].id: KEPT[0]})
        packed = plan.pack(params)
        assert jax.typeof(packed["w"]).sharding.spec == P(None, "m")
        check(by_name, plan, params, x)


def test_explicit_mesh_uneven():
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params, x = placed(mesh)
        deps = surgery.groups(whole)(params, x)
        plan = surgery.plan_from_keep(deps, {deps[0].id: KEPT[1]})
        assert jax.typeof(plan.pack(params)["w"]).sharding.spec == P(None, None)
        check(whole, plan, params, x)
        deps = surgery.groups(by_name)(params, x)
        plan = surgery.plan_from_keep(deps, {deps[0].id: KEPT[1]})
        small = surgery.shrink(by_name, plan)
        with pytest.raises(ValueError, match=r"(?s)`dot_general` splits axis 1 over 2"):
            small(plan.pack(params), x)
        with pytest.raises(ValueError, match=r"3 of 8 .* round_to=2"):
            small(plan.pack(params), x)


def test_explicit_mesh_without_a_context():
    mesh = mesh_of(AxisType.Explicit)
    params, x = placed(mesh)
    whole_on = NamedSharding(mesh, P())

    def fn(p: Any, x: Any) -> Any:
        w, v = (jax.sharding.reshard(p[k], whole_on) for k in "wv")
        return jax.nn.relu(x @ w) @ v

    deps = surgery.groups(fn)(params, x)
    for kept in KEPT:
        plan = surgery.plan_from_keep(deps, {"w:1": kept})
        got = surgery.shrink(fn, plan)(plan.pack(params), x)
        np.testing.assert_allclose(got, fn(plan.zero(params), x), rtol=1e-5, atol=1e-6)


def two_layers(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"]) @ p["v"]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_packing_along_a_split_axis_gathers_no_leaf(kind: AxisType, monkeypatch: Any):
    """No device holds more than its quarter, at any step; the split stays."""
    mesh = jax.make_mesh((4,), ("m",), axis_types=(kind,))
    shapes = {"w": (64, 256), "v": (256, 64)}
    specs = {"w": P(None, "m"), "v": P("m", None)}
    abstract = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    deps = surgery.groups(two_layers)(
        abstract, jax.ShapeDtypeStruct((1, 64), jnp.float32)
    )
    rng = np.random.default_rng(0)
    whole = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    params = {
        k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in whole.items()
    }
    kept = np.sort(rng.permutation(256)[:128])
    plan = surgery.plan_from_keep(deps, {"w:1": kept.tolist()})
    steps = []

    def watched(x: jax.Array, mesh: Any, spec: list[Any]) -> jax.Array:
        where = NamedSharding(mesh, P(*spec))
        move = jax.jit(lambda a: a, out_shardings=where).lower(x).compile()
        found = move.memory_analysis()
        steps.append(found.output_size_in_bytes + found.temp_size_in_bytes)
        return move(x)

    monkeypatch.setattr(_split, "resharded", watched)
    packed = plan.pack(params)
    share = 64 * 256 * 4 // 4
    assert len(steps) == 4 and max(steps) <= 3 * share  # bytes of one device
    for name, array in plan.pack(whole).items():
        np.testing.assert_array_equal(packed[name], array)
        assert packed[name].sharding.spec == specs[name]
        assert {s.data.nbytes for s in packed[name].addressable_shards} == {share // 2}


def test_scores_of_split_leaves_gather_none():
    """The program of the scores holds no collective of the size of a leaf."""
    mesh = jax.make_mesh((4,), ("m",), axis_types=(AxisType.Auto,))
    shapes = {"w": (64, 256), "v": (256, 64)}
    specs = {"w": P(None, "m"), "v": P("m", None)}
    abstract = {
        k: jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, specs[k]))
        for k, s in shapes.items()
    }
    deps = surgery.groups(two_layers)(
        {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()},
        jax.ShapeDtypeStruct((1, 64), jnp.float32),
    )
    found = jax.jit(deps.scores).lower(abstract).compile().memory_analysis()
    assert found.temp_size_in_bytes < 64 * 256 * 4 // 4 * 2 + 4 * 1024
