"""Primitives that move positions: broadcast, reshape, transpose, concatenate, pad, ...

Each result position is one operand position (or a constant), so cells are moved, never
mixed arithmetically. What has to be checked is that the classes agree: positions that
one class of the result holds must come from one class of the operand. It is checked on
index vectors rather than argued.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune.surgery import _cells as ce
from jprune.surgery._axes import Axes, StructureError, concat, cut, product, split
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._layout import Layout
from jprune.surgery._registry import Rule

Cells = Callable[[Bits], Cell]


def moved(value: Value, inner: Bits, bits: Bits, fn: Any) -> Cell:
    """The operand's cell `inner`, moved by `fn` to be the result's cell `bits`.

    A known single value stays known, wherever it is moved to.
    """
    cell = value.cell(inner)
    if cell.known is not None and cell.known.size == 1:
        array = cell.known.reshape((1,) * len(bits))
        if any(bits):
            return ce.known(array)
        out = ce.compute(fn, cell)
        out.known = array
        return out
    return ce.compute(fn, cell)


def cell_shape(layouts: Sequence[Layout], bits: Bits) -> tuple[int, ...]:
    """The shape of a cell."""
    return tuple(lay.positions(b).size for lay, b in zip(layouts, bits, strict=True))


def _folded(fn: Callable[[Any, np.ndarray], Any]) -> Callable[[Any, Any], Any]:
    """A NumPy evaluation of a one-operand equation, for known operands."""
    return lambda eqn, args: fn(eqn, np.broadcast_to(args[0], eqn.invars[0].aval.shape))


# -- broadcast_in_dim --------------------------------------------------------------


def broadcast_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Mapped axes of equal size pass; the others are new."""
    if len(ins) > 1:
        raise NotImplementedError("a dynamic shape")
    out: list[Any] = [ctx.fresh(n) for n in eqn.params["shape"]]
    for term, dim in zip(ins[0].axes, eqn.params["broadcast_dimensions"], strict=True):
        if term.size == out[dim].size:
            out[dim] = term
    return [tuple(out)]


def broadcast_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """A new axis repeats the operand, so its ghost is the operand itself."""
    (x,), dims = ins, eqn.params["broadcast_dimensions"]

    def cell(bits: Bits) -> Cell:
        inner = tuple(
            bits[d] if lay.pruned else 0 for d, lay in zip(dims, x.layouts, strict=True)
        )
        shape = cell_shape(outs[0], bits)
        return moved(x, inner, bits, lambda a: lax.broadcast_in_dim(a, shape, dims))

    value = Value(outs[0], x.dtype, cell)
    value.reduced = x.reduced
    return [value]


def _fold_broadcast(eqn: Any, args: Sequence[np.ndarray]) -> Any:
    shape = eqn.params["shape"]
    dims = eqn.params["broadcast_dimensions"]
    x = args[0]
    if x.size > 1:
        x = np.broadcast_to(x, eqn.invars[0].aval.shape)
    if x.size == 1:
        return np.broadcast_to(x.reshape(()), shape)
    if math.prod(shape) > ce.FOLD_LIMIT:
        return None
    full = [1] * len(shape)
    for n, d in zip(x.shape, dims, strict=True):
        full[d] = n
    return np.broadcast_to(x.reshape(full), shape)


broadcast_cells.fold = _fold_broadcast  # type: ignore[attr-defined]


# -- transpose, squeeze, expand_dims -------------------------------------------------


def transpose_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Permutes."""
    return [tuple(ins[0].axes[p] for p in eqn.params["permutation"])]


def transpose_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """Permutes the bits."""
    (x,), perm = ins, eqn.params["permutation"]
    inverse = np.argsort(perm)

    def cell(bits: Bits) -> Cell:
        inner = tuple(bits[i] for i in inverse)
        return moved(x, inner, bits, lambda a: lax.transpose(a, perm))

    return [cell]


transpose_cells.fold = _folded(  # type: ignore[attr-defined]
    lambda eqn, x: np.transpose(x, eqn.params["permutation"])
)


def squeeze_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Drops axes of size 1."""
    drop = set(eqn.params["dimensions"])
    return [tuple(t for d, t in enumerate(ins[0].axes) if d not in drop)]


