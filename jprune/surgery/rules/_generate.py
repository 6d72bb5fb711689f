"""Primitives that make values from nothing but a shape or a key.

Their axes are new and free. `iota` is looked at: its cells are known where they are
small and uniform. Random bits are drawn at full size and indexed, so that the compact
model sees the same dropout mask as the dense one; on request they are drawn at compact
size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes
from jprune.surgery._build import CellSite, Outs, Results, generated
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._registry import Rule
from jprune.surgery._scope import Info


def random_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """The axes of a batch of keys stay and lead; those of the bits are new."""
    keys = ins[0].axes
    for term in keys:
        site.freeze(term, "a batch of random keys")
    shape = eqn.outvars[0].aval.shape
    return [(*keys, *(site.fresh(n) for n in shape[len(keys) :]))]


def random_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """Drawn at full size and indexed, or drawn at compact size."""
    var = eqn.outvars[0]
    key = ins[0].kept

    def draw(shape: Any) -> Any:
        params = {**eqn.params, "shape": tuple(shape)}
        return lambda k: _compat.bind(eqn, params, [k])[0]

    dense = ce.compute(draw(eqn.params["shape"]), key, name="random_bits")
    dense.shape = tuple(var.aval.shape)
    value = generated(dense, outs[0], var.aval.dtype)
    if not site.options.compact_random:
        return [value]
    lead = len(var.aval.shape) - len(eqn.params["shape"])

    def cell(bits: Bits) -> Cell:
        if any(bits):
            return ce.bad("random bits")
        return ce.compute(draw(value.shape()[lead:]), key, name="random_bits")

    return [Value(outs[0], var.aval.dtype, cell, dense)]


def iota_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """New axes."""
    return [tuple(site.fresh(n) for n in eqn.outvars[0].aval.shape)]


def iota_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    """Too large to be looked at: computed and indexed."""
    dense = ce.compute(lambda: _compat.bind(eqn, eqn.params, [])[0], name="iota")
    dense.shape = tuple(eqn.outvars[0].aval.shape)
    return [generated(dense, outs[0], eqn.outvars[0].aval.dtype)]


def _fold_iota(eqn: Equation, args: Sequence[np.ndarray]) -> np.ndarray | None:
    shape, dim = eqn.params["shape"], eqn.params["dimension"]
    dtype = _compat.numpy_dtype(eqn.outvars[0].aval.dtype)
    if dtype is None or int(np.prod(shape)) > ce.FOLD_LIMIT:
        return None
    row = np.arange(shape[dim]).astype(dtype)
    return np.broadcast_to(
        row.reshape([-1 if d == dim else 1 for d in range(len(shape))]), shape
    )


RULES: dict[str, Rule] = {
    "iota": Rule(axes=iota_axes, cells=iota_cells, constant=True, fold=_fold_iota),
    "random_bits": Rule(axes=random_axes, cells=random_cells, constant=True, free=True),
}
