"""Every structure: its groups, its certificate, and equality with the zeroed model.

Forward and gradient in float64 at 1e-11, for keep fractions of one coordinate removed,
half, and all but one; the certificate must never say exact where this fails.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import surgery
from jprune._jaxpr._trace import trace
from jprune.surgery._build import Options
from jprune.surgery._certificate import exactness_of
from jprune.surgery._shrink import Graph, analyzed, solve
from tests.surgery.keep_plus_one import weighted, with_representatives
from tests.surgery.structure_table import STRUCTURES, Structure, parameters

WAYS = ("zero", "constant", "ghost", "no")
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
every = pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)


pytestmark = pytest.mark.usefixtures("double")


def coupled(deps: Any) -> list:
    return [g for g in deps if g.kind == "coupled"]


def random_plan(deps: Any, kept: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    keep = {
        g.id: np.sort(rng.permutation(g.size)[: min(max(kept(g.size), 1), g.size)])
        for g in coupled(deps)
    }
    return surgery.plan_from_keep(deps, keep)


def error(structure: Structure, plan: Any, differentiable: bool = True) -> float:
    """Worst relative difference of output and gradient, in one compiled program."""
    params, x = parameters(structure)
    small = surgery.shrink(structure.fn, plan)

    def both(zeroed, packed):
        def loss(fn, p):
            y = fn(p, x)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

        out = []
        for fn, p in ((structure.fn, zeroed), (small, packed)):
            if differentiable:
                slope, y = jax.grad(lambda p, fn=fn: loss(fn, p), has_aux=True)(p)
            else:
                slope, y = p, fn(p, x)
            out.append((y, slope))
        return out

    run = jax.jit(both, compiler_options=FAST)
    dense, compact = run(plan.zero(params), plan.pack(params))
    pairs = [(dense[0], compact[0])]
    packed = plan.pack(dense[1])
    pairs += [(packed[k], compact[1][k]) for k in packed]
    scale = 1e-3 * max(float(np.abs(a).max()) for a, _ in pairs[1:])
    return max(
        float(np.abs(a - b).max()) / max(float(np.abs(a).max()), scale, 1e-30)
        for a, b in pairs
    )


@every
def test_groups_certificate_and_equality(structure: Structure):
    params, x = parameters(structure)
    deps = surgery.groups(structure.fn)(params, x)
    found = coupled(deps)
    assert tuple(sorted(g.size for g in found)) == structure.sizes, deps.table()
    ways = [WAYS.index(deps.exactness[g.id].way) for g in found]
    assert WAYS[max(ways, default=0)] == structure.way, deps.table()
    plan = random_plan(deps, lambda n: n // 2)
    assert error(structure, plan) <= 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("kept", [lambda n: n - 1, lambda n: 1], ids=["most", "one"])
@every
def test_other_fractions(structure: Structure, kept: Any):
    params, x = parameters(structure)
    deps = surgery.groups(structure.fn)(params, x)
    assert error(structure, random_plan(deps, kept, seed=3)) <= 1e-10


@pytest.mark.slow
@every
def test_emptied_groups(structure: Structure):
    params, x = parameters(structure)
    deps = surgery.groups(structure.fn)(params, x)
    for group in coupled(deps):
        plan = surgery.plan_from_keep(deps, {group.id: []})
        small = jax.jit(surgery.shrink(structure.fn, plan))(plan.pack(params), x)
        want = jax.jit(structure.fn)(plan.zero(params), x)
        np.testing.assert_allclose(small, want, rtol=1e-10, atol=1e-12)


def way(fn: Any, plan: Any, params: Any, x: Any) -> str:
    """What the compact function has to correct: nothing, by constants, by ghosts."""
    traced = trace(fn, plan.dense_shapes)(plan.pack(params), x)
    program = analyzed(traced, plan)
    return exactness_of(Graph(program, solve(plan, program), Options()).status())[0]


LEAKY = [s for s in STRUCTURES if s.way != "zero"]
QUICKLY = ("two-pass norm", "softmax over units", "scan of two-pass norms", "cond")


@pytest.mark.parametrize(
    "structure",
    [
        pytest.param(s, marks=() if s.name in QUICKLY else pytest.mark.slow)
        for s in LEAKY
    ],
    ids=lambda s: s.name,
)
def test_ghosts_equal_a_kept_representative(structure: Structure):
    """The other route (see `keep_plus_one`): one removed coordinate stays, counted."""
    params, x = parameters(structure)
    deps = surgery.groups(structure.fn)(params, x)
    keep = {g.id: np.arange(g.size) % 3 == 0 for g in coupled(deps)}
    plan = surgery.plan_from_keep(deps, keep)
    more = with_representatives(deps, keep)
    oracle = surgery.shrink(weighted(deps, keep), more)
    small = surgery.shrink(structure.fn, plan)
    assert way(weighted(deps, keep), more, params, x) in ("zero", "constant")

    def both(packed: Any, kept: Any) -> Any:
        def loss(fn: Any, p: Any) -> Any:
            y = fn(p, x)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

        ghosts = jax.grad(lambda p: loss(small, p), has_aux=True)(packed)
        return ghosts, jax.grad(lambda p: loss(oracle, p), has_aux=True)(kept)

    zeroed = plan.zero(params)
    (slope, y), (other, want) = jax.jit(both, compiler_options=FAST)(
        plan.pack(params), more.pack(zeroed)
    )
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-11)
    other = plan.pack(more.unpack(other))  # of the coordinates that both keep
    for name, array in slope.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-8, atol=1e-9)


def test_the_representative_counts():
    """The oracle is no tautology: counted once, the representative is not enough."""
    (structure,) = [s for s in STRUCTURES if s.name == "two-pass norm"]
    params, x = parameters(structure)
    deps = surgery.groups(structure.fn)(params, x)
    (group,) = coupled(deps)
    keep = {group.id: np.arange(6) < 2}
    more = with_representatives(deps, keep)
    zeroed = surgery.plan_from_keep(deps, keep).zero(params)
    once = surgery.shrink(structure.fn, more, mean="compact")(more.pack(zeroed), x)
    counted = surgery.shrink(weighted(deps, keep), more)(more.pack(zeroed), x)
    want = structure.fn(zeroed, x)
    np.testing.assert_allclose(counted, want, atol=1e-12)
    assert np.abs(once - want).max() > 1e-2
