"""Primitives that index at run-time positions: gather, scatter, dynamic slices, fft.

An axis that a gather reads whole passes; an axis that is indexed is frozen, unless the
slice is as long as the axis, where the only position in range is 0, or the user has
declared that it is looked up by number (`groups(..., lookups=)`): the compact function
then takes the dense numbers and finds kept rows or ghosts by them (see `_lookup`).
Batching dimensions relate operand and indices. A scatter is the same picture with
updates in the place of results. Cells go along the passing axes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jprune._groups import Role
from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._registry import Rule
from jprune.surgery._scope import Info
from jprune.surgery.rules._lookup import looked_up

SCATTERS = (
    "scatter",
    "scatter-add",
    "scatter_add",
    "scatter-max",
    "scatter_max",
    "scatter-min",
    "scatter_min",
    "scatter-mul",
    "scatter_mul",
    "scatter-sub",
    "scatter_sub",
)


def gather_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Whole axes pass, indexed ones freeze, the rest comes from the indices."""
    operand, indices = ins[0].axes, ins[1].axes
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    collapsed = set(numbers.collapsed_slice_dims)
    batching = numbers.operand_batching_dims
    for d, i in zip(batching, numbers.start_indices_batching_dims, strict=True):
        site.unify(operand[d], indices[i])
    site.freeze(indices[-1], "coordinates of an index")
    window = [
        d for d in range(len(operand)) if d not in collapsed and d not in batching
    ]
    for d in collapsed:
        if not site.context.looked_up(operand[d]):
            site.freeze(operand[d], "indexed")
    out: list[Any] = [None] * len(eqn.outvars[0].aval.shape)
    for d, place in zip(window, numbers.offset_dims, strict=True):
        if sizes[d] == operand[d].size:
            out[place] = operand[d]
        else:
            site.freeze(operand[d], "indexed")
            out[place] = site.fixed(sizes[d], "indexed")
    batch = iter(indices[:-1])
    return [tuple(next(batch) if t is None else t for t in out)]


def gather_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """Slice sizes at compact shapes; each axis carries its own bit."""
    x, indices = ins
    numbers = eqn.params["dimension_numbers"]
    collapsed = set(numbers.collapsed_slice_dims)
    looked = [d for d in sorted(collapsed) if x.layouts[d].pruned]
    batching = list(numbers.operand_batching_dims)
    rank = len(x.layouts)
    window = [d for d in range(rank) if d not in collapsed and d not in batching]
    batch_places = [d for d in range(len(outs[0])) if d not in numbers.offset_dims]

    def cell(bits: Bits) -> Cell:
        index_bits = [*(bits[p] for p in batch_places), 0]
        inner = [0] * rank
        for d, place in zip(window, numbers.offset_dims, strict=True):
            inner[d] = bits[place]
        for d, i in zip(batching, numbers.start_indices_batching_dims, strict=True):
            inner[d] = index_bits[i]
        source, where = x.cell(tuple(inner)), indices.cell(tuple(index_bits))
        if looked:
            sizes = _sizes(eqn, x, inner, window)
            return looked_up(site, eqn, x, (inner, looked, sizes), where, bits)
        if any(bits) and source.known is not None and source.known.size == 1:
            fills = str(eqn.params.get("mode")).endswith("FILL_OR_DROP")
            if not fills:
                return ce.known(source.known.reshape((1,) * len(bits)))
            if source.zero and where.bad is None and _in_range(eqn, where):
                return ce.known(source.known.reshape((1,) * len(bits)))
        params = {**eqn.params, "slice_sizes": _sizes(eqn, x, inner, window)}
        return ce.compute(
            lambda a, i: _compat.bind(eqn, params, [a, i])[0],
            source,
            where,
            name="gather",
        )

    return [cell]


