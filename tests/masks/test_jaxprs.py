"""At a million entries no mask function sorts or joins the weights."""

import jax
import jax.numpy as jnp
import pytest

from jprune import masks
from tests.jaxprs import jaxprs_in_params

LIMIT = 65_536
BIG = {
    "a": {"kernel": jax.ShapeDtypeStruct((1024, 768), jnp.float32)},
    "b": {"kernel": jax.ShapeDtypeStruct((768, 512), jnp.bfloat16)},
}
SHARES = {"a": {"kernel": 0.5}, "b": {"kernel": 0.9}}


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: masks.unstructured(p, 0.9),
        lambda p: masks.unstructured(p, SHARES),
        lambda p: masks.unstructured(p, 0.9, within=masks.from_zeros(p), min_keep=9),
        lambda p: masks.above(p, 0.5, within=masks.from_zeros(p), min_keep=None),
        lambda p: masks.n_of_m(p, 2, 4),
        lambda p: masks.channels(p, 0.5),
        lambda p: masks.blocks(p, (4, 4), 0.5, ranking="global"),
    ],
    ids=["global", "leaf", "within", "above", "n_of_m", "channels", "blocks"],
)
def test_no_large_sort_or_concatenation(make):
    seen = set()
    for eqn in equations(jax.make_jaxpr(make)(BIG).jaxpr):
        name = eqn.primitive.name
        seen.add(name)
        if name in ("sort", "top_k", "approx_top_k", "concatenate"):
            largest = max(v.aval.size for v in (*eqn.invars, *eqn.outvars))
            assert largest <= LIMIT, eqn
    assert len(seen) > 5


def test_the_walk_finds_a_sort_inside():
    inner = jax.jit(lambda x: jax.lax.cond(x[0] > 0, jnp.sort, jnp.abs, x))
    jaxpr = jax.make_jaxpr(inner)(jax.ShapeDtypeStruct((9,), jnp.float32)).jaxpr
    assert "sort" in {eqn.primitive.name for eqn in equations(jaxpr)}
