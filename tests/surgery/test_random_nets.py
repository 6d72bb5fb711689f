"""Property tests on random networks: what is called exact is exact."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jprune import analysis, surgery
from tests.surgery.random_nets import draw

ADAM = optax.chain(optax.add_decayed_weights(0.1), optax.scale_by_adam())
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def exact_groups(deps: Any) -> list:
    return [g for g in deps if g.kind != "unused" and deps.exactness[g.id].exact]


def random_plan(deps: Any, rng: np.random.Generator) -> Any:
    keep = {}
    for group in exact_groups(deps):
        kept = int(rng.integers(1, group.size))
        keep[group.id] = np.sort(rng.permutation(group.size)[:kept])
    return surgery.plan_from_keep(deps, keep)


def worst_error(fn: Any, plan: Any, params: Any, x: Any, how: Any = FAST) -> float:
    """Output and gradient, compact against zeroed, relative."""
    small = surgery.shrink(fn, plan)

    def slopes(f: Any, q: Any) -> Any:
        def loss(q: Any) -> Any:
            y = f(q, x)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

        return jax.grad(loss, has_aux=True)(q)

    run = jax.jit(lambda z, c: (slopes(fn, z), slopes(small, c)), compiler_options=how)
    (dense, want), (compact, got) = run(plan.zero(params), plan.pack(params))
    dense = plan.pack(dense)
    scale = max(float(np.abs(v).max()) for v in dense.values())
    worst = float(np.abs(want - got).max() / max(np.abs(want).max(), 1e-9))
    for name, slope in dense.items():
        floor = max(float(np.abs(slope).max()), 1e-3 * scale, 1e-9)
        worst = max(worst, float(np.abs(slope - compact[name]).max()) / floor)
    return worst


def check(seed: int) -> None:
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        fn, params, x = draw(seed, depth=3 + seed % 4)
        deps = surgery.groups(fn)(params, x)
        plan = random_plan(deps, np.random.default_rng(seed))
        # Unoptimized, XLA may round what it makes twice in two ways: then no entry
        # reaches the maximum of its row, and the gradient divides by none.
        errors = (worst_error(fn, plan, params, x, how) for how in (FAST, None))
        assert any(error <= 1e-8 for error in errors), deps.table()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_keeping_everything_changes_no_bit_of_any_network(seed: int):
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        fn, params, x = draw(seed, depth=3 + seed % 4)
        plan = surgery.plan_from_keep(surgery.groups(fn)(params, x), {})
        same = jax.jit(surgery.shrink(fn, plan), compiler_options=FAST)(params, x)
        whole = jax.jit(fn, compiler_options=FAST)(params, x)
        np.testing.assert_array_equal(same, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_shrinking_twice_is_the_composed_plan(seed: int):
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        fn, params, x = draw(seed, depth=3 + seed % 4)
        rng = np.random.default_rng(seed)
        first = random_plan(surgery.groups(fn)(params, x), rng)
        small, packed = surgery.shrink(fn, first), first.pack(params)
        second = random_plan(surgery.groups(small)(packed, x), rng)
        twice = surgery.shrink(small, second)(second.pack(packed), x)
        whole = first.then(second)
        once = surgery.shrink(fn, whole)(whole.pack(params), x)
        np.testing.assert_allclose(twice, once, rtol=1e-8, atol=1e-10)


SINGLES = 2283
"""A roll by one, twice, before a grouped convolution: an axis of single coordinates."""


@pytest.mark.parametrize("seed", [*range(5), SINGLES])
def test_exact_groups_are_exact(seed: int):
    check(seed)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
@given(st.integers(1000, 10**6))
def test_exact_groups_are_exact_on_any_seed(seed: int):
    check(seed)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6))
def test_predictions_without_running(seed: int):
    """Shapes and costs of the compact function are those predicted from the axes."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        fn, params, x = draw(seed)
        deps = surgery.groups(fn)(params, x)
        rng = np.random.default_rng(seed)
        plan = random_plan(deps, rng)
        packed = plan.pack(params)
        small = surgery.shrink(fn, plan)
        assert jax.eval_shape(small, packed, x).shape == (3, 2)
        masks = {g.id: _kept(plan, g) for g in deps}
        assert deps.parameters(masks) == sum(v.size for v in packed.values())
        assert analysis.flops(fn)(params, x) == deps.flops()
        # Corrections may add.
        assert analysis.flops(small)(packed, x) >= deps.flops(masks)
        # Packing commutes with element-wise functions, and unpacking zeroes.
        zeroed, tripled = (
            plan.zero(params),
            plan.pack({k: 3 * v for k, v in params.items()}),
        )
        for name, array in plan.unpack(packed).items():
            np.testing.assert_array_equal(array, zeroed[name])
            np.testing.assert_array_equal(tripled[name], 3 * packed[name])
        state = plan.pack_state(ADAM.init(params), params)
        assert jax.tree.map(np.shape, state) == jax.tree.map(
            np.shape, ADAM.init(packed)
        )


def _kept(plan: Any, group: Any) -> int:
    ref = group.members[0]
    where, mask = ref.coordinates(group.size), plan.keep[ref.path][ref.axis]
    return len(set(where[(where >= 0) & mask].tolist()))


def test_consistent_permutations_change_nothing():
    """Relabelling the coordinates of a group before removal gives the same function."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        from tests.surgery.structures import two_pass_norm

        rng = np.random.default_rng(0)
        shapes = {"w": (4, 8), "b": (8,), "g": (8,), "beta": (8,), "v": (8, 3)}
        params = {k: rng.standard_normal(s) for k, s in shapes.items()}
        x = rng.standard_normal((5, 4))
        order = rng.permutation(8)
        axis = {"w": 1, "b": 0, "g": 0, "beta": 0, "v": 0}
        mixed = {k: np.take(v, order, axis[k]) for k, v in params.items()}
        deps = surgery.groups(two_pass_norm)(params, x)
        kept = np.array([0, 3, 5])
        one = surgery.plan_from_keep(deps, {"w:1": kept})
        two = surgery.plan_from_keep(
            deps, {"w:1": np.flatnonzero(np.isin(order, kept))}
        )
        a = surgery.shrink(two_pass_norm, one)(one.pack(params), x)
        b = surgery.shrink(two_pass_norm, two)(two.pack(mixed), x)
        np.testing.assert_allclose(a, b, atol=1e-12)