def squeeze_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """An axis of size 1 has no classes."""
    (x,) = ins
    drop = set(eqn.params["dimensions"])
    keep = [d for d in range(len(x.layouts)) if d not in drop]

    def cell(bits: Bits) -> Cell:
        inner = [0] * len(x.layouts)
        for d, b in zip(keep, bits, strict=True):
            inner[d] = b
        shape = cell_shape(outs[0], bits)
        return moved(x, tuple(inner), bits, lambda a: lax.reshape(a, shape))

    value = Value(outs[0], x.dtype, cell)
    value.reduced = x.reduced
    return [value]


squeeze_cells.fold = _folded(  # type: ignore[attr-defined]
    lambda eqn, x: x.reshape(eqn.outvars[0].aval.shape)
)


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
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        out.append((range(i0, i), range(j0, j)))
    return out


def reshape_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Block by block: flatten, then split; what does not nest is frozen."""
    if eqn.params.get("dimensions") is not None or len(ins) > 1:
        raise NotImplementedError("a permuting reshape")
    axes = ins[0].axes
    after = tuple(eqn.params["new_sizes"])
    if 0 in after:
        raise StructureError("an empty array")
    out: list[Any] = [None] * len(after)
    for old, new in blocks([t.size for t in axes], after):
        term = product([axes[d] for d in old])
        try:
            pieces = split(term, [after[d] for d in new])
        except StructureError as error:
            ctx.freeze(term, str(error))
            pieces = [ctx.fixed(after[d], str(error)) for d in new]
        for d, piece in zip(new, pieces, strict=True):
            out[d] = piece
    return [tuple(out)]


def reshape_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """Kept positions stay in order; a ghost may be gathered from several cells."""
    (x,) = ins
    before = [lay.size for lay in x.layouts]
    after = [lay.size for lay in outs[0]]
    runs = blocks(before, after)
    maps = [
        _Block([x.layouts[d] for d in old], [outs[0][d] for d in new])
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
            return moved(x, inner, bits, lambda a: lax.reshape(a, shape))
        return _gathered(x, sources, shape)

    value = Value(outs[0], x.dtype, cell)
    value.reduced = x.reduced
    return [value]


class _Block:
    """How one block of a reshape maps the positions of result cells to operand cells."""

    def __init__(self, old: Sequence[Layout], new: Sequence[Layout]) -> None:
        self.old, self.new = old, new
        same = len(old) == len(new) == 1 and old[0] is new[0]
        self.passes = same
        self.plain = not any(lay.pruned for lay in (*old, *new))
        self.uniform = True
        if not same and not self.plain:
            rep_in, rep_out = _grid_rep(old), _grid_rep(new)
            self.uniform = bool((rep_in == rep_in[rep_out]).all())

    def sources(self, bits: Bits) -> tuple[list[Bits], np.ndarray | None]:
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


reshape_cells.fold = _folded(  # type: ignore[attr-defined]
    lambda eqn, x: x.reshape(eqn.params["new_sizes"])
)


# -- concatenate, split, slice -------------------------------------------------------


def concatenate_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """A sum on the axis; equal elsewhere."""
    axis = eqn.params["dimension"]
    first = ins[0].axes
    for info in ins[1:]:
        for d, (s, t) in enumerate(zip(first, info.axes, strict=True)):
            if d != axis:
                ctx.unify(s, t)
    out = list(first)
    out[axis] = concat([i.axes[axis] for i in ins])
    return [tuple(out)]


def concatenate_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """On the axis, the class cells of the operands one after the other."""
    axis = eqn.params["dimension"]

    def cell(bits: Bits) -> Cell:
        parts = [v for v in ins if v.layouts[axis].positions(bits[axis]).size]
        parts = parts or ins[:1]
        cells = [v.cell(_own(v, bits)) for v in parts]
        why = ce.first_bad(cells)
        if why:
            return ce.bad(why)
        if any(bits) and all(c.known is not None for c in cells):
            return ce.known(_concatenate_known(cells, axis))
        if len(cells) == 1:
            return ce.compute(lambda a: a, *cells)
        return ce.compute(lambda *arrays: lax.concatenate(arrays, axis), *cells)

    return [cell]


def _own(value: Value, bits: Bits) -> Bits:
    return tuple(
        b if lay.pruned else 0 for lay, b in zip(value.layouts, bits, strict=True)
    )


def _concatenate_known(cells: list[Cell], axis: int) -> np.ndarray:
    values = [np.asarray(c.known) for c in cells]
    if all(v.size == 1 and v.item() == values[0].item() for v in values):
        return values[0]
    shapes = [c.shape for c in cells]
    full = [
        np.broadcast_to(v, tuple(s)) for v, s in zip(values, shapes, strict=True) if s
    ]
    return np.concatenate(full, axis)


def _fold_concatenate(eqn: Any, args: Sequence[np.ndarray]) -> Any:
    full = [
        np.broadcast_to(a, v.aval.shape) for a, v in zip(args, eqn.invars, strict=True)
    ]
    return np.concatenate(full, eqn.params["dimension"])


concatenate_cells.fold = _fold_concatenate  # type: ignore[attr-defined]


def split_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Cut at the sizes."""
    axis, axes = eqn.params["axis"], ins[0].axes
    pieces = cut(axes[axis], [int(n) for n in eqn.params["sizes"]])
    return [tuple(p if d == axis else t for d, t in enumerate(axes)) for p in pieces]


