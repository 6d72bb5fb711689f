"""FLOPs of a jaxpr, by the rules' `work`; `_cost` states the convention.

This walk needs sizes only, so it takes a function at any shapes without an analysis.
"""

from math import prod
from typing import Any

from jprune._jaxpr import _compat
from jprune._jaxpr._compat import ClosedJaxpr, Equation, Jaxpr
from jprune.surgery._cost import operations
from jprune.surgery.rules import RULES

_SPARSE = ("bcsr_dot_general", "bcoo_dot_general")


def count(jaxpr: Jaxpr | ClosedJaxpr) -> Any:
    """Floating point operations; an int, or an expression for symbolic sizes."""
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    return sum(map(_equation, jaxpr.eqns))


def _equation(eqn: Equation) -> Any:
    rule = RULES.get(eqn.primitive.name)
    if rule is not None and rule.work is not None:
        return operations(rule.work(eqn), eqn)
    if eqn.primitive.name in _SPARSE:
        return _sparse(eqn)
    if eqn.primitive.name == "custom_linear_solve":  # the products are its derivative's
        return count(eqn.params["jaxprs"].solve)
    inner = [count(sub) for sub in _compat.sub_jaxprs(eqn.params)]
    if eqn.primitive.name == "cond":
        return max(inner)
    if eqn.primitive.name == "scan":
        return eqn.params["length"] * sum(inner)
    if eqn.primitive.name == "shard_map":
        return _compat.mapped_devices(eqn.params) * sum(inner)
    return sum(inner)


def _sparse(eqn: Equation) -> Any:
    """A multiply-add for each stored value and each free entry of the dense operand."""
    values, dense = eqn.invars[0].aval.shape, eqn.invars[-1].aval.shape
    (_, contracted), (_, batched) = eqn.params["dimension_numbers"]
    free = [n for i, n in enumerate(dense) if i not in (*contracted, *batched)]
    return 2 * prod(values) * prod(free)
