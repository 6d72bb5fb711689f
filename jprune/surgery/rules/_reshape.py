"""Reshape: flattenings and grids.

The dimensions on both sides fall into blocks of equal products. Within a block the axes
are flattened to a product and split again. Kept positions stay in order, so the kept
cell is a plain reshape; a ghost may be gathered from several cells of the operand.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import (
    Axes,
    StructureError,
    is_symbolic,
    product,
    shorter,
    split,
)
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._layout import Layout
from jprune.surgery._moves import cell_shape, folded, moved, reshaped_dims, transposed
from jprune.surgery._registry import NoRule, Rule
from jprune.surgery._scope import Info

# -- reshape -------------------------------------------------------------------------


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """The smallest runs of dimensions with equal products on both sides."""
    out, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left = right = 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if shorter(left, right):
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        out.append((range(i0, i), range(j0, j)))
    return out


def reshape_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Block by block: flatten, then split; what does not nest is frozen."""
    if len(ins) > 1:
        raise NoRule("a dynamic shape")
    axes = [ins[0].axes[d] for d in _order(eqn)]
    after = tuple(eqn.params["new_sizes"])
    if 0 in after:  # it holds nothing that could relate axes
        return [tuple(map(site.fresh, after))]
    out: list[Any] = [None] * len(after)
    for old, new in blocks([t.size for t in axes], after):
        term = product([axes[d] for d in old])
        try:
            pieces = split(term, [after[d] for d in new])
        except StructureError as error:
            site.freeze(term, str(error))
            pieces = [site.fixed(after[d], str(error)) for d in new]
        for d, piece in zip(new, pieces, strict=True):
            out[d] = piece
    return [tuple(out)]


def reshape_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """Kept positions stay in order; a ghost may be gathered from several cells."""
    (x,), order = ins, _order(eqn)
    if order != list(range(len(order))):
        x = transposed(x, order)
    before = [lay.size for lay in x.layouts]
    after = [lay.size for lay in outs[0]]
    if 0 in after:
        return [lambda bits: _empty(x, outs[0], bits)]
    runs = blocks(before, after)
    memo = site.builder.choice.memo
    maps = [
        _block(memo, [x.layouts[d] for d in old], [outs[0][d] for d in new])
        for old, new in runs
    ]

    def cell(bits: Bits) -> Cell:
        shape = cell_shape(outs[0], bits)
        sources = [
            m.sources(tuple(bits[d] for d in new))
            for m, (_, new) in zip(maps, runs, strict=True)
        ]
        for m, (_, new) in zip(maps, runs, strict=True):
            if any(bits[d] for d in new) and not m.uniform:
                return ce.bad("a reshape joins different removed coordinates")
        if all(order is None and len(p) == 1 for p, order in sources):
            inner = tuple(itertools.chain(*[p[0] for p, _ in sources]))
            split = None if any(bits) else eqn.params.get("sharding")
            return moved(
                x, inner, bits, lambda a: lax.reshape(a, shape, out_sharding=split)
            )
        return _gathered(x, sources, shape)

    value = Value(outs[0], x.dtype, cell)
    value.reduced = ins[0].reduced
    return [value]


def _order(eqn: Equation) -> list[int]:
    """The dimensions of the operand in the order in which they are read."""
    order = eqn.params.get("dimensions")
    return list(range(eqn.invars[0].aval.ndim) if order is None else order)


def _empty(x: Value, layouts: Sequence[Layout], bits: Bits) -> Cell:
    """Every cell of an empty array is an empty array."""
    shape = cell_shape(layouts, bits)
    return moved(x, (0,) * len(x.layouts), bits, lambda a: lax.reshape(a, shape))


def _block(memo: dict, old: Sequence[Layout], new: Sequence[Layout]) -> "_Block":
    """The block of some layouts; layers of one shape share it."""
    key = (_Block, tuple(old), tuple(new))
    if key not in memo:
        memo[key] = _Block(old, new)
    return memo[key]


