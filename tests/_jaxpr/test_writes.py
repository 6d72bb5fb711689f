"""Static writes into constants are joined parts: NumPy's assignment is the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import surgery
from jprune._jaxpr import _compat
from jprune._jaxpr._writes import joined_writes

X = np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 4)
WRITES = ("scatter", "scatter-add", "scatter_add", "dynamic_update_slice")


def names(jaxpr):
    return [e.primitive.name for e in jaxpr.jaxpr.eqns]


def assigned(start, *, fill=0.0, shape=(3, 7), adds=False):
    """The same by NumPy."""
    out = np.full(shape, fill, np.float32)
    spot = tuple(slice(a, a + n) for a, n in zip(start, X.shape, strict=True))
    out[spot] = out[spot] + X if adds else X
    return out


CASES = {
    "columns": (
        lambda x: jnp.zeros((2, 7)).at[:, 2:6].set(x),
        assigned((0, 2), shape=(2, 7)),
    ),
    "both axes": (
        lambda x: jnp.ones((3, 7)).at[1:, 3:].set(x),
        assigned((1, 3), fill=1.0),
    ),
    "added": (
        lambda x: jnp.ones((3, 7)).at[:2, -4:].add(x),
        assigned((0, 3), fill=1.0, adds=True),
    ),
    "update": (
        lambda x: lax.dynamic_update_slice(jnp.ones((3, 7)), x, (1, 2)),
        assigned((1, 2), fill=1.0),
    ),
    "clamped": (
        lambda x: lax.dynamic_update_slice(jnp.zeros((3, 7)), x, (9, -1)),
        assigned((1, 6 - 3)),
    ),
    "one column": (
        lambda x: jnp.zeros((2, 7)).at[:, 5].set(x[:, 0]),
        np.stack([X[:, 0] * (i == 5) for i in range(7)], 1),
    ),
    "a call": (
        lambda x: jax.jit(lambda y: jnp.zeros((3, 7)).at[1:, :4].set(y))(x),
        assigned((1, 0)),
    ),
    "twice": (
        lambda x: jnp.zeros((2, 8)).at[:, :4].set(x).at[:, 2:6].set(x),
        np.concatenate([X[:, :2], X, np.zeros((2, 2), "f")], 1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers_by_concatenation(case):
    fn, expected = CASES[case]
    np.testing.assert_array_equal(fn(X), expected)  # the oracle is right
    joined = joined_writes(_compat.make_jaxpr(fn, X))
    assert "concatenate" in names(joined) and not set(names(joined)) & set(WRITES)
    (got,) = jax.core.eval_jaxpr(joined.jaxpr, joined.consts, X)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.at[:, 1:2].set(0),  # an argument: a cache, say
        lambda x: jnp.zeros((2, 7)).at[:, x[0, 0].astype(int)].set(x[:, 0]),
        lambda x: jnp.zeros((2, 7)).at[:, jnp.array([1, 5, 2, 3])].set(x),
        lambda x: jnp.zeros((2, 7)).at[:, 9].set(x[:, 0]),  # dropped
        lambda x: jnp.zeros((2, 7)).at[:, 1:5].max(x),
    ],
)
def test_other_writes_are_left_alone(fn):
    closed = _compat.make_jaxpr(fn, X)
    assert joined_writes(closed) is closed


def net(p, x):
    h = jnp.ones((6, 9)).at[:, :4].set(jnp.tanh(x @ p["a"]))
    h = lax.dynamic_update_slice(h, jax.nn.sigmoid(x @ p["b"]), (0, 4))
    return h @ p["c"]


def test_what_is_written_shrinks():
    """Sigmoid of a removed unit is a half, also where it was written."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (3, 5), "c": (9, 2)}
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    x = rng.normal(size=(6, 3)).astype(np.float32)
    deps = surgery.groups(net)(params, x)
    plan = surgery.plan_from_keep(deps, {"a:1": [0, 3], "b:1": [1, 2]})
    assert plan.compact_shapes["c",] == (4, 2)
    small = surgery.shrink(net, plan)(plan.pack(params), x)
    zeroed = {k: v.copy() for k, v in params.items()}
    zeroed["a"][:, [1, 2]] = 0
    zeroed["b"][:, [0, 3, 4]] = 0
    zeroed["c"][[1, 2, 4, 7, 8]] = 0
    np.testing.assert_allclose(small, net(zeroed, x), rtol=1e-5)
    assert surgery.verify(net, plan, params, x, gradient=True).ok


def test_a_write_into_an_argument_says_what_it_is():
    fn = lambda p, x, cache: cache.at[:, :4].set(x @ p["a"]) @ p["c"]  # noqa: E731
    params = {"a": jnp.ones((3, 4)), "c": jnp.ones((9, 2))}
    deps = surgery.groups(fn)(params, jnp.ones((6, 3)), jnp.ones((6, 9)))
    why = {f.why for f in deps.frozen() if f.path == ("a",) and f.axis == 1}
    assert why == {"written into a part of an axis"}
