"""What the rules that move positions share.

Each result position of a broadcast, a reshape, a concatenation is one operand position
(or a constant), so cells are moved, never mixed arithmetically. What has to be checked
is that the classes agree: positions that one class of the result holds must come from
one class of the operand. It is checked on index vectors rather than argued.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax

from jprune.surgery import _cells as ce
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._layout import Layout

Cells = Callable[[Bits], Cell]


def moved(value: Value, inner: Bits, bits: Bits, fn: Any) -> Cell:
    """The operand's cell `inner`, moved by `fn` to be the result's cell `bits`.

    A known single value stays known, wherever it is moved to.
    """
    cell = value.cell(inner)
    if cell.known is None or cell.known.size != 1:
        return ce.compute(fn, cell)
    array = cell.known.reshape((1,) * len(bits))
    if any(bits):
        return ce.known(array)
    out = ce.compute(fn, cell)
    out.known = array
    return out


def transposed(value: Value, order: Sequence[int]) -> Value:
    """The value with its dimensions in another order: permutes the bits."""
    inverse = np.argsort(order)

    def cell(bits: Bits) -> Cell:
        inner = tuple(bits[i] for i in inverse)
        return moved(value, inner, bits, lambda a: lax.transpose(a, order))

    return Value([value.layouts[d] for d in order], value.dtype, cell)


def cell_shape(layouts: Sequence[Layout], bits: Bits) -> tuple[int, ...]:
    """The shape of a cell."""
    return tuple(lay.positions(b).size for lay, b in zip(layouts, bits, strict=True))


def own_bits(value: Value, bits: Bits) -> Bits:
    """The bits of an operand of equal rank: 0 on its axes that lose nothing."""
    return tuple(
        b if lay.pruned else 0 for lay, b in zip(value.layouts, bits, strict=True)
    )


def folded(fn: Callable[[Any, np.ndarray], Any]) -> Callable[[Any, Any], Any]:
    """A NumPy evaluation of a one-operand equation, for known operands."""
    return lambda eqn, args: fn(eqn, np.broadcast_to(args[0], eqn.invars[0].aval.shape))
