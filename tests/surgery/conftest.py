"""What the oldest JAX traces otherwise."""

import jax
import jax.numpy as jnp
import pytest

STRIDED = ("interleaved", "the_page_has_the_table")


def strides_are_slices() -> bool:
    """Whether `x[::2]` is a slice; before JAX 0.9.1 it is a gather, which freezes."""
    jaxpr = jax.make_jaxpr(lambda x: x[::2])(jnp.zeros(4))
    return [e.primitive.name for e in jaxpr.eqns] == ["slice"]


@pytest.fixture(autouse=True)
def _strided(request: pytest.FixtureRequest) -> None:
    name = request.node.name
    if any(word in name for word in STRIDED) and not strides_are_slices():
        pytest.skip("this JAX traces a strided index as a gather: its axis is frozen")
