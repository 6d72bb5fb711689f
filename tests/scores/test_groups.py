"""Scores of groups against loops over coordinates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import scores
from jprune.surgery import AxisRef, Group

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
    """Each member's sums at the three coordinates, one entry at a time."""
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
    return rows


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("roles", [None, ("scale",), ("in", "out")])
def test_against_a_loop(order, reduce, roles):
    p = params()
    rows = members(p, order)
    taken = np.stack([rows[role] for role in roles or rows])
    want = getattr(taken, reduce)(0) ** (1 / order)

    def found(p, raw):
        return scores.over_groups(
            p, (GROUP,), roles=roles, norm=f"l{order}", reduce=reduce, raw=raw
        )["hidden"]

    np.testing.assert_allclose(found(p, True), want, rtol=1e-6)
    np.testing.assert_allclose(found(p, False), want / want.mean(), rtol=1e-6)
    host = jax.tree.map(np.asarray, p)
    assert isinstance(found(host, False), np.ndarray)
    traced = jax.jit(lambda p: found(p, False))(p)
    np.testing.assert_allclose(traced, found(host, False), rtol=1e-6)


def test_half_precision_is_reduced_in_float32():
    wide = {"params": {"w": jnp.full((1000, 2), 300.0, jnp.float16)}}
    group = Group("wide", 2, (AxisRef(("params", "w"), 1, "out"),))
    found = lambda p: scores.over_groups(p, (group,), raw=True)["wide"]  # noqa: E731
    for got in (jax.jit(found)(wide), found(wide)):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, 300 * 1000**0.5, rtol=1e-6)


def test_several_groups_in_order():
    second = Group("rows", 2, (AxisRef(("params", "a", "kernel"), 0, "in"),))
    p = params()
    got = scores.over_groups(p, (second, GROUP), norm="l1", raw=True)
    assert {name: v.shape for name, v in got.items()} == {"rows": (2,), "hidden": (3,)}
    np.testing.assert_allclose(got["rows"], np.sum(p["a"]["kernel"], axis=1), rtol=1e-6)
    assert scores.over_groups(p, ()) == {}


def test_a_group_without_members_is_left_out():
    other = Group("other", 4, (AxisRef(("params", "c", "kernel"), 0, "in"),))
    assert list(scores.over_groups(params(), (other, GROUP))) == ["hidden"]


def test_statistics_counters_and_keys_do_not_count():
    roles = ("out", "stat", "other", "other")
    refs = [AxisRef((n,), 0, r) for n, r in zip("wvnk", roles, strict=True)]
    group = Group("g", 3, tuple(refs))
    tree = {"w": jnp.array([1.0, 2, 3]), "v": jnp.array([1e4, 1, 1])}
    tree |= {"n": jnp.array([7, 8, 9]), "k": jax.random.split(jax.random.key(0), 3)}
    got = scores.over_groups(tree, [group], raw=True)
    np.testing.assert_array_equal(got["g"], [1, 2, 3])
    # On request a statistic is a score like any other.
    got = scores.over_groups(tree, [group], roles=("stat",), raw=True)
    np.testing.assert_array_equal(got["g"], [1e4, 1, 1])


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("traced", [False, True])
def test_a_stack_of_layers_scores_as_the_layers_do(reduce, traced):
    """Members [3, 2, 4] and [3, 4, 2] of a scan against six leaves of one layer."""
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 4, 2))
    scan = {"layers": {"up": np.float32(up), "down": np.float32(down)}}
    inner = [AxisRef(("layers", "up"), 2, "out"), AxisRef(("layers", "down"), 1, "in")]
    outer = [AxisRef(("layers", "up"), 1, "in"), AxisRef(("layers", "down"), 2, "out")]
    one = [Group("inner", 4, tuple(inner)), Group("stream", 2, tuple(outer))]
    flat, many = {}, {"inner": [], "stream": []}
    for i in range(3):
        flat |= {f"u{i}": np.float32(up[i]), f"d{i}": np.float32(down[i])}
        many["inner"] += [AxisRef((f"u{i}",), 1, "out"), AxisRef((f"d{i}",), 0, "in")]
        many["stream"] += [AxisRef((f"u{i}",), 0, "in"), AxisRef((f"d{i}",), 1, "out")]
    several = [Group(n, g.size, tuple(many[n])) for n, g in zip(many, one, strict=True)]

    def score(tree, groups):
        call = lambda t: scores.over_groups(t, groups, reduce=reduce)  # noqa: E731
        return jax.jit(call)(tree) if traced else call(tree)

    got, want = score(scan, one), score(flat, several)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)


