"""Scores of groups against loops over coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import scores
from jprune._groups import AxisRef, Group

LABELS = (2, 0, 1, 0, -1, 2, 1)
GROUP = Group(
    "hidden",
    3,
    (
        AxisRef(("params", "a", "kernel"), 1, "out"),
        AxisRef(("params", "bn", "scale"), 0, "scale"),
        AxisRef(("params", "b", "kernel"), 0, "in", labels=LABELS),
        AxisRef(("stats", "bn", "mean"), 0, "stat"),
    ),
)


def params(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"a": {"kernel": (2, 3)}, "bn": {"scale": (3,)}, "b": {"kernel": (7, 2)}}
    make = lambda s: jnp.asarray(np.abs(rng.normal(size=s)), dtype)  # noqa: E731
    return jax.tree.map(make, shapes, is_leaf=lambda x: isinstance(x, tuple))


def members(p, order):
    """Each member's norms at the three coordinates, one entry at a time."""
    rows = {"out": np.zeros(3), "scale": np.zeros(3), "in": np.zeros(3)}
    a, b, scale = (
        np.asarray(x, np.float64)
        for x in (p["a"]["kernel"], p["b"]["kernel"], p["bn"]["scale"])
    )
    for c in range(3):
        rows["out"][c] = (a[:, c] ** order).sum()
        rows["scale"][c] = scale[c] ** order
    for position, c in enumerate(LABELS):
        if c >= 0:
            rows["in"][c] += (b[position] ** order).sum()
    return {role: row ** (1 / order) for role, row in rows.items()}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("roles", [None, ("scale",), ("in", "out")])
def test_against_a_loop(order, reduce, roles):
    p = params()
    rows = members(p, order)
    taken = np.stack([rows[role] for role in roles or rows])
    (got,) = scores.over_groups(p, (GROUP,), roles=roles, order=order, reduce=reduce)
    np.testing.assert_allclose(got, getattr(taken, reduce)(0), rtol=1e-6)


def test_half_precision_is_reduced_in_float32():
    wide = {"params": {"w": jnp.full((1000, 2), 300.0, jnp.float16)}}
    group = Group("wide", 2, (AxisRef(("params", "w"), 1, "out"),))
    (got,) = jax.jit(lambda p: scores.over_groups(p, (group,), order=2))(wide)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 300 * 1000**0.5, rtol=1e-6)


def test_several_groups_in_order():
    second = Group("rows", 2, (AxisRef(("params", "a", "kernel"), 0, "in"),))
    p = params()
    got = scores.over_groups(p, (second, GROUP), reduce="sum")
    assert [v.shape for v in got] == [(2,), (3,)]
    np.testing.assert_allclose(got[0], np.sum(p["a"]["kernel"], axis=1), rtol=1e-6)
    assert scores.over_groups(p, ()) == ()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"order": 3},
            "`reduce` must be mean, sum or max and `order` 1 or 2; got 'mean'",
        ),
        ({"reduce": "min"}, "got 'min', 1"),
        ({"roles": ("table",)}, r"'hidden' has no member in the roles \('table',\)"),
        ({"roles": ("stat",)}, "(?s)no member.*stats/bn/mean .stat."),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        scores.over_groups(params(), (GROUP,), **arguments)


def test_groups_of_another_model():
    p = params() | {"bn": {"scale": jnp.ones(4)}}
    with pytest.raises(ValueError, match="does not fit axis 0 of params/bn/scale"):
        scores.over_groups(p, (GROUP,))
