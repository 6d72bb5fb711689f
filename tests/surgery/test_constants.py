"""Constants at removed coordinates are folded to the values that XLA computes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import surgery

pytestmark = pytest.mark.usefixtures("double")


def centred(h: Any) -> Any:
    return h - h.mean(-1, keepdims=True)


def cast(h: Any, dtype: Any) -> Any:
    return h.astype(dtype).astype(h.dtype)


def rotated(h: Any) -> Any:
    """Pairs as complex numbers, as rotary embeddings turn them."""
    z = lax.complex(h, 2.0 * h - 1.0) * jnp.exp(1j * jnp.arange(3.0))[:, None]
    return z.real + z.imag


CASES = {
    # name: (function of h [3, 6], kind of exactness)
    "below the range": (lambda h: cast(40 * h - 20, np.uint8), "zero"),
    "above the range": (lambda h: cast(40 * h + 300, np.int8), "constant"),
    "above all integers": (lambda h: cast(h + 1e30, np.int64) / 2.0**62, "constant"),
    "minus infinity": (lambda h: cast(jnp.log2(abs(h)), np.int8), "constant"),
    "infinity": (lambda h: cast(-jnp.log2(abs(h)), np.uint32), "constant"),
    "not a number": (lambda h: cast(h / abs(h), np.int32), "zero"),
    "towards 0": (lambda h: cast(3 * h - 2.7, np.int32), "constant"),
    "rounded to even": (lambda h: jnp.round(h + 0.5) + h, "zero"),
    "rounded away": (lambda h: lax.round(h - 0.5) + h, "constant"),
    "hardly a half": (lambda h: lax.round(h + (0.5 - 2.0**-54)) + h, "zero"),
    "rounded sigmoid": (lambda h: jnp.round(7 * jax.nn.sigmoid(h)) + h, "constant"),
    "complex": (rotated, "constant"),
}


@pytest.mark.parametrize("name", CASES)
def test_folded_as_computed(name: str):
    act, way = CASES[name]
    check(lambda h: centred(act(h)), way)


def test_a_constant_that_only_the_kept_share():
    """Too large to fold, yet one number at the kept coordinates."""
    table = np.full((3, 6), 300.0)
    table[:, [1, 3, 4]] = 7.0
    table = np.tile(table, (1, 1024))[:, :6144]
    check(lambda h: h + cast(jnp.asarray(table), np.uint8), "zero", 1024)


TABLES = {
    "three that differ": ([1.0, 2.0, 3.0], "no"),
    "two pairs": ([1.0, 1.0, 2.0, 2.0], "no"),
    "the first differs": ([2.0, 1.0, 1.0, 1.0], "no"),
    "the last differs": ([1.0, 1.0, 1.0, 2.0], "no"),
    "all alike": ([2.0, 2.0, 2.0, 2.0], "constant"),
    "two, the first 0": ([0.0, 1.0], "constant"),
    "two, the last 0": ([1.0, 0.0], "constant"),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_is_called_exact_is_so_whatever_is_kept(name: str):
    numbers, way = TABLES[name]
    table, n = np.array(numbers), len(numbers)

    def fn(p: Any, x: Any) -> Any:
        h = x @ p["w"] + table
        return h @ p["v"] + h.sum(-1, keepdims=True)

    p, x = {"w": jnp.ones((2, n)), "v": jnp.ones((n, 2))}, jnp.ones((1, 2))
    deps = surgery.groups(fn)(p, x)
    assert deps.exactness["w:1"].way == way
    equal = []
    for number in range(1, 2**n - 1):
        keep = np.array([bool(number >> i & 1) for i in range(n)])
        plan = surgery.plan_from_keep(deps, {"w:1": keep})
        small = surgery.shrink(fn, plan)(plan.pack(p), x)
        equal.append(np.allclose(small, fn(plan.zero(p), x)))
    assert all(equal) == (way != "no")


@pytest.mark.parametrize("kind", ["gradient", "tangent"])
def test_sums_of_derivatives_inside_the_function(kind: str):
    """`add_any` of a repeated cotangent and of an array."""

    def inner(h: Any) -> Any:
        f = lambda z: jnp.cos(z) * z.mean(-1, keepdims=True)  # noqa: E731
        if kind == "gradient":
            return jax.grad(lambda z: f(z).sum())(h)
        return jax.jvp(lambda z: f(z) - z * z.mean(), (h,), (jnp.cos(h),))[1]

    check(lambda h: centred(inner(h)), "ghost")


def check(act: Any, way: str, times: int = 1) -> None:
    """Forward and gradient against the zeroed dense model."""
    rng = np.random.default_rng(0)
    params = {
        "w": rng.standard_normal((4, 6 * times)),
        "v": rng.standard_normal((6 * times, 2)),
    }
    fn = lambda p, x: act(x @ p["w"]) @ p["v"]  # noqa: E731
    x = rng.standard_normal((3, 4))
    deps = surgery.groups(fn)(params, x)
    kept = np.tile(np.isin(np.arange(6), [0, 2, 5]), times)
    plan = surgery.plan_from_keep(deps, {"w:1": kept})
    report = surgery.verify(fn, plan, params, x, gradient=True)
    assert (report.ok or report.zero) and report.way == way, str(report)
    assert report.error < 1e-12 and (report.gradient_error or 0) < 1e-12, str(report)
