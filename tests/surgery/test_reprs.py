"""What a notebook shows of groups and plans is one line."""

import jax
import jax.numpy as jnp
import pytest

from jprune import surgery


def test_one_line_that_says_how_to_see_more():
    params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
    deps = surgery.groups(lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"])(
        params, jnp.ones((1, 3))
    )
    plan = surgery.plan_from_keep(deps, {"w1:1": [0, 1]})
    with pytest.raises(TypeError, match="`tree` must be a tree of arrays, got object"):
        deps.scores(object())
    coupled = sum(group.kind == "coupled" for group in deps)
    assert repr(deps) == f"<{len(deps)} groups, {coupled} coupled: print(deps.table())>"
    assert repr(plan) == "<Plan: 40 -> 10 scalars: print(plan.table())>"
