"""Linear algebra: systems of equations and factorizations.

A removed coordinate of a matrix is a row and a column of zeros, and such a matrix has
no inverse, no Cholesky factor and no unique decomposition. So the axes of the matrix
may not shrink, with that reason; the right-hand sides of a system are independent of
each other, and pass.
"""

from collections.abc import Sequence

import numpy as np

from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._registry import NoRule, Rule
from jprune.surgery._scope import Info

_SINGULAR = "a matrix with a removed coordinate is singular"


def solve_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Batch axes are shared, the matrix stays, the right-hand sides pass."""
    matrix, sides = ins[0].axes, ins[1].axes
    for s, t in zip(matrix[:-2], sides[:-2], strict=True):
        site.unify(s, t)
    solved = sides[-2] if eqn.params["left_side"] else sides[-1]
    for term in (*matrix[-2:], solved):
        site.freeze(term, _SINGULAR)
    return [sides]


def solve_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    """The solution for each cell of the right-hand sides; 0 for sides that are 0."""
    matrix, sides = ins

    def cell(bits: Bits) -> Cell:
        right = sides.cell(bits)
        if any(bits) and right.zero:
            return ce.known(np.zeros((1,) * len(bits), sides.dtype))
        left = matrix.cell(matrix.own((*bits[:-2], 0, 0)))
        name = eqn.primitive.name
        run = lambda a, b: _compat.bind(eqn, eqn.params, [a, b])[0]  # noqa: E731
        return ce.compute(run, left, right, name=name)

    return [cell]


def tridiagonal_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """The diagonals and their batch axes stay, the right-hand sides pass."""
    *diagonals, sides = (x.axes for x in ins)
    for diagonal in diagonals:
        for s, t in zip(diagonal, sides[:-1], strict=True):
            site.unify(s, t)
    for term in sides[:-1]:
        site.freeze(term, _SINGULAR)
    return [sides]


def tridiagonal_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """The solution for each cell of the right-hand sides; 0 for sides that are 0."""
    *diagonals, sides = ins

    def cell(bits: Bits) -> Cell:
        right = sides.cell(bits)
        if any(bits) and right.zero:
            return ce.known(np.zeros((1,) * len(bits), sides.dtype))
        run = lambda *a: _compat.bind(eqn, eqn.params, a)[0]  # noqa: E731
        kept = (d.kept for d in diagonals)
        return ce.compute(run, *kept, right, name=eqn.primitive.name)

    return [cell]


def _refused(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    raise NoRule(_SINGULAR)


def _no_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    raise NoRule(_SINGULAR)  # the first pass has made the equation opaque


_FACTORIZATIONS = (
    "cholesky",
    "cholesky_update",
    "eig",
    "eigh",
    "geqrf",
    "hessenberg",
    "householder_product",
    "lu",
    "lu_pivots_to_permutation",
    "qr",
    "schur",
    "svd",
    "tridiagonal",
)

RULES: dict[str, Rule] = {
    "triangular_solve": Rule(axes=solve_axes, cells=solve_cells),
    "tridiagonal_solve": Rule(axes=tridiagonal_axes, cells=tridiagonal_cells),
    **{name: Rule(axes=_refused, cells=_no_cells) for name in _FACTORIZATIONS},
}
