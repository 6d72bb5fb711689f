"""Masks of groups, budgets over groups, and finding the groups' leaves in a tree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import masks
from jprune._groups import AxisRef, Group, member_leaves


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
    """{member path: the leaf it was found at}, leaves being their own names."""
    return {
        ref.path: str(leaf[0, 0])
        for _, members in member_leaves(tree, groups)
        for ref, _, leaf in members
    }


def named(*paths):
    """A tree whose leaves hold their own path as text."""
    tree = {}
    for path in paths:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.array([["/".join(path)]])
    return tree


def on(*paths):
    return [Group(str(path), 1, (AxisRef(path, 0),)) for path in paths]


def test_members_in_the_whole_tree_and_in_parts_of_it():
    paths = [("params", "a", "w"), ("params", "b", "w"), ("stats", "a", "mean")]
    whole = named(*paths)
    assert found(whole, on(*paths)) == {p: "/".join(p) for p in paths}
    # Some of its leaves, under their full paths.
    part = named(paths[0], paths[2])
    assert found(part, on(*paths)) == {p: "/".join(p) for p in (paths[0], paths[2])}
    # The sub-tree `params`.
    below = found(whole["params"], on(*paths))
    assert below == {p: "/".join(p) for p in paths[:2]}
    assert found(named(("else",)), on(*paths)) == {}
    assert found(whole, []) == {}


def test_layers_of_one_name_are_not_confused():
    """`encoder/dense` and the `dense` above it: a suffix alone does not tell them."""
    paths = [("params", "dense", "w"), ("params", "encoder", "dense", "w")]
    whole = named(*paths)
    inner = found(whole["params"]["encoder"], on(*paths))
    assert inner == {paths[1]: "params/encoder/dense/w"}
    # A part of the whole tree, which is also the whole of a sub-tree: either.
    nested = [("a", "w"), ("b", "a", "w")]
    with pytest.raises(ValueError, match=r"at each of \[\(\), \('b',\)\]"):
        member_leaves(named(nested[0]), on(*nested))
    twins = [("left", "w"), ("right", "w")]
    with pytest.raises(ValueError, match="pass the whole tree that the groups were"):
        member_leaves(named(*twins)["left"], on(*twins))


# Budgets.


def test_swd_g9_parameter_budget():
    """conv 3x3 3->2, BN(2), dense 2->10 with bias: 88 parameters, 49 with half."""

    def cost(kept):
        return 27 * kept[0] + 2 * kept[0] + (kept[0] * 10 + 10)

    assert cost([2]) == 88 and cost([1]) == 49
    tau = 0.443
    assert round(1 - 49 / 88, 3) == tau
    (kept,) = masks.within_budget((jnp.array([0.05, 0.9]),), cost, 88 * (1 - tau))
    np.testing.assert_array_equal(kept, [False, True])


def brute_force(scores, cost, budget, floors):
    """Every head of the ranking, longest first."""
    order = sorted(
        ((g, i) for g, v in enumerate(scores) for i in range(len(v))),
        key=lambda c: (-scores[c[0]][c[1]], c),
    )
    for n in range(len(order), -1, -1):
        kept = [np.zeros(len(v), bool) for v in scores]
        for g, floor in enumerate(floors):
            for i in [i for h, i in order if h == g][:floor]:
                kept[g][i] = True
        for g, i in order[:n]:
            kept[g][i] = True
        if n == 0 or cost([k.sum() for k in kept]) <= budget:
            return kept
    raise AssertionError("the empty head is always returned")


@jax.jit
def product_budget(scores, budget):
    """A cost with products, as of two layers of 3, n0, n1, 2 units."""
    return masks.within_budget(
        scores, lambda n: 3 * n[0] + n[0] * n[1] + 2 * n[1], budget
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 50), st.integers(1, 5))
def test_within_budget_against_brute_force(seed, budget, levels):
    """Scores of few levels, zero among them: ties lie at every threshold."""
    rng = np.random.default_rng(seed)
    scores = [rng.integers(0, levels + 1, n).astype(np.float32) for n in (4, 5)]
    want = brute_force(
        scores, lambda n: 3 * n[0] + n[0] * n[1] + 2 * n[1], budget, (1, 1)
    )
    for x, y in zip(product_budget(scores, budget), want, strict=True):
        np.testing.assert_array_equal(x, y)


def test_within_budget_edges():
    assert masks.within_budget((), lambda n: n.sum(), 3) == ()
    scores = (jnp.array([0.0, 2.0, 1.0, 0.0]), jnp.array([1.0, 0, 0, 0, 0]))
    everything = product_budget(scores, 1_000)
    assert [k.tolist() for k in everything] == [[True] * 4, [True] * 5]
    floors = product_budget(scores, -1)
    assert [np.flatnonzero(k).tolist() for k in floors] == [[1], [0]]
    mixed = (jnp.array([0.0, 2.0]), jnp.array([1.0], jnp.bfloat16))
    nothing = masks.within_budget(mixed, jnp.sum, -1, min_keep=0)
    assert [k.tolist() for k in nothing] == [[False, False], [False]]
