"""What a program costs: floating-point operations, and as polynomials of kept counts.

**The convention, stated here and nowhere else.** A multiply-add is **2** operations.
Only contractions count: `dot_general` and its like 2 x outputs x contracted size, a
convolution 2 x outputs x kernel taps x input channels of a group, where zeros that a
transposed convolution inserts are no taps. Element-wise work, reductions and data
movement do not count. A scan counts its body `length` times, a `cond` its dearest
branch, a `while` its body once (the number of turns is not known), a `shard_map` its
body on every device of the mesh axes that it maps over. A `custom_linear_solve` counts
how it solves, not the products that only its derivative reads.

The size of an axis after removal is a polynomial in the number of coordinates kept of
each atom: an atom's count, the sum over the parts of a concatenation, the product over
the factors of a flattening. A parameter leaf costs the product over its axes, a
contraction 2 x the product over the axes it runs through. So the price of any choice
follows from the first pass, without tracing.

Integer counts give the exact integer. Traced counts (expected numbers of open gates,
which a price differentiates) give a float.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jprune._jaxpr._compat import Equation
from jprune.surgery._axes import Atom, Sum, Term, resolve

Counts = Mapping[Atom, Any]
"""How many coordinates of an atom are kept, an int or a traced number; an atom that is
absent keeps all."""


class Work(NamedTuple):
    """Operations of an equation: `factor` x the sizes of some of its axes.

    Attributes:
      factor: 2 for a multiply-add, x the kernel taps of a convolution.
      result: dimensions of the (first) result.
      operands: (operand, dimension) pairs: what is summed over.
    """

    factor: int
    result: tuple[int, ...]
    operands: tuple[tuple[int, int], ...] = ()


def operations(work: Work, eqn: Equation) -> Any:
    """The operations of one equation at its own sizes."""
    sizes = [eqn.outvars[0].aval.shape[d] for d in work.result]
    sizes += [eqn.invars[i].aval.shape[d] for i, d in work.operands]
    return math.prod(sizes, start=work.factor)


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
