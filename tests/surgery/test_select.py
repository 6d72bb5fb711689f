"""Selection: exact counts, targets met within one coordinate, never growing again."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import analysis, surgery


def net(p: Any, x: Any) -> Any:
    """Three hidden layers, two of one shape, and a residual block."""
    h = jnp.tanh(x @ p["a"])
    h = jnp.tanh(h @ p["b"])
    h = jnp.tanh(h @ p["c"])
    h = h + jnp.tanh(h @ p["up"] + p["bias"][None]) @ p["down"]
    return h @ p["o"]


SHAPES = {
    "a": (5, 8),
    "b": (8, 8),
    "c": (8, 12),
    "up": (12, 10),
    "bias": (10,),
    "down": (10, 12),
    "o": (12, 3),
}
PARAMS = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}
X = jax.ShapeDtypeStruct((2, 5), jnp.float32)
DEPS = surgery.groups(net)(PARAMS, X)
SIZES = {"a:1": 8, "b:1": 8, "c:1": 12, "up:1": 10}
TOTAL = 38


def random_scores(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.id: rng.random(g.size) for g in DEPS}


def kept_counts(plan: Any) -> dict[str, int]:
    masks = {"a:1": ("a", 1), "b:1": ("b", 1), "c:1": ("c", 1), "up:1": ("up", 1)}
    return {i: int(plan.keep[(leaf,)][axis].sum()) for i, (leaf, axis) in masks.items()}


def removed(plan: Any) -> int:
    return TOTAL - sum(kept_counts(plan).values())


def flops_of(plan: Any) -> int:
    return analysis.flops(surgery.shrink(net, plan))(plan.pack(PARAMS), X)


def test_groups():
    assert {g.id: g.size for g in DEPS} == SIZES


@pytest.mark.filterwarnings("ignore:.*nine tenths:UserWarning")
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 0.8))
def test_global_sparsity_is_the_brute_force_choice(seed: int, sparsity: float):
    scores = random_scores(seed)
    plan = surgery.select(DEPS, scores, sparsity=sparsity, ranking="global")
    assert removed(plan) == int(np.floor(sparsity * TOTAL + 0.5))
    flat = sorted((s, g, i) for g, v in scores.items() for i, s in enumerate(v))
    # The best coordinate of each group is protected; the rest go worst first.
    best = {(g, int(np.argmax(v))) for g, v in scores.items()}
    gone = [(g, i) for _, g, i in flat if (g, i) not in best][: removed(plan)]
    for name, (leaf, axis) in {"a:1": ("a", 1), "up:1": ("down", 0)}.items():
        want = sorted(i for g, i in gone if g == name)
        assert np.flatnonzero(~plan.keep[(leaf,)][axis]).tolist() == want


def test_equal_scores_give_the_exact_count_and_keep_the_first():
    scores = {g.id: np.ones(g.size) for g in DEPS}
    plan = surgery.select(DEPS, scores, sparsity=0.5, ranking="global")
    assert removed(plan) == 19
    for axis in (m for masks in plan.keep.values() for m in masks):
        assert not (np.diff(axis.astype(int)) > 0).any()  # kept ones come first


def test_group_scope_takes_the_same_fraction_of_each():
    plan = surgery.select(DEPS, random_scores(0), sparsity=0.25, ranking="group")
    assert kept_counts(plan) == {"a:1": 6, "b:1": 6, "c:1": 9, "up:1": 7}  # 2.5 -> 3


def test_a_stream_loses_a_share_for_each_layer_that_writes_it():
    """`c` and `down` write the stream of 12: it loses half of what the others lose."""
    assert DEPS.writers == {"a:1": 1, "b:1": 1, "c:1": 2, "up:1": 1}
    plan = surgery.select(DEPS, random_scores(0), sparsity=16 / 38)
    assert kept_counts(plan) == {"a:1": 4, "b:1": 4, "c:1": 9, "up:1": 5}
    # Scores rank within a group only, whatever their scale.
    loud = random_scores(0) | {"a:1": 1e6 * random_scores(0)["a:1"]}
    again = surgery.select(DEPS, loud, sparsity=16 / 38)
    for path, axes in plan.keep.items():
        for mask, same in zip(axes, again.keep[path], strict=True):
            np.testing.assert_array_equal(mask, same)


def test_isomorphic_scope_compares_equal_structures():
    def twin(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["a"]) @ p["b"]
        h = h + jnp.tanh(h @ p["u1"]) @ p["d1"]
        h = h + jnp.tanh(h @ p["u2"]) @ p["d2"]
        return h @ p["o"]

    shapes = {
        "a": (5, 6),
        "b": (6, 4),
        "u1": (4, 8),
        "d1": (8, 4),
        "u2": (4, 8),
        "d2": (8, 4),
        "o": (4, 2),
    }
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    deps = surgery.groups(twin)(params, X)
    scores = {g.id: np.arange(1.0, g.size + 1) for g in deps}
    scores["u2:1"] = 100 * scores["u2:1"]  # the second block is all better
    plan = surgery.select(deps, scores, sparsity=0.4, ranking="isomorphic")
    shapes_left = plan.compact_shapes
    assert shapes_left[("u1",)][1] + shapes_left[("u2",)][1] == 16 - 6  # of both
    assert shapes_left[("u1",)][1] == 2 and shapes_left[("a",)][1] == 6 - 2


@pytest.mark.filterwarnings("ignore:.*nine tenths:UserWarning")
@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6), st.floats(0.1, 0.999), st.sampled_from(["global", "group"])
)
def test_flops_target_is_met_within_one_coordinate(
    seed: int, target: float, scope: str
):
    scores = random_scores(seed)
    plan = surgery.select(DEPS, scores, flops=target, ranking=scope)  # type: ignore
    dense, kept = DEPS.flops(), kept_counts(plan)
    assert DEPS.flops(kept) <= target * dense * (1 + 1e-12)  # as `select` rounds
    if kept != SIZES:  # giving the best removed coordinate of some group back exceeds
        back = [DEPS.flops({**kept, g: n + 1}) for g, n in kept.items() if n < SIZES[g]]
        assert max(back) > target * dense


def test_predicted_cost_is_the_cost_of_the_compact_function():
    for target in (0.9, 0.5, 0.2):
        plan = surgery.select(DEPS, random_scores(1), flops=target)
        assert DEPS.flops(kept_counts(plan)) == flops_of(plan)
    plan = surgery.select(DEPS, random_scores(1), params=100)
    size = sum(int(np.prod(s)) for s in plan.compact_shapes.values())
    assert DEPS.parameters(kept_counts(plan)) == size <= 100


@pytest.mark.parametrize("how", ["sparsity", "flops", "params"])
@pytest.mark.parametrize("scope", ["balanced", "global", "group", "isomorphic"])
@pytest.mark.parametrize("options", [{}, {"round_to": 4}, {"min_keep": 3}], ids=str)
def test_never_grows_again(how: str, scope: Any, options: Any):
    scores, last = random_scores(4), None
    grid = np.linspace(0.0, 0.5, 11)
    for s in grid:
        target = float(s) if how == "sparsity" else float(1 - s)
        try:
            plan = surgery.select(
                DEPS, scores, **{how: target}, ranking=scope, **options
            )
        except ValueError as error:
            assert "removes nothing" in str(error) or "let at most" in str(error)
            continue
        kept = {k: np.concatenate(v) for k, v in plan.keep.items()}
        if last is not None:
            assert all((kept[k] <= last[k]).all() for k in kept)
        last = kept
        counts = kept_counts(plan)
        if "round_to" in options:
            assert all(n % 4 == 0 or n == SIZES[g] for g, n in counts.items())
        assert all(n >= options.get("min_keep", 1) for n in counts.values())
    assert last is not None


def removal_by_brute_force(scores, cost, budget):
    """Takes the worst away, one at a time, until the cost fits; the best stay."""
    best = {(g, int(np.argmax(v))) for g, v in scores.items()}
    order = sorted(
        (s, place, -i, g)
        for place, (g, v) in enumerate(scores.items())
        for i, s in enumerate(v)
        if (g, i) not in best
    )
    kept = {g: np.ones(len(v), bool) for g, v in scores.items()}
    for _, _, i, g in order:
        if cost(*(k.sum() for k in kept.values())) <= budget:
            break
        kept[g][-i] = False
    return kept


def mlp_of(a: int, b: int) -> Any:
    """Layers of 3, a, b and 2 units: 3 a + a b + 2 b parameters."""
    shapes = {"a": (3, a), "b": (a, b), "c": (b, 2)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    fn = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]  # noqa: E731
    return surgery.groups(fn)(params, jax.ShapeDtypeStruct((1, 3), jnp.float32))


MLP = mlp_of(4, 5)


@jax.jit
def traced_choice(scores, budgets):
    del budgets
    return {b: surgery.choose(MLP, scores, params=b, ranking="global") for b in BUDGETS}


BUDGETS = tuple(range(6, 43))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_budget_on_the_host_and_traced_is_the_brute_force(seed: int, levels: int):
    """Scores of few levels, zero among them: ties lie at every threshold."""
    rng = np.random.default_rng(seed)
    scores = {
        name: rng.integers(0, levels + 1, n).astype(np.float32)
        for name, n in (("a:1", 4), ("b:1", 5))
    }
    traced = traced_choice(scores, 0)
    for budget in BUDGETS:
        want = removal_by_brute_force(
            scores, lambda n, m: 3 * n + n * m + 2 * m, budget
        )
        host = surgery.choose(MLP, scores, params=budget, ranking="global")
        for name in want:
            np.testing.assert_array_equal(host[name], want[name])
            np.testing.assert_array_equal(traced[budget][name], want[name])


@pytest.mark.parametrize("ranking", ["balanced", "global", "group", "isomorphic"])
@pytest.mark.parametrize(
    "options",
    [{"flops": 0.5}, {"sparsity": 0.4}, {"flops": 0.5, "round_to": 2}],
    ids=str,
)
def test_a_traced_choice_is_the_choice_of_the_host(ranking: Any, options: Any):
    options = {"ranking": ranking, "most": 0.8, **options}
    choose = jax.jit(lambda s: surgery.choose(DEPS, s, **options))
    for seed in range(5):
        scores = {k: np.float32(v) for k, v in random_scores(seed).items()}
        got, want = choose(scores), surgery.choose(DEPS, scores, **options)
        for name, mask in want.items():
            np.testing.assert_array_equal(got[name], mask)


def test_a_budget_of_multiply_adds():
    """X costs 8 each [2.1, 1.9], Y 2 each [2, 1], 12 to spend; w^2 / c keeps 3 of 4."""
    shapes = {"w": (4, 2), "v": (2, 4), "u": (1, 2), "z": (2, 1)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    fn = lambda p, x, y: (x @ p["w"] @ p["v"], y @ p["u"] @ p["z"])  # noqa: E731
    deps = surgery.groups(fn)(params, *(jnp.ones((1, n)) for n in (4, 1)))
    x, y = np.array([2.1, 1.9]), np.array([2.0, 1.0])
    for scores, left in (((x, y), 1), ((x**2 / 4, y**2), 2)):
        named = dict(zip(("w:1", "u:1"), scores, strict=True))
        kept = surgery.choose(deps, named, params=12, ranking="global")
        assert [int(kept[n].sum()) for n in ("w:1", "u:1")] == [1, left]
        assert kept["w:1"][0] and kept["u:1"][0]


def test_groups_by_pattern():
    assert [g.id for g in DEPS.find("^up:1$")] == ["up:1"]
    assert {g.id for g in DEPS.find("down:[01]")} == {"c:1", "up:1"}
    assert DEPS.find("nowhere") == []


def test_excluded_groups_and_fixed_ratios():
    scores = random_scores(0)
    plan = surgery.select(DEPS, scores, flops=0.6, exclude="^a:", ranking="group")
    kept = kept_counts(plan)
    assert kept["a:1"] == 8 and DEPS.flops(kept) <= 0.6 * DEPS.flops()
    only = surgery.select(DEPS, scores, ratios={"^[ab]:1": 0.25, "^b:1": 0.5})
    assert kept_counts(only) == {"a:1": 6, "b:1": 4, "c:1": 12, "up:1": 10}
    both = surgery.select(DEPS, scores, ratios={"up": 0.5}, flops=0.7, ranking="group")
    assert kept_counts(both)["up:1"] == 5
    assert DEPS.flops(kept_counts(both)) <= 0.7 * DEPS.flops()
    aligned = surgery.select(DEPS, scores, ratios={"up": 0.4}, round_to=4)
    assert kept_counts(aligned)["up:1"] == 8  # 6 are asked for, 8 are a multiple
    with pytest.raises(ValueError, match=r"`ratios\['up'\]` must be a .* got 50"):
        surgery.select(DEPS, scores, ratios={"up": 50})
    for argument in ({"exclude": "nowhere"}, {"ratios": {"nowhere": 0.5}}):
        with pytest.raises(ValueError, match="(?s)'nowhere' finds no group.*a:1"):
            surgery.select(DEPS, scores, sparsity=0.1, **argument)


def test_errors_name_what_exclude_keeps_whole():
    scores = random_scores(0)
    whole = r"(?s)cannot be met.*`exclude` keeps these groups whole.*a:1\n  b:1\n  c:1$"
    for target in ({"flops": 0.2}, {"cost": _stored, "at_most": 100}):
        with pytest.raises(ValueError, match=whole):
            surgery.select(DEPS, scores, exclude="^[abc]:1", **target)
    with pytest.raises(ValueError, match="(?s)let at most 14 go.*`exclude` keeps"):
        surgery.select(DEPS, scores, sparsity=0.99, exclude="up")
    nothing = r"(?s)and not kept whole by `exclude`.*a:1: coupled, kept whole by"
    with pytest.raises(ValueError, match=nothing):
        surgery.select(DEPS, scores, sparsity=0.5, exclude=".")
    with pytest.raises(ValueError, match="cannot be met") as error:
        surgery.select(DEPS, scores, flops=0.01)
    assert "exclude" not in str(error.value)


def test_no_group_loses_more_than_the_most():
    scores = {g.id: np.full(g.size, float(i)) for i, g in enumerate(DEPS)}
    plan = surgery.select(DEPS, scores, sparsity=0.5, most=0.6, ranking="global")
    assert removed(plan) == 19
    assert all(n >= 0.4 * SIZES[g] for g, n in kept_counts(plan).items())
    with pytest.raises(ValueError, match="let at most"):
        surgery.select(DEPS, scores, sparsity=0.7, most=0.6)
    with pytest.raises(ValueError, match="`most` must be"):
        surgery.select(DEPS, scores, sparsity=0.7, most=0.0)


def test_groups_not_proved_exact_stay_unless_asked_for():
    def head(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["stem"])
        bins = (h @ p["box"]).reshape(-1, 4, 16)
        return jax.nn.softmax(bins, -1) @ jnp.arange(16.0)

    params = {"stem": np.ones((5, 8)), "box": np.ones((8, 64))}
    deps = surgery.groups(head)(params, X)
    rng = np.random.default_rng(0)
    scores = {g.id: rng.random(g.size) for g in deps}
    wrong = [g.id for g in deps if not deps.exactness[g.id].exact]
    if wrong:
        with pytest.warns(UserWarning, match="not the same as setting them to zero"):
            keep = surgery.select(
                deps, scores, sparsity=0.5, exact=False, ranking="group"
            )
        assert keep.compact_shapes[("box",)][1] < 64
    assert set(surgery.choose(deps, scores, sparsity=0.5)) == {"stem:1"}


def test_a_gutted_group_is_a_warning():
    scores = {g.id: np.full(g.size, 2.0) for g in DEPS} | {"c:1": np.ones(12)}
    with pytest.warns(UserWarning, match="(?s)nine tenths.*c:1: 1 of 12 left"):
        surgery.select(DEPS, scores, sparsity=11 / 38, ranking="global")


def test_gutted_groups_are_a_warning_whatever_the_rest_keeps():
    """A dear budget takes nearly all of every group; a floor or `ratios` is meant."""
    scores = {g.id: np.full(g.size, 2.0) for g in DEPS} | {"c:1": np.ones(12)}
    dear: Any = {"cost": _stored, "at_most": 35, "ranking": "global"}
    with pytest.warns(UserWarning, match="(?s)nine tenths.*min_keep.*c:1: 1 of 12"):
        kept = kept_counts(surgery.select(DEPS, scores, **dear))
    assert 2 * (sum(kept.values()) - kept["c:1"]) < TOTAL - 12
    surgery.select(DEPS, scores, min_keep=2, **dear)
    surgery.select(DEPS, scores, ratios={"^c": 11 / 12})


def _stored(plan: surgery.Plan) -> float:
    return sum(math.prod(shape) for shape in plan.compact_shapes.values())


def test_min_keep_moves_the_budget():
    scores = {g.id: np.full(g.size, float(i)) for i, g in enumerate(DEPS)}
    plan = surgery.select(DEPS, scores, sparsity=0.5, min_keep=2, ranking="global")
    assert removed(plan) == 19 and min(kept_counts(plan).values()) == 2


def test_targets_that_cannot_be_met_are_errors():
    scores = random_scores(0)
    with pytest.raises(ValueError, match="let at most 34 go"):
        surgery.select(DEPS, scores, sparsity=0.99)
    with pytest.raises(ValueError, match="`flops` 0.0 cannot be met"):
        surgery.select(DEPS, scores, flops=0.0)
    with pytest.raises(ValueError, match="removes nothing"):
        surgery.select(DEPS, scores, sparsity=0.02, round_to=8)
    with pytest.raises(ValueError, match="exactly one of"):
        surgery.select(DEPS, scores)
    with pytest.raises(ValueError, match="exactly one of"):
        surgery.select(DEPS, scores, sparsity=0.5, flops=0.5)
    with pytest.raises(ValueError, match=r"`scores\['a:1'\]` must have shape \(8,\)"):
        surgery.select(DEPS, {"a:1": np.ones(3)}, sparsity=0.5)
    with pytest.raises(ValueError, match="must be finite"):
        surgery.select(DEPS, {"a:1": np.full(8, np.nan)}, sparsity=0.5)
    with pytest.raises(ValueError, match="`ranking` must be"):
        surgery.select(DEPS, scores, sparsity=0.5, ranking="layer")  # type: ignore
    with pytest.raises(ValueError, match="`round_to` must be an integer"):
        surgery.select(DEPS, scores, sparsity=0.5, round_to=0)
    with pytest.raises(ValueError, match="`flops` must be a fraction"):
        surgery.select(DEPS, scores, flops=1.5)


def test_nothing_to_remove_lists_the_reasons():
    fn = lambda p, x: jnp.sort(x @ p["a"], -1)  # noqa: E731
    deps = surgery.groups(fn)({"a": PARAMS["a"]}, X)
    with pytest.raises(ValueError, match="(?s)nothing can be removed.*the position"):
        surgery.select(deps, {}, sparsity=0.5)


def test_contraction_axes():
    axes = surgery.contraction_axes(DEPS)
    assert axes == {"a": 0, "b": 0, "c": 0, "up": 0, "bias": None, "down": 0, "o": 0}


def test_costs_of_traced_counts_are_floats_of_any_size():
    """Expected counts have a price and a slope, beyond int32 and through a cond."""

    def fn(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["a"])
        wide = lambda h: jnp.tanh(h @ p["up"]) @ p["down"]  # noqa: E731
        return jax.lax.cond(jnp.sum(x) > 0, wide, lambda h: h @ p["skip"], h) @ p["o"]

    shapes = {"a": (50, 80), "up": (80, 100), "down": (100, 90), "skip": (80, 90)}
    params = {k: jnp.zeros(s) for k, s in (shapes | {"o": (90, 70)}).items()}
    deps = surgery.groups(fn)(params, jax.ShapeDtypeStruct((10**6, 50), jnp.float32))
    kept = {"a:1": 40, "up:1": 60}
    want = deps.flops(kept)
    assert want == 2 * 10**6 * (50 * 40 + 40 * 60 + 60 * 90 + 90 * 70) > 2**31
    counts = {k: jnp.float32(n) for k, n in kept.items()}
    got, slope = jax.jit(jax.value_and_grad(deps.flops))(counts)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(slope["up:1"], 2e6 * (40 + 90), rtol=1e-6)
    np.testing.assert_allclose(
        deps.flops({"up:1": jnp.float32(1)}),
        2e6 * (50 * 80 + 80 * 90 + 90 * 70),
        rtol=1e-6,
    )


# -- depth ---------------------------------------------------------------------------


def test_allow_empty_takes_the_residual_branch_only():
    """The branch is the worst; the stream cannot go although its scores are lower."""
    scores = {"a:1": np.ones(8), "b:1": np.ones(8), "c:1": np.zeros(12)}
    scores["up:1"] = np.full(10, 0.5)
    with pytest.warns(UserWarning, match="(?s)nine tenths.*c:1: 1 of 12 left"):
        plan = surgery.select(
            DEPS, scores, sparsity=21 / 38, allow_empty=True, ranking="global"
        )
    assert kept_counts(plan) == {"a:1": 8, "b:1": 8, "c:1": 1, "up:1": 0}
    rng = np.random.default_rng(0)
    params = {k: rng.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}
    x = rng.standard_normal((2, 5)).astype(np.float32)
    packed = plan.pack(params)
    assert packed["up"].shape == (1, 0) and packed["down"].shape == (0, 1)
    got = jax.jit(surgery.shrink(net, plan))(packed, x)
    np.testing.assert_allclose(got, net(plan.zero(params), x), rtol=1e-5, atol=1e-5)
    back = plan.unpack(packed)
    np.testing.assert_array_equal(back["up"], 0.0)


def test_compact_flops_in_closed_form():
    """2 m k n for each product, 2 per tap, channel and position for convolutions."""

    def mlp(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["w"]) @ p["v"]

    def conv(p: Any, x: Any) -> Any:
        for name in "wv":
            x = jax.lax.conv_general_dilated(
                x, p[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x

    cases = {
        mlp: ({"w": (5, 8), "v": (8, 3)}, (2, 5), lambda n: 2 * 2 * n * (5 + 3)),
        conv: (
            {"w": (3, 3, 4, 8), "v": (1, 1, 8, 2)},
            (2, 6, 6, 4),
            lambda n: 2 * 72 * n * (9 * 4 + 2),
        ),
    }
    for fn, (shapes, batch, count) in cases.items():
        params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
        x = jax.ShapeDtypeStruct(batch, jnp.float32)
        deps = surgery.groups(fn)(params, x)
        (group,) = deps
        plan = surgery.plan_from_keep(deps, {group.id: [1, 4, 6]})
        small = analysis.flops(surgery.shrink(fn, plan))(plan.pack(params), x)
        assert small == deps.flops({group.id: 3}) == count(3)
        assert deps.flops() == count(8) > count(3)
