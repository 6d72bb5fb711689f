"""Second pass: the same walk under a choice of kept coordinates, building cells.

Each equation's rule says how the cells of its results are made of the cells of
its operands (see `_cells`). Nothing is computed here: `Builder` only links cells, so it
serves both the certificate (what would have to be corrected, what cannot be) and the
compact function (emit the outputs).

An equation no axis of which is pruned is bound as it is. A generator is computed at
full size and its result indexed.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from jprune._jaxpr import _compat, _walk
from jprune._jaxpr._compat import ClosedJaxpr, Equation, Jaxpr
from jprune._tree import KeyTuple
from jprune.surgery import _cells as ce
from jprune.surgery import _facts
from jprune.surgery._axes import Atom, Axes, is_symbolic, leaves
from jprune.surgery._cells import Bits, Cell, Cells, Value
from jprune.surgery._facts import Same
from jprune.surgery._layout import Choice, Layout
from jprune.surgery._registry import RULES
from jprune.surgery._scope import CONST, Scope

Outs = list[tuple[Layout, ...]]
"""The layouts of each result of an equation."""
Results = Sequence[Cells | Value]
"""For each result of an equation a function from bits to its cell, or its value."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How the compact program is to be read.

    Attributes:
      removed: the meaning "as if the coordinates had never been there": no ghosts, and
        the divisor of a mean is the kept count. Otherwise "as if they were zero".
      compact_random: draw random bits at the compact shape.
      last: no derivative is taken of what is built; it only says what is known.
      zero: the parameters that are zero at removed coordinates; None: all. Of others
        nothing is known there. For questions only, not for a compact function.
      loose: the state that need not be zero at removed coordinates. For questions only.
      every: the choice stands for every choice of its atoms. For questions only.
    """

    removed: bool = False
    compact_random: bool = False
    last: bool = False
    zero: AbstractSet[KeyTuple] | None = None
    loose: AbstractSet[KeyTuple] = frozenset()
    every: bool = False


@dataclasses.dataclass
class Log:
    """What the graph had to ask for, by the atoms concerned.

    Attributes:
      leaks: a sum met a ghost that has no single value: the removal is not exact.
      corrections: a sum met a ghost that is not zero; True when it is a constant.
      nonfinite: the reference itself is not finite there (0 / 0, 0 * inf).
      uneven: where the program asks for a split over a mesh that the kept
        coordinates do not allow.
      orders: reductions that are not sums over pruned axes: their name, the atoms, and
        whether every ghost there is known.
      rounds: a scan loses rounds, and it is not proved that the carry passes them
        unchanged: why not.
    """

    leaks: list[tuple[frozenset[Atom], str]] = dataclasses.field(default_factory=list)
    corrections: list[tuple[frozenset[Atom], bool]] = dataclasses.field(
        default_factory=list
    )
    nonfinite: list[tuple[frozenset[Atom], str]] = dataclasses.field(
        default_factory=list
    )
    orders: list[tuple[str, frozenset[Atom], bool]] = dataclasses.field(
        default_factory=list
    )
    uneven: list[str] = dataclasses.field(default_factory=list)
    rounds: list[tuple[frozenset[Atom], str]] = dataclasses.field(default_factory=list)


class Builder:
    """Builds the cells of a jaxpr at one call site.

    Attributes:
      choice: which coordinates are kept.
      log: shared with the builders of all sub-jaxprs.
      effects: cells of equations with side effects, which must run.
      memo: by the id of an equation, what was found out about its derivative rule;
        shared by all builders of one program.
    """

    def __init__(
        self,
        choice: Choice,
        options: Options,
        log: Log,
        memo: dict[int, bool] | None = None,
    ) -> None:
        self.choice = choice
        self.options = options
        self.log = log
        self.effects: list[Cell] = []
        self.memo = {} if memo is None else memo

    def build(
        self, jaxpr: Jaxpr | ClosedJaxpr, scope: Scope, ins: Sequence[Value]
    ) -> list[Value]:
        """The values of the outputs of a jaxpr.

        Args:
          jaxpr: open or closed.
          scope: what the first pass found at this call site.
          ins: the values of its inputs.
        """

        def equation(index: int, eqn: Equation, operands: list[Value]) -> list[Value]:
            results = self._equation(CellSite(self, scope, eqn, index), operands)
            for value in results:
                _touch(value)
            return results

        def constant(array: Any, var: Any) -> Value:
            axes = scope.info(var).axes
            if not isinstance(var, _compat.Literal):
                return self.constant(array, axes)
            value = self.constant(_compat.literal_value(var), axes)
            value.kept.fn = None
            return value

        return _walk.run(jaxpr, ins, equation, constant)

    def sub(self) -> "Builder":
        """A builder for a sub-jaxpr that keeps its own effects."""
        return Builder(self.choice, self.options, self.log, self.memo)

    def layouts(self, axes: Axes) -> tuple[Layout, ...]:
        """The layouts of some axes."""
        return self.choice.layouts(axes)

    def looked_at(self, array: np.ndarray, axes: Axes) -> Cells:
        """The cells of an array that can be looked at."""
        alike = tuple(self.choice.alike(t) for t in axes)
        return ce.looked_at(array, self.layouts(axes), alike)

    def constant(self, const: Any, axes: Axes) -> Value:
        """The value of a closed-over constant."""
        layouts = self.layouts(axes)
        dtype = const.dtype if hasattr(const, "dtype") else np.asarray(const).dtype
        if _compat.is_tracer(const) or _compat.numpy_dtype(dtype) is None:
            dense = Cell(lambda: const)
            dense.shape = tuple(const.shape)
            return generated(dense, layouts, dtype)
        array = np.asarray(const)
        value = Value(layouts, dtype, self.looked_at(array, axes), ce.known(array))
        value.dense.shape = array.shape  # type: ignore[union-attr]
        if not value.pruned:  # keep the array itself, not a NumPy copy of it
            value.kept.fn = lambda: const
        return value

    # -- equations -------------------------------------------------------------------

    def _equation(self, site: "CellSite", ins: list[Value]) -> list[Value]:
        eqn = site.eqn
        infos = [site.scope.infos[v] for v in eqn.outvars]
        outs = [self.layouts(i.axes) for i in infos]
        constant = all([i.source == CONST for i in infos])
        pruned = any([v.pruned for v in ins]) or any(
            [lay.pruned for o in outs for lay in o]
        )
        if constant and all([v.dense is not None for v in ins]):
            folded = self._folded(site, ins, outs, pruned)
            if folded is not None:
                return folded
        if site.index in site.scope.generators:
            return self._generate(eqn, ins, outs)
        rule = RULES[eqn.primitive.name]
        divisor = self.options.removed and any(v.reduced for v in ins)
        if not pruned and not divisor:
            values = self._unchanged(eqn, ins, outs)
        else:
            self.log.uneven += _uneven(eqn, outs)
            cells = rule.cells(site, eqn, ins, outs)
            values = [
                c if isinstance(c, Value) else Value(lay, v.aval.dtype, c)
                for c, lay, v in zip(cells, outs, eqn.outvars, strict=True)
            ]
            if eqn.effects:
                self.effects.extend(v.kept for v in values)
        if constant and any(v.dense is None for v in values):
            _attach_dense(eqn, ins, values)
        if self.choice.emptied and any(v.kept.nothing for v in ins):
            return _simplified(eqn, ins, values)
        return values

    def _unchanged(self, eqn: Equation, ins: list[Value], outs: Outs) -> list[Value]:
        """The equation as it is: nothing on it is pruned."""
        name = eqn.primitive.name
        results = ce.compute(
            functools.partial(_compat_bind, eqn), *[v.kept for v in ins], name=name
        )
        if eqn.effects:
            self.effects.append(results)
        return [
            Value(out, var.aval.dtype, _constantly(ce.item(results, i)))
            for i, (out, var) in enumerate(zip(outs, eqn.outvars, strict=True))
        ]

    def _folded(
        self, site: "CellSite", ins: list[Value], outs: Outs, pruned: bool
    ) -> list[Value] | None:
        """The value of a constant equation computed now, or None if unknown."""
        eqn = site.eqn
        if len(eqn.outvars) != 1 or eqn.effects:
            return None
        if any(
            is_symbolic(n) for v in (*eqn.invars, *eqn.outvars) for n in v.aval.shape
        ):
            return None
        dense_ins = [v.dense.known for v in ins if v.dense is not None]
        args = [a for a in dense_ins if a is not None]
        rule = RULES.get(eqn.primitive.name)
        fold = rule.fold if rule else None
        shape = tuple(eqn.outvars[0].aval.shape)
        if fold is None or len(args) < len(ins):
            return None
        array = fold(eqn, args)
        if array is None or array.size > ce.FOLD_LIMIT:
            return None
        dense = ce.known(array)
        dense.shape = shape
        if array.shape != shape:
            array = np.broadcast_to(array, shape)
        cells = self.looked_at(array, site.scope.info(eqn.outvars[0]).axes)
        value = Value(outs[0], eqn.outvars[0].aval.dtype, cells, dense)
        if not pruned:  # known for the ghosts, yet computed as the dense program does
            plain = self._unchanged(eqn, ins, outs)[0].kept
            value.kept.fn, value.kept.deps = plain.fn, plain.deps
            value.kept.loose = plain.loose
        value.reduced = ins[0].reduced if ins else None
        return [value]

    def _generate(self, eqn: Equation, ins: list[Value], outs: Outs) -> list[Value]:
        """A generator: computed at full size, then indexed."""
        name = eqn.primitive.name
        deps = [v.dense if v.dense is not None else v.kept for v in ins]
        if any(d.bad for d in deps) or any(
            v.pruned for v in ins if v.dense is None
        ):  # cannot happen: its operands are frozen or free of parameters
            raise AssertionError(f"{name} would be computed from removed coordinates")
        results = ce.compute(functools.partial(_compat_bind, eqn), *deps, name=name)
        if eqn.effects:
            self.effects.append(results)
        cells = []
        for i, var in enumerate(eqn.outvars):
            dense = ce.item(results, i)
            dense.shape = tuple(var.aval.shape)
            cells.append(generated(dense, outs[i], var.aval.dtype))
        return cells


class CellSite:
    """One equation at one call site: what the `cells` half of its rule works with.

    Attributes:
      builder: of the jaxpr that the equation is in.
      scope: what the first pass found there.
      eqn: the equation.
      index: its place in the jaxpr.
    """

    __slots__ = ("builder", "eqn", "index", "scope")

    def __init__(
        self, builder: Builder, scope: Scope, eqn: Equation, index: int
    ) -> None:
        self.builder = builder
        self.scope = scope
        self.eqn = eqn
        self.index = index

    @property
    def options(self) -> Options:
        """How the compact program is to be read."""
        return self.builder.options

    @property
    def log(self) -> Log:
        """Where leaks and corrections are noted."""
        return self.builder.log

    def inner(self, which: int = 0) -> Scope:
        """The scope of a sub-jaxpr of the equation."""
        return self.scope.inner[self.index][which]

    def leak(self, place: int, dims: Sequence[int], why: str) -> None:
        """A kept result needed a bad cell on some axes of an operand."""
        self.log.leaks.append((self.pruned_atoms(place, dims), why))

    def corrected(self, place: int, dims: Sequence[int], constant: bool) -> None:
        """A kept result needed a ghost on some axes of an operand."""
        self.log.corrections.append((self.pruned_atoms(place, dims), constant))

    def pruned_atoms(self, place: int, dims: Sequence[int]) -> frozenset[Atom]:
        """The atoms that lose coordinates on some axes of an operand."""
        axes = self.scope.info(self.eqn.invars[place]).axes
        found = (a for d in dims for a in leaves(axes[d]))
        return frozenset(a for a in found if a in self.builder.choice.keep)

    def ghosts(
        self,
        bits: Bits,
        patterns: Sequence[Bits],
        cells: Callable[[Bits], tuple[Cell, ...]],
        dims: Sequence[int],
        *,
        place: int = 0,
        zero: bool = True,
        unsupported: str = "",
    ) -> list[tuple[Bits, tuple[Cell, ...]]] | Cell:
        """What the removed positions of reduced axes add to one cell of a result.

        The protocol of every sum, product and maximum: a known zero adds nothing; a
        removed coordinate without a single value makes a ghost of the result bad, and
        on a kept result is a leak; what is left is a correction.

        Args:
          bits: of the result's cell; all 0 for the kept one.
          patterns: of the reduced axes.
          cells: the operands' cells that meet at a pattern.
          dims: the pruned ones among the reduced axes of operand `place`.
          place: that operand.
          zero: whether a known zero adds nothing.
          unsupported: why such a term cannot be computed, if it cannot.

        Returns:
          The patterns that add something, with their cells; or a bad cell.
        """
        kept, name, terms = not any(bits), self.eqn.primitive.name, []
        for pattern in () if self.options.removed else patterns:
            found = cells(pattern)
            if zero and any(c.zero for c in reversed(found)):  # the weights first
                if any(c.infinite for c in found):
                    self.log.nonfinite.append((self.pruned_atoms(place, dims), name))
                continue
            why = ce.first_bad(found) or unsupported
            if why and not kept:
                return ce.bad(why)
            if why:
                self.leak(place, dims, f"{name}: {why}")
                continue
            if kept:
                constant = all(c.known is not None for c in found)
                self.corrected(place, dims, constant)
            terms.append((pattern, found))
        return terms

    def all_pruned_atoms(self) -> frozenset[Atom]:
        """The atoms that lose coordinates on any operand of the equation."""
        every = range(len(self.eqn.invars))
        sets = [
            self.pruned_atoms(i, range(len(self.eqn.invars[i].aval.shape)))
            for i in every
        ]
        return frozenset().union(*sets)


def _uneven(eqn: Equation, outs: Outs) -> list[str]:
    """Axes of the results that the equation splits into more pieces than divide them.

    Only Explicit mesh axes insist on it.
    """
    found = []
    for name in ("sharding", "out_sharding", "dst_sharding"):
        sharding = eqn.params.get(name)
        if not isinstance(sharding, NamedSharding):
            continue
        for axis, lay in enumerate(outs[0]):
            count = ce.pieces(sharding, axis)
            if lay.pruned and lay.kept.size % count:
                found.append(
                    f"`{eqn.primitive.name}` splits axis {axis} over {count} devices "
                    f"({sharding.spec}), and {lay.kept.size} of {lay.size} coordinates "
                    f"are kept: keep a multiple of {count} (`select(..., "
                    f"round_to={count})`)."
                )
    return found


def _simplified(eqn: Equation, ins: list[Value], values: list[Value]) -> list[Value]:
    """Results of which an operand is a sum over nothing: 0, or another operand."""
    if any(v.pruned for v in ins) and eqn.primitive.name not in _facts.POSITIONWISE:
        return values
    given: list[Any] = [Same(i, v.dtype) for i, v in enumerate(ins)]
    for i, value in enumerate(ins):
        array = value.kept.known
        if array is not None:
            given[i] = array if array.size == 1 else None
    found = _facts.equation(eqn, given)
    return [
        _instead(value, fact, ins) for value, fact in zip(values, found, strict=True)
    ]


def _instead(value: Value, fact: Any, ins: list[Value]) -> Value:
    """The value with the kept cell that a fact says."""
    if _facts.zero(fact):
        kept = ce.nothing(len(value.layouts), value.dtype)
    elif isinstance(fact, Same):
        kept, dtype = ins[fact.index].kept, ins[fact.index].dtype
        if dtype != value.dtype or kept.shape != value.shape():
            return value
    else:
        return value

    def rule(bits: Bits) -> Cell:
        return value.cell(bits) if any(bits) else kept

    return Value(value.layouts, value.dtype, rule, value.dense, value.reduced)


def _touch(value: Value) -> None:
    """Makes the cells of a value in program order.

    Cells are lazy and refer back through the program; made in order, each finds those
    it needs already made, and the depth of the recursion stays bounded.
    """
    rank = len(value.layouts)
    value.cell((0,) * rank)
    if not value.pruned:
        return
    pruned = [d for d, lay in enumerate(value.layouts) if lay.pruned]
    if len(pruned) <= 2:
        for bits in ce.patterns(value.layouts)[1:]:
            value.cell(bits)
    else:
        for d in pruned:
            value.cell(tuple(int(i == d) for i in range(rank)))


def generated(dense: Cell, layouts: Sequence[Layout], dtype: Any) -> Value:
    """A value computed at full size: its cells are its positions.

    A ghost exists only where every class has a single member.
    """
    single = all((lay.mult == 1).all() for lay in layouts if lay.pruned)

    def rule(bits: Bits) -> Cell:
        if any(bits) and not single:
            return ce.bad("a value computed at full size differs between coordinates")
        if not any(lay.pruned for lay in layouts):
            return ce.compute(lambda x: x, dense)
        return ce.compute(lambda x: ce.select(x, layouts, bits), dense)

    return Value(layouts, dtype, rule, dense)


def _compat_bind(eqn: Equation, *arrays: Any) -> list[Any]:
    return _compat.bind(eqn, eqn.params, arrays)


def _constantly(cell: Cell) -> Callable[[Bits], Cell]:
    return lambda bits: cell


def _attach_dense(eqn: Equation, ins: list[Value], values: list[Value]) -> None:
    """The full-size results of an equation that depends on no parameter."""
    if not any(v.pruned for v in ins) and not any(v.pruned for v in values):
        for value in values:
            value.dense = value.kept
        return
    if any(v.dense is None for v in ins):
        return
    results = ce.compute(
        functools.partial(_compat_bind, eqn),
        *[v.dense for v in ins if v.dense is not None],
        name=eqn.primitive.name,
    )
    for i, (value, var) in enumerate(zip(values, eqn.outvars, strict=True)):
        if value.dense is None:
            value.dense = ce.item(results, i)
            value.dense.shape = tuple(var.aval.shape)
