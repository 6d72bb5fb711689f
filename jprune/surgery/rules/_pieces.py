"""Primitives that join or cut axes: concatenate, split, slice, pad.

A concatenation is a sum of its operands; a slice takes a piece of one. Padding adds
pieces of its own, whose ghosts hold the padding value: one that is not zero is no zero.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes, concat, cut, split
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Cells, Value
from jprune.surgery._layout import Layout
from jprune.surgery._moves import cell_shape, folded, moved
from jprune.surgery._registry import Rule
from jprune.surgery._scope import Info

# -- concatenate, split, slice -------------------------------------------------------


def concatenate_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """A sum on the axis; equal elsewhere."""
    axis = eqn.params["dimension"]
    first = ins[0].axes
    for info in ins[1:]:
        for d, (s, t) in enumerate(zip(first, info.axes, strict=True)):
            if d != axis:
                site.unify(s, t)
    out = list(first)
    out[axis] = concat([i.axes[axis] for i in ins])
    return [tuple(out)]


def concatenate_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """On the axis, the class cells of the operands one after the other."""
    axis = eqn.params["dimension"]

    def cell(bits: Bits) -> Cell:
        parts = [v for v in ins if v.layouts[axis].positions(bits[axis]).size]
        parts = parts or ins[:1]
        cells = [v.cell(v.own(bits)) for v in parts]
        why = ce.first_bad(cells)
        if why:
            return ce.bad(why)
        if any(bits) and all(c.known is not None for c in cells):
            return ce.known(_concatenate_known(cells, axis))
        if len(cells) == 1:
            return ce.compute(lambda a: a, *cells)
        return ce.compute(lambda *arrays: lax.concatenate(arrays, axis), *cells)

    return [cell]


def _concatenate_known(cells: list[Cell], axis: int) -> np.ndarray:
    values = [np.asarray(c.known) for c in cells]
    if all(v.size == 1 and v.item() == values[0].item() for v in values):
        return values[0]
    shapes = [c.shape for c in cells]
    full = [
        np.broadcast_to(v, tuple(s)) for v, s in zip(values, shapes, strict=True) if s
    ]
    return np.concatenate(full, axis)


def _fold_concatenate(eqn: Equation, args: Sequence[np.ndarray]) -> Any:
    full = [
        np.broadcast_to(a, v.aval.shape) for a, v in zip(args, eqn.invars, strict=True)
    ]
    return np.concatenate(full, eqn.params["dimension"])


def split_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Cut at the sizes."""
    axis, axes = eqn.params["axis"], ins[0].axes
    pieces = cut(axes[axis], [int(n) for n in eqn.params["sizes"]])
    return [tuple(p if d == axis else t for d, t in enumerate(axes)) for p in pieces]


def split_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
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
        inner = x.own(inner)
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


def slice_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
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
            site.freeze(inner, "a strided slice picks one position of each stride")
            skipped = start // stride
            out.append(cut(rows, [skipped, rows.size - skipped])[1])
        else:
            site.freeze(term, "a strided slice")
            out.append(site.fixed(-(-(limit - start) // stride), "a strided slice"))
    return [tuple(out)]


def slice_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
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


def _fold_slice(eqn: Equation, x: np.ndarray) -> np.ndarray:
    p = eqn.params
    strides = p["strides"] or (1,) * x.ndim
    spans = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return x[tuple(slice(a, b, s) for a, b, s in spans)]


_fold_slice_all = folded(_fold_slice)


# -- pad, tile -----------------------------------------------------------------------


def pad_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Padding adds pieces of its own before and after the axis."""
    out = []
    for term, (low, high, interior) in zip(
        ins[0].axes, eqn.params["padding_config"], strict=True
    ):
        if low < 0 or high < 0 or interior:
            site.freeze(term, "negative or interior padding")
            size = term.size + low + high + max(0, term.size - 1) * interior
            out.append(site.fixed(size, "negative or interior padding"))
            continue
        ends = [site.fresh(low), site.fresh(high)]
        site.context.pads.extend(e for e in ends if e.size > 1)
        out.append(concat([ends[0], term, ends[1]]) if low or high else term)
    return [tuple(out)]


def pad_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
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


RULES: dict[str, Rule] = {
    "concatenate": Rule(
        axes=concatenate_axes,
        cells=concatenate_cells,
        constant=True,
        fold=_fold_concatenate,
    ),
    "pad": Rule(axes=pad_axes, cells=pad_cells, constant=True),
    "slice": Rule(axes=slice_axes, cells=slice_cells, fold=_fold_slice_all),
    "split": Rule(axes=split_axes, cells=split_cells),
}
