"""Costs as polynomials in the kept counts.

The size of an axis after removal is a polynomial in the number of coordinates kept of
each atom: an atom's count, the sum over the parts of a concatenation, the product over
the factors of a flattening. A parameter leaf costs the product over its axes, a
contraction 2 x the product over the axes it runs through (`_jaxpr._flops` states the
convention). So the price of any choice follows from the first pass, without tracing.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jprune.surgery._axes import Atom, Sum, Term, resolve

Counts = Mapping[Atom, int]
"""How many coordinates of an atom are kept; an atom that is absent keeps all."""


@dataclasses.dataclass(frozen=True)
class Contraction:
    """`factor` x the product of the sizes of `axes`."""

    factor: int
    axes: tuple[Term, ...]


@dataclasses.dataclass(frozen=True)
class Branches:
    """Alternatives of which one runs; the dearest counts."""

    branches: tuple[tuple["Cost", ...], ...]


Cost = Contraction | Branches


def kept_size(term: Term, counts: Counts) -> int:
    """The size of an axis after removal."""
    term = resolve(term)
    if isinstance(term, Atom):
        return counts.get(term, term.size)
    if isinstance(term, Sum):
        return sum(kept_size(p, counts) for p in term.parts)
    return math.prod(kept_size(f, counts) for f in term.factors)


def total(costs: Sequence[Cost], counts: Counts) -> int:
    """The cost of a program after removal."""
    out = 0
    for cost in costs:
        if isinstance(cost, Branches):
            out += max(total(branch, counts) for branch in cost.branches)
        else:
            out += cost.factor * math.prod(kept_size(t, counts) for t in cost.axes)
    return out
