"""Counting floating point operations in a jaxpr.

Convention, used everywhere in jprune: a multiply-add counts as **2**. Counted are
contractions: `dot_general` 2 x outputs x contracted size, convolutions 2 x outputs x
kernel taps x input channels of a group. A scan counts its body `length` times, a `cond`
its dearest branch, a `while` its body once (its trip count is not known). Element-wise
work, reductions and data movement are not counted.
"""

import math
from typing import Any

from jprune._jaxpr import _compat


def count(jaxpr: Any) -> int:
    """Floating point operations of a jaxpr, open or closed."""
    if isinstance(jaxpr, _compat.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = eqn.invars[0].aval.shape
        return 2 * _size(eqn.outvars[0]) * math.prod(lhs[d] for d in contracted)
    if name == "conv_general_dilated":
        out_dim = params["dimension_numbers"].rhs_spec[0]
        kernel = eqn.invars[1].aval.shape
        taps = math.prod(n for d, n in enumerate(kernel) if d != out_dim)
        return 2 * _size(eqn.outvars[0]) * taps
    if name == "ragged_dot_general":
        numbers = params["ragged_dot_dimension_numbers"]
        (contracted, _), _ = numbers.dot_dimension_numbers
        lhs = eqn.invars[0].aval.shape
        return 2 * _size(eqn.outvars[0]) * math.prod(lhs[d] for d in contracted)
    if name == "cond":
        return max(count(branch) for branch in params["branches"])
    inner = [count(sub) for sub in _compat.sub_jaxprs(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    return sum(inner)


def _size(var: Any) -> int:
    return math.prod(var.aval.shape)
