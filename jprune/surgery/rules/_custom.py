"""`custom_jvp` and `custom_vjp`: the rule is part of the function and must survive.

Inlining the primal would silently change gradients (straight-through estimators, a relu
that is flat at 0). So the compact program calls a custom function again, from all the
cells that the primal needs to all the cells that are asked of it. Its derivative rule
is the dense rule, traced at dense shapes and rewritten like any program, with cells of
primals and tangents: the tangent of a known cell is zero. For a reverse rule, the
cotangent of a ghost is the sum over the positions that it stands for, so it is divided
by their number on entry and multiplied on exit.

A rule need not be the derivative of its primal. So a constant result is a constant to
what follows only if its tangent is known to be 0, and the call is given operands that
the primal does not read: a reverse rule may send them a cotangent.

The rule is traced when a derivative is taken, and where a result is constant. One that
relates axes which the primal does not, or that needs a removed coordinate with no
single value, raises when a derivative is taken.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune._jaxpr._trace import layout
from jprune.surgery import _axes as ax
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import Context, walk
from jprune.surgery._build import Builder, CellSite, Log, Outs
from jprune.surgery._cells import Bits, Cell, Item, Lazy, Value
from jprune.surgery._frames import Boundary, Frame, GraphCall, plain
from jprune.surgery._layout import Choice, Solver, Unsolvable
from jprune.surgery._registry import Rule
from jprune.surgery._scope import Info
from jprune.surgery.rules._control import call_axes
from jprune.surgery.rules._elementwise import NAMES

ELEMENTWISE = frozenset(NAMES)


def custom_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> list[Value]:
    """A custom function of cells."""
    boundary = Boundary()
    inside = [boundary.value(v) for v in ins]
    frame = Frame(site.builder, eqn.params["call_jaxpr"], site.inner(), inside)
    axes = [site.scope.info(v).axes for v in eqn.invars]
    out_axes = [site.scope.info(v).axes for v in eqn.outvars]
    call = _CustomCall([frame], boundary, plain, name=eqn.primitive.name)
    call.eqn, call.ins, call.builder = eqn, ins, site.builder
    call.axes, call.out_axes, call.slopes = axes, out_axes, None
    return call.results(frame.outs)


class _CustomCall(GraphCall):
    """A call with a derivative rule of its own."""

    __slots__ = ("axes", "builder", "eqn", "ins", "out_axes", "slopes")
    slopes: dict[int, Value] | None

    @property
    def reverse(self) -> bool:
        """Whether the rule is a reverse one."""
        return self.eqn.primitive.name == "custom_vjp_call"

    def run(self, *arrays: Any) -> dict[Any, Any]:
        """The custom function of the cells, applied."""
        keys = list(self.wanted)
        frame = self.frames[0]

        def primal(*given: Any) -> tuple[Any, ...]:
            by_cell = dict(zip(self.deps, given, strict=True))
            outer = self.boundary.outer.items()
            leaves = {leaf: by_cell[c] for leaf, c in outer if c in by_cell}
            cells = [self._cell(frame, k) for k in keys]
            return tuple(map(_array, frame.compute(cells, leaves)))

        if self.reverse:
            call: Any = jax.custom_vjp(primal)
            call.defvjp(
                lambda *given: (call(*given), given),
                lambda given, cts: self._vjp(keys, given, cts),
            )
        else:
            call = jax.custom_jvp(primal)
            call.defjvp(lambda p, t: (call(*p), self._jvp(keys, p, t)))
        return dict(zip(keys, call(*map(_array, arrays)), strict=True))

    def want(self, key: Any) -> list[Cell]:
        """Marks the result, and what its rule may reach where the primal does not."""
        found = super().want(key)
        reached = [v.kept for v in self.ins] + (self._cells() if self.reverse else [])
        new = [c for c in dict.fromkeys(reached) if _dynamic(c) and c not in self.deps]
        self.deps = (*self.deps, *new)
        return [*found, *new]

    def _result(self, index: int, like: Value) -> Value:
        """A known result is a constant only if no derivative passes through it."""
        value = super()._result(index, like)

        def rule(bits: Bits) -> Cell:
            cell, key = value.cell(bits), (index, bits)
            if isinstance(cell, Lazy) and cell.open:
                held = cell.value
            elif cell.known is None:
                return cell
            else:
                held = cell.known
            if self.builder.options.last:
                return cell
            if any(bits):

                def decide() -> np.ndarray | None:
                    known = cell.known
                    return known if known is not None and self._still(*key) else None

                return Lazy(self, key, held, decide)
            return cell if self._still(index, bits) else Item(self, key)

        return Value(like.layouts, like.dtype, rule, value.dense, like.reduced)

    def _still(self, index: int, bits: Bits) -> bool:
        """Whether a known result does not move: its tangent is known to be 0."""
        if index not in _inexact(self.eqn.outvars):
            return True
        if self.reverse:  # what a cotangent does is not known before there is one
            return False
        if self._at_rest(bits):
            return True
        if self.slopes is None:
            every = dict.fromkeys(filter(_dynamic, self._cells()))
            try:
                _, self.slopes = self._tangents(every, every, {}, last=True)
            except Exception:  # noqa: BLE001  it raises again where it is needed
                self.slopes = {}
        return index in self.slopes and self.slopes[index].cell(bits).zero

    def _at_rest(self, bits: Bits) -> bool:
        """Whether no operand moves there, and the rule works position by position."""
        values = [self.ins[i] for i in _smooth(self.eqn)]
        if any(len(v.layouts) not in (0, len(bits)) for v in values):
            return False
        here = [v.cell(v.own(bits) if v.layouts else ()) for v in values]
        return not any(map(_dynamic, here)) and self._positionwise()

    def _positionwise(self) -> bool:
        """Whether the derivative rule works position by position, by its program."""
        memo, key = self.builder.memo, id(self.eqn)
        if key not in memo:
            rule = _compat.tangent_rule(self.eqn, _smooth(self.eqn))
            memo[key] = _compat.positionwise(rule, ELEMENTWISE)
        return memo[key]

    def _cells(self) -> list[Cell]:
        """Every cell of the differentiable operands."""
        values = [self.ins[i] for i in _smooth(self.eqn)]
        return [v.cell(bits) for v in values for bits in ce.patterns(v.layouts)]

    # -- the derivative rule, rewritten ----------------------------------------------

    def _jvp(self, keys: Any, primals: Any, tangents: Any) -> tuple[Any, ...]:
        """The tangents of the wanted cells."""
        given = dict(zip(self.deps, primals, strict=True))
        moving = dict(zip(self.deps, tangents, strict=True))
        leaves: dict[Cell, Any] = {}
        program, outs = self._tangents(given, moving, leaves)
        cells = [outs[j].cell(bits) for j, bits in keys if j in outs]
        found = iter(program.emit(cells, leaves))
        return tuple(
            next(found) if j in outs else _float0(self.frames[0].outs[j].shape(bits))
            for j, bits in keys
        )

    def _tangents(
        self, given: Any, moving: Any, leaves: dict[Cell, Any], last: bool = False
    ) -> tuple["_Program", dict[int, Value]]:
        """The rule's program and the tangents of the results."""
        smooth, smooth_out = _smooth(self.eqn), _inexact(self.eqn.outvars)

        def dense(*args: Any) -> list[Any]:
            xs, ts = args[: len(self.ins)], args[len(self.ins) :]
            fn = _of_smooth(self.eqn, xs, smooth)
            _, out = jax.jvp(fn, [xs[i] for i in smooth], list(ts))
            return [out[j] for j in smooth_out]

        program = _Program(self, dense, smooth, smooth_out, last=last)
        ins = [program.given(i, given, leaves) for i in range(len(self.ins))]
        ins += [program.tangent(i, moving, leaves) for i in smooth]
        return program, dict(zip(smooth_out, program.build(ins), strict=True))

    def _vjp(self, keys: Any, given_arrays: Any, cts: Any) -> tuple[Any, ...]:
        """The cotangents of the cells that were passed in."""
        smooth, smooth_out = _smooth(self.eqn), _inexact(self.eqn.outvars)

        def dense(*args: Any) -> list[Any]:
            xs, bars = args[: len(self.ins)], list(args[len(self.ins) :])
            fn = _of_smooth(self.eqn, xs, smooth)
            outs, pull = jax.vjp(fn, *[xs[i] for i in smooth])
            full = [
                bars.pop(0) if j in smooth_out else _float0(o.shape)
                for j, o in enumerate(outs)
            ]
            return list(pull(full))

        program = _Program(self, dense, smooth_out, smooth, reverse=True)
        given = dict(zip(self.deps, given_arrays, strict=True))
        bars = dict(zip(keys, cts, strict=True))
        leaves: dict[Cell, Any] = {}
        ins = [program.given(i, given, leaves) for i in range(len(self.ins))]
        ins += [program.cotangent(j, bars, leaves) for j in smooth_out]
        outs = dict(zip(smooth, program.build(ins), strict=True))
        self._check_all_taken(program, outs)
        return tuple(
            self._bar(program, dep, outs, leaves, array)
            for dep, array in zip(self.deps, given_arrays, strict=True)
        )

    def _check_all_taken(self, program: "_Program", outs: dict[int, Value]) -> None:
        """A cotangent of removed coordinates that differ would be lost."""
        for i, out in outs.items():
            for bits in ce.patterns(out.layouts):
                why = self.ins[i].cell(bits).bad
                if why is not None and not out.cell(bits).zero:
                    raise program.error(why)

    def _bar(self, program: Any, dep: Cell, outs: Any, leaves: Any, array: Any) -> Any:
        """The cotangent of one passed cell, over all operands that it is a cell of."""
        total = None
        for i, value in enumerate(self.ins):
            for bits in ce.patterns(value.layouts):
                if i not in outs or value.cell(bits) is not dep:
                    continue
                (bar,) = program.emit([outs[i].cell(bits)], leaves)
                weight = _weight(value, bits)
                bar = bar if weight is None else bar * weight.astype(bar.dtype)
                total = bar if total is None else total + bar
        if total is None:
            smooth = jnp.issubdtype(jnp.asarray(array).dtype, jnp.inexact)
            return jnp.zeros_like(array) if smooth else _float0(jnp.shape(array))
        return jnp.asarray(total)


