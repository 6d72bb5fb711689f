"""A program without calls: one list of equations, and which values are parameters.

Calls, rematerialization and custom derivative rules are opened, and so are loops of a
known number of rounds that contract something, round after round. What is left can be
read from top to bottom: which contraction reads which parameter is a property of one
list, and the list can be cut and run in pieces.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple

import jax
from jax import lax

from jprune._jaxpr import _compat, _walk
from jprune._jaxpr._moves import Dims, moved_dims
from jprune._jaxpr._trace import Traced
from jprune._tree import KeyTuple

CONTRACTIONS = ("dot_general", "conv_general_dilated")
MAX_ROUNDS = 128
"""Loops of more rounds stay loops: opened, the program would be too long."""


class Origin(NamedTuple):
    """A value that is a parameter, seen through casts, transposes and unit axes.

    Attributes:
      path: of the parameter.
      index: which input of the program it is.
      dims: for each axis of the value, the parameter's axis behind it; None if it is a
        new unit axis.
      at: (axis, position) pairs: a stack of layers, of which this is one.
    """

    path: KeyTuple
    index: int
    dims: Dims
    at: tuple[tuple[int, int], ...] = ()


class Site(NamedTuple):
    """A contraction that reads a parameter.

    Attributes:
      eqn: number of the equation.
      place: which of its operands the parameter is.
      origin: the parameter.
    """

    eqn: int
    place: int
    origin: Origin


class Flat(NamedTuple):
    """A flat program.

    Attributes:
      jaxpr: closed, without calls.
      params: paths of its first inputs.
      origins: of each variable that is a parameter.
      sites: the contractions of a parameter with something else, in order.
      hidden: paths of parameters that are read inside a loop or a branch that could not
        be opened, with the name of the primitive.
    """

    jaxpr: Any
    params: tuple[KeyTuple, ...]
    origins: dict[Any, Origin]
    sites: list[Site]
    hidden: dict[KeyTuple, str]

    @property
    def eqns(self) -> Sequence[Any]:
        """The equations, in order."""
        return self.jaxpr.jaxpr.eqns

    def uses(self) -> Counter:
        """How often each variable is read, results of the program included."""
        read = [v for eqn in self.eqns for v in eqn.invars]
        read += self.jaxpr.jaxpr.outvars
        return Counter(v for v in read if not isinstance(v, _compat.Literal))


def flatten(traced: Traced, custom_rules: bool = False) -> Flat:
    """The flat form of a traced function.

    Args:
      traced: the function.
      custom_rules: leave calls with derivative rules of their own closed, so that the
        program can be differentiated.
    """
    closed = traced.jaxpr
    opens = _walk.CALLS if custom_rules else _walk.CALLS | _walk.CUSTOM

    def run(*values: Any) -> list[Any]:
        return _run(closed, values, opens)

    opened = jax.make_jaxpr(run)(*closed.in_avals)
    opened = _compat.without_dead_code(opened)
    origins = _origins(opened.jaxpr, traced.params)
    return Flat(
        opened,
        traced.params,
        origins,
        list(_sites(opened.jaxpr, origins)),
        _hidden(opened.jaxpr, origins),
    )


def run(jaxpr: Any, env: dict[Any, Any], start: int, stop: int) -> None:
    """Evaluates the equations `start` to `stop` of an open jaxpr in place."""
    for eqn in jaxpr.eqns[start:stop]:
        results = _compat.bind(eqn, eqn.params, [value(env, v) for v in eqn.invars])
        env.update(zip(eqn.outvars, results, strict=True))


def value(env: dict[Any, Any], var: Any) -> Any:
    """The value of a variable or a literal."""
    return var.val if isinstance(var, _compat.Literal) else env[var]


def _run(jaxpr: Any, values: Sequence[Any], opens: Set[str]) -> list[Any]:
    """Evaluates a jaxpr, open or closed, with its calls opened."""

    def equation(_: int, eqn: Any, ins: list[Any]) -> list[Any]:
        if eqn.primitive.name in opens:
            return _run(_walk.body_of(eqn), ins, opens)
        if eqn.primitive.name == "scan" and _opens(eqn):
            return _unrolled(eqn, ins, opens)
        return _compat.bind(eqn, eqn.params, ins)

    return _walk.run(jaxpr, values, equation)


def _opens(eqn: Any) -> bool:
    return eqn.params["length"] <= MAX_ROUNDS and _contracts(eqn.params["jaxpr"].jaxpr)


def _contracts(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name in CONTRACTIONS
        or any(map(_contracts, _compat.sub_jaxprs(eqn.params)))
        for eqn in jaxpr.eqns
    )


def _unrolled(eqn: Any, ins: list[Any], opens: Set[str]) -> list[Any]:
    """A scan, one round after the other."""
    body, consts, carry, stacks, _ = _walk.loop(eqn, ins)
    params, n, rounds = eqn.params, len(carry), range(eqn.params["length"])
    rows: list[Any] = [None] * len(rounds)
    for i in reversed(rounds) if params["reverse"] else rounds:
        xs = [lax.index_in_dim(x, i, 0, keepdims=False) for x in stacks]
        outs = _run(body, [*consts, *carry, *xs], opens)
        carry, rows[i] = outs[:n], outs[n:]
    if not rounds:
        return _compat.bind(eqn, params, ins)
    stacked = [
        lax.concatenate([lax.expand_dims(y, (0,)) for y in ys], 0)
        for ys in zip(*rows, strict=True)
    ]
    return [*carry, *stacked]


def _origins(jaxpr: Any, params: Sequence[KeyTuple]) -> dict[Any, Origin]:
    found = {
        var: Origin(path, i, tuple(range(len(var.aval.shape))))
        for i, (path, var) in enumerate(zip(params, jaxpr.invars, strict=False))
    }
    for eqn in jaxpr.eqns:
        source = found.get(_only(eqn))
        if source is None or len(eqn.outvars) != 1:
            continue
        moved = _one_of_a_stack(eqn, source)
        if moved is None:
            dims = moved_dims(eqn, source.dims)
            moved = None if dims is None else source._replace(dims=dims)
        if moved is not None:
            found[eqn.outvars[0]] = moved
    return found


def _only(eqn: Any) -> Any:
    """The one operand of an equation that has one."""
    if len(eqn.invars) != 1 or isinstance(eqn.invars[0], _compat.Literal):
        return None
    return eqn.invars[0]


def _one_of_a_stack(eqn: Any, source: Origin) -> Origin | None:
    """A slice of length 1 along one axis of a parameter."""
    if eqn.primitive.name != "slice":
        return None
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    cut = [d for d, (n, m) in enumerate(zip(before, after, strict=True)) if n != m]
    if len(cut) != 1 or after[cut[0]] != 1 or source.dims[cut[0]] is None:
        return None
    axis = source.dims[cut[0]]
    assert axis is not None
    start = eqn.params["start_indices"][cut[0]]
    dims = tuple(None if d == cut[0] else a for d, a in enumerate(source.dims))
    return source._replace(dims=dims, at=(*source.at, (axis, start)))


def _sites(jaxpr: Any, origins: dict[Any, Origin]) -> Iterator[Site]:
    for number, eqn in enumerate(jaxpr.eqns):
        if eqn.primitive.name not in CONTRACTIONS:
            continue
        known = [
            None if isinstance(v, _compat.Literal) else origins.get(v)
            for v in eqn.invars
        ]
        places = [place for place, origin in enumerate(known) if origin is not None]
        if len(places) == 1:
            origin = known[places[0]]
            assert origin is not None
            yield Site(number, places[0], origin)


def _hidden(jaxpr: Any, origins: dict[Any, Origin]) -> dict[KeyTuple, str]:
    found: dict[KeyTuple, str] = {}
    for eqn in jaxpr.eqns:
        inner = _compat.sub_jaxprs(eqn.params)
        if not any(map(_contracts, inner)):
            continue
        for var in eqn.invars:
            origin = None if isinstance(var, _compat.Literal) else origins.get(var)
            if origin is not None and len(getattr(var.aval, "shape", ())) > 1:
                found[origin.path] = eqn.primitive.name
    return found
