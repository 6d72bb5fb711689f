"""Loops: `scan` and `while`.

A carry has the same axes going in and coming out; unification is symmetric, so one pass
over the body couples everything. The rounds of a scan are an axis, too (`_rounds`).

For ghosts a loop is a fixpoint: what is known of a carry's ghost must hold at the start
and after every step. Beginning with the ghosts of the initial carry, the body is built,
the ghosts of its results are joined with the assumption (known and equal, else dynamic;
bad above all) and the body is built again until nothing changes: two steps at most for
each cell. Dynamic ghosts that are asked for become further carries, inputs and outputs.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jprune._jaxpr import _walk
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import is_symbolic
from jprune.surgery._build import Builder, CellSite, Log, Outs
from jprune.surgery._cells import Bits, Call, Cell, Item, Value
from jprune.surgery._frames import Boundary, Frame, joined, same_known
from jprune.surgery._layout import Layout
from jprune.surgery._registry import Rule
from jprune.surgery._scope import CONST, MANY, Info
from jprune.surgery.rules import _rounds

Status = dict[tuple[int, Bits], Cell | None]
"""What is assumed of each ghost of the carry: a known or bad cell, or None: dynamic."""


class _Carry:
    """The carry of a loop, seen from inside one frame."""

    def __init__(self, init: Sequence[Value], status: Status) -> None:
        self.init = init
        self.status = status
        self.leaves: dict[Cell, tuple[int, Bits]] = {}

    def value(self, index: int) -> Value:
        """The carry as an input of the body."""
        start = self.init[index]

        def rule(bits: Bits) -> Cell:
            assumed = self.status.get((index, bits))
            if assumed is not None:
                if assumed.bad is not None:
                    return ce.bad(assumed.bad)
                return ce.known(assumed.known)
            leaf = Cell(name="carry")
            leaf.shape = start.shape(bits)
            self.leaves[leaf] = (index, bits)
            return leaf

        return Value(start.layouts, start.dtype, rule)


def _initial(init: Sequence[Value]) -> Status:
    status: Status = {}
    for index, value in enumerate(init):
        for bits in ce.patterns(value.layouts)[1:]:
            cell = value.cell(bits)
            fixed = cell.bad is not None or cell.known is not None
            status[index, bits] = cell if fixed else None
    return status


def _fixpoint(build: Any, init: Sequence[Value]) -> tuple[Any, _Carry]:
    """Builds the frames of a loop under statuses that the body preserves.

    Args:
      build: `(carry, log) -> (frames, values of the carry after one step)`; `log` is
        None for the final build.
      init: the initial carry.
    """
    status = _initial(init)
    while status:
        carry = _Carry(init, status)
        _, after = build(carry, Log())
        new: Status = {}
        for (index, bits), assumed in status.items():
            cell = after[index].cell(bits)
            new[index, bits] = _join(assumed, cell)
        if all(_equal(status[k], new[k]) for k in status):
            break
        status = new
    carry = _Carry(init, status)
    return build(carry, None)[0], carry


def _join(assumed: Cell | None, cell: Cell) -> Cell | None:
    if assumed is not None and assumed.bad is not None:
        return assumed
    if cell.bad is not None:
        return cell
    return assumed if assumed is not None and same_known(assumed, cell) else None


def _equal(a: Cell | None, b: Cell | None) -> bool:
    if a is None or b is None:
        return a is b
    return (a.bad is not None) == (b.bad is not None)


def _builder(builder: Builder, log: Log | None) -> Builder:
    sub = builder.sub()
    sub.log = builder.log if log is None else log
    return sub


class _Loop(Call):
    """What scan and while share: the carried cells and the boundary."""

    __slots__ = ("boundary", "carried", "carry")

    def __init__(self, name: str, boundary: Boundary, carry: _Carry) -> None:
        super().__init__(name)
        self.boundary = boundary
        self.carry = carry
        self.carried: dict[tuple[int, Bits], Cell] = {}

    def _add(self, outer: Cell) -> list[Cell]:
        if outer in self.deps:
            return []
        self.deps = (*self.deps, outer)
        return [outer]

    def _start(self, key: tuple[int, Bits]) -> Cell:
        index, bits = key
        return self.carry.init[index].cell(bits)

    def _initials(self, given: dict[Cell, Any]) -> list[Any]:
        out = []
        for (index, _), cell in self.carried.items():
            dtype = self.carry.init[index].dtype
            array = given[cell]
            out.append(
                jnp.asarray(array, dtype) if not hasattr(array, "aval") else array
            )
        return out

    def _leaves(self, given: dict[Cell, Any], values: Sequence[Any]) -> dict[Cell, Any]:
        now = dict(zip(self.carried, values, strict=True))
        leaves = {
            leaf: given[cell]
            for leaf, cell in self.boundary.outer.items()
            if cell in given
        }
        leaves.update(
            (leaf, now[key]) for leaf, key in self.carry.leaves.items() if key in now
        )
        return leaves


# -- scan ----------------------------------------------------------------------------


def scan_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Info]:
    """Carries are the same before and after; stacked values share the rounds."""
    body, consts, init, xs, _ = _walk.loop(eqn, ins)
    rounds = _rounds.axis(site, eqn, xs)
    init = [_rounds.carried(site, i) for i in init]
    inner = [*consts, *init, *(_sliced(i) for i in xs)]
    outs = site.walk(body, inner, over=rounds)
    for before, after in zip(init, outs[: len(init)], strict=True):
        for s, t in zip(before.axes, after.axes, strict=True):
            site.unify(s, t)
    return [
        *(Info(i.axes) for i in outs[: len(init)]),
        *(Info((rounds, *i.axes)) for i in outs[len(init) :]),
    ]


def _sliced(info: Info) -> Info:
    dims = None if info.dims is None else info.dims[1:]
    source = MANY if info.source == CONST else info.source
    return Info(info.axes[1:], source, dims)


class _Scan(_Loop):
    """A scan over the compact body."""

    __slots__ = ("eqn", "frame", "length", "sliced")

    def __init__(
        self,
        eqn: Equation,
        boundary: Boundary,
        carry: _Carry,
        frame: Frame,
        sliced: dict[Cell, Cell],
        length: Any,
    ) -> None:
        super().__init__("scan", boundary, carry)
        self.eqn = eqn
        self.length = length
        self.frame = frame
        self.sliced = sliced

    def want(self, key: Any) -> list[Cell]:
        """A result needs body cells, which may need more carries, and so on."""
        self.wanted[key] = None
        kind, index, bits = key
        new: list[Cell] = []
        todo = [("carry", index, bits)] if kind == "carry" else []
        if kind == "ys":
            new += self._mark(self._after(key), todo)
        while todo:
            _, index, bits = todo.pop()
            if (index, bits) in self.carried:
                continue
            start = self._start((index, bits))
            self.carried[index, bits] = start
            new += self._add(start)
            new += self._mark(self._after(("carry", index, bits)), todo)
        return new

    def _after(self, key: Any) -> Cell:
        kind, index, bits = key
        n_carry = self.eqn.params["num_carry"]
        place = index if kind == "carry" else n_carry + index
        return self.frame.outs[place].cell(bits)

    def _mark(self, cell: Cell, todo: list[Any]) -> list[Cell]:
        new: list[Cell] = []
        for leaf in self.frame.need([cell]):
            if leaf in self.carry.leaves:
                todo.append(("carry", *self.carry.leaves[leaf]))
            elif leaf in self.sliced:
                new += self._add(self.sliced[leaf])
            else:
                new += self._add(self.boundary.outer[leaf])
        return new

    def run(self, *arrays: Any) -> dict[Any, Any]:
        """The compact scan."""
        given = dict(zip(self.deps, arrays, strict=True))
        rows = {leaf: cell for leaf, cell in self.sliced.items() if cell in given}
        carried = list(self.carried)
        ys = [k for k in self.wanted if k[0] == "ys"]
        steps = [self._after(("carry", *k)) for k in carried]
        outs = [self._after(k) for k in ys]

        def body(values: Any, row: Any) -> Any:
            leaves = self._leaves(given, values)
            leaves.update(zip(rows, row, strict=True))
            done = self.frame.compute([*steps, *outs], leaves)
            return done[: len(steps)], done[len(steps) :]

        p = self.eqn.params
        told = bool(rows) and is_symbolic(self.length)  # JAX would compare the two
        final, stacked = lax.scan(
            body,
            self._initials(given),
            [given[c] for c in rows.values()],
            length=None if told else self.length,
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        results: dict[Any, Any] = {
            ("carry", *k): v for k, v in zip(carried, final, strict=True)
        }
        results.update(zip(ys, stacked, strict=True))
        return results


def scan_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> list[Value]:
    """A fixpoint for the statuses, then one scan for whatever is asked for."""
    body, consts, init, xs, _ = _walk.loop(eqn, ins)
    n_carry, length, gone = len(init), eqn.params["length"], []
    boundary = Boundary()
    fixed = [boundary.value(v) for v in consts]
    sliced: dict[Cell, Cell] = {}
    rounds = _rounds.layout(xs)
    rows = [_row(v, sliced, rounds) for v in xs]
    scope = site.inner()

    def build(carry: _Carry, log: Log | None) -> Any:
        values = [carry.value(i) for i in range(n_carry)]
        inner = [*fixed, *values, *rows]
        frame = Frame(_builder(site.builder, log), body, scope, inner)
        return frame, frame.outs[:n_carry]

    frame, carry = _fixpoint(build, init)
    if rounds is not None:
        length, gone = rounds.kept.size, _rounds.removed(site, eqn, consts, xs)
    loop = _Scan(eqn, boundary, carry, frame, sliced, length)
    results = []
    for i in range(n_carry):
        results.append(_carry_result(loop, i, init[i]))
    for j, value in enumerate(frame.outs[n_carry:]):
        there = gone[j] if gone else None
        results.append(_ys_result(loop, j, value, outs[n_carry + j], there))
    return results


def _carry_result(loop: Any, index: int, start: Value) -> Value:
    def rule(bits: Bits) -> Cell:
        assumed = loop.carry.status.get((index, bits))
        if assumed is None:
            return Item(loop, ("carry", index, bits))
        return ce.bad(assumed.bad) if assumed.bad else ce.known(assumed.known)

    return Value(start.layouts, start.dtype, rule)


def _ys_result(
    loop: Any, index: int, value: Value, layouts: Any, gone: Cell | None
) -> Value:
    """A stacked result; `gone` is what it holds at removed rounds."""

    def rule(bits: Bits) -> Cell:
        if bits[0] and gone is not None:
            return ce.bad(gone.bad) if gone.bad else ce.known(gone.known)
        cell = value.cell(bits[1:])
        if cell.known is not None and any(bits):
            return ce.known(cell.known[None])
        return joined([cell], lambda: Item(loop, ("ys", index, bits[1:])), any(bits))

    def strip(bits: Bits) -> Cell:
        out = rule(bits)
        out.known = out.known if any(bits) else None
        return out

    return Value(layouts, value.dtype, strip)


def _row(value: Value, sliced: dict[Cell, Cell], rounds: Layout | None) -> Value:
    """An input of the body: one slice of the leading axis.

    What is stacked without being cut (an input of the caller) is indexed here.
    """
    whole = rounds is not None and not value.layouts[0].pruned

    def rule(bits: Bits) -> Cell:
        cell = value.cell((0, *bits))
        if cell.bad is not None:
            return ce.bad(cell.bad)
        if cell.known is not None and cell.known.size == 1:
            return ce.known(cell.known.reshape((1,) * len(bits)))
        leaf = Cell(name="row")
        leaf.shape = value.shape((0, *bits))[1:]
        sliced[leaf] = _rounds.indexed(cell, rounds) if whole and rounds else cell
        return leaf

    return Value(value.layouts[1:], value.dtype, rule)


# -- while ---------------------------------------------------------------------------


def while_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Info]:
    """Carries are the same before and after; the condition sees them too."""
    loop = _walk.loop(eqn, ins)
    init = [Info(i.axes) for i in loop.carry]
    site.walk(eqn.params["cond_jaxpr"], [*loop.condition, *init])
    outs = site.walk(loop.body, [*loop.consts, *init])
    for before, after in zip(init, outs, strict=True):
        for s, t in zip(before.axes, after.axes, strict=True):
            site.unify(s, t)
    return [Info(i.axes) for i in outs]


class _While(_Loop):
    """A while loop over the compact condition and body."""

    __slots__ = ("body", "cond")

    def __init__(
        self, boundary: Boundary, carry: _Carry, cond: Frame, body: Frame
    ) -> None:
        super().__init__("while", boundary, carry)
        self.cond = cond
        self.body = body

    def want(self, key: Any) -> list[Cell]:
        """The condition is always needed, and the carries that it needs."""
        self.wanted[key] = None
        _, index, bits = key
        new: list[Cell] = []
        todo = [(index, bits)]
        new += self._mark(self.cond, self.cond.outs[0].kept, todo)
        while todo:
            place = todo.pop()
            if place in self.carried:
                continue
            start = self._start(place)
            self.carried[place] = start
            new += self._add(start)
            new += self._mark(self.body, self.body.outs[place[0]].cell(place[1]), todo)
        return new

    def _mark(self, frame: Frame, cell: Cell, todo: list[Any]) -> list[Cell]:
        new: list[Cell] = []
        for leaf in frame.need([cell]):
            if leaf in self.carry.leaves:
                todo.append(self.carry.leaves[leaf])
            else:
                new += self._add(self.boundary.outer[leaf])
        return new

    def run(self, *arrays: Any) -> dict[Any, Any]:
        """The compact loop."""
        given = dict(zip(self.deps, arrays, strict=True))
        carried = list(self.carried)
        steps = [self.body.outs[i].cell(bits) for i, bits in carried]

        def cond(values: Any) -> Any:
            return self.cond.compute(
                [self.cond.outs[0].kept], self._leaves(given, values)
            )[0]

        def body(values: Any) -> Any:
            return self.body.compute(steps, self._leaves(given, values))

        final = lax.while_loop(cond, body, self._initials(given))
        return {("carry", *k): v for k, v in zip(carried, final, strict=True)}


def while_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> list[Value]:
    """A fixpoint for the statuses, then one loop."""
    around = _walk.loop(eqn, ins)
    init = around.carry
    boundary = Boundary()
    condition = [boundary.value(v) for v in around.condition]
    consts = [boundary.value(v) for v in around.consts]
    scopes = site.inner(0), site.inner(1)

    def build(carry: _Carry, log: Log | None) -> Any:
        values = [carry.value(i) for i in range(len(init))]
        sub = _builder(site.builder, log)
        test = eqn.params["cond_jaxpr"]
        cond = Frame(sub, test, scopes[0], [*condition, *values])
        body = Frame(sub, around.body, scopes[1], [*consts, *values])
        return (cond, body), body.outs

    (cond, body), carry = _fixpoint(build, init)
    loop = _While(boundary, carry, cond, body)
    return [_carry_result(loop, i, v) for i, v in enumerate(init)]


RULES: dict[str, Rule] = {
    "scan": Rule(axes=scan_axes, cells=scan_cells),
    "while": Rule(axes=while_axes, cells=while_cells),
}
