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

from jprune._jaxpr._compat import Equation
from jprune._jaxpr._moves import Dims
from jprune.surgery import _cells as ce
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._layout import Layout


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


def folded(
    fn: Callable[[Equation, np.ndarray], np.ndarray],
) -> Callable[[Equation, Sequence[np.ndarray]], np.ndarray]:
    """A NumPy evaluation of a one-operand equation, for known operands."""
    return lambda eqn, args: fn(eqn, np.broadcast_to(args[0], eqn.invars[0].aval.shape))


def reshaped_dims(eqn: Equation, dims: Dims) -> Dims:
    """What stands behind each axis after a reshape: axes that carry over one to one.

    They are found by their position among the axes that are not of size 1. One axis
    split into several stands behind each of them.
    """
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    new: list[int | None] = [None] * len(after)
    old = [(n, d) for n, d in zip(before, dims, strict=True) if n != 1]
    here = [(n, i) for i, n in enumerate(after) if n != 1]
    front = 0
    while front < min(len(old), len(here)) and old[front][0] == here[front][0]:
        new[here[front][1]] = old[front][1]
        front += 1
    back = 1
    while back <= min(len(old), len(here)) - front and old[-back][0] == here[-back][0]:
        new[here[-back][1]] = old[-back][1]
        back += 1
    left_old = old[front : len(old) - back + 1]
    left_new = here[front : len(here) - back + 1]
    if len(left_old) == 1:
        for _, place in left_new:
            new[place] = left_old[0][1]
    return tuple(new)
