"""One walk over a program, for values of any kind.

A reading of a program (which values are parameters, what is known of a result, whether
an output still depends on the input) has to say what one equation makes of its
operands. The rest is here: `run` goes through the equations, keeps the value of each
variable, and reads constants and literals; `inside` goes into calls, branches and
loops, and finds what holds after every round of a loop; `body_of` and `loop` say where
an equation keeps its programs and what its operands are for.

`_flat`, `surgery._reach`, `surgery._facts`, `surgery._build`, `analysis._blocks`,
`compress._sites` and `compress._thin` are tables on it. Two readings are not:

* The first pass (`surgery._analysis`) keeps its terms after the walk, in the `Scope` of
  each call site, which is its environment. Its rules and those of the second pass go
  into programs by themselves: axes unify both ways, so one pass is enough, and cells
  cross into a compact body under a boundary. They share `body_of` and `loop`.
* `surgery._flops` adds numbers up over the tree of programs; it has no values.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jprune._jaxpr import _compat
from jprune._jaxpr._compat import ClosedJaxpr, Equation, Jaxpr

CALLS = frozenset(
    "jit pjit closed_call core_call call core_closed_call remat remat2 "
    "checkpoint".split()
)
"""Equations that run one program on their operands."""

CUSTOM = frozenset(("custom_jvp_call", "custom_vjp_call"))
"""Calls with a derivative rule of the user's own."""


def opened(jaxpr: Jaxpr | ClosedJaxpr) -> tuple[Jaxpr, Sequence[Any]]:
    """A jaxpr and its constants, none if it is open."""
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, ()


def _itself(array: Any, var: Any) -> Any:
    return array


def run(
    jaxpr: Jaxpr | ClosedJaxpr,
    ins: Sequence[Any],
    equation: Callable[[int, Equation, list[Any]], Sequence[Any]],
    constant: Callable[[Any, Any], Any] = _itself,
) -> list[Any]:
    """The values of the results of a program.

    Args:
      jaxpr: open or closed.
      ins: the value of each input.
      equation: `(index, eqn, values of its operands) -> values of its results`, called
        in order.
      constant: `(array, variable) -> value` of a closed-over constant or a literal; the
        array itself by default.
    """
    jaxpr, consts = opened(jaxpr)
    env = dict(zip(jaxpr.invars, ins, strict=True))
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        env[var] = constant(const, var)

    def read(var: Any) -> Any:
        if isinstance(var, _compat.Literal):
            return constant(var.val, var)
        return env[var]

    for index, eqn in enumerate(jaxpr.eqns):
        outs = equation(index, eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def body_of(eqn: Equation) -> Any:
    """The program of a call."""
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return next(eqn.params[name] for name in names if name in eqn.params)


class Loop(NamedTuple):
    """A `scan` or a `while`, and what its operands are for.

    Attributes:
      body: the program of a round: `(*consts, *carry, *rows) -> (*carry, *rows)`.
      consts: what every round reads.
      carry: what the first round reads, and the next takes from the one before.
      rows: what is taken row by row; a `while` has none.
      condition: what the condition of a `while` reads beside the carry.
    """

    body: ClosedJaxpr
    consts: list[Any]
    carry: list[Any]
    rows: list[Any]
    condition: list[Any]


def loop(eqn: Equation, given: Sequence[Any]) -> Loop:
    """A loop with what is given for each of its operands."""
    p, given = eqn.params, list(given)
    if eqn.primitive.name == "scan":
        a = p["num_consts"]
        b = a + p["num_carry"]
        return Loop(p["jaxpr"], given[:a], given[a:b], given[b:], [])
    a = p["cond_nconsts"]
    b = a + p["body_nconsts"]
    return Loop(p["body_jaxpr"], given[a:b], given[b:], [], given[:a])


def inside(
    eqn: Equation,
    ins: Sequence[Any],
    enter: Callable[[int, Any, list[Any]], list[Any]],
    join: Callable[[Any, Any], Any],
    row: Callable[[Any], Any] = lambda value: value,
    stacked: Callable[[Any], Any] = lambda value: value,
) -> list[Any] | None:
    """What a call, a branch or a loop gives, from what the programs in it give.

    Args:
      eqn: the equation.
      ins: the values of its operands.
      enter: `(which, jaxpr, ins) -> outs` goes into one of its programs; `which` is its
        number (0 for a call and the body of a scan, the number of a branch, 1 for the
        body of a `while`).
      join: `(a, b) -> value`, what holds of both; `a` itself where `b` takes nothing
        from it. A value can be joined to something less only so many times.
      row: the value of a row, of that of the whole.
      stacked: the value of the whole, of that of a row.

    Returns:
      The values of its results, or None if it is none of these.
    """
    name = eqn.primitive.name
    if name in CALLS or name in CUSTOM:
        return enter(0, body_of(eqn), list(ins))
    if name == "cond":
        branches = enumerate(eqn.params["branches"])
        runs = [enter(i, branch, list(ins[1:])) for i, branch in branches]
        return [functools.reduce(join, each) for each in zip(*runs, strict=True)]
    if name not in ("scan", "while"):
        return None
    body, consts, carry, rows, _ = loop(eqn, ins)
    which, rows = int(name == "while"), list(map(row, rows))
    while True:
        outs = enter(which, body, [*consts, *carry, *rows])
        after = outs[: len(carry)]
        new = [join(a, b) for a, b in zip(carry, after, strict=True)]
        if all(a is b for a, b in zip(carry, new, strict=True)):
            return [*carry, *map(stacked, outs[len(carry) :])]
        carry = new