class _Block:
    """How one block maps the positions of result cells to operand cells."""

    def __init__(self, old: Sequence[Layout], new: Sequence[Layout]) -> None:
        self.old, self.new = old, new
        same = len(old) == len(new) == 1 and old[0] is new[0]
        if any(is_symbolic(lay.size) for lay in (*old, *new)):
            mixed = any(lay.pruned for lay in (*old, *new))
            if mixed:
                raise NoRule("a reshape of a pruned axis and one of symbolic size")
        self.passes = same
        self.plain = not any(lay.pruned for lay in (*old, *new))
        self.uniform = True
        self.sources = functools.cache(self._sources)
        if not same and not self.plain:
            rep_in, rep_out = _grid_rep(old), _grid_rep(new)
            self.uniform = bool((rep_in == rep_in[rep_out]).all())

    def _sources(self, bits: Bits) -> tuple[list[Bits], np.ndarray | None]:
        """The operand patterns of a result pattern, and the order to take (or None)."""
        if self.passes:
            return [bits], None
        if self.plain:
            return [(0,) * len(self.old)], None
        grid = np.zeros((), np.int64)
        for lay, bit in zip(self.new, bits, strict=True):
            grid = np.add.outer(grid * lay.size, lay.positions(bit))
        where = np.unravel_index(grid.reshape(-1), [lay.size for lay in self.old])
        pairs = list(zip(self.old, where, strict=True))
        code = np.zeros(grid.size, np.int64)
        for lay, at in pairs:
            code = 2 * code + ~lay.keep[at]
        order, start, found = np.zeros(grid.size, np.int64), 0, []
        for number in np.unique(code) if code.size else [0]:
            pattern = tuple(int(b) for b in np.binary_repr(number, len(self.old)))
            here = code == number
            shape = cell_shape(self.old, pattern)
            if here.any():
                at = [lay.index[w[here]] for lay, w in pairs]
                order[here] = start + np.ravel_multi_index(at, shape)
            found.append(pattern)
            start += math.prod(shape)
        if start == order.size and (order == np.arange(start)).all():
            return found, None
        return found, order


def _grid_rep(layouts: Sequence[Layout]) -> np.ndarray:
    rep = np.zeros((), np.int64)
    for lay in layouts:
        rep = np.add.outer(rep * lay.size, lay.rep)
    return rep.reshape(-1)


def _gathered(x: Value, sources: Any, shape: tuple[int, ...]) -> Cell:
    """A cell put together from several operand cells, block by block."""
    choices = list(itertools.product(*[p for p, _ in sources]))
    cells = [x.cell(tuple(itertools.chain(*c))) for c in choices]
    why = ce.first_bad(cells)
    if why:
        return ce.bad(why)
    values = [c.known for c in cells]
    first = values[0]
    if all(
        v is not None and v.size == 1 and first is not None and v.item() == first.item()
        for v in values
    ):
        return ce.known(np.asarray(first).reshape((1,) * len(shape)))
    splits = list(itertools.accumulate((len(p[0]) for p, _ in sources), initial=0))

    def fn(*arrays: Any) -> Any:
        table = {}
        for choice, array in zip(choices, arrays, strict=True):
            flat = [math.prod(array.shape[a:b]) for a, b in itertools.pairwise(splits)]
            table[choice] = lax.reshape(array, flat)
        return lax.reshape(_join(table, sources, ()), shape)

    return ce.compute(fn, *cells)


def _join(table: dict[Any, Any], sources: Any, chosen: tuple[Any, ...]) -> Any:
    axis = len(chosen)
    if axis == len(sources):
        return table[chosen]
    found, order = sources[axis]
    parts = [_join(table, sources, (*chosen, p)) for p in found]
    whole = parts[0] if len(parts) == 1 else lax.concatenate(parts, axis)
    return whole if order is None else ce.take(whole, order, axis)


_fold_reshape = folded(
    lambda eqn, x: x.transpose(_order(eqn)).reshape(eqn.params["new_sizes"])
)


RULES: dict[str, Rule] = {
    "reshape": Rule(
        axes=reshape_axes,
        cells=reshape_cells,
        constant=True,
        fold=_fold_reshape,
        dims=reshaped_dims,
    ),
}
