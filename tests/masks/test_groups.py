"""Masks of groups, and finding the groups' leaves in a tree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import masks, scores
from jprune.surgery import AxisRef, Group


def hidden(at=("params",)):
    """Three units: made by `a`, shifted by its bias, flattened twice into `b`."""
    return Group(
        "hidden",
        3,
        (
            AxisRef((*at, "a", "kernel"), 1, "out"),
            AxisRef((*at, "a", "bias"), 0, "bias"),
            AxisRef((*at, "b", "kernel"), 0, "in", labels=(0, 1, 2, 0, 1, 2, -1)),
        ),
    )


PARAMS = {
    "a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "b": {"kernel": jnp.ones((7, 2)), "bias": jnp.ones(2)},
}
KEEP = jnp.array([True, False, True])
ROWS = np.array([1, 0, 1, 1, 0, 1, 1], bool)  # the last row is no unit's


def test_from_groups_by_hand():
    mask = masks.from_groups({"params": PARAMS}, (hidden(),), {"hidden": KEEP})[
        "params"
    ]
    np.testing.assert_array_equal(mask["a"]["kernel"], [[1, 0, 1]] * 2)
    np.testing.assert_array_equal(mask["a"]["bias"], [1, 0, 1])
    np.testing.assert_array_equal(mask["b"]["kernel"], np.stack([ROWS] * 2, 1))
    assert mask["b"]["bias"].shape == () and bool(mask["b"]["bias"])


def test_from_groups_in_a_sub_tree_and_by_role():
    mask = masks.from_groups(
        PARAMS, (hidden(),), {"hidden": KEEP}, roles=("in", "bias")
    )
    assert mask["a"]["kernel"].shape == ()
    np.testing.assert_array_equal(mask["a"]["bias"], KEEP)
    np.testing.assert_array_equal(mask["b"]["kernel"][:, 0], ROWS)


def test_two_groups_on_one_leaf_remove_either():
    rows = Group("rows", 2, (AxisRef(("w",), 0),))
    columns = Group("columns", 3, (AxisRef(("w",), 1),))
    keeps = {"rows": jnp.array([True, False]), "columns": KEEP}
    mask = jax.jit(
        lambda k: masks.from_groups({"w": jnp.ones((2, 3))}, (rows, columns), k)
    )
    np.testing.assert_array_equal(mask(keeps)["w"], [[1, 0, 1], [0, 0, 0]])


def test_from_groups_errors():
    group = hidden()
    with pytest.raises(ValueError, match="bool vector of 3 for group 'hidden'.*.4,."):
        masks.from_groups(PARAMS, (group,), {"hidden": jnp.ones(4, bool)})
    with pytest.raises(ValueError, match="bool vector .* 'hidden'.*got int32"):
        masks.from_groups(PARAMS, (group,), {"hidden": jnp.array([1, 0, 1])})
    listed: Any = (KEEP,)
    with pytest.raises(ValueError, match="mapping from group ids .* got tuple"):
        masks.from_groups(PARAMS, (group,), listed)
    with pytest.raises(ValueError, match=r"names \['h'\], .*no ids.*\n  hidden"):
        masks.from_groups(PARAMS, (group,), {"h": KEEP})
    with pytest.raises(ValueError) as error:
        masks.from_groups(PARAMS, (group,), {"hidden": KEEP}, roles=("scale",))
    assert "'hidden' has no member in the roles ('scale',)" in str(error.value)
    assert "\n  params/b/kernel (in)" in str(error.value)
    with pytest.raises(ValueError, match="'hidden' has no member among the leaves"):
        masks.from_groups({"other": jnp.ones(3)}, (group,), {"hidden": KEEP})
    narrow = PARAMS | {"b": {"kernel": jnp.ones((6, 2)), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match="does not fit axis 0 of params/b/kernel"):
        masks.from_groups(narrow, (group,), {"hidden": KEEP})


def found(tree, groups):
    """{member path: the number in the leaf where it was found}."""
    numbers = scores.over_groups(tree, groups, norm="l1", raw=True)
    return {g.members[0].path: numbers[g.id][0] for g in groups if g.id in numbers}


def number(path):
    return float(sum(i * ord(c) for i, c in enumerate("/".join(path), 1)))


def named(*paths):
    """A tree whose leaves hold a number that stands for their path."""
    tree = {}
    for path in paths:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.array([[number(path)]])
    return tree


def on(*paths):
    return [Group(str(path), 1, (AxisRef(path, 0),)) for path in paths]


def test_members_in_the_whole_tree_and_in_parts_of_it():
    paths = [("params", "a", "w"), ("params", "b", "w"), ("stats", "a", "mean")]
    whole = named(*paths)
    assert found(whole, on(*paths)) == {p: number(p) for p in paths}
    # Some of its leaves, under their full paths.
    part = named(paths[0], paths[2])
    assert found(part, on(*paths)) == {p: number(p) for p in (paths[0], paths[2])}
    # The sub-tree `params`.
    below = found(whole["params"], on(*paths))
    assert below == {p: number(p) for p in paths[:2]}
    with pytest.raises(ValueError, match="None of the groups has a member"):
        found(named(("else",)), on(*paths))
    assert found(whole, []) == {}


def test_layers_of_one_name_are_not_confused():
    """`encoder/dense` and the `dense` above it: a suffix alone does not tell them."""
    paths = [("params", "dense", "w"), ("params", "encoder", "dense", "w")]
    whole = named(*paths)
    inner = found(whole["params"]["encoder"], on(*paths))
    assert inner == {paths[1]: number(paths[1])}
    # A part of the whole tree, which is also the whole of a sub-tree: either.
    nested = [("a", "w"), ("b", "a", "w")]
    with pytest.raises(ValueError, match=r"at each of \[\(\), \('b',\)\]"):
        found(named(nested[0]), on(*nested))
    twins = [("left", "w"), ("right", "w")]
    with pytest.raises(ValueError, match="pass the whole tree that the groups were"):
        found(named(*twins)["left"], on(*twins))
