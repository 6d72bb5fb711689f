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

from jprune.surgery import _cells as ce
from jprune.surgery._axes import Axes, concat
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._moves import Cells, cell_shape, folded, moved, own_bits, transposed
from jprune.surgery._registry import Rule

# -- broadcast_in_dim ----------------------------------------------------------------


def broadcast_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Mapped axes of equal size pass; the others are new."""
    if len(ins) > 1:
        raise NotImplementedError("a dynamic shape")
    shape = eqn.params["shape"]
    mapped = dict(zip(eqn.params["broadcast_dimensions"], ins[0].axes, strict=True))
    out = []
    for dim, size in enumerate(shape):
        term = mapped.get(dim)
        out.append(ctx.fresh(size) if term is None or term.size != size else term)
    return [tuple(out)]


def broadcast_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """A new axis repeats the operand, so its ghost is the operand itself."""
    (x,), dims = ins, eqn.params["broadcast_dimensions"]

    def cell(bits: Bits) -> Cell:
        inner = tuple(
            bits[d] if lay.pruned else 0 for d, lay in zip(dims, x.layouts, strict=True)
        )
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


# -- transpose, squeeze, expand_dims -------------------------------------------------


def transpose_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Permutes."""
    return [tuple(ins[0].axes[p] for p in eqn.params["permutation"])]


def transpose_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """Permutes the bits."""
    return [transposed(ins[0], eqn.params["permutation"])]


_fold_transpose = folded(lambda eqn, x: np.transpose(x, eqn.params["permutation"]))


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


_fold_squeeze = folded(lambda eqn, x: x.reshape(eqn.outvars[0].aval.shape))


# -- tile
# -------------------------------------------------------------------------------


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
        return moved(x, own_bits(x, bits), bits, lambda a: jnp.tile(a, times))

    return [cell]


_fold_tile = folded(lambda eqn, x: np.tile(x, eqn.params["reps"]))


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
    "broadcast_in_dim": Rule(broadcast_axes, broadcast_cells, True, _fold_broadcast),
    "squeeze": Rule(squeeze_axes, squeeze_cells, True, _fold_squeeze),
    "stack": Rule(stack_axes, stack_cells),
    "tile": Rule(tile_axes, tile_cells, True, _fold_tile),
    "transpose": Rule(transpose_axes, transpose_cells, True, _fold_transpose),
    "unstack": Rule(unstack_axes, unstack_cells),
}
