"""What is done to the result of a contraction before it meets other data.

A chain starts at a contraction and follows its result as long as it is only moved,
shifted or scaled by values that do not depend on the data: a bias, a batch norm in
evaluation. On the way may lie a *sink*, the bias or running mean that can absorb a
constant; at its end a *partner*, the other summand of a residual sum.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jprune._jaxpr import _compat, _flat
from jprune._jaxpr._flat import Flat, Origin
from jprune._jaxpr._matrix import MatrixForm
from jprune._jaxpr._moves import moved_dims
from jprune._tree import KeyTuple


class Sink(NamedTuple):
    """A parameter that is added to the result, output by output.

    Attributes:
      path: of the parameter.
      axes: for each of its axes, the axis of the contraction's result, or None.
      sign: 1 if it is added, -1 if subtracted.
    """

    path: KeyTuple
    axes: tuple[int | None, ...]
    sign: int

    def change(self, constant: Any, like: Any) -> Any:
        """What to add to the parameter so that the result grows by `constant`.

        Args:
          constant: as `MatrixForm.result` lays it out.
          like: the parameter.
        """
        order = [a for a in self.axes if a is not None]
        rest = [d for d in range(constant.ndim) if d not in order]
        laid = np.transpose(np.asarray(constant), (*order, *rest))
        return self.sign * laid.reshape(np.shape(like))


class Chain(NamedTuple):
    """The equations behind a contraction that scale and shift its result.

    Attributes:
      steps: (number of the equation, which of its operands the result is).
      sink: what absorbs a constant, if there is such a parameter.
      partner: the variable it is added to at the end, data as well; None if there is
        no such sum. It has the shape of the result.
      sign: of the partner.
    """

    steps: tuple[tuple[int, int], ...]
    sink: Sink | None
    partner: Any
    sign: int

    def slope(self, flat: Flat, fixed: Mapping[Any, Any], like: Any) -> Any:
        """By how much the end grows with the result, shaped as `like`."""
        ones, zeros = np.ones(like.shape, like.dtype), np.zeros(like.shape, like.dtype)
        return self._run(flat, fixed, ones) - self._run(flat, fixed, zeros)

    def _run(self, flat: Flat, fixed: Mapping[Any, Any], y: Any) -> Any:
        for number, place in self.steps:
            eqn = flat.eqns[number]
            ins = [
                y if i == place else _flat.value(dict(fixed), v)
                for i, v in enumerate(eqn.invars)
            ]
            (y,) = _compat.bind(eqn, eqn.params, ins)
        return y


def data_dependent(flat: Flat) -> set[Any]:
    """The variables that depend on more than the parameters."""
    jaxpr = flat.jaxpr.jaxpr
    found = set(jaxpr.invars[len(flat.params) :])
    for eqn in jaxpr.eqns:
        if any(not isinstance(v, _compat.Literal) and v in found for v in eqn.invars):
            found.update(eqn.outvars)
    return found


def reads(flat: Flat) -> dict[tuple[KeyTuple, tuple], int]:
    """How often each parameter (each layer of a stack) is read, moves left out."""
    found: dict[tuple[KeyTuple, tuple], int] = {}

    def count(var: Any) -> None:
        origin = None if isinstance(var, _compat.Literal) else flat.origins.get(var)
        if origin is not None:
            key = (origin.path, tuple(sorted(origin.at)))
            found[key] = found.get(key, 0) + 1

    for eqn in flat.eqns:
        if not any(v in flat.origins for v in eqn.outvars):
            for var in eqn.invars:
                count(var)
    for var in flat.jaxpr.jaxpr.outvars:
        count(var)
    return found


def find_chain(flat: Flat, form: MatrixForm, data: set[Any]) -> Chain:
    """The chain behind a contraction.

    Args:
      flat: the program.
      form: the contraction.
      data: see `data_dependent`.
    """
    uses, known = flat.uses(), reads(flat)
    readers = {
        v: number
        for number, eqn in enumerate(flat.eqns)
        for v in eqn.invars
        if not isinstance(v, _compat.Literal)
    }
    (var,) = form.eqn.outvars
    dims: Any = tuple(range(len(var.aval.shape)))
    shape = var.aval.shape
    steps: list[tuple[int, int]] = []
    sink, scaled = None, False
    while uses[var] == 1 and var in readers:
        number = readers[var]
        eqn = flat.eqns[number]
        place = next(i for i, v in enumerate(eqn.invars) if v is var)
        name = eqn.primitive.name
        if len(eqn.invars) == 1:
            dims = moved_dims(eqn, dims)
            if dims is None:
                break
        elif name not in ("add", "sub", "mul", "div") or (name == "div" and place):
            break
        else:
            other = eqn.invars[1 - place]
            if not isinstance(other, _compat.Literal) and other in data:
                joins = name in ("add", "sub") and var.aval.shape == shape
                joins = joins and other.aval.shape == shape
                sign = -1 if name == "sub" else 1
                return Chain(tuple(steps), sink, other if joins else None, sign)
            origin = None
            if not isinstance(other, _compat.Literal):
                origin = flat.origins.get(other)
            if name in ("mul", "div") or (name == "sub" and place):
                scaled = True
            elif origin is not None and sink is None and not scaled:
                whole = known[(origin.path, tuple(sorted(origin.at)))] == 1
                if whole and not origin.at:
                    sink = _sink(flat, form, origin, dims, -1 if name == "sub" else 1)
        steps.append((number, place))
        (var,) = eqn.outvars
    return Chain(tuple(steps), sink, None, 1)


def _sink(
    flat: Flat, form: MatrixForm, origin: Origin, dims: Any, sign: int
) -> Sink | None:
    """The sink that a parameter is, if it has one entry for each output."""
    param = flat.jaxpr.jaxpr.invars[origin.index].aval
    result = form.eqn.outvars[0].aval.shape
    axes: list[int | None] = [None] * len(param.shape)
    outs = form.output_axes()
    for own, theirs in zip(dims, origin.dims, strict=True):
        unit = theirs is not None and param.shape[theirs] == 1
        if own is not None and theirs is not None and not (unit and own not in outs):
            axes[theirs] = own
    spans = all(
        n == 1 if axis is None else axis in outs and result[axis] == n
        for axis, n in zip(axes, param.shape, strict=True)
    )
    missing = [a for a in outs if a not in axes and result[a] != 1]
    return Sink(origin.path, tuple(axes), sign) if spans and not missing else None