def split_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """Consecutive pieces: kept positions and classes each go with their position."""
    axis, start, cells = eqn.params["axis"], 0, []
    for size, out in zip(eqn.params["sizes"], outs, strict=True):
        cells.append(_window(ins[0], axis, int(start), int(size), out))
        start += size
    return cells


def _window(x: Value, axis: int, start: int, size: int, out: Sequence[Layout]) -> Cells:
    """The cells of `size` consecutive positions of one axis."""
    lay, new = x.layouts[axis], out[axis]
    here = np.arange(start, start + size)

    def cell(bits: Bits) -> Cell:
        positions = here[new.positions(bits[axis])]
        bit = bits[axis] if lay.pruned else 0
        inner = tuple(bit if d == axis else b for d, b in enumerate(bits))
        inner = _own(x, inner)
        if bits[axis] and not (lay.rep[here] == lay.rep[here[new.rep]]).all():
            return ce.bad("a slice joins different removed coordinates")
        index = lay.index[positions]
        source = x.cell(inner)
        if source.bad is not None:
            return ce.bad(source.bad)
        if source.known is not None and any(bits):
            full = source.known
            full = np.take(full, index, axis) if full.shape[axis] > 1 else full
            return ce.known(full)
        return ce.compute(lambda a: ce.take(a, index, axis), source)

    return cell