class _Program:
    """The dense derivative rule, analyzed by itself and built under the same choice."""

    def __init__(
        self,
        call: _CustomCall,
        dense: Callable[..., Any],
        moving: Sequence[int],
        results: Sequence[int],
        reverse: bool = False,
        last: bool = False,
    ) -> None:
        self.call = call
        self.log = Log()
        eqn, old = call.eqn, call.builder
        copy = _Copy()
        ins = [copy.axes(a) for a in call.axes]
        outs = [copy.axes(a) for a in call.out_axes]
        moved = [(outs if reverse else ins)[i] for i in moving]
        moved_vars = [(eqn.outvars if reverse else eqn.invars)[i] for i in moving]
        avals = _abstract([v.aval for v in (*eqn.invars, *moved_vars)])
        self.jaxpr = _compat.without_dead_code(jax.make_jaxpr(dense)(*avals))
        infos = [Info(a) for a in (*ins, *moved)]
        self.scope, found = walk(Context("allow"), self.jaxpr, infos)
        like = ins if reverse else outs
        for info, j in zip(found, results, strict=True):
            for s, t in zip(info.axes, like[j], strict=True):
                ax.unify(s, t)
        solver = Solver()
        pairs = [
            (new, old_term)
            for news, olds in ((ins, call.axes), (outs, call.out_axes))
            for new_axes, old_axes in zip(news, olds, strict=True)
            for new, old_term in zip(new_axes, old_axes, strict=True)
        ]
        try:
            for new, old_term in pairs:
                solver.add(new, old.choice.layout(old_term).keep)
            keep = solver.solve()
        except Unsolvable as error:
            raise self.error(str(error)) from None
        refined = frozenset(
            leaf
            for atom in old.choice.refined
            if atom in copy.made
            for leaf in ax.leaves(copy.made[atom])
        )
        self.choice = Choice(keep, refined, old.choice.every)
        for new, old_term in pairs:
            mine, theirs = self.choice.layout(new), old.choice.layout(old_term)
            if not np.array_equal(mine.rep, theirs.rep):
                raise self.error("it refines an axis that the function does not")
        options = dataclasses.replace(old.options, last=last or old.options.last)
        self.builder = Builder(self.choice, options, self.log)

    def build(self, ins: list[Value]) -> list[Value]:
        """The values of the rule's results."""
        return self.builder.build(self.jaxpr, self.scope, ins)

    def emit(self, cells: Sequence[Cell], leaves: dict[Cell, Any]) -> list[Any]:
        """The arrays of some cells."""
        why = ce.first_bad(cells)
        if why or self.log.leaks:
            raise self.error(why or self.log.leaks[0][1])
        ce.mark([*cells, *self.builder.effects])
        return ce.emit(cells, leaves)

    def given(self, i: int, arrays: dict[Cell, Any], leaves: dict[Cell, Any]) -> Value:
        """Operand `i` of the call."""
        value = self.call.ins[i]

        def rule(bits: Bits) -> Cell:
            return self._leaf(value.cell(bits), arrays, leaves)

        return Value(value.layouts, value.dtype, rule)

    def tangent(
        self, i: int, arrays: dict[Cell, Any], leaves: dict[Cell, Any]
    ) -> Value:
        """The tangent of operand `i`: zero where the operand is known."""
        value = self.call.ins[i]

        def rule(bits: Bits) -> Cell:
            cell = value.cell(bits)
            if cell.known is not None and cell not in arrays:
                return ce.known(np.zeros((1,) * len(bits), value.dtype))
            return self._leaf(cell, arrays, leaves, tangent=True)

        return Value(value.layouts, value.dtype, rule)

    def cotangent(self, j: int, bars: Any, leaves: dict[Cell, Any]) -> Value:
        """The cotangent of result `j`: zero where the result was not asked for."""
        value = self.call.frames[0].outs[j]

        def rule(bits: Bits) -> Cell:
            if (j, bits) not in bars:
                return ce.known(np.zeros((1,) * len(bits), value.dtype))
            leaf = Cell(name="cotangent")
            bar, weight = bars[j, bits], _weight(value, bits)
            leaf.shape = value.shape(bits)
            leaves[leaf] = bar if weight is None else bar / weight.astype(bar.dtype)
            return leaf

        return Value(value.layouts, value.dtype, rule)

    def _leaf(
        self, cell: Cell, arrays: Any, leaves: dict[Cell, Any], tangent: bool = False
    ) -> Cell:
        if cell in arrays:
            leaf = Cell(name="operand")
            leaf.shape = cell.shape
            leaves[leaf] = arrays[cell]
            return leaf
        if cell.known is not None:
            return ce.known(cell.known)
        return ce.bad(cell.bad or "its rule reads removed coordinates that it does not")

    def error(self, why: str) -> ValueError:
        kind = self.call.name.removesuffix("_call")
        return value_error(
            f"the derivative rule of a {kind} function cannot be carried over to the "
            f"compact shapes: {why}. Keep the groups that pass through it whole, or "
            "differentiate the dense function."
        )


