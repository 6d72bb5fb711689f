"""Facts about results: what is said, and that it is so on arbitrary inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune.surgery._facts import Same, facts

X = jax.ShapeDtypeStruct((3, 4), jnp.float32)
Fn = Callable[[Any, Any], Any]


@jax.custom_jvp
def straight(x: Any) -> Any:
    return x * 1.0


straight.defjvp(lambda p, t: (straight(*p), 2 * t[0]))


def looped(x: Any, z: Any) -> Any:
    return lax.fori_loop(0, 3, lambda i, h: h + jnp.tanh(h) * z, x)


def drifting(x: Any, z: Any) -> Any:
    return lax.scan(lambda c, _: ((c[0] + c[1], c[1] + 1.0), None), (x, z), None, 3)[0][
        0
    ]


def branches(x: Any, z: Any, other: float = 0.0) -> Any:
    return lax.cond(x.sum() > 0, lambda: x + z, lambda: x - z + other)


TABLE: dict[str, tuple[Fn, Any]] = {
    "sum": (lambda x, z: x + z, "same"),
    "other side": (lambda x, z: z + x, "same"),
    "difference": (lambda x, z: x - z, "same"),
    "negative": (lambda x, z: z - x, None),
    "product": (lambda x, z: jnp.sin(x) * z, 0.0),
    "quotient": (lambda x, z: z / (1 + x * x), 0.0),
    "by zero": (lambda x, z: x / z, None),
    "zero by zero": (lambda x, z: z / z, None),
    "zero times infinite": (lambda x, z: z * lax.rsqrt(z), None),
    "matrix product": (lambda x, z: x @ z.T, 0.0),
    "einsum": (lambda x, z: jnp.einsum("ab,cb->ca", jnp.exp(x), z), 0.0),
    "one": (lambda x, z: x * jnp.cos(z), "same"),
    "two": (lambda x, z: x * (jnp.cos(z) + 1), None),
    "constant": (lambda x, z: jax.nn.sigmoid(z), 0.5),
    "softmax": (lambda x, z: jax.nn.softmax(z), 0.25),
    "mean": (lambda x, z: jnp.mean(z, 1), 0.0),
    "moves": (lambda x, z: jnp.flip(z.T.reshape(2, 6), 0)[:, 1:3], 0.0),
    "window": (
        lambda x, z: lax.dynamic_slice(z, (x[0, 0].astype(int), 0), (1, 2)),
        0.0,
    ),
    "joined": (lambda x, z: jnp.concatenate([z, 0 * z]), 0.0),
    "joined with others": (lambda x, z: jnp.concatenate([z, z + 1]), "numbers"),
    "padded": (lambda x, z: jnp.pad(z, 1), 0.0),
    "padded with ones": (lambda x, z: jnp.pad(z, 1, constant_values=1.0), None),
    "taken": (lambda x, z: jnp.take(z, x[0].astype(int), 0, mode="clip"), 0.0),
    "nan outside": (lambda x, z: jnp.take(z, x[0].astype(int), 0, mode="fill"), None),
    "scattered": (lambda x, z: z.at[x[0, 0].astype(int)].add(z[0]), 0.0),
    "written over": (lambda x, z: z.at[0].set(x[0]), None),
    "cumulative": (lambda x, z: jnp.cumsum(z, 0), 0.0),
    "chosen": (lambda x, z: jnp.where(x > 0, x, x + z), "same"),
    "one of two": (lambda x, z: jnp.where(x > 0, x, z), None),
    "call": (lambda x, z: jax.jit(lambda a: a + z)(x), "same"),
    "remat": (jax.checkpoint(lambda x, z: x + jnp.exp(x) * z), "same"),
    "activation": (lambda x, z: jax.nn.relu(z) + jax.nn.silu(z), 0.0),
    "activation of a moving value": (lambda x, z: jax.nn.relu(x), None),
    "own derivative": (lambda x, z: straight(x), None),
    "own derivative of zero": (lambda x, z: straight(z), 0.0),
    "stopped": (lambda x, z: lax.stop_gradient(x) + z, None),
    "branches": (branches, "same"),
    "branches that differ": (lambda x, z: branches(x, z, 1.0), None),
    "loop": (looped, "same"),
    "loop that drifts": (drifting, None),
    "cast and back": (lambda x, z: (x.astype("f8") + z).astype("f4"), "same"),
    "cast to less": (lambda x, z: x.astype("bfloat16").astype("f4"), None),
    "cast to integers": (lambda x, z: x.astype("i4").astype("f4"), None),
    "reshaped and back": (lambda x, z: x.reshape(3, 4) + z, "same"),
    "turned": (lambda x, z: x.reshape(4, 3).T, None),
    "signed": (lambda x, z: jnp.abs(x) + z, None),
    "random": (lambda x, z: jax.random.normal(jax.random.key(0), (3, 4)) + z, None),
}
"""A function of an unknown x and a z of zeros, and what is known of its result."""


@pytest.mark.parametrize("name", TABLE)
def test_what_is_known_of_a_result(name: str):
    fn, want = TABLE[name]
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        jaxpr = jax.make_jaxpr(fn)(X, X)
        zero = np.zeros((1, 1), np.float32)
        (fact,) = facts(jaxpr, [Same(0, jnp.dtype("f4")), zero])
        x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), "f4")
        value = np.asarray(fn(x, jnp.zeros_like(x)))
    if want is None:
        assert fact is None or not np.isfinite(fact).all()
    elif want == "same":
        assert fact == Same(0, jnp.dtype("f4"))
        np.testing.assert_array_equal(value, x)
    elif want == "numbers":
        assert isinstance(fact, np.ndarray)
        np.testing.assert_array_equal(fact, value)
    else:
        assert isinstance(fact, np.ndarray) and fact.ndim == value.ndim
        np.testing.assert_array_equal(fact, np.full((1,) * value.ndim, want, "f4"))
        np.testing.assert_array_equal(value, np.full_like(value, want))
