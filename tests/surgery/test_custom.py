"""Custom derivative rules survive removal, also where ghosts move through them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import surgery
from tests.surgery.structures import two_pass

pytestmark = pytest.mark.usefixtures("double")


@jax.custom_jvp
def wrong_by_seven(x):
    return jnp.sin(x)


wrong_by_seven.defjvp(lambda p, t: (jnp.sin(p[0]), 7.0 * t[0]))


@jax.custom_vjp
def straight_through(x):
    return jnp.sign(x)


straight_through.defvjp(lambda x: (jnp.sign(x), None), lambda _, ct: (ct,))


@jax.custom_vjp
def scaled_back(x, factor):
    """The reverse rule uses residuals and an integer operand."""
    return jnp.tanh(x) * factor


scaled_back.defvjp(
    lambda x, factor: (jnp.tanh(x) * factor, (x, factor)),
    lambda res, ct: (3.0 * ct * res[1] / (1 + res[0] ** 2), None),
)


@jax.custom_jvp
def custom_norm(x):
    """A correction is needed inside the primal and inside the rule."""
    return x - x.mean(-1, keepdims=True) + jax.nn.sigmoid(x).mean(-1, keepdims=True)


@custom_norm.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    s = jax.nn.sigmoid(x)
    y = x - x.mean(-1, keepdims=True) + s.mean(-1, keepdims=True)
    slope = t - t.mean(-1, keepdims=True) + (s * (1 - s) * t).mean(-1, keepdims=True)
    return y, 2.0 * slope  # twice the truth, on purpose


@jax.custom_vjp
def custom_softmax(x):
    e = jnp.exp(x)
    return e / e.sum(-1, keepdims=True)


def _softmax_fwd(x):
    y = custom_softmax(x)
    return y, y


def _softmax_bwd(y, ct):
    inner = (ct * y).sum(-1, keepdims=True)
    return (1.5 * y * (ct - inner),)  # half as much again as the truth


custom_softmax.defvjp(_softmax_fwd, _softmax_bwd)


@jax.custom_vjp
def normalized_back(x):
    """Removed coordinates that are constant receive, and hand on, a cotangent."""
    return x


normalized_back.defvjp(
    lambda x: (x, None),
    lambda _, ct: (ct / (1e-3 + jnp.linalg.norm(ct, axis=-1, keepdims=True)),),
)


@jax.custom_jvp
def centred_slope(x):
    """Removed coordinates that are constant move."""
    return x


centred_slope.defjvp(lambda p, t: (p[0], t[0] - t[0].mean(-1, keepdims=True)))


@jax.custom_vjp
def gradient_to_other(x, y):
    """The primal does not read the operand that the cotangent goes to."""
    return y


gradient_to_other.defvjp(lambda x, y: (y, None), lambda _, ct: (ct, jnp.zeros_like(ct)))


@jax.custom_jvp
def slope_of_other(x, y):
    return y


slope_of_other.defjvp(lambda p, t: (p[1], t[0]))


@jax.custom_vjp
def gated_back(x, gate):
    """Only the rule reads the integers."""
    return x


gated_back.defvjp(lambda x, gate: (x, gate), lambda gate, ct: (ct * gate, None))

ROWS = np.linspace(0.5, 1.0, 3)[:, None]


@jax.custom_vjp
def closing_over(x):
    """JAX passes what a rule closes over as further operands."""
    return jnp.tanh(x) * jnp.asarray(ROWS)


closing_over.defvjp(
    lambda x: (closing_over(x), None), lambda _, ct: (ct * jnp.asarray(ROWS),)
)


def centred(h: Any) -> Any:
    return h - h.mean(-1, keepdims=True)


CASES = {
    "wrong jvp": lambda h: wrong_by_seven(h),
    "straight through": lambda h: straight_through(h),
    "vjp with an integer": lambda h: scaled_back(h, 2),
    "straight through, moving ghost": lambda h: straight_through(two_pass(h) - 0.3) + h,
    "wrong jvp, moving ghost": lambda h: wrong_by_seven(two_pass(h)) + h,
    "vjp, moving ghost": lambda h: scaled_back(two_pass(h), 2) + h,
    "corrections inside a jvp rule": lambda h: custom_norm(h) + h,
    "corrections inside a vjp rule": lambda h: custom_softmax(h) + h,
    "rule on a moving ghost, corrected inside": lambda h: custom_softmax(two_pass(h)),
    "vjp that sums, a known ghost": lambda h: centred(normalized_back(jax.nn.relu(h))),
    "vjp that sums, another constant": (
        lambda h: centred(normalized_back(jax.nn.sigmoid(h)))
    ),
    "vjp that sums, in a scan": lambda h: jax.lax.scan(
        lambda c, _: (centred(normalized_back(jax.nn.relu(c))), None), h, None, 2
    )[0],
    "vjp that sums, a moving ghost": lambda h: normalized_back(two_pass(h)) + h,
    "jvp that sums, a known ghost": lambda h: centred(centred_slope(jax.nn.relu(h))),
    "jvp that sums, another constant": (
        lambda h: centred(centred_slope(jax.nn.sigmoid(h)))
    ),
    "vjp to what is not read": lambda h: gradient_to_other(h, jnp.sign(h)),
    "vjp to a moving ghost that is not read": (
        lambda h: gradient_to_other(two_pass(h), jnp.sign(two_pass(h))) + h
    ),
    "vjp with integers that are not read": (
        lambda h: gated_back(h, (h > 0).astype(np.int32))
    ),
    "jvp of what is not read": lambda h: slope_of_other(h, jnp.sign(h)),
    "vjp that closes over an array": closing_over,
}


@pytest.mark.parametrize("name", CASES)
def test_rule_survives(name: str):
    act = CASES[name]

    def fn(p: Any, x: Any) -> Any:
        h = act(x @ p["w"] + p["b"])
        return h @ p["v"] + jnp.cos(h).mean(-1, keepdims=True)

    rng = np.random.default_rng(0)
    shapes = {"w": (4, 6), "b": (6,), "v": (6, 3)}
    params = {k: rng.standard_normal(s) for k, s in shapes.items()}
    x = rng.standard_normal((3, 4))
    deps = surgery.groups(fn)(params, x)
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 2, 5]})
    report = surgery.verify(fn, plan, params, x, gradient=True)
    assert report.ok and report.way != "no", str(report)
    assert report.error < 1e-12 and (report.gradient_error or 0) < 1e-12, str(report)


def test_relu_is_flat_at_zero():
    def fn(p, x):
        return (jax.nn.relu(x @ p["w"]) @ p["v"]).sum()

    params = {"w": np.zeros((2, 4)), "v": np.ones((4, 1))}
    deps = surgery.groups(fn)(params, np.ones((1, 2)))
    plan = surgery.plan_from_keep(deps, {"w:1": [1, 2]})
    small = surgery.shrink(fn, plan)
    slope = jax.grad(small)(plan.pack(params), np.ones((1, 2)))
    np.testing.assert_array_equal(slope["w"], 0.0)


def test_second_derivatives():
    def fn(p, x):
        return jnp.sum(wrong_by_seven(two_pass(x @ p["w"])) @ p["v"])

    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((2, 4)), "v": rng.standard_normal((4, 1))}
    x = rng.standard_normal((3, 2))
    deps = surgery.groups(fn)(params, x)
    plan = surgery.plan_from_keep(deps, {"w:1": [1, 2]})
    small = surgery.shrink(fn, plan)
    compact = jax.jit(jax.jacfwd(jax.grad(lambda x: small(plan.pack(params), x))))(x)
    dense = jax.jit(jax.jacfwd(jax.grad(lambda x: fn(plan.zero(params), x))))(x)
    np.testing.assert_allclose(compact, dense, rtol=1e-10, atol=1e-12)


def test_a_rule_that_relates_other_axes_says_so():
    @jax.custom_vjp
    def reversed_back(h):
        return h * 2.0

    reversed_back.defvjp(lambda h: (h * 2.0, None), lambda _, ct: (ct[:, ::-1],))

    def fn(p, x):
        return (reversed_back(x @ p["w"]) @ p["v"]).sum()

    params = {"w": np.ones((2, 4)), "v": np.ones((4, 1))}
    deps = surgery.groups(fn)(params, np.ones((1, 2)))
    plan = surgery.plan_from_keep(deps, {"w:1": [1, 2]})
    small = surgery.shrink(fn, plan)
    small(plan.pack(params), np.ones((1, 2)))
    with pytest.raises(ValueError, match="derivative rule of .* cannot be carried"):
        jax.grad(small)(plan.pack(params), np.ones((1, 2)))


def test_a_rule_on_a_weight():
    """The cotangents of the removed rows belong to the norm of all."""

    def fn(p, x):
        v = normalized_back(p["v"].T).T
        return jnp.tanh(jax.nn.sigmoid(x @ p["w"]) @ v)

    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((4, 6)), "v": rng.standard_normal((6, 3))}
    x = rng.standard_normal((3, 4))
    deps = surgery.groups(fn)(params, x)
    plan = surgery.plan_from_keep(deps, {"w:1": [0, 2, 5]})
    report = surgery.verify(fn, plan, params, x, gradient=True)
    assert report.ok and report.way == "ghost", str(report)
    assert report.error < 1e-12 and (report.gradient_error or 0) < 1e-12, str(report)


def test_a_constant_through_a_plain_rule_stays_one():
    """A tangent that is known to be 0 leaves the ghost of a relu a zero."""

    def fn(p, x):
        return centred(jax.nn.relu(x @ p["w"])) @ p["v"]

    params = {"w": np.ones((4, 6)), "v": np.ones((6, 3))}
    deps = surgery.groups(fn)(params, np.ones((3, 4)))
    assert deps.exactness["w:1"].way == "zero"


def test_a_rule_that_calls_its_own_function_is_not_traced_without_end():
    calls = []

    @jax.custom_jvp
    def act(x):
        return jax.nn.sigmoid(x)

    @act.defjvp
    def _(primals, tangents):
        calls.append(1)
        y = act(*primals)
        return y, tangents[0] * y * (1 - y)

    def fn(p, x):
        return centred(act(x @ p["in"])) @ p["out"]

    rng = np.random.default_rng(0)
    p = {"in": rng.normal(size=(4, 6)), "out": rng.normal(size=(6, 2))}
    deps = surgery.groups(fn)(p, rng.normal(size=(3, 4)))
    calls.clear()
    assert deps.exactness["in:1"].way == "constant" and 0 < len(calls) <= 4


def test_a_cotangent_of_coordinates_that_differ_says_so():
    @jax.custom_vjp
    def centred_back(h):
        return h

    centred_back.defvjp(lambda h: (h, None), lambda _, ct: (centred(ct),))

    def fn(p, x):
        return (centred_back(x @ p["w"] + jnp.arange(4.0)) @ p["v"]).sum()

    params = {"w": np.ones((2, 4)), "v": np.ones((4, 1))}
    deps = surgery.groups(fn)(params, np.ones((1, 2)))
    plan = surgery.plan_from_keep(deps, {"w:1": [1, 2]})
    small = surgery.shrink(fn, plan)
    with pytest.raises(ValueError, match="a custom_vjp function cannot .* differs"):
        jax.grad(small)(plan.pack(params), np.ones((1, 2)))


def test_the_certificate_asks_a_rule_once_for_both_probes():
    asked = []

    @jax.custom_jvp
    def act(x):
        return jnp.maximum(x, 0.0)

    @act.defjvp
    def _(primals, tangents):
        asked.append(primals[0].shape)
        return act(primals[0]), jnp.where(primals[0] > 0, tangents[0], 0.0)

    def fn(p, x):
        h = act(x @ p["w"] + p["b"])
        return h.mean(-1)

    p = {"w": jnp.ones((3, 6)), "b": jnp.ones(6)}
    deps = surgery.groups(fn)(p, jnp.ones((2, 3)))
    assert {e.way for e in deps.exactness.values()} == {"zero"}
    assert len(asked) == 1
