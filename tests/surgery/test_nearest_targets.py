"""Targets that cannot be met name the nearest that can; shares in steps of `round_to`.

The reference is counting by hand: of n coordinates at sparsity s, k = n - floor(s n +
1/2) are to stay, and with `round_to` r the next multiple of r, at most n.
"""

import math
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import surgery

WIDTHS = {"a": 6, "b": 20, "c": 33}


def net(p: Any, x: jax.Array) -> jax.Array:
    for name in WIDTHS:
        x = jnp.tanh(x @ p[name])
    return x @ p["out"]


SIZES = [5, *WIDTHS.values(), 3]
PARAMS = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in zip(
        [*WIDTHS, "out"], zip(SIZES, SIZES[1:], strict=False), strict=True
    )
}
DEPS = surgery.groups(net)(PARAMS, jax.ShapeDtypeStruct((2, 5), jnp.float32))
rng = np.random.default_rng(0)
SCORES = {g.id: rng.random(g.size) for g in DEPS}


def kept(plan: surgery.Plan) -> dict[str, int]:
    return {name: plan.compact_shapes[name,][1] for name in WIDTHS}


def offered(**asked: Any) -> dict[str, float]:
    """What the error of a target offers, as an argument."""
    with pytest.raises(ValueError, match="cannot be met|go: ") as error:
        surgery.select(DEPS, SCORES, **asked)
    (name, value) = re.findall(r"`(\w+)=([\d.]+)`", str(error.value))[0]
    return {name: float(value) if "." in value else int(value)}


@pytest.mark.filterwarnings("ignore:.*nine tenths:UserWarning")
@pytest.mark.parametrize("options", [{}, {"min_keep": 5}, {"round_to": 4}], ids=str)
@pytest.mark.parametrize(
    "name, target", [("flops", 0.0), ("params", 0.01), ("flops", 3)]
)
def test_the_least_budget_is_named_and_is_met(name, target, options):
    found = offered(**{name: target}, **options)
    plan = surgery.select(DEPS, SCORES, **found, **options)
    measure = DEPS.flops if name == "flops" else DEPS.parameters
    least = measure({f"{n}:1": k for n, k in kept(plan).items()})
    dense = measure()
    limit = found[name] if isinstance(target, int) else found[name] * dense
    assert least <= limit
    assert limit - least <= (0 if isinstance(target, int) else 1e-3 * limit)
    floor = options.get("round_to", options.get("min_keep", 1))
    assert all(n == floor for n in kept(plan).values())


@pytest.mark.filterwarnings("ignore:.*nine tenths:UserWarning")
@pytest.mark.parametrize("options", [{}, {"min_keep": 5}, {"most": 0.37}], ids=str)
@pytest.mark.parametrize("ranking", ["balanced", "global", "group", "isomorphic"])
def test_the_largest_sparsity_is_named_and_is_met(ranking, options):
    options = {**options, "ranking": ranking}
    found = offered(sparsity=0.999, **options)
    plan = surgery.select(DEPS, SCORES, **found, **options)
    beyond = found["sparsity"] + 1 / min(WIDTHS.values())
    with pytest.raises(ValueError, match="let at most"):
        surgery.select(DEPS, SCORES, sparsity=min(beyond, 0.9999), **options)
    least = options.get("min_keep", 1)
    least = {n: max(least, math.ceil(w * 0.63)) for n, w in WIDTHS.items()}
    if "most" in options and ranking in ("balanced", "global"):
        assert kept(plan) == least


def test_a_measured_budget_is_named_and_is_met():
    def stored(plan: surgery.Plan) -> float:
        return sum(math.prod(s) for s in plan.compact_shapes.values()) / 7

    options: Any = {"cost": stored, "min_keep": 5}
    found = offered(at_most=1, **options)
    plan = surgery.select(DEPS, SCORES, **found, **options)
    assert set(kept(plan).values()) == {5}


