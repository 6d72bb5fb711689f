"""What a coordinate saves: by hand, and by measures."""

import jax.numpy as jnp
import numpy as np
import pytest

from jprune import analysis, surgery


def net(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


PARAMS = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 4)), "c": jnp.ones((4, 5))}
X = jnp.ones((2, 3))


def test_flops_and_params_by_hand():
    deps = surgery.groups(net)(PARAMS, X)
    assert [g.id for g in deps] == ["a:1", "b:1"]
    # a unit of 8 has 3 weights in, 4 out; one of 4 has 8 and 5; two rows, 2 a product
    assert analysis.savings(deps, "params") == {"a:1": 7, "b:1": 13}
    assert analysis.savings(deps, "flops") == {"a:1": 28, "b:1": 52}


def test_a_measure_is_asked_once_for_each_group():
    deps = surgery.groups(net)(PARAMS, X)
    asked = []

    def weights(plan):
        asked.append(plan)
        return sum(np.prod(shape) for shape in plan.compact_shapes.values())

    assert analysis.savings(deps, weights) == {"a:1": 7, "b:1": 13}
    assert len(asked) == 3


def test_what_a_measure_finds_dearer_has_the_smallest_price():
    deps = surgery.groups(net)(PARAMS, X)

    def cost(plan):
        kept = plan.compact_shapes
        return 1.0 + (kept["a",][1] == 4) - (kept["b",][1] == 2)

    assert analysis.savings(deps, cost) == {"a:1": 0.5, "b:1": 0.5}


def test_the_cheap_important_coordinate_stays():
    deps = surgery.groups(net)(PARAMS, X)
    equal = {"a:1": np.linspace(1, 1.1, 8), "b:1": np.linspace(1, 1.1, 4)}
    price = analysis.savings(deps, "params")
    per = {i: s / price[i] for i, s in equal.items()}
    plan = surgery.select(deps, per, ranking="global", params=0.8)
    assert set(plan.removed) == {("b",), ("c",)}  # the dear ones go


def test_errors():
    deps = surgery.groups(net)(PARAMS, X)
    with pytest.raises(ValueError, match='"flops", "params" or a measure'):
        analysis.savings(deps, "seconds")
    with pytest.raises(ValueError, match="no price"):
        analysis.savings(deps, lambda plan: 1.0)
