"""The walk over a program, against what can be said of each by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune._jaxpr import _walk

X = np.ones(3, np.float32)


def scanned(a, b, c):
    """The first carry takes from the second, the second from the third, so from c."""

    def body(carry, row):
        first, second, third = carry
        return (first + second, second + third, third + row), second * b

    carry, ys = lax.scan(body, (a, a, a), jnp.stack([c, c]))
    return *carry, ys


def counted(a, b, c):
    def body(state):
        i, x, y = state
        return i + 1, x + y, y * c

    return lax.while_loop(lambda state: state[0] < 3, body, (0, a, b))[1:]


def branched(a, b, c):
    return lax.cond(c[0] > 0, lambda x, y: (x, y), lambda x, y: (x, x), a, b)


def called(a, b, c):
    return jax.jit(lambda x, y: (x + 1, jax.checkpoint(jnp.sin)(y)))(a, c)


READS = {
    "scan": (scanned, ["ac", "ac", "ac", "abc"]),
    "while": (counted, ["abc", "bc"]),
    "cond": (branched, ["a", "ab"]),
    "call": (called, ["a", "c"]),
}
"""A function, and the operands that each of its results may take from."""


def depends(jaxpr, ins):
    def equation(_, eqn, given):
        outs = _walk.inside(eqn, given, lambda _, j, x: depends(j, x), union)
        every = frozenset().union(*given)
        return [every for _ in eqn.outvars] if outs is None else outs

    return _walk.run(jaxpr, ins, equation, lambda array, var: frozenset())


def union(a, b):
    return a if b <= a else a | b


@pytest.mark.parametrize("name", READS)
def test_what_each_result_takes_from(name):
    fn, want = READS[name]
    jaxpr = jax.make_jaxpr(fn)(X, X, X)
    assert depends(jaxpr, [frozenset(n) for n in "abc"]) == list(map(set, want))