def slice_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Stride 1: cut and take. A stride that divides the axis: split and index."""
    params = eqn.params
    strides = params["strides"] or (1,) * len(ins[0].axes)
    out = []
    triples = zip(
        ins[0].axes,
        params["start_indices"],
        params["limit_indices"],
        strides,
        strict=True,
    )
    for term, start, limit, stride in triples:
        if stride == 1 or limit - start <= 1:
            stop = limit if stride == 1 else start + (1 if limit > start else 0)
            sizes = [start, stop - start, term.size - stop]
            out.append(term if sizes[1] == term.size else cut(term, sizes)[1])
        elif term.size % stride == 0 and limit > term.size - stride:
            rows, inner = split(term, (term.size // stride, stride))
            ctx.freeze(inner, "a strided slice picks one position of each stride")
            skipped = start // stride
            out.append(cut(rows, [skipped, rows.size - skipped])[1])
        else:
            ctx.freeze(term, "a strided slice")
            out.append(ctx.fixed(-(-(limit - start) // stride), "a strided slice"))
    return [tuple(out)]


def slice_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """Each axis in turn: the positions of the result lie in cells of the operand."""
    (x,), params = ins, eqn.params
    strides = params["strides"] or (1,) * len(x.layouts)
    where = [
        np.arange(a, b, s)
        for a, b, s in zip(
            params["start_indices"], params["limit_indices"], strides, strict=True
        )
    ]
    return [indexed(x, where, outs[0])]


def indexed(x: Value, where: Sequence[np.ndarray], out: Sequence[Layout]) -> Cells:
    """Cells of `x` at static positions of every axis.

    Args:
      x: the operand.
      where: for each axis, the dense positions that the result takes.
      out: the layouts of the result.
    """

    def cell(bits: Bits) -> Cell:
        inner, index = [], []
        for lay, new, at, bit in zip(x.layouts, out, where, bits, strict=True):
            chosen = at[new.positions(bit)]
            lost = ~lay.keep[chosen]
            if lost.any() and not lost.all():
                return ce.bad("static positions mix kept and removed coordinates")
            if bit and not (lay.rep[at] == lay.rep[at[new.rep]]).all():
                return ce.bad("static positions join different removed coordinates")
            inner.append(int(lost.any()))
            index.append(lay.index[chosen])
        source = x.cell(tuple(inner))
        if source.bad is not None:
            return ce.bad(source.bad)
        if source.known is not None and any(bits):
            full = source.known
            for d, at in enumerate(index):
                full = np.take(full, at, d) if full.shape[d] > 1 else full
            return ce.known(full)
        return ce.compute(functools.partial(_take_all, index), source)

    return cell


def _take_all(index: Sequence[np.ndarray], array: Any) -> Any:
    """Static indexing of every axis; evenly spaced positions are one slice."""
    starts, stops, steps = [], [], []
    for d, at in enumerate(index):
        step = np.diff(at)
        if at.size and (step == step[:1]).all() and (at.size == 1 or step[0] > 0):
            stride = int(step[0]) if at.size > 1 else 1
            starts.append(int(at[0]))
            stops.append(int(at[-1]) + 1)
            steps.append(stride)
        else:
            array = ce.take(array, at, d)
            starts.append(0)
            stops.append(at.size)
            steps.append(1)
    if tuple(stops) == tuple(array.shape) and not any(starts) and set(steps) <= {1}:
        return array
    return lax.slice(array, starts, stops, steps)


def _fold_slice(eqn: Any, x: np.ndarray) -> np.ndarray:
    p = eqn.params
    strides = p["strides"] or (1,) * x.ndim
    spans = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return x[tuple(slice(a, b, s) for a, b, s in spans)]


slice_cells.fold = _folded(_fold_slice)  # type: ignore[attr-defined]


# -- pad, tile -----------------------------------------------------------------------


def pad_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Padding adds pieces of its own before and after the axis."""
    out = []
    for term, (low, high, interior) in zip(
        ins[0].axes, eqn.params["padding_config"], strict=True
    ):
        if low < 0 or high < 0 or interior:
            ctx.freeze(term, "negative or interior padding")
            size = term.size + low + high + max(0, term.size - 1) * interior
            out.append(ctx.fixed(size, "negative or interior padding"))
            continue
        ends = [ctx.fresh(low), ctx.fresh(high)]
        ctx.pads.extend(e for e in ends if e.size > 1)
        out.append(concat([ends[0], term, ends[1]]) if low or high else term)
    return [tuple(out)]


def pad_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """Padding by the kept, or class, counts of the padding pieces."""
    x, fill = ins
    config = eqn.params["padding_config"]

    def cell(bits: Bits) -> Cell:
        widths, inner = [], []
        for lay, new, (low, high, interior), bit in zip(
            x.layouts, outs[0], config, bits, strict=True
        ):
            if not new.pruned:
                widths.append((low, high, interior))
                inner.append(0)
                continue
            at = new.positions(bit)
            ours = (at >= low) & (at < low + lay.size)
            if bit and not lay.pruned and ours.any():
                return ce.bad("padding beside an axis that is whole")
            widths.append((int((at < low).sum()), int((at >= low + lay.size).sum()), 0))
            inner.append(bit if lay.pruned else -1 if bit else 0)
        if -1 in inner:  # only padding is removed on some axis
            shape = cell_shape(outs[0], bits)
            return moved(fill, (), bits, lambda a: lax.broadcast_in_dim(a, shape, ()))
        source, value = x.cell(tuple(inner)), fill.kept
        if source.bad is not None:
            return ce.bad(source.bad)
        if any(bits) and source.known is not None and value.known is not None:
            whole = np.broadcast_to(source.known, x.shape(tuple(inner)))
            pairs = [(low, high) for low, high, _ in widths]
            plain = all(a >= 0 and b >= 0 and not i for a, b, i in widths)
            if plain and whole.size <= ce.FOLD_LIMIT:
                filled = np.pad(whole, pairs, constant_values=value.known.item())
                return ce.known(filled.astype(whole.dtype))
        return ce.compute(lambda a, v: lax.pad(a, v, widths), source, value)

    return [cell]


