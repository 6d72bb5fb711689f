"""What a newcomer asks for by mistake is said, not passed over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import scores, surgery


def net(p, x):
    """Two hidden layers of 4 and 3 units."""
    h = jnp.tanh(x @ p["body"]["fc1"] + p["body"]["bias1"][None])
    return jnp.tanh(h @ p["body"]["fc2"]) @ p["head"]["fc3"]


SHAPES = {
    "body": {"fc1": (2, 4), "bias1": (4,), "fc2": (4, 3)},
    "head": {"fc3": (3, 2)},
}
RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda s: RNG.standard_normal(s).astype(np.float32),
    SHAPES,
    is_leaf=lambda s: isinstance(s, tuple),
)
DEPS = surgery.groups(net)(PARAMS, jnp.ones((1, 2)))
FIRST, SECOND = "body/fc1:1", "body/fc2:1"
PLAN = surgery.plan_from_keep(DEPS, {FIRST: [0, 3], SECOND: [0, 1]})


def test_the_groups():
    assert {g.id: g.size for g in DEPS} == {FIRST: 4, SECOND: 3}


# Scores and plans on a part of what was analyzed.


def test_scores_of_half_a_group_are_refused():
    part = {"body": PARAMS["body"]}  # without head/fc3, which reads the second group
    says = r"lacks others.*\n  head/fc3, of the group 'body/fc2:1'$"
    with pytest.raises(ValueError, match=says):
        DEPS.scores(part)
    with pytest.raises(ValueError, match="(?s)lacks others.*body/bias1, of the group"):
        DEPS.scores({**PARAMS, "body": {**PARAMS["body"], "bias1": None}})
    with pytest.raises(ValueError, match="(?s)lacks others.*head/fc3"):
        scores.geometric_median(part, DEPS, roles=("out", "in"))


def test_scores_of_whole_groups_stand():
    whole = DEPS.scores(PARAMS)
    first = {"body": PARAMS["body"], "head": {}}
    few = [DEPS[FIRST]]
    found = scores.over_groups(first, few)
    np.testing.assert_array_equal(found[FIRST], whole[FIRST])
    by_role = DEPS.scores(first, roles=("out",))  # what is counted is all there
    assert list(by_role) == [FIRST, SECOND]


def test_a_part_of_the_parameters_is_packed_by_its_paths():
    """Gradients without statistics, a part of an NNX state; or a sub-tree, by `at`."""
    part = PLAN.pack({"body": {"fc1": PARAMS["body"]["fc1"]}})
    np.testing.assert_array_equal(
        part["body"]["fc1"], np.asarray(PARAMS["body"]["fc1"])[:, [0, 3]]
    )
    body = PLAN.pack(PARAMS["body"], at="body")
    assert body["fc2"].shape == (2, 2)
    with pytest.raises(ValueError, match=r"a sub-tree is given as `at='body'`"):
        PLAN.pack(PARAMS["body"])


def test_the_compact_network_is_no_reference():
    small = surgery.shrink(net, PLAN)
    says = "`verify` takes the dense function and parameters, .* compact shapes"
    with pytest.raises(ValueError, match=says):
        surgery.verify(small, PLAN, PLAN.pack(PARAMS), jnp.ones((1, 2)))


# A target that asks for nothing.


@pytest.mark.parametrize(
    "target",
    [
        {"params": 1.0},
        {"flops": 1.0},
        {"sparsity": 0.0},
        {"sparsity": 0.01},  # of 7 coordinates: floor(0.07 + 1/2) = 0
        {"params": 4 * 2 + 4 + 4 * 3 + 3 * 2},
        {"ratios": {"fc1": 0.0}},
    ],
)
def test_a_plan_of_nothing_is_refused(target):
    with pytest.raises(ValueError, match=r"nothing would be removed.*plan_from_keep"):
        surgery.select(DEPS, DEPS.scores(PARAMS), **target)


def test_a_plan_of_nothing_on_purpose():
    plan = surgery.plan_from_keep(DEPS, {})
    assert plan.compact_shapes == plan.dense_shapes and not plan.removed
    keep = surgery.choose(DEPS, DEPS.scores(PARAMS), sparsity=0.0)  # a schedule's start
    assert all(mask.all() for mask in keep.values())


# Groups that are too narrow for what widths are rounded to.


@pytest.mark.parametrize(
    "target, says",
    [
        ({"flops": 0.2}, r"(?s)cannot be met.*no wider than `round_to` 4.*fc1:1: 4\n"),
        ({"sparsity": 0.5}, r"(?s)let at most 0 go.*`round_to` 4 .*body/fc2:1: 3$"),
    ],
)
def test_groups_that_rounding_keeps_whole_are_named(target, says):
    with pytest.raises(ValueError, match=says):
        surgery.select(DEPS, DEPS.scores(PARAMS), **target, round_to=4)


# Indices given twice.


def test_an_index_that_is_given_twice():
    says = r"`keep` of 'body/fc1:1' must name each index once, got 2 more than once\."
    with pytest.raises(ValueError, match=says):
        surgery.plan_from_keep(DEPS, {FIRST: [0, 2, 2, 2]})
    with pytest.raises(ValueError, match="got 0, 1 more than once. A mask holds bools"):
        surgery.plan_from_keep(DEPS, {FIRST: np.array([1, 0, 0, 1])})


# A pattern that finds nothing.


@pytest.mark.parametrize("argument", ["exclude", "ratios"])
@pytest.mark.parametrize("pattern", ["FC3", "Head", "fc_3", "haed/fc3"])
def test_a_pattern_that_finds_no_group_lists_members_near_it(argument, pattern):
    given = pattern if argument == "exclude" else {pattern: 0.5}
    says = (
        rf"(?s)'{pattern}' finds no group.*Near it:.*head/fc3:0, of the group '{SECOND}"
    )
    with pytest.raises(ValueError, match=says):
        surgery.select(DEPS, DEPS.scores(PARAMS), flops=0.5, **{argument: given})


def test_a_pattern_of_what_is_frozen_anyway():
    with pytest.raises(
        ValueError, match=r"(?s)`path:axis`.*members:\n.*\n  body/fc1:1\n"
    ):
        surgery.select(DEPS, DEPS.scores(PARAMS), flops=0.5, exclude="zzz")


def test_an_id_that_is_no_group_lists_those_near_it():
    with pytest.raises(
        ValueError, match="no group 'body/FC1:1'.*Near it: 'body/fc1:1'"
    ):
        DEPS["body/FC1:1"]
