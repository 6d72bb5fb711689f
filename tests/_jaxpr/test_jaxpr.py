"""Tracing, dead code, FLOP counts, and each JAX name that `_compat` relies on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import analysis
from jprune._jaxpr import _compat
from jprune._jaxpr._trace import trace


def equations(jaxpr):
    return [e.primitive.name for e in jaxpr.jaxpr.eqns]


def test_paths_of_parameters_and_outputs():
    def fn(p, x, *, scale):
        return {"y": x @ p["a/b"]["w"] * scale, "p": p["flag"]}

    params = {"a/b": {"w": jnp.ones((3, 2))}, "flag": 7}
    traced = trace(fn)(params, jnp.ones((4, 3)), scale=2.0)
    assert traced.params == (("a/b", "w"),)
    assert traced.outputs == (("p",), ("y",))
    assert [a.shape for a in traced.input_avals] == [(3, 2), (4, 3)]


def test_static_leaves_stay_python_values():
    def fn(p, x, train):
        return x * p if train is True else x

    assert equations(trace(fn)(jnp.ones(3), jnp.ones(3), True).jaxpr) == ["mul"]
    assert equations(trace(fn)(jnp.ones(3), jnp.ones(3), False).jaxpr) == []


def test_dead_code_is_dropped_inside_calls_too():
    @jax.jit
    def inner(x):
        _ = x[..., 0]
        return x + 1

    traced = trace(lambda p, x: (inner(x * p), jnp.sin(x))[0])(
        1.0 * jnp.ones(()), jnp.ones(3)
    )
    assert equations(traced.jaxpr) == ["mul", "jit"]
    (body,) = _compat.sub_jaxprs(traced.jaxpr.jaxpr.eqns[1].params)
    assert [e.primitive.name for e in body.eqns] == ["add"]


def test_dead_results_and_inputs_of_calls_are_dropped():
    """Also where the call as a whole is live, and where an earlier site is."""

    @jax.jit
    def two(x, y):
        return x + 1, y * 2

    @jax.jit
    def first(x, y):
        del y
        return x - 1

    live = trace(lambda p, x: two(x, p))(1.0 * jnp.ones(()), jnp.ones(()))
    half = trace(lambda p, x: (two(x, p), two(p, jnp.sin(x))[0]))(
        1.0 * jnp.ones(()), jnp.ones(())
    )
    assert equations(live.jaxpr) == ["jit"] and equations(half.jaxpr) == ["jit", "jit"]
    unread = trace(lambda p, x: first(x, jnp.sin(p)))(jnp.ones(()), jnp.ones(()))
    assert equations(unread.jaxpr) == ["jit"]


def test_a_program_without_dead_code_is_returned_as_it_is():
    fn = jax.make_jaxpr(lambda x: jax.nn.relu(x).sum() + lax.cond(x[0] > 0, *BRANCHES))
    jaxpr = fn(jnp.ones(3))
    assert _compat.without_dead_code(jaxpr) is jaxpr


BRANCHES = (lambda: 1.0, lambda: 2.0)


def test_other_shapes():
    shapes: dict = {("w",): (3, 5)}
    out = trace(lambda p, x: x @ p["w"], shapes)(
        {"w": jnp.ones((3, 2))}, jnp.ones((4, 3))
    )
    assert out.jaxpr.out_avals[0].shape == (4, 5)


def test_bind_repeats_an_equation():
    jaxpr = jax.make_jaxpr(lambda x: jnp.sum(x, 0))(jnp.ones((2, 3)))
    (eqn,) = jaxpr.jaxpr.eqns
    (out,) = _compat.bind(eqn, eqn.params, [jnp.ones((5, 3))])
    np.testing.assert_array_equal(out, 5 * np.ones(3))


def test_literal_value_has_the_dtype_of_the_literal():
    jaxpr = jax.make_jaxpr(lambda x: x * 2)(jnp.ones((2,), jnp.bfloat16))
    literal = jaxpr.jaxpr.eqns[0].invars[1]
    assert isinstance(literal, _compat.Literal)
    assert _compat.literal_value(literal).dtype == jnp.bfloat16


def test_tracers_are_told_from_values():
    seen = []
    jax.jit(lambda x: seen.append(_compat.is_tracer(x)) or x)(1.0)
    assert seen == [True] and not _compat.is_tracer(jnp.ones(2))


def test_key_dtypes_are_not_numpy_dtypes():
    assert _compat.numpy_dtype(jax.random.key(0).dtype) is None
    assert _compat.numpy_dtype(jnp.ones(1).dtype) == np.float32


@pytest.mark.parametrize(
    ("fn", "args", "want"),
    [
        (lambda a, b: a @ b, [(4, 3), (3, 5)], 2 * 4 * 3 * 5),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [(2, 4, 3), (2, 3, 5)], 240),
        (
            lambda a, b: lax.conv_general_dilated(
                a, b, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            [(2, 8, 8, 3), (3, 3, 3, 7)],
            2 * (2 * 8 * 8 * 7) * 27,
        ),
        (
            lambda a, b: lax.conv_general_dilated(
                a,
                b,
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=2,
            ),
            [(1, 4, 4, 6), (1, 1, 3, 8)],
            2 * (4 * 4 * 8) * 3,
        ),
        (
            lambda a, b: lax.scan(lambda c, _: (c @ b, None), a, None, length=6)[0],
            [(4, 3), (3, 3)],
            6 * 2 * 4 * 9,
        ),
        (
            lambda a, b: lax.cond(a[0, 0] > 0, lambda: a @ b @ b, lambda: a @ b),
            [(4, 3), (3, 3)],
            2 * 2 * 4 * 9,
        ),
        (lambda a, b: jax.jit(lambda x: x @ b)(a) + 1, [(4, 3), (3, 3)], 72),
    ],
)
def test_flops(fn, args, want):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in args]
    assert analysis.flops(fn)(*shapes) == want