def test_where_the_tree_lies():
    p = params()
    found = scores.over_groups(p, (GROUP,))
    named = scores.over_groups(p, (GROUP,), at="params")
    np.testing.assert_array_equal(named["hidden"], found["hidden"])
    with pytest.raises(ValueError, match="has no member among the leaves"):
        scores.over_groups(p, (GROUP,), at="stats")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"norm": "l3"},
            "`reduce` must be sum, mean, max or product and `norm` l1 or l2; got 'prod",
        ),
        ({"reduce": "min"}, "got 'min', 'l2'"),
        ({"reduce": "product", "norm": "l1", "signed": True}, "add up: give reduce"),
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


@pytest.mark.parametrize("order", [1, 2])
def test_a_product_is_what_a_coordinate_passes_on(order):
    """Written by two, scaled by one, read by two, shifted by a bias that is 0."""
    rng = np.random.default_rng(0)
    tree = {"a": (2, 3), "b": (4, 3), "s": (3,), "r": (3, 5), "q": (7, 2), "z": (3,)}
    tree = {k: np.float32(rng.normal(size=v)) for k, v in tree.items()}
    tree["z"] *= 0
    roles = dict(
        zip("absrqz", ("out", "out", "scale", "in", "in", "bias"), strict=True)
    )
    refs = {n: AxisRef((n,), int(n in "ab"), role) for n, role in roles.items()}
    refs["q"] = dataclasses.replace(refs["q"], labels=LABELS)
    group = Group("g", 3, tuple(refs.values()))

    def energy(n, c):
        at = [i for i, j in enumerate(LABELS) if j == c] if n == "q" else [c]
        return (np.abs(tree[n].take(at, refs[n].axis)) ** order).sum()

    e = {n: np.array([energy(n, c) for c in range(3)]) for n in tree}
    share = {n: v / v.mean() for n, v in e.items() if n != "z"}
    read = (share["r"] + share["q"]) / 2
    want = ((e["a"] + e["b"]) * share["s"] * read) ** (1 / order)

    def found(tree, **options):
        return scores.over_groups(tree, [group], norm=f"l{order}", **options)["g"]

    np.testing.assert_allclose(found(tree), want / want.mean(), rtol=1e-5)
    got = jax.jit(lambda t: found(t, reduce="product", raw=True))(tree)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    closed = found({**tree, "s": np.float32([1, 0, 2])})
    assert closed[1] == 0 and closed[0] > 0  # what one factor stops passes not
    unscaled = ((e["a"] + e["b"]) * read) ** (1 / order)
    got = found({**tree, "s": np.zeros(3, np.float32)}, reduce="product", raw=True)
    np.testing.assert_allclose(got, unscaled, rtol=1e-5)  # zero for all says nothing


def test_signed_scores_add_up():
    p = params()
    found = scores.over_groups(p, (GROUP,), norm="l1", signed=True, raw=True)
    for c in range(3):
        want = p["a"]["kernel"][:, c].sum() + p["bn"]["scale"][c]
        want += p["b"]["kernel"][np.flatnonzero(np.array(LABELS) == c)].sum()
        np.testing.assert_allclose(found["hidden"][c], want, rtol=1e-5)


def test_the_sum_of_raw_scores_is_a_group_lasso():
    """Its gradient is w / |w of the coordinate|, and 0 where all is 0."""
    p = params()
    p["a"]["kernel"] = p["a"]["kernel"].at[:, 1].set(0)
    p["bn"]["scale"] = p["bn"]["scale"].at[1].set(0)
    gone = np.array(LABELS) == 1
    p["b"]["kernel"] = jnp.where(gone[:, None], 0, p["b"]["kernel"])

    def penalty(p):
        return scores.over_groups(p, (GROUP,), raw=True)["hidden"].sum()

    got = jax.grad(penalty)(p)
    norms = np.sqrt(np.sum(list(members(p, 2).values()), axis=0))
    unit = np.where(norms > 0, norms, 1)
    np.testing.assert_allclose(
        got["a"]["kernel"], np.asarray(p["a"]["kernel"]) / unit, rtol=1e-5
    )
    np.testing.assert_allclose(got["bn"]["scale"], p["bn"]["scale"] / unit, rtol=1e-5)
    for place, c in enumerate(LABELS):
        want = p["b"]["kernel"][place] / unit[c] if c >= 0 else np.zeros(2)
        np.testing.assert_allclose(got["b"]["kernel"][place], want, rtol=1e-5)


