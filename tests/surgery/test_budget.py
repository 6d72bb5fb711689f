"""`select(cost=, at_most=)`: a budget in any unit, met in few calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import analysis, surgery
from jprune.analysis import _latency
from jprune.surgery._budget import Measured


def net(p, x):
    h = jax.nn.relu(x @ p["a"])
    return jax.nn.relu(h @ p["b"]) @ p["c"]


KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {
    "a": jax.random.normal(KEYS[0], (16, 64)),
    "b": jax.random.normal(KEYS[1], (64, 48)),
    "c": jax.random.normal(KEYS[2], (48, 8)),
}
X = jnp.ones((4, 16))


@pytest.fixture(scope="module")
def network():
    deps = surgery.groups(net)(PARAMS, X)
    return deps, deps.scores(PARAMS)


def count(plan) -> int:
    return sum(int(np.prod(shape)) for shape in plan.compact_shapes.values())


class Counted:
    """A cost that counts its calls."""

    def __init__(self, cost):
        self.cost, self.calls = cost, 0

    def __call__(self, plan):
        self.calls += 1
        return self.cost(plan)


@pytest.mark.parametrize("budget", [3000, 1500, 400])
def test_a_smooth_cost_is_met_closely_in_few_calls(network, budget):
    cost = Counted(count)
    plan = surgery.select(*network, cost=cost, at_most=budget)
    exact = surgery.select(*network, params=budget)
    assert cost.calls <= 12
    # One coordinate is at most 112 parameters.
    assert budget - max(0.02 * budget, 112) <= count(plan) <= budget
    assert count(plan) <= count(exact)  # `params` removes the fewest coordinates


def test_a_cost_with_steps_and_bumps_ends_within_the_budget(network):
    """Like latency: flat within tiles of 16, and slower off them."""

    def tiles(plan):
        sizes = [shape[-1] for shape in plan.compact_shapes.values()]
        return sum(-(-n // 16) + 0.2 * (n % 16 > 0) for n in sizes)

    cost = Counted(tiles)
    plan = surgery.select(*network, cost=cost, at_most=4.5)
    assert tiles(plan) <= 4.5 and cost.calls <= 12


def test_the_same_order_is_cut_as_for_other_targets(network):
    """A plan by cost is a head of the same order: what is kept nests."""
    small = surgery.select(*network, cost=count, at_most=1000)
    large = surgery.select(*network, cost=count, at_most=2000)
    for path, axes in small.keep.items():
        for a, b in zip(axes, large.keep[path], strict=True):
            assert not (a & ~b).any()


def test_what_cannot_be_met_or_would_do_nothing_is_an_error(network):
    with pytest.raises(ValueError, match="met already.*Nothing would be removed"):
        surgery.select(*network, cost=count, at_most=10_000)
    with pytest.raises(ValueError, match=r"cannot be met.*every candidate group at"):
        surgery.select(*network, cost=count, at_most=10, min_keep=4)
    with pytest.raises(ValueError, match="belong together"):
        surgery.select(*network, cost=count)
    with pytest.raises(ValueError, match="exactly one"):
        surgery.select(*network, cost=count, at_most=10, flops=0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "fast", None])
def test_a_cost_that_is_no_finite_number_is_refused(network, value):
    """NaN compares as false with every budget: any plan would seem to meet it."""
    with pytest.raises(ValueError, match=f"`cost` must return a finite .* {value!r}"):
        surgery.select(*network, cost=lambda plan: value, at_most=0.5)


@pytest.mark.parametrize("budget", [float("nan"), -1, 0, "0.5"])
def test_a_budget_is_a_positive_number(network, budget):
    with pytest.raises(ValueError, match="`at_most` must be a positive number"):
        surgery.select(*network, cost=count, at_most=budget)


def test_ready_made_costs_are_fractions_of_the_dense_network(network):
    whole = surgery.plan_from_keep(network[0], {})
    half = surgery.select(*network, sparsity=0.5, ranking="group")
    byte = analysis.relative_cost("bytes", net, PARAMS)
    assert byte(whole) == 1.0
    assert byte(half) == (16 * 32 + 32 * 24 + 24 * 8) / (16 * 64 + 64 * 48 + 48 * 8)
    flops = analysis.relative_cost("flops", net, PARAMS, X)
    assert flops(whole) == 1.0
    assert flops(half) == pytest.approx(byte(half), rel=0.1)  # two per weight
    memory = analysis.relative_cost("memory", net, PARAMS, X)
    assert memory(whole) == 1.0 and byte(half) < memory(half) < 0.6
    latency = analysis.relative_cost("latency", net, PARAMS, X, rounds=2)
    assert latency(whole) == 1.0  # nothing removed
    assert latency(half) > 0
    with pytest.raises(ValueError, match="`of` must be.*got 'time'"):
        analysis.relative_cost("time", net, PARAMS)  # pyright: ignore


class Clock:
    """A cost of plans that is measured again; the second figures are given."""

    def __init__(self, *again):
        self.figures, self.plan = Measured(*again), None

    def __call__(self, plan):
        return count(plan) / count(EVERYTHING)

    def again(self, plan):
        self.plan = plan
        return self.figures


EVERYTHING = surgery.plan_from_keep(surgery.groups(net)(PARAMS, X), {})


def test_an_accepted_latency_is_measured_again(network):
    clock = Clock(0.49, 0.47, 0.52)
    plan = surgery.select(*network, cost=clock, at_most=0.5)
    assert clock.plan.keep is plan.keep and plan.measured == (0.49, 0.47, 0.52)
    assert plan.table().endswith("measured again, of the dense: 0.49 (0.47 to 0.52)")
    assert surgery.select(*network, cost=count, at_most=1500).measured is None


@pytest.mark.parametrize(
    "again, at_most, says",
    [
        # 0.75 - 0.25 is the 0.5 that was to be saved.
        ((0.5, 0.25, 0.75), 0.5, r"by 0\.5 or more, as much as .* asked for, 0\.5"),
        ((0.7, 0.69, 0.95), 0.9, r"by 0\.26 or more, as much as .* asked for, 0\.1"),
        ((0.6, 0.55, 0.65), 0.5, r"takes 0\.6 \(0\.55 to 0\.65\).* over the budget"),
    ],
)
def test_a_latency_in_doubt_is_told(network, again, at_most, says):
    with pytest.warns(UserWarning, match=f"measured again.*{says}"):
        surgery.select(*network, cost=Clock(*again), at_most=at_most)


def test_a_latency_far_below_its_budget_is_not_in_doubt(network):
    """The upper quartile is within it, however wide the spread."""
    plan = surgery.select(*network, cost=Clock(0.5, 0.2, 0.57), at_most=0.95)
    assert plan.measured == (0.5, 0.2, 0.57)


def test_the_second_measurement_takes_turns_and_leaves_out_the_warm_up(monkeypatch):
    """Two rounds of warm-up, then fractions 5/10, 6/10, 10/20 and 8/10."""
    rounds = [(99, 1), (99, 1), (10, 5), (10, 6), (20, 10), (10, 8)]
    ticks = [0.0]
    for seconds in (s for pair in rounds for s in pair):
        ticks += [ticks[-1], ticks[-1] + seconds]
    clock = iter(ticks[1:])
    monkeypatch.setattr(_latency.time, "perf_counter", lambda: next(clock))
    half = surgery.plan_from_keep(surgery.groups(net)(PARAMS, X), {"a:1": range(32)})
    cost = analysis.relative_cost("latency", net, PARAMS, X, rounds=4)
    found = cost.again(half)  # pyright: ignore
    np.testing.assert_allclose(found, (0.55, 0.5, 0.65))
