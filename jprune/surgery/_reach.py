"""Whether the output still depends on the input when some groups are emptied.

An emptied axis makes a value empty, and nothing can be read from an empty value. What
is left to check is plain dependence: a result depends on the input when an operand does
and the result is not empty. Emptying a residual branch leaves the output connected
through the other one; emptying the stream does not.
"""

import operator
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from jprune._jaxpr import _walk as _walker
from jprune._jaxpr._compat import Equation
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


def _walk(jaxpr: Any, scope: Scope, flags: Sequence[bool], counts: Any) -> list[bool]:
    """Which outputs of a jaxpr depend on flagged inputs."""

    def equation(index: int, eqn: Equation, ins: list[bool]) -> list[bool]:
        outs = _equation(eqn, scope.inner.get(index), ins, counts)
        axes = [scope.info(var).axes for var in eqn.outvars]
        return [
            flag and all(kept_size(t, counts) for t in terms)
            for flag, terms in zip(outs, axes, strict=True)
        ]

    return _walker.run(jaxpr, flags, equation, lambda array, var: False)


def _equation(
    eqn: Equation, scopes: list[Scope] | None, flags: list[bool], counts: Any
) -> list[bool]:
    if not scopes:
        return [any(flags)] * len(eqn.outvars)

    def enter(which: int, jaxpr: Any, ins: list[bool]) -> list[bool]:
        return _walk(jaxpr, scopes[which], ins, counts)

    outs = _walker.inside(eqn, flags, enter, operator.or_)
    if outs is None:  # a program for each device
        return enter(0, _walker.body_of(eqn), flags)
    if eqn.primitive.name == "cond":
        return [flags[0] or out for out in outs]
    return outs