def tile_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """A sum of copies; a tiled axis of size 1 is a new axis."""
    reps = eqn.params["reps"]
    axes = ins[0].axes
    return [
        tuple(
            t if n == 1 else ctx.fresh(n) if t.size == 1 else concat([t] * n)
            for t, n in zip(axes, reps, strict=True)
        )
    ]


def tile_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """Copies of the cell."""
    (x,), reps = ins, eqn.params["reps"]

    def cell(bits: Bits) -> Cell:
        times = [
            lay.positions(b).size if old.size == 1 and n > 1 else n
            for lay, old, b, n in zip(outs[0], x.layouts, bits, reps, strict=True)
        ]
        return moved(x, _own(x, bits), bits, lambda a: jnp.tile(a, times))

    return [cell]


tile_cells.fold = _folded(  # type: ignore[attr-defined]
    lambda eqn, x: np.tile(x, eqn.params["reps"])
)


# -- stack, unstack ------------------------------------------------------------------


def stack_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Operands are equal; the new axis counts them."""
    for info in ins[1:]:
        for s, t in zip(ins[0].axes, info.axes, strict=True):
            ctx.unify(s, t)
    axis = eqn.params["axis"]
    new = ctx.fixed(len(ins), "stacked operands")
    return [(*ins[0].axes[:axis], new, *ins[0].axes[axis:])]


def stack_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """The operands' cells, stacked."""
    axis = eqn.params["axis"]

    def cell(bits: Bits) -> Cell:
        inner = (*bits[:axis], *bits[axis + 1 :])
        cells = [v.cell(inner) for v in ins]
        if any(bits) and all(c.known is not None for c in cells):
            values = [np.asarray(c.known) for c in cells]
            if all(v.size == 1 and v.item() == values[0].item() for v in values):
                return ce.known(values[0].reshape((1,) * len(bits)))
        return ce.compute(lambda *arrays: jnp.stack(arrays, axis), *cells)

    return [cell]


def unstack_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """The axis is taken apart."""
    axis, axes = eqn.params["axis"], ins[0].axes
    ctx.freeze(axes[axis], "unstacked")
    rest = (*axes[:axis], *axes[axis + 1 :])
    return [rest] * len(eqn.outvars)


def unstack_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """One position of the axis each."""
    (x,), axis = ins, eqn.params["axis"]

    def one(index: int) -> Cells:
        def cell(bits: Bits) -> Cell:
            inner = (*bits[:axis], 0, *bits[axis:])
            return moved(
                x, inner, bits, lambda a: lax.index_in_dim(a, index, axis, False)
            )

        return cell

    return [one(i) for i in range(len(eqn.outvars))]


RULES: dict[str, Rule] = {
    "broadcast_in_dim": Rule(broadcast_axes, broadcast_cells, True),
    "concatenate": Rule(concatenate_axes, concatenate_cells, True),
    "pad": Rule(pad_axes, pad_cells, True),
    "reshape": Rule(reshape_axes, reshape_cells, True),
    "slice": Rule(slice_axes, slice_cells),
    "split": Rule(split_axes, split_cells),
    "squeeze": Rule(squeeze_axes, squeeze_cells, True),
    "stack": Rule(stack_axes, stack_cells),
    "tile": Rule(tile_axes, tile_cells, True),
    "transpose": Rule(transpose_axes, transpose_cells, True),
    "unstack": Rule(unstack_axes, unstack_cells),
}
