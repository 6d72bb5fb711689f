"""What a first hour gets wrong: each mistake is an error that names the right call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import masks, surgery, transforms
from jprune.frameworks import _state


def net(p: Any, x: Any) -> Any:
    h = jnp.tanh(x @ p["up"]) * p["scale"]
    return h @ p["down"]


P = {"up": jnp.ones((4, 8)), "scale": jnp.ones((1, 8)), "down": jnp.ones((8, 2))}
X = jnp.ones((1, 4))
DEPS = surgery.groups(net)(P, X)
SCORES = {"up:1": np.arange(8.0)}
CALL = r"`surgery\.groups\(fn\)\(params, \*args\)`"


def test_groups_in_place_of_a_plan():
    for call in (
        lambda: surgery.shrink(net, DEPS),  # type: ignore[arg-type]
        lambda: surgery.verify(net, DEPS, P, X),  # type: ignore[arg-type]
        lambda: _state.require_paths(DEPS, {}, ""),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"got Groups: `surgery\.select\(deps"):
            call()


def test_a_function_in_place_of_groups():
    for given in (net, surgery.groups(net)):
        wrong: Any = given
        for call in (
            lambda w=wrong: surgery.select(w, SCORES, flops=0.5),
            lambda w=wrong: surgery.plan_from_keep(w, {}),
            lambda w=wrong: surgery.plan_from_masks(w, masks.unstructured(P, 0.5)),
        ):
            with pytest.raises(TypeError, match=CALL):
                call()
    with pytest.raises(AttributeError, match="no 'scores': the groups are " + CALL):
        surgery.groups(net).scores  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(TypeError, match=r"groups\(fn\)\(params, \*args\)"):
        surgery.groups(net, P, X)


def test_a_mask_tree_that_lacks_a_leaf():
    mask = masks.channels(P, 0.5, axis=1, scope="up")
    assert surgery.plan_from_masks(DEPS, mask).compact_shapes["up",] == (4, 4)
    less = {name: m for name, m in mask.items() if name != "scale"}
    with pytest.raises(ValueError, match=r"(?s)every leaf.*Missing:\n  scale$"):
        surgery.plan_from_masks(DEPS, less)


def test_an_integer_is_a_count_and_a_text_no_number():
    with pytest.raises(ValueError, match=r"cannot be met.*\(An int is a count"):
        surgery.select(DEPS, SCORES, flops=1)
    with pytest.raises(ValueError, match="cannot be met") as error:
        surgery.select(DEPS, SCORES, flops=0.001)
    assert "int" not in str(error.value)
    text: Any = "0.9"
    for call in (
        lambda: masks.unstructured(P, text),
        lambda: surgery.select(DEPS, SCORES, sparsity=text),
        lambda: transforms.swd(0.1, mu=0.1, total_steps=2, sparsity=text).init(P),
    ):
        with pytest.raises(TypeError, match="must be a number, got '0.9', a str"):
            call()


@pytest.mark.parametrize(
    "keep, message",
    [
        ({"up:1": [1.5]}, "bools or indices along one axis, got float64"),
        ({"up:1": "0123"}, "bools or indices along one axis"),
        ({"up:1": 3}, r"bools or indices along one axis, got int64 of shape \(\)"),
        ({"up:1": [0, 0, 1]}, r"each index once, got 0 more than once"),
        ({"up:1": np.ones(8, int)}, r"A mask holds bools: `\.astype\(bool\)`"),
        (None, "`keep` must be a mapping by group id, got NoneType"),
    ],
)
def test_kept_coordinates_are_bools_or_distinct_indices(keep, message):
    with pytest.raises(ValueError, match=message):
        surgery.plan_from_keep(DEPS, keep)
    assert surgery.plan_from_keep(DEPS, {"up:1": []}).compact_shapes["up",] == (4, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"exclude": 3}, "`exclude` must be a regular expression or several, got 3"),
        ({"most": "a"}, r"`most` must be a fraction in \(0, 1\], got 'a'"),
        ({"round_to": "8"}, "`round_to` must be an integer of at least 1, got '8'"),
        ({"exact": "no"}, "`exact` must be True or False, got 'no'"),
        ({"ratios": 0.5}, "`ratios` must be a mapping from patterns"),
        ({"ratios": {"up": "half"}}, r"must be a fraction in \[0, 1\), got 'half'"),
    ],
)
def test_options_of_another_type(options, message):
    given: Any = {"sparsity": 0.5, **options}
    with pytest.raises((ValueError, TypeError), match=message):
        surgery.select(DEPS, SCORES, **given)


def test_what_follows_a_plan_is_a_plan():
    plan = surgery.plan_from_keep(DEPS, {"up:1": [0]})
    wrong: Any = None
    with pytest.raises(TypeError, match="`other` must be a `surgery.Plan`, got None"):
        plan.then(wrong)


def test_a_plan_inside_jit():
    """Shapes cannot depend on what is traced; masks can."""

    def pack(p: Any) -> Any:
        return surgery.select(DEPS, DEPS.scores(p), sparsity=0.5).pack(p)

    with pytest.raises(TypeError, match="`scores` are traced.* or `choose`"):
        jax.jit(pack)(P)
