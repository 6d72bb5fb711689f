"""Element-wise primitives: each result position from the same position of the operands.

Axes: operands of one rank have equal axes; an axis of size 1, or an operand of rank 0,
is repeated and tells nothing. Cells: the same bits on every operand, bit 0 on a
repeated axis. Two facts make ghosts vanish: 0 times anything is 0, even times a ghost
that is not uniform, and a `select_n` with equal cases does not depend on its predicate.

The list is explicit. A primitive that merely looks element-wise is not assumed to be.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jprune._groups import Role
from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery import _fold
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._registry import NoRule, Rule
from jprune.surgery._scope import Info

NAMES = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt
ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq
eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag
integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul name ne
neg nextafter not or pcast polygamma population_count pow ppermute pvary real
reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub
tan tanh xor zeta
""".split()


def elementwise_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Axes of a position-wise primitive: equal over the operands of full rank.

    Args:
      site: the equation's place in the program, first pass.
      eqn: the equation; every result has the same shape.
      ins: what is known of the operands.

    Returns:
      The axes of each result.
    """
    shape = eqn.outvars[0].aval.shape
    full = [i.axes for i in ins if len(i.axes) == len(shape)]
    out = []
    for dim, size in enumerate(shape):
        first = None
        for axes in full:
            term = axes[dim]
            if term.size != size:
                continue
            if first is None:
                first = term
            else:
                site.unify(first, term)
        out.append(site.fresh(size) if first is None else first)
    return [tuple(out)] * len(eqn.outvars)


def bitcast_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """As element-wise, for a cast between types of equal width."""
    if eqn.invars[0].aval.ndim != eqn.outvars[0].aval.ndim:
        raise NoRule("a cast to another width")
    return elementwise_axes(site, eqn, ins)


def operand_bits(value: Value, bits: Bits) -> Bits:
    """The bits of an operand for a result's: 0 where the operand is repeated."""
    rank = len(value.layouts)
    return value.own(bits) if rank == len(bits) else (0,) * rank


