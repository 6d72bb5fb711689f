"""Calls and branches: `jit`, `checkpoint`, `closed_call`, `cond`.

Analysis recurses. The compact program calls a compact body again, so jit wrappers,
rematerialization and branches stay what they were; ghosts that are asked for cross the
boundary as further arguments and results. (A jitted body of two or three equations is
put in its place.) A branch result is known only where all
branches agree.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from jprune._jaxpr._compat import Equation
from jprune._jaxpr._walk import CALLS, body_of
from jprune.surgery._analysis import AxisSite
from jprune.surgery._build import CellSite, Outs
from jprune.surgery._cells import Value
from jprune.surgery._frames import Boundary, Frame, GraphCall, jitted, plain
from jprune.surgery._registry import Rule
from jprune.surgery._scope import CONST, MANY, Info

FEW = 3
"""A jitted body of so few equations is put in place: the call costs more than it."""


def call_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Info]:
    """The axes of the body."""
    return site.walk(body_of(eqn), ins)


def call_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> list[Value]:
    """A call of the compact body."""
    boundary = Boundary()
    inside = [boundary.value(v) for v in ins]
    frame = Frame(site.builder, body_of(eqn), site.inner(), inside)
    call = GraphCall([frame], boundary, _wrapper(eqn), name=eqn.primitive.name)
    if eqn.effects:
        site.builder.effects.append(call.effect())
    return call.results(frame.outs)


def _wrapper(eqn: Equation) -> Any:
    name = eqn.primitive.name
    if name in ("jit", "pjit"):
        few = len(body_of(eqn).jaxpr.eqns) <= FEW
        return plain if few or eqn.params.get("inline") else jitted(eqn.params["name"])
    if name in ("remat", "remat2", "checkpoint"):
        return _checkpointed(eqn.params)
    return plain


def _checkpointed(params: dict[str, Any]) -> Any:
    def run(bodies: Sequence[Any], extra: Any, arrays: Sequence[Any]) -> list[Any]:
        body = jax.checkpoint(
            bodies[0], prevent_cse=params["prevent_cse"], policy=params["policy"]
        )
        return body(*arrays)

    return run


def cond_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Info]:
    """The index is fixed, the branches' results are equal."""
    operands = list(ins[1:])
    runs = [
        lambda b=branch: site.walk(b, operands) for branch in eqn.params["branches"]
    ]
    results = site.alternatives(runs)
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            for s, t in zip(mine.axes, theirs.axes, strict=True):
                site.unify(s, t)
    constant = all(i.source == CONST for i in ins)
    return [Info(i.axes, CONST if constant else MANY) for i in results[0]]


def cond_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> list[Value]:
    """One `switch` over the compact branches."""
    index, *operands = ins
    boundary = Boundary()
    inside = [boundary.value(v) for v in operands]
    frames = [
        Frame(site.builder, branch, site.inner(i), inside)
        for i, branch in enumerate(eqn.params["branches"])
    ]
    call = GraphCall(frames, boundary, _switch, [index.kept], name="cond")
    if eqn.effects:
        site.builder.effects.append(call.effect())
    like = [Value(v.layouts, v.dtype, v.cell) for v in frames[0].outs]
    return call.results(like)


def _switch(bodies: Sequence[Any], extra: Any, arrays: Sequence[Any]) -> list[Any]:
    return lax.switch(extra[0], list(bodies), *arrays)


RULES: dict[str, Rule] = {
    "cond": Rule(axes=cond_axes, cells=cond_cells),
    **{name: Rule(axes=call_axes, cells=call_cells, constant=True) for name in CALLS},
}
