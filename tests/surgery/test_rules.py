"""The rows of the rule table that the structures leave out: frozen or passing axes.

Each case is a primitive between two products: x w, the primitive, v. The expected group
size is by hand; 0 means that the axis must be frozen by the primitive named.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jprune import surgery

WINDOW = lambda h: lax.reduce_window(h, 0.0, lax.add, (1, 2), (1, 2), "VALID")  # noqa: E731
LOWER = np.tril(np.ones((4, 4))) + np.eye(4)
DIAGONALS = np.asarray([[0, 1, 0, 1], [4, 5, 6, 7], [1, 0, 2, 0]], float)
UNITS = np.asarray([[0, 1, 1, 1, 1, 1], [4] * 6, [1, 1, 1, 1, 1, 0]], float)
ROWS = lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (2, 1), (1, 1), "SAME")  # noqa: E731


def inner(h: Any) -> Any:
    return jax.jit(lambda a: jnp.tanh(a) + 1.0)(h)


CASES = {
    # name: (function of h [4, 6], group size, primitive that freezes it)
    "sort along": (lambda h: jnp.sort(h, -1), 0, "sort"),
    "sort across": (lambda h: jnp.sort(h, 0), 6, ""),
    "argsort across": (lambda h: jnp.take_along_axis(h, jnp.argsort(h, 0), 0), 6, ""),
    "top_k along": (lambda h: lax.top_k(h, 3)[0], 0, "top_k"),
    "top_k across": (lambda h: lax.top_k(h.T, 2)[0].T, 6, ""),
    "cumsum along": (lambda h: jnp.cumsum(h, -1), 0, "cumsum"),
    "cumsum across": (lambda h: jnp.cumsum(h, 0), 6, ""),
    "cumlogsumexp across": (lambda h: lax.cumlogsumexp(h, 0), 6, ""),
    "flip along": (lambda h: h[:, ::-1], 0, "rev"),
    "flip across": (lambda h: h[::-1], 6, ""),
    "argmax along": (lambda h: h + jnp.argmax(h, -1, keepdims=True), 0, "argmax"),
    "argmax across": (lambda h: h * jnp.argmax(h, 0)[None], 6, ""),
    "window along": (WINDOW, 0, "reduce_window_sum"),
    "window across": (ROWS, 6, ""),
    "strided slice that does not divide": (
        lambda h: lax.slice(h, (0, 0), h.shape, (1, 4)),
        0,
        "slice",
    ),
    "strided slice": (lambda h: lax.slice(h, (0, 1), h.shape, (1, 3)), 2, ""),
    "run-time slice along": (
        lambda h: lax.dynamic_slice(h, (0, 1), (4, 3)),
        0,
        "dynamic_slice",
    ),
    "run-time slice across": (lambda h: lax.dynamic_slice(h, (1, 0), (2, 6)), 6, ""),
    "run-time write": (
        lambda h: lax.dynamic_update_slice(h, 2 * h[:1], (1, 0)),
        6,
        "",
    ),
    "gather along": (lambda h: h[:, jnp.asarray([1, 0, 2])], 0, "gather"),
    "gather across": (lambda h: h[jnp.asarray([1, 0, 2])], 6, ""),
    "scatter along": (lambda h: h.at[:, 1].set(0.0), 0, "scatter"),
    "scattered rows": (
        lambda h: jax.ops.segment_sum(h.T, jnp.asarray([0, 1, 2, 3, 0, 1]), 4),
        0,
        "scatter-add",
    ),
    "scatter across": (
        lambda h: jax.ops.segment_sum(h, jnp.asarray([0, 1, 1, 3]), 4),
        6,
        "",
    ),
    "reduce by a program": (
        lambda h: h + lax.reduce(h, 0.0, lambda a, b: a + 2 * b, (1,))[:, None],
        0,
        "reduce",
    ),
    "reduce by a program across": (
        lambda h: h * lax.reduce(h, 0.0, lambda a, b: a + 2 * b, (0,))[None],
        6,
        "",
    ),
    "xor along": (
        lambda h: h * lax.reduce_xor((h > 0).astype(np.int32), (1,))[:, None],
        0,
        "reduce_xor",
    ),
    "any along": (lambda h: h * (h > 0).any(-1, keepdims=True), 6, ""),
    "min along": (lambda h: h - h.min(-1, keepdims=True), 6, ""),
    "fft along": (lambda h: jnp.fft.fft(h).real, 0, "fft"),
    "linear algebra": (lambda h: jnp.linalg.qr(h)[0], 0, "qr"),
    "cholesky": (
        lambda h: jnp.linalg.cholesky(h.T @ h + jnp.eye(6)),
        0,
        "cholesky",
    ),
    "singular values": (lambda h: h * jnp.linalg.svd(h)[1][:, None], 0, "svd"),
    "triangular system": (
        lambda h: lax.linalg.triangular_solve(LOWER, h, left_side=True, lower=True),
        6,
        "",
    ),
    "triangular system of units": (
        lambda h: lax.linalg.triangular_solve(
            jnp.eye(6) + 0.1 * jnp.tril(h.T @ h), h, lower=True
        ),
        0,
        "triangular_solve",
    ),
    "tridiagonal systems": (
        lambda h: lax.linalg.tridiagonal_solve(
            *(d.reshape(2, 2) for d in DIAGONALS), jnp.cos(h).reshape(2, 2, 6)
        ).reshape(4, 6),
        6,
        "",
    ),
    "tridiagonal system of units": (
        lambda h: lax.linalg.tridiagonal_solve(*UNITS, h.T).T,
        0,
        "tridiagonal_solve",
    ),
    "diagonals of units": (
        lambda h: (
            lax.linalg.tridiagonal_solve(
                0 * h[0], 2 + h[0] ** 2, 0 * h[0], np.ones((6, 4))
            ).T
        ),
        0,
        "tridiagonal_solve",
    ),
    "solve": (lambda h: jnp.linalg.solve(LOWER, h), 0, "custom_linear_solve"),
    "unstack along": (lambda h: jnp.stack(jnp.unstack(h, axis=1), 1), 0, "unstack"),
    "unstack across": (lambda h: jnp.stack(jnp.unstack(h)), 6, ""),
    "bit cast": (
        lambda h: lax.bitcast_convert_type(
            lax.bitcast_convert_type(h, np.int64), np.float64
        ),
        6,
        "",
    ),
    "clamp and select": (
        lambda h: jnp.where(jnp.clip(h, -0.5, 0.5) > 0, h, -h),
        6,
        "",
    ),
    "rounding": (lambda h: lax.reduce_precision(jnp.round(h, 2), 8, 7), 6, ""),
    "negative padding": (
        lambda h: lax.pad(h, 0.0, ((0, 0, 0), (-1, 0, 0))),
        0,
        "pad",
    ),
    "interior padding": (lambda h: lax.pad(h, 0.0, ((0, 0, 0), (0, 0, 1))), 0, "pad"),
    "a size-0 piece": (lambda h: jnp.split(h, [6], 1)[0], 6, ""),
    "an empty operand": (lambda h: jnp.concatenate([h, h[:, :0]], 1), 6, ""),
    "edges repeated across": (
        lambda h: jnp.pad(h, ((1, 0), (0, 0)), mode="edge"),
        4,  # the outer two are cut off, to be repeated zero times
        "",
    ),
    "transpose": (lambda h: jnp.tanh(h.T).T, 6, ""),
    "permuting reshape": (
        lambda h: lax.reshape(jnp.cos(h).reshape(2, 2, 6), (2, 12), (1, 2, 0)),
        6,
        "",
    ),
    "permuting reshape of a constant": (
        lambda h: h + lax.reshape(jnp.arange(24.0).reshape(2, 2, 6), (4, 6), (1, 0, 2)),
        6,
        "",
    ),
    "a call with a constant": (inner, 6, ""),
    "named": (lambda h: checkpoint_name(h, "h"), 6, ""),
    "callback": (
        lambda h: jax.pure_callback(
            lambda a: np.asarray(a) * 2, jax.ShapeDtypeStruct(h.shape, h.dtype), h
        ),
        0,
        "pure_callback",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_row(name: str):
    check(name, lambda size: np.arange(size)[::2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [n for n, (_, size, _) in CASES.items() if size])
def test_row_with_random_choices(name: str, seed: int):
    """Any number of any coordinates, against the dense primitive indexed."""
    rng = np.random.default_rng(seed)
    check(name, lambda n: np.sort(rng.permutation(n)[: rng.integers(1, n)]))


def check(name: str, kept: Any) -> None:
    """The row's group or its reason, and its values under a choice."""
    act, size, primitive = CASES[name]
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((4, 5))
        w = rng.standard_normal((5, 6))
        width = jax.eval_shape(act, jax.ShapeDtypeStruct((4, 6), np.float64)).shape[1]
        params = {"w": w, "v": rng.standard_normal((width, 2))}
        fn = lambda p, x: act(x @ p["w"]) @ p["v"]  # noqa: E731
        deps = surgery.groups(fn)(params, x)
        if primitive == "unstack" and "= unstack[" not in str(
            jax.make_jaxpr(fn)(params, x)
        ):
            pytest.skip("this JAX slices instead")
        if size == 0:
            reasons = {
                f.primitive for f in deps.frozen() if (f.path, f.axis) == (("w",), 1)
            }
            assert reasons == {primitive}, deps.table()
            return
        (group,) = [g for g in deps if g.kind == "coupled"]
        assert group.size == size
        plan = surgery.plan_from_keep(deps, {group.id: kept(size)})
        want = jax.jit(fn)(plan.zero(params), x)
        got = jax.jit(surgery.shrink(fn, plan))(plan.pack(params), x)
        np.testing.assert_allclose(got, want, atol=1e-12)


