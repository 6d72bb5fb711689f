"""Primitives that place whole axes: broadcast, transpose, squeeze, tile, stack.

An axis that a broadcast adds repeats the operand, so its ghost is the operand itself: a
broadcast axis is never zero where the group that it is later tied to is removed.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._jaxpr._compat import Equation
from jprune._jaxpr._moves import moved_dims
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes, concat
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Cells, Value
from jprune.surgery._moves import cell_shape, folded, moved, reshaped_dims, transposed
from jprune.surgery._registry import NoRule, Rule
from jprune.surgery._scope import Info

# -- broadcast_in_dim ----------------------------------------------------------------


def broadcast_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Mapped axes of equal size pass; the others are new."""
    if len(ins) > 1:
        raise NoRule("a dynamic shape")
    shape = eqn.params["shape"]
    mapped = dict(zip(eqn.params["broadcast_dimensions"], ins[0].axes, strict=True))
    out = []
    for dim, size in enumerate(shape):
        term = mapped.get(dim)
        out.append(site.fresh(size) if term is None or term.size != size else term)
    return [tuple(out)]


def broadcast_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """A new axis repeats the operand, so its ghost is the operand itself."""
    (x,), dims = ins, eqn.params["broadcast_dimensions"]

    def cell(bits: Bits) -> Cell:
        inner = x.own(bits[d] for d in dims)
        shape = cell_shape(outs[0], bits)
        split = None if any(bits) else eqn.params.get("sharding")
        return moved(
            x,
            inner,
            bits,
            lambda a: lax.broadcast_in_dim(a, shape, dims, out_sharding=split),
        )

    value = Value(outs[0], x.dtype, cell)
    value.reduced = x.reduced
    return [value]


def _fold_broadcast(eqn: Equation, args: Sequence[np.ndarray]) -> Any:
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


# -- transpose, squeeze, expand_dims -------------------------------------------------


def transpose_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Permutes."""
    return [tuple(ins[0].axes[p] for p in eqn.params["permutation"])]


def transpose_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """Permutes the bits."""
    return [transposed(ins[0], eqn.params["permutation"])]


_fold_transpose = folded(lambda eqn, x: np.transpose(x, eqn.params["permutation"]))


def squeeze_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Drops axes of size 1."""
    drop = set(eqn.params["dimensions"])
    return [tuple(t for d, t in enumerate(ins[0].axes) if d not in drop)]


def squeeze_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
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


_fold_squeeze = folded(lambda eqn, x: x.reshape(eqn.outvars[0].aval.shape))


# -- tile ----------------------------------------------------------------------------


def tile_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """A sum of copies; a tiled axis of size 1 is a new axis."""
    reps = eqn.params["reps"]
    axes = ins[0].axes
    return [
        tuple(
            t if n == 1 else site.fresh(n) if t.size == 1 else concat([t] * n)
            for t, n in zip(axes, reps, strict=True)
        )
    ]


def tile_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    """Copies of the cell."""
    (x,), reps = ins, eqn.params["reps"]

    def cell(bits: Bits) -> Cell:
        times = [
            lay.positions(b).size if old.size == 1 and n > 1 else n
            for lay, old, b, n in zip(outs[0], x.layouts, bits, reps, strict=True)
        ]
        return moved(x, x.own(bits), bits, lambda a: jnp.tile(a, times))

    return [cell]


_fold_tile = folded(lambda eqn, x: np.tile(x, eqn.params["reps"]))


# -- stack, unstack ------------------------------------------------------------------


def stack_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Operands are equal; the new axis counts them."""
    for info in ins[1:]:
        for s, t in zip(ins[0].axes, info.axes, strict=True):
            site.unify(s, t)
    axis = eqn.params["axis"]
    new = site.fixed(len(ins), "stacked operands")
    return [(*ins[0].axes[:axis], new, *ins[0].axes[axis:])]


def stack_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
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


def unstack_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """The axis is taken apart."""
    axis, axes = eqn.params["axis"], ins[0].axes
    site.freeze(axes[axis], "unstacked")
    rest = (*axes[:axis], *axes[axis + 1 :])
    return [rest] * len(eqn.outvars)


def unstack_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
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
    "broadcast_in_dim": Rule(
        axes=broadcast_axes,
        cells=broadcast_cells,
        constant=True,
        fold=_fold_broadcast,
        dims=moved_dims,
    ),
    "squeeze": Rule(
        axes=squeeze_axes,
        cells=squeeze_cells,
        constant=True,
        fold=_fold_squeeze,
        dims=reshaped_dims,
    ),
    "stack": Rule(axes=stack_axes, cells=stack_cells),
    "tile": Rule(axes=tile_axes, cells=tile_cells, constant=True, fold=_fold_tile),
    "transpose": Rule(
        axes=transpose_axes,
        cells=transpose_cells,
        constant=True,
        fold=_fold_transpose,
        dims=moved_dims,
    ),
    "unstack": Rule(axes=unstack_axes, cells=unstack_cells),
}
