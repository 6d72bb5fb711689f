"""Writes into a constant at positions known from the program, as joined parts.

`jnp.zeros((n, 10)).at[:, 2:6].set(x)` is a scatter (or a `dynamic_update_slice`), whose
positions are values like any other: read as such, every axis that it writes into would
have to stay whole. Here the positions are numbers of the program and what is written
into depends on no argument, so the result is the part before, `x` and the part behind,
joined. That is what the program becomes, before anybody reads it. Writes into an
argument (a cache) are left as they are.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from jprune._jaxpr import _compat, _walk

_OPENED = ("jit", "pjit", "closed_call", "core_call")
_SET, _ADD = ("scatter", "dynamic_update_slice"), ("scatter-add", "scatter_add")
_INDEX = frozenset(
    "broadcast_in_dim concatenate convert_element_type reshape squeeze add sub "
    "select_n lt iota".split()
)
"""What positions are computed with."""


def joined_writes(closed: _compat.ClosedJaxpr) -> _compat.ClosedJaxpr:
    """The program with its static writes as concatenations; mostly the program itself.

    Args:
      closed: a program.

    Returns:
      One that computes the same numbers from the same inputs.
    """
    if not _has_writes(closed.jaxpr, set()):
        return closed

    def run(*values: Any) -> list[Any]:
        return _run(closed, values)

    return _compat.make_jaxpr(run, *closed.in_avals)


def _has_writes(jaxpr: Any, seen: set[int]) -> bool:
    """Whether a write into a constant occurs; `seen`: programs that were looked at."""
    seen.add(id(jaxpr))
    defined: dict[Any, Any] = {}
    for eqn in jaxpr.eqns:
        defined.update(dict.fromkeys(eqn.outvars, eqn))
        if eqn.primitive.name in (*_SET, *_ADD) and _start(eqn, defined) is not None:
            return True
        if eqn.primitive.name in _OPENED:
            inner = _walk.opened(_walk.body_of(eqn))[0]
            if id(inner) not in seen and _has_writes(inner, seen):
                return True
    return False


def _run(jaxpr: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluates a program with its static writes as concatenations."""
    body = _walk.opened(jaxpr)[0]
    defined = {var: eqn for eqn in body.eqns for var in eqn.outvars}

    def equation(_: int, eqn: Any, ins: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if name in _OPENED:
            inner = _walk.body_of(eqn)
            if _has_writes(_walk.opened(inner)[0], set()):
                return _run(inner, ins)
        if name in (*_SET, *_ADD):
            start = _start(eqn, defined)
            if start is not None:
                return [_joined(eqn, ins, start)]
        return _compat.bind(eqn, eqn.params, ins)

    return _walk.run(jaxpr, values, equation)


def _joined(eqn: Any, ins: list[Any], start: list[int]) -> jax.Array:
    """The operand with the update in the place of a part of it."""
    operand, update = ins[0], ins[1]
    if eqn.primitive.name != "dynamic_update_slice":
        update = lax.expand_dims(
            ins[2], eqn.params["dimension_numbers"].inserted_window_dims
        )
    return _written(operand, update, start, eqn.primitive.name in _ADD)


def _written(operand: Any, update: Any, start: Sequence[int], adds: bool) -> Any:
    """The update on an operand of its size; else on one axis after the other."""
    for axis, (n, m) in enumerate(zip(operand.shape, update.shape, strict=True)):
        if n == m:
            continue
        low, high = start[axis], start[axis] + m
        ends = [
            lax.slice_in_dim(operand, a, b, axis=axis) for a, b in ((0, low), (high, n))
        ]
        part = lax.slice_in_dim(operand, low, high, axis=axis)
        parts = [ends[0], _written(part, update, start, adds), ends[1]]
        return lax.concatenate([p for p in parts if p.shape[axis]], axis)
    return lax.add(operand, update) if adds else update


def _start(eqn: Any, defined: dict[Any, Any]) -> list[int] | None:
    """Where a write begins, by axis; None unless it is static, into a constant."""
    if not _constant(eqn.invars[0], defined):
        return None
    shape = eqn.invars[0].aval.shape
    if eqn.primitive.name == "dynamic_update_slice":
        found = [_number(v, defined) for v in eqn.invars[2:]]
        if any(s is None for s in found):
            return None
        room = np.subtract(shape, eqn.invars[1].aval.shape)
        return [int(s) for s in np.clip(np.ravel(found), 0, room)]  # as JAX clamps it
    numbers = eqn.params["dimension_numbers"]
    where = eqn.invars[1].aval.shape
    if len(where) != 1 or numbers.operand_batching_dims:
        return None
    index = _number(eqn.invars[1], defined)
    if index is None:
        return None
    window = list(eqn.invars[2].aval.shape)
    for d in numbers.inserted_window_dims:
        window.insert(d, 1)
    start = np.zeros(len(shape), int)
    start[list(numbers.scatter_dims_to_operand_dims)] = index
    inside = (start >= 0).all() and (start + window <= shape).all()
    return start.tolist() if inside else None


def _constant(var: Any, defined: dict[Any, Any]) -> bool:
    """Whether a value is the same whatever the arguments are, writes into it aside."""
    if isinstance(var, _compat.Literal):
        return True
    eqn = defined.get(var)
    if eqn is None:
        return False
    if eqn.primitive.name in (*_SET, *_ADD):
        return _start(eqn, defined) is not None
    return eqn.primitive.name == "broadcast_in_dim" and _constant(
        eqn.invars[0], defined
    )


def _number(var: Any, defined: dict[Any, Any]) -> Any:
    """The value of a position; None if it is not known from the program."""
    if isinstance(var, _compat.Literal):
        return _compat.literal_value(var)
    eqn = defined.get(var)
    if eqn is None or eqn.primitive.name not in _INDEX or var.aval.size > 8:
        return None
    ins = [_number(v, defined) for v in eqn.invars]
    if any(x is None for x in ins):
        return None
    with jax.ensure_compile_time_eval():
        return np.asarray(_compat.bind(eqn, eqn.params, ins)[0])
