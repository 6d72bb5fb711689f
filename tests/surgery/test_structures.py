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
from tests.surgery.structure_table import STRUCTURES, Structure, parameters

WAYS = ("zero", "constant", "ghost", "no")
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
every = pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


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
