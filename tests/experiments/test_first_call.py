"""The measured default: its page is made from its figures, and beats what it must."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import first_call, first_call_page
from experiments.bench.first_nets import HELD_OUT, NETS
from jprune import surgery

RESULT = json.loads(first_call.RESULT.read_text())


def test_the_page_is_made_from_the_figures():
    assert first_call_page.PAGE.read_text() == first_call_page.page(RESULT)


def test_the_default_loses_to_no_reference_line():
    """By more than a point on the mean; over all networks and targets there are."""
    table = first_call_page.losses(RESULT)
    assert set(RESULT["networks"]) == set(NETS)
    assert set(RESULT["held_out"]) == set(HELD_OUT)
    for target in first_call.TARGETS:
        ours = first_call_page.mean(table["default"], target)
        for label in first_call_page.REFERENCES:
            assert ours <= first_call_page.mean(table[label], target) + 1, (
                label,
                target,
            )


@pytest.mark.parametrize("power", [1, 2])
def test_the_score_of_the_table_is_the_score_of_the_library(power):
    """Candidates are scored by code of their own; by default it is the product."""

    def net(v, x):
        p = v["params"]
        h = jnp.tanh(x @ p["a"] + p["bias"][None])
        return (h + jnp.tanh(h @ p["up"]) @ p["down"]) @ p["o"]

    shapes = {"a": (4, 6), "bias": (6,), "up": (6, 5), "down": (5, 6), "o": (6, 2)}
    rng = np.random.default_rng(0)
    variables = {"params": {k: rng.normal(size=s) for k, s in shapes.items()}}
    deps = surgery.groups(net)(variables, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    rows = first_call.members(deps, variables, power)
    norm = {1: "l1", 2: "l2"}[power]
    raw = deps.scores(variables, norm=norm, raw=True)
    sums = deps.scores(variables, norm=norm, reduce="sum")
    products = deps.scores(variables, norm=norm)
    for name, members in rows.items():
        vector = first_call.scored(members, power, "sum")
        np.testing.assert_allclose(vector, raw[name], rtol=1e-6)
        mean = first_call.over_mean(vector)
        np.testing.assert_allclose(mean, sums[name], rtol=1e-6)
        mean = first_call.over_mean(first_call.scored(members, power, "product"))
        np.testing.assert_allclose(mean, products[name], rtol=1e-5)