def conv(x: Any, kernel: Any) -> Any:
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)


MOVES = {
    # name: (function, shapes of the parameters, group to cut)
    "edges repeated": (
        lambda p, x: (
            jnp.pad(jnp.cos(x[0, 0] @ p["w"]), ((1, 0), (0, 0)), mode="edge") @ p["v"]
        ),
        {"w": (3, 6), "v": (6, 2)},
        "w:1",
    ),
    "permuting reshape": (
        lambda p, x: lax.reshape(jnp.cos(x @ p["w"]), (4, 12), (1, 2, 0, 3)) @ p["v"],
        {"w": (3, 6), "v": (12, 2)},
        "w:1",
    ),
    "an ensemble of convolutions": (
        lambda p, x: jax.vmap(lambda w, v: conv(jnp.tanh(conv(x, w)), v))(
            p["w"], p["v"]
        ),
        {"w": (2, 1, 1, 3, 6), "v": (2, 1, 1, 6, 5)},
        "v:3",
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_with_gradients(name: str):
    fn, shapes, cut = MOVES[name]
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        rng = np.random.default_rng(0)
        params = {k: rng.standard_normal(s) for k, s in shapes.items()}
        x = rng.standard_normal((2, 2, 2, 3))
        deps = surgery.groups(fn)(params, x)
        plan = surgery.plan_from_keep(deps, {cut: [0, 2]})
        report = surgery.verify(fn, plan, params, x, gradient=True)
    assert report.ok and report.error < 1e-12, str(report)
    assert report.gradient_error is not None and report.gradient_error < 1e-12