def test_where_nothing_can_go_nothing_is_offered():
    for asked in ({"flops": 0.2}, {"sparsity": 0.5, "ranking": "global"}):
        with pytest.raises(ValueError, match="no wider than") as error:
            surgery.select(DEPS, SCORES, **asked, round_to=64)
        assert not re.search(r"`\w+=", str(error.value))


def rounded(width: int, sparsity: float, step: int) -> tuple[int, bool]:
    """What a group keeps of its width, and whether no step of it leaves its share."""
    share = width - math.floor(sparsity * width + 0.5)
    multiple = -(-max(share, 1) // step) * step
    least = min(step, width)
    return min(multiple, width), least > share


@pytest.mark.filterwarnings("ignore:.*nine tenths:UserWarning")
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 94), st.integers(1, 40), st.sampled_from(["group", "isomorphic"]))
def test_every_group_keeps_its_share_rounded_up(percent, step, ranking):
    """All groups are of different widths here: isomorphic sets are single groups."""
    sparsity = percent / 100
    want = {n: rounded(w, sparsity, step) for n, w in WIDTHS.items()}
    asked: Any = {"sparsity": sparsity, "round_to": step, "ranking": ranking}
    if any(math.floor(sparsity * w + 0.5) == w for w in WIDTHS.values()):
        with pytest.raises(ValueError, match="`min_keep` and `most` let"):
            surgery.select(DEPS, SCORES, **asked)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if all(n == WIDTHS[name] for name, (n, _) in want.items()):
            with pytest.raises(ValueError, match="nothing"):
                surgery.select(DEPS, SCORES, **asked)
            return
        plan = surgery.select(DEPS, SCORES, **asked)
    assert kept(plan) == {name: n for name, (n, _) in want.items()}
    told = [
        str(w.message) for w in said if "keep what rounding leaves" in str(w.message)
    ]
    named = {
        f"{name}:1: {n} of {WIDTHS[name]}" for name, (n, short) in want.items() if short
    }
    assert set(re.findall(r"\n  (.*)", "".join(told))) == named
    assert len(told) == bool(named)


def test_floors_of_ones_own_are_kept_or_refused():
    """`min_keep` and `most` are asked for; only rounding may take from a share."""
    asked: Any = {"ranking": "group", "round_to": 4}
    with pytest.raises(ValueError, match=r"`min_keep` and `most` let at most 1 go"):
        surgery.select(DEPS, SCORES, sparsity=0.5, min_keep=5, **asked)
    with pytest.warns(UserWarning, match=r"rounding leaves[^$]*\n  a:1: 6 of 6$"):
        plan = surgery.select(DEPS, SCORES, sparsity=1 / 6, min_keep=5, **asked)
    assert kept(plan) == {"a": 6, "b": 20, "c": 28}


def test_groups_that_share_a_share():
    """Two branches alike: of 12 coordinates 6 are asked for, 2 of each can go."""

    def twins(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ p["a"]) @ p["b"] + jnp.tanh(x @ p["c"]) @ p["d"]

    shapes = {"a": (5, 6), "b": (6, 3), "c": (5, 6), "d": (6, 3)}
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    deps = surgery.groups(twins)(params, jax.ShapeDtypeStruct((2, 5), jnp.float32))
    scores = {g.id: np.arange(6.0) + i for i, g in enumerate(deps)}
    with pytest.warns(UserWarning, match=r"\n  a:1: 4 of 6\n  c:1: 4 of 6$"):
        plan = surgery.select(
            deps, scores, sparsity=0.5, round_to=4, ranking="isomorphic"
        )
    assert [plan.compact_shapes[n,][1] for n in "ac"] == [4, 4]
    in_one: Any = {"sparsity": 0.5, "round_to": 4}
    with pytest.raises(ValueError, match="`round_to` let at most 4 go: `sparsity=0.3"):
        surgery.select(deps, scores, **in_one)