def test_the_geometric_median_against_a_loop():
    """Distances between whole vectors, of runs, of repeated labels and of stacks."""
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=(7, 2))}
    tree = jax.tree.map(np.float32, tree)
    refs = (AxisRef(("a",), 1, "out"), AxisRef(("b",), 0, "in", labels=LABELS))
    group = Group("g", 3, refs)
    rows = {
        "out": [tree["a"][:, c] for c in range(3)],
        "in": [tree["b"][np.array(LABELS) == c].ravel() for c in range(3)],
    }
    for roles in (("out",), ("in",), ("out", "in")):
        x = [np.concatenate([rows[r][c] for r in roles]) for c in range(3)]
        want = [sum(np.linalg.norm(u - v) for v in x) for u in x]
        found = scores.geometric_median(tree, [group], roles=roles, raw=True)["g"]
        np.testing.assert_allclose(found, want, rtol=1e-5)
        found = scores.geometric_median(tree, [group], roles=roles)["g"]
        np.testing.assert_allclose(found, want / np.mean(want), rtol=1e-5)
    with pytest.raises(ValueError, match="no member in the roles"):
        scores.geometric_median(tree, [group], roles=("scale",))


def test_the_geometric_median_of_a_wide_layer():
    """More rows than are taken at a time; equal filters are no distance apart."""
    w = np.float32(np.repeat(np.random.default_rng(0).normal(size=(4, 600)), 2, 1))
    group = Group("g", 1200, (AxisRef(("w",), 1, "out"),))
    found = scores.geometric_median({"w": w}, [group], raw=True)["g"]
    want = [np.linalg.norm(w - w[:, [c]], axis=0).sum() for c in (0, 700, 1199)]
    np.testing.assert_allclose(found[np.array([0, 700, 1199])], want, rtol=1e-4)


def test_second_order_scores_are_what_removal_costs():
    """A separable quadratic at its minimum; by channel, and the block Fisher."""
    rng = np.random.default_rng(1)
    w, h = np.float32(rng.normal(size=(2, 3))), np.float32(rng.uniform(size=(2, 3)))
    loss = lambda v: 0.5 * (h * (v - w) ** 2).sum()  # noqa: E731
    found = scores.second_order({"w": w}, {"w": h})
    group = Group("g", 3, (AxisRef(("w",), 1, "out"),))
    by_channel = scores.over_groups(found, [group], norm="l1", raw=True)["g"]
    for c in range(3):
        cut = w.copy()
        cut[:, c] = 0
        np.testing.assert_allclose(by_channel[c], loss(cut), rtol=1e-5)
    with pytest.raises(ValueError, match="curvature"):
        scores.second_order({"w": w}, {"v": h})


def test_the_fisher_block_of_a_channel():
    """Signed sums of w g an example, squared: w' E[g g'] w / 2 with the whole block."""
    rng = np.random.default_rng(2)
    w, g = np.float32(rng.normal(size=(2, 3))), np.float32(rng.normal(size=(5, 2, 3)))
    group = Group("g", 3, (AxisRef(("w",), 1, "out"),))

    def one(g):
        tree = {"w": w * g["w"]}
        return scores.over_groups(tree, [group], norm="l1", signed=True, raw=True)

    found = (jax.vmap(one)({"w": g})["g"] ** 2).mean(0) / 2
    for c in range(3):
        block = np.einsum("ei,ej->ij", g[:, :, c], g[:, :, c]) / len(g)
        np.testing.assert_allclose(found[c], w[:, c] @ block @ w[:, c] / 2, rtol=1e-5)


def test_the_geometric_median_of_a_stack_is_that_of_its_layers():
    rng = np.random.default_rng(0)
    deep = np.float32(rng.normal(size=(3, 4, 5)))
    one = Group("g", 5, (AxisRef(("layers", "kernel"), 2, "out"),))
    tree = {f"l{i}": layer for i, layer in enumerate(deep)}
    each = Group("g", 5, tuple(AxisRef((f"l{i}",), 1, "out") for i in range(3)))
    got = scores.geometric_median({"layers": {"kernel": deep}}, [one])["g"]
    np.testing.assert_allclose(
        got, scores.geometric_median(tree, [each])["g"], rtol=1e-5
    )