def _sizes(
    eqn: Equation, x: Value, inner: Sequence[int], window: Sequence[int]
) -> tuple[int, ...]:
    """The slice sizes, with the compact size where a slice is a whole axis."""
    sizes, shape = list(eqn.params["slice_sizes"]), x.shape(tuple(inner))
    for d in window:
        if sizes[d] == x.layouts[d].size:
            sizes[d] = shape[d]
    return tuple(sizes)


def _in_range(eqn: Equation, where: Cell) -> bool:
    """Whether every index is known to be in range, so that nothing is filled in."""
    if where.known is None:
        return False
    shape = eqn.invars[0].aval.shape
    numbers = eqn.params["dimension_numbers"]
    limits = [shape[d] - eqn.params["slice_sizes"][d] for d in numbers.start_index_map]
    return bool((where.known >= 0).all() and (where.known <= np.asarray(limits)).all())


_WRITTEN = "a part of it is written (into a constant it would be a concatenation)"


def scatter_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Axes that the update covers whole pass; scattered ones freeze.

    A position along an axis that is covered whole is 0, clamped to 0 or out of range,
    whatever the axis' length: `vmap` of a dynamic update has such positions.
    """
    operand, indices, updates = (i.axes for i in ins)
    numbers = eqn.params["dimension_numbers"]
    inserted = set(numbers.inserted_window_dims)
    batching = list(numbers.operand_batching_dims)
    window = [d for d in range(len(operand)) if d not in inserted and d not in batching]
    for d, i in zip(batching, numbers.scatter_indices_batching_dims, strict=True):
        site.unify(operand[d], indices[i])
    site.freeze(indices[-1], "coordinates of an index")
    for d in inserted:
        site.freeze(operand[d], _WRITTEN)
    for d, place in zip(window, numbers.update_window_dims, strict=True):
        if updates[place].size == operand[d].size:
            site.unify(operand[d], updates[place])
        else:
            site.freeze(operand[d], _WRITTEN)
            site.freeze(updates[place], "written into a part of an axis")
    rows = [d for d in range(len(updates)) if d not in set(numbers.update_window_dims)]
    for i, d in enumerate(rows):
        site.unify(updates[d], indices[i])
        if i not in numbers.scatter_indices_batching_dims:
            site.freeze(indices[i], "scattered rows")
    return [operand]


def scatter_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """The scatter on the cells of operand and updates with the same window bits.

    The axes of scattered rows, which a scatter runs over, are whole.
    """
    x, indices, updates = ins
    numbers = eqn.params["dimension_numbers"]
    inserted = set(numbers.inserted_window_dims)
    batching = list(numbers.operand_batching_dims)
    rank = len(x.layouts)
    window = [d for d in range(rank) if d not in inserted and d not in batching]
    places = [
        d for d in range(len(updates.layouts)) if d not in numbers.update_window_dims
    ]
    batch_of = dict(zip(numbers.scatter_indices_batching_dims, batching, strict=True))

    def cell(bits: Bits) -> Cell:
        index_bits = [0] * len(indices.layouts)
        for i, d in batch_of.items():
            index_bits[i] = bits[d]
        inner = [0] * len(updates.layouts)
        for d, place in zip(window, numbers.update_window_dims, strict=True):
            inner[place] = bits[d] if updates.layouts[place].pruned else 0
        for i, place in enumerate(places):
            inner[place] = index_bits[i] if updates.layouts[place].pruned else 0
        cells = [
            x.cell(bits),
            indices.cell(tuple(index_bits)),
            updates.cell(tuple(inner)),
        ]
        if any(bits) and cells[0].zero and cells[2].zero:
            return ce.known(np.zeros((1,) * len(bits), x.dtype))
        return ce.compute(
            lambda *arrays: _compat.bind(eqn, eqn.params, arrays)[0],
            *cells,
            name=eqn.primitive.name,
        )

    return [cell]


# -- dynamic slices ------------------------------------------------------------------


def dynamic_slice_axes(
    site: AxisSite, eqn: Equation, ins: Sequence[Info]
) -> list[Axes]:
    """A slice as long as the axis is the axis; others freeze."""
    out = []
    for term, n in zip(ins[0].axes, eqn.params["slice_sizes"], strict=True):
        if n == term.size:
            out.append(term)
        else:
            site.freeze(term, "sliced at a run-time position")
            out.append(site.fixed(n, "sliced at a run-time position"))
    return [tuple(out)]


def dynamic_slice_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """Slice sizes at compact shapes; out-of-range starts are clamped as before."""
    x, *starts = ins

    def cell(bits: Bits) -> Cell:
        source = x.cell(bits)
        if any(bits) and source.known is not None and source.known.size == 1:
            return ce.known(source.known)
        shape = x.shape(bits)
        sizes = tuple(
            m if n == lay.size else n
            for n, m, lay in zip(
                eqn.params["slice_sizes"], shape, x.layouts, strict=True
            )
        )
        params = {**eqn.params, "slice_sizes": sizes}
        return ce.compute(
            lambda *arrays: _compat.bind(eqn, params, arrays)[0],
            source,
            *[s.kept for s in starts],
        )

    return [cell]


def dynamic_update_axes(
    site: AxisSite, eqn: Equation, ins: Sequence[Info]
) -> list[Axes]:
    """Axes of equal size are equal; the others freeze."""
    operand, update = ins[0].axes, ins[1].axes
    for s, t in zip(operand, update, strict=True):
        if s.size == t.size:
            site.unify(s, t)
        else:
            site.freeze(s, _WRITTEN)
            site.freeze(t, "written into a part of an axis")
    return [operand]


def dynamic_update_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """The update on the cells of both."""
    x, update, *starts = ins

    def cell(bits: Bits) -> Cell:
        cells = [x.cell(bits), update.cell(update.own(bits))]
        if any(bits) and cells[0].zero and cells[1].zero:
            return ce.known(np.zeros((1,) * len(bits), x.dtype))
        return ce.compute(
            lambda *arrays: _compat.bind(eqn, eqn.params, arrays)[0],
            *cells,
            *[s.kept for s in starts],
        )

    return [cell]


# -- fft -----------------------------------------------------------------------------


def fft_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Only the last dimensions are mixed."""
    axes = ins[0].axes
    mixed = len(eqn.params["fft_lengths"])
    lead = len(axes) - mixed
    for term in axes[lead:]:
        site.freeze(term, "mixed by a Fourier transform")
    shape = eqn.outvars[0].aval.shape
    return [
        (*axes[:lead], *(site.fixed(n, "a Fourier transform") for n in shape[lead:]))
    ]


def fft_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    """The transform on each cell."""
    (x,) = ins

    def cell(bits: Bits) -> Cell:
        source = x.cell(bits)
        if any(bits) and source.zero:
            dtype = eqn.outvars[0].aval.dtype
            return ce.known(np.zeros((1,) * len(bits), dtype))
        return ce.compute(
            lambda a: _compat.bind(eqn, eqn.params, [a])[0], source, name="fft"
        )

    return [cell]


def _table(eqn: Equation, place: int) -> dict[int, Role]:
    """The operand is looked up."""
    axes = range(eqn.invars[0].aval.ndim)
    return dict.fromkeys(axes, "table") if place == 0 else {}


RULES: dict[str, Rule] = {
    "dynamic_slice": Rule(
        axes=dynamic_slice_axes, cells=dynamic_slice_cells, role=_table
    ),
    "dynamic_update_slice": Rule(axes=dynamic_update_axes, cells=dynamic_update_cells),
    "fft": Rule(axes=fft_axes, cells=fft_cells),
    "gather": Rule(axes=gather_axes, cells=gather_cells, role=_table),
    **{name: Rule(axes=scatter_axes, cells=scatter_cells) for name in SCATTERS},
}
