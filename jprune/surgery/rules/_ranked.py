"""`top_k` and arg-maxima along an axis that is looked up by number.

Elsewhere such an axis is frozen: what comes out are positions. Along an axis that the
user declared (`groups(..., lookups=)`: experts of a router, tokens) the compact
function ranks the kept entries beside the removed ones, which the reference model still
has (0, for a router), and returns dense numbers, as whatever looks things up by them
expects. Where removed coordinates were never there (`mean="compact"`) only the kept
ones are ranked: a router whose removed logits are minus infinity.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._layout import Layout
from jprune.surgery._scope import Info


def ranked_dim(eqn: Equation) -> int:
    """The dimension that is ranked."""
    if eqn.primitive.name == "top_k":
        return eqn.invars[0].aval.ndim - 1
    return int(eqn.params["axes"][0])


def ranked_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Frozen, unless it is looked up by number; the other axes pass."""
    axes, d = ins[0].axes, ranked_dim(eqn)
    if not site.context.looked_up(axes[d]):
        site.freeze(axes[d], "the position matters")
    out: list[Any] = [t for i, t in enumerate(axes) if i != d]
    if eqn.primitive.name == "top_k":
        out.append(
            site.fixed(eqn.outvars[0].aval.shape[-1], "ranks of the largest entries")
        )
    return [tuple(out)] * len(eqn.outvars)


def ranked_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """Kept entries and ghosts in the order of the dense ones, ranked together."""
    (x,), d = ins, ranked_dim(eqn)
    lay, many = x.layouts[d], 1
    if eqn.primitive.name == "top_k":
        many = eqn.outvars[0].aval.shape[-1]
    memo: dict[Bits, Cell] = {}

    def results(bits: Bits) -> Cell:
        lead = bits[:-1] if eqn.primitive.name == "top_k" else bits

        def at(bit: int) -> Cell:
            return x.cell((*lead[:d], bit, *lead[d:]))

        if not lay.pruned:
            return ce.compute(lambda a: _bind(eqn, a, None, d), at(0))
        ghosts = site.ghosts(bits, [(1,)], lambda p: (at(1),), [d], zero=False)
        if isinstance(ghosts, Cell):
            return ghosts
        places, source = _places(lay, many, bool(ghosts))
        if places.size < many:
            raise value_error(
                f"`{eqn.primitive.name}` takes the {many} largest entries of an axis, "
                f"of which {places.size} are kept: keep {many} or more (`min_keep`)."
            )

        def run(*cells: Any) -> Any:
            joined = jnp.concatenate(cells, d) if cells[1:] else cells[0]
            return _bind(eqn, ce.take(joined, source, d), places, d)

        cells = [at(0), *(c for _, (c,) in ghosts)]
        return ce.compute(run, *cells, name=eqn.primitive.name)

    def one(index: int) -> Any:
        def cell(bits: Bits) -> Cell:
            if bits not in memo:
                memo[bits] = results(bits)
            return ce.item(memo[bits], index)

        return cell

    return [one(i) for i in range(len(outs))]


def _places(lay: Layout, many: int, ghosts: bool) -> tuple[np.ndarray, np.ndarray]:
    """The dense positions that may be among the largest, and where their entries lie.

    Of a class of equal entries the first `many` are enough. An entry lies in the kept
    cell, or behind it in the cell of ghosts.
    """
    places = list(lay.kept)
    if ghosts:
        for first in lay.classes:
            places += list(np.flatnonzero((lay.rep == first) & ~lay.keep)[:many])
    dense = np.sort(np.asarray(places, np.int64))
    behind = np.where(lay.keep[dense], 0, lay.kept.size)
    return dense, lay.index[dense] + behind


def _bind(eqn: Equation, array: Any, places: np.ndarray | None, d: int) -> list[Any]:
    """The primitive, its positions turned into dense numbers."""
    *values, which = _compat.bind(eqn, eqn.params, [array])
    if places is None:
        return [*values, which]
    return [*values, jnp.asarray(places).astype(which.dtype)[which]]
