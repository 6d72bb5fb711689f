"""A gather along an axis that loses coordinates, by the dense numbers.

The result is what the reference model holds: a kept row where the number is kept, the
ghost of the axis (0, for a parameter) where it is removed. Where removed coordinates
were never there (`mean="compact"`) such a number has no meaning and gives NaN.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._build import CellSite
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._layout import Layout

Place = tuple[Sequence[int], Sequence[int], tuple[int, ...]]
"""The operand's bits, the dimensions looked up along, the slice sizes."""


def looked_up(
    site: CellSite, eqn: Equation, x: Value, place: Place, where: Cell, bits: Bits
) -> Cell:
    """One cell of the result of a gather.

    Args:
      site: the equation's.
      eqn: the gather.
      x: the operand.
      place: its bits for this cell (0 along what is looked up), the dimensions looked
        up along that lose coordinates, the slice sizes.
      where: the cell of the indices.
      bits: of the result's cell.
    """
    inner, looked, sizes = place
    layouts = [x.layouts[d] for d in looked]

    def at(pattern: Bits) -> Cell:
        chosen = list(inner)
        for d, bit in zip(looked, pattern, strict=True):
            chosen[d] = bit
        return x.cell(tuple(chosen))

    every = ce.patterns(layouts)
    kept = at(every[0])
    fills = _fills(eqn)
    if any(bits) and not fills and all(at(p).zero for p in every):
        return ce.known(np.zeros((1,) * len(bits), x.dtype))
    ghosts = site.ghosts(bits, every[1:], lambda p: (at(p),), looked)
    if isinstance(ghosts, Cell):
        return ghosts
    patterns = [every[0], *(pattern for pattern, _ in ghosts)]
    params = {**eqn.params, "slice_sizes": sizes}
    lost = np.nan if site.options.removed else 0

    def run(indices: Any, *cells: Any) -> Any:
        return _gathered(eqn, params, layouts, looked, patterns, lost, indices, cells)

    return ce.compute(run, where, kept, *(c for _, (c,) in ghosts), name="gather")


def _gathered(
    eqn: Equation,
    params: dict[str, Any],
    layouts: Sequence[Layout],
    looked: Sequence[int],
    patterns: Sequence[Bits],
    lost: float,
    indices: Any,
    cells: Sequence[Any],
) -> Any:
    """The rows of every pattern, each where the numbers ask for it."""
    numbers = eqn.params["dimension_numbers"]
    if indices.dtype.itemsize < 4:
        indices = indices.astype(jnp.int32)
    columns = [indices[..., c] for c in range(indices.shape[-1])]
    own = [numbers.start_index_map.index(d) for d in looked]
    outside = jnp.asarray(False)
    if _fills(eqn):  # such numbers stay out of range
        for lay, c in zip(layouts, own, strict=True):
            outside |= (columns[c] < 0) | (columns[c] >= lay.size)
    out: Any = None
    for pattern, cell in zip(patterns, cells, strict=True):
        here, new = jnp.asarray(True), list(columns)
        for lay, c, bit in zip(layouts, own, pattern, strict=True):
            near = jnp.clip(columns[c], 0, lay.size - 1)
            here &= (jnp.asarray(lay.keep)[near] | outside) != bool(bit)
            place = jnp.asarray(lay.index.astype(np.int32))[near]
            far = jnp.iinfo(columns[c].dtype).max
            place = jnp.where(here, place.astype(columns[c].dtype), 0)
            new[c] = jnp.where(outside, far, place)
        rows = _compat.bind(eqn, params, [_not_empty(cell, looked), jnp.stack(new, -1)])
        if out is None:
            value = lost if jnp.issubdtype(rows[0].dtype, jnp.inexact) else 0
            out = jnp.full(rows[0].shape, value, rows[0].dtype)
        here = jnp.expand_dims(here, tuple(numbers.offset_dims))
        out = jnp.where(here, rows[0], out)
    return out


def _not_empty(cell: Any, looked: Sequence[int]) -> Any:
    """The cell, or zeros of length 1 where nothing is kept: nobody asks for them."""
    shape = [max(n, 1) if d in looked else n for d, n in enumerate(cell.shape)]
    return cell if tuple(shape) == cell.shape else jnp.zeros(shape, cell.dtype)


def _fills(eqn: Equation) -> bool:
    return str(eqn.params.get("mode")).endswith("FILL_OR_DROP")
