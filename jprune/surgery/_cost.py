"""Costs as polynomials in the kept counts.

The size of an axis after removal is a polynomial in the number of coordinates kept of
each atom: an atom's count, the sum over the parts of a concatenation, the product over
the factors of a flattening. A parameter leaf costs the product over its axes, a
contraction 2 x the product over the axes it runs through (`_jaxpr._flops` states the
convention). So the price of any choice follows from the first pass, without tracing.

Integer counts give the exact integer. Traced counts (expected numbers of open gates,
which a price differentiates) give a float.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune.surgery._axes import Atom, Sum, Term, resolve

Counts = Mapping[Atom, Any]
"""How many coordinates of an atom are kept, an int or a traced number; an atom that is
absent keeps all."""


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


def kept_size(term: Term, counts: Counts) -> Any:
    """The size of an axis after removal."""
    term = resolve(term)
    if isinstance(term, Atom):
        return counts.get(term, term.size)
    if isinstance(term, Sum):
        return sum(kept_size(p, counts) for p in term.parts)
    return math.prod(kept_size(f, counts) for f in term.factors)


def total(costs: Sequence[Cost], counts: Counts) -> Any:
    """The cost of a program after removal."""
    exact = all(isinstance(n, int | np.integer) for n in counts.values())
    return _total(costs, counts, exact)


def _total(costs: Sequence[Cost], counts: Counts, exact: bool) -> Any:
    # Costs beyond int32 cannot meet a traced number as ints, as floats they can.
    out = 0 if exact else 0.0
    for cost in costs:
        if isinstance(cost, Branches):
            each = [_total(branch, counts, exact) for branch in cost.branches]
            out += max(each) if exact else functools.reduce(jnp.maximum, each)
        else:
            factor = cost.factor if exact else float(cost.factor)
            out += math.prod((kept_size(t, counts) for t in cost.axes), start=factor)
    return out