def _array(x: Any) -> jax.Array:
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def _abstract(avals: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(a.shape, a.dtype, **layout(a)) for a in avals]


class _Copy:
    """Copies terms with new atoms: an analysis apart must not change the first."""

    def __init__(self) -> None:
        self.made: dict[ax.Atom, ax.Atom] = {}

    def axes(self, axes: Sequence[ax.Term]) -> tuple[ax.Term, ...]:
        return tuple(map(self.term, axes))

    def term(self, term: ax.Term) -> ax.Term:
        term = ax.resolve(term)
        if isinstance(term, ax.Atom):
            if term not in self.made:
                self.made[term] = ax.Atom(term.size, term.frozen)
            return self.made[term]
        if isinstance(term, ax.Sum):
            return ax.Sum(tuple(map(self.term, term.parts)))
        return ax.Prod(tuple(map(self.term, term.factors)))


def _weight(value: Value, bits: Bits) -> np.ndarray | None:
    """How many dense positions each position of a cell stands for; None if one."""
    rank = len(bits)
    return ce.multiplicity(value.layouts, bits, range(rank), rank)


def _inexact(variables: Sequence[Any]) -> list[int]:
    return [
        i for i, v in enumerate(variables) if jnp.issubdtype(v.aval.dtype, jnp.inexact)
    ]


def _smooth(eqn: Equation) -> list[int]:
    """The differentiable operands; what a reverse rule closes over is not one."""
    reverse = eqn.primitive.name == "custom_vjp_call"
    first = eqn.params["num_consts"] if reverse else 0
    return [i for i in _inexact(eqn.invars) if i >= first]


def _dynamic(cell: Cell) -> bool:
    return cell.known is None and cell.bad is None


def _of_smooth(
    eqn: Equation, xs: Sequence[Any], smooth: Sequence[int]
) -> Callable[..., Any]:
    """The call as a function of its differentiable operands."""

    def fn(*moving: Any) -> list[Any]:
        full = list(xs)
        for i, x in zip(smooth, moving, strict=True):
            full[i] = x
        return _compat.bind(eqn, eqn.params, full)

    return fn


def _float0(shape: Sequence[int]) -> np.ndarray:
    return np.zeros(tuple(shape), jax.dtypes.float0)


RULES: dict[str, Rule] = {
    name: Rule(axes=call_axes, cells=custom_cells, constant=True)
    for name in ("custom_jvp_call", "custom_vjp_call")
}
