"""Python's search for cyclic garbage rests while a program is read, and only then."""

import gc
from typing import Any

import jax.numpy as jnp
import pytest

from jprune import surgery


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_search_for_garbage_goes_on_afterwards(on: bool, fails: bool):
    searching, seen = gc.isenabled(), []

    def fn(p: Any, x: Any) -> Any:
        seen.append(gc.isenabled())
        if fails:
            raise RuntimeError
        return jnp.tanh(x @ p["w"]) @ p["v"]

    p = {"w": jnp.ones((2, 3)), "v": jnp.ones((3, 1))}
    try:
        (gc.enable if on else gc.disable)()
        if fails:
            with pytest.raises(RuntimeError):
                surgery.groups(fn)(p, jnp.ones((1, 2)))
        else:
            surgery.groups(fn)(p, jnp.ones((1, 2)))
        assert gc.isenabled() == on
    finally:
        (gc.enable if searching else gc.disable)()
    assert seen == [False]