def positionwise(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """Cells of a position-wise primitive: the primitive on the operands' cells.

    Args:
      site: the equation's place in the program.
      eqn: the equation; every result has the same shape.
      ins: the values of the operands.
      outs: the layouts of each result.

    Returns:
      For each result a function from bits to its cell.
    """

    @functools.cache
    def results(bits: Bits) -> Cell:
        cells = [v.cell(operand_bits(v, bits)) for v in ins]
        return ce.compute(
            functools.partial(bind, eqn), *cells, loose=True, name=eqn.primitive.name
        )

    return [
        lambda bits, i=i: ce.item(results(bits), i) for i in range(len(eqn.outvars))
    ]


def bind(eqn: Equation, *arrays: Any) -> list[Any]:
    """The equation on other operands."""
    return _compat.bind(eqn, eqn.params, arrays)


def rewrite(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    """Cells of an element-wise primitive, folding what is known."""
    name = eqn.primitive.name
    shortcut = _SHORTCUTS.get(name)
    atoms = site.all_pruned_atoms if shortcut else frozenset
    divisor = _divisor(site, eqn, ins) if name == "div" else None
    if divisor is not None:
        ins = [ins[0], divisor]
    rank = len(outs[0])

    def cell(bits: Bits) -> Cell:
        cells = [v.cell(operand_bits(v, bits)) for v in ins]
        values = [c.known for c in cells if c.known is not None]
        folded = None
        if len(values) == len(cells):
            folded = _fold_small(eqn, values, rank)
        elif any(bits) and shortcut:
            folded = shortcut(cells)
        if folded is not None and any(bits):
            if shortcut and _absorbed(name, cells):
                site.log.nonfinite.append((atoms(), name))
            return ce.known(folded.reshape((1,) * rank) if folded.size == 1 else folded)
        out = ce.compute(
            lambda *arrays: bind(eqn, *arrays)[0],
            *cells,
            loose=name not in _EQUAL_SHAPES,
            name=name,
        )
        out.known = folded
        return out

    value = Value(outs[0], eqn.outvars[0].aval.dtype, cell)
    if name in ("convert_element_type", "copy", "stop_gradient") and ins:
        value.reduced = ins[0].reduced
    return [value]


_EQUAL_SHAPES = ("add_any", "clamp", "convert_element_type", "select_n")
"""Primitives that do not repeat a scalar by themselves, or that JAX evaluates in NumPy
on one: out of range, a cast in NumPy differs from one in XLA."""


def _fold_small(
    eqn: Equation, values: list[np.ndarray], rank: int
) -> np.ndarray | None:
    if any([v.size > 1 for v in values]):
        sizes = np.broadcast_shapes(*[v.shape for v in values])
        if math.prod(sizes) > ce.FOLD_LIMIT:
            return None
    out = _fold.evaluate(eqn, values)
    if out is not None and out.size == 1:
        return out.reshape((1,) * rank)
    return out


def _divisor(site: CellSite, eqn: Equation, ins: list[Value]) -> Value | None:
    """The kept count where a sum is divided by the number of its dense terms."""
    over, under = ins
    if not site.options.removed or over.reduced is None:
        return None
    count = under.kept.known
    dense, kept = over.reduced
    if count is None or count.size != 1 or count.item() != dense or kept == 0:
        return None
    number = ce.known(np.asarray(kept, count.dtype).reshape(count.shape))
    return Value(under.layouts, under.dtype, lambda bits: number)


# -- what is known of a result although an operand is not ----------------------------


def _zero_product(cells: list[Cell]) -> np.ndarray | None:
    found = next((c.known for c in cells if c.zero), None)
    return None if found is None else np.zeros(1, found.dtype)


def _zero_quotient(cells: list[Cell]) -> np.ndarray | None:
    return _zero_product(cells[:1])


def _decided_select(cells: list[Cell]) -> np.ndarray | None:
    which, *cases = cells
    if which.known is not None and which.known.size == 1:
        return cases[int(which.known.item())].known
    first = cases[0].known
    if first is None or first.size != 1:
        return None
    same = all(
        c.known is not None and c.known.size == 1 and c.known.item() == first.item()
        for c in cases
    )
    return first if same else None


_SHORTCUTS: dict[str, Callable[[list[Cell]], np.ndarray | None]] = {
    "mul": _zero_product,
    "and": _zero_product,
    "div": _zero_quotient,
    "select_n": _decided_select,
}


def _absorbed(name: str, cells: list[Cell]) -> bool:
    """Whether a zero absorbed a value that is not finite (0 * inf, 0 / 0)."""
    if name == "div" and cells[0].zero and cells[1].zero:
        return True
    if name not in ("mul", "div") or not any(c.zero for c in cells):
        return False
    return any(
        c.known is not None
        and np.issubdtype(c.known.dtype, np.inexact)
        and not np.isfinite(c.known).all()
        for c in cells
    )


# -- several operands, each with its own result --------------------------------------


def identities(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Axes of primitives that hand each operand on (`device_put`, barriers)."""
    return [i.axes for i in ins]


def rewrite_identities(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """Kept cells go through the primitive together, ghosts around it."""
    name = eqn.primitive.name
    together = ce.compute(
        functools.partial(bind, eqn), *[v.kept for v in ins], name=name
    )

    def passing(index: int, value: Value) -> Callable[[Bits], Cell]:
        def cell(bits: Bits) -> Cell:
            if not any(bits):
                return ce.item(together, index)
            ghost = value.cell(bits)
            return ce.known(ghost.known) if ghost.known is not None else ghost

        return cell

    return [passing(i, v) for i, v in enumerate(ins)]


def _always(role: Role) -> Callable[[Equation, int], dict[int, Role]]:
    """The role on every axis."""
    return lambda eqn, place: dict.fromkeys(range(eqn.invars[place].aval.ndim), role)


def _difference(eqn: Equation, place: int) -> dict[int, Role]:
    """What is subtracted is a running mean, from what it is subtracted a bias."""
    return _always("stat" if place == 1 else "bias")(eqn, place)


_ROLES = {
    "add": _always("bias"),
    "div": _always("scale"),
    "mul": _always("scale"),
    "rsqrt": _always("stat"),
    "sqrt": _always("stat"),
    "sub": _difference,
}


RULES: dict[str, Rule] = {
    **{
        name: Rule(
            axes=elementwise_axes,
            cells=rewrite,
            constant=True,
            fold=_fold.evaluate,
            role=_ROLES.get(name),
        )
        for name in NAMES
    },
    "bitcast_convert_type": Rule(axes=bitcast_axes, cells=rewrite, constant=True),
    **{
        name: Rule(axes=identities, cells=rewrite_identities, constant=True)
        for name in (
            "device_put",
            "optimization_barrier",
            "sharding_constraint",
            "reshard",
        )
    },
}
