"""Whether the output still depends on the input when some groups are emptied.

An emptied axis makes a value empty, and nothing can be read from an empty value. What
is left to check is plain dependence: a result depends on the input when an operand does
and the result is not empty. Emptying a residual branch leaves the output connected
through the other one; emptying the stream does not.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from jprune._jaxpr import _compat
from jprune._jaxpr._compat import ClosedJaxpr, Equation, Jaxpr
from jprune.surgery._axes import Atom
from jprune.surgery._cost import kept_size
from jprune.surgery._program import Program
from jprune.surgery._scope import Scope


def still_connected(program: Program, emptied: AbstractSet[Atom]) -> bool:
    """Whether each output that depends on the inputs still does."""
    before = _outputs(program, frozenset())
    after = _outputs(program, emptied)
    tied = {out for out, _ in program.ties}
    return all(
        now or not was or path in tied
        for path, was, now in zip(program.traced.outputs, before, after, strict=True)
    )


def _outputs(program: Program, emptied: AbstractSet[Atom]) -> list[bool]:
    count = len(program.traced.params)
    flags = [i >= count for i in range(len(program.ins))]
    if not any(flags):  # no inputs but the parameters
        flags = [True] * len(flags)
    counts = dict.fromkeys(emptied, 0)
    sized = [
        flag and all(kept_size(t, counts) for t in info.axes)
        for flag, info in zip(flags, program.ins, strict=True)
    ]
    return _walk(program.traced.jaxpr, program.scope, sized, counts)


def _walk(
    jaxpr: Jaxpr | ClosedJaxpr, scope: Scope, flags: Sequence[bool], counts: Any
) -> list[bool]:
    """Which outputs of a jaxpr depend on flagged inputs."""
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    env: dict[Any, bool] = dict(zip(jaxpr.invars, flags, strict=True))

    def read(var: Any) -> bool:
        return not isinstance(var, _compat.Literal) and env.get(var, False)

    for index, eqn in enumerate(jaxpr.eqns):
        outs = _equation(
            eqn, scope.inner.get(index), [read(v) for v in eqn.invars], counts
        )
        for var, flag in zip(eqn.outvars, outs, strict=True):
            axes = scope.info(var).axes
            env[var] = flag and all(kept_size(t, counts) for t in axes)
    return [read(v) for v in jaxpr.outvars]


def _equation(
    eqn: Equation, scopes: list[Scope] | None, flags: list[bool], counts: Any
) -> list[bool]:
    name, p = eqn.primitive.name, eqn.params
    if not scopes:
        return [any(flags)] * len(eqn.outvars)
    if name == "cond":
        runs = [
            _walk(b, s, flags[1:], counts)
            for b, s in zip(p["branches"], scopes, strict=True)
        ]
        return [flags[0] or any(column) for column in zip(*runs, strict=True)]
    if name == "scan":
        n, m = p["num_consts"], p["num_carry"]
        return _loop(
            p["jaxpr"], scopes[0], flags[:n], flags[n : n + m], flags[n + m :], counts
        )
    if name == "while":
        n = p["cond_nconsts"]
        consts = flags[n : n + p["body_nconsts"]]
        init = flags[n + p["body_nconsts"] :]
        return _loop(p["body_jaxpr"], scopes[1], consts, init, [], counts)
    (inner,) = _compat.sub_jaxprs(p)[:1]
    return _walk(inner, scopes[0], flags, counts)


def _loop(
    jaxpr: ClosedJaxpr,
    scope: Scope,
    consts: Sequence[bool],
    init: Sequence[bool],
    xs: Sequence[bool],
    counts: Any,
) -> list[bool]:
    carry = list(init)
    while True:
        outs = _walk(jaxpr, scope, [*consts, *carry, *xs], counts)
        new = [a or b for a, b in zip(carry, outs[: len(carry)], strict=True)]
        if new == carry:
            return [*carry, *outs[len(carry) :]]
        carry = new
