"""What surgery knows about a primitive: two functions, side by side.

A `Rule` says how the axes of a primitive's operands and results are related (`analyze`,
first pass) and how its results are computed at compact shapes (`rewrite`, second pass).
Each family of primitives has one file under `rules/`. A primitive without a rule is
*opaque*: its operands may not shrink, its results are computed at full size and
indexed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jprune._errors import type_error, value_error
from jprune._jaxpr import _compat


class Rule(NamedTuple):
    """How surgery treats one primitive.

    Attributes:
      analyze: `(ctx, eqn, ins) -> outs`: the axes (a tuple of terms) of each result
        from the `Info` of each operand. It relates axes through `ctx.unify`,
        `ctx.freeze` and the algebra of `surgery._axes`; an exception makes the equation
        opaque.
      rewrite: `(builder, eqn, ins, outs) -> cells`: for each result a function from
        bits to its cell, from the `Value` of each operand and the layouts of each
        result.
      constant: whether the rule is also the way to treat operands that depend on no
        parameter and no input; otherwise such an equation is computed at full size and
        its results indexed, whatever the primitive.
      fold: `(eqn, arrays) -> array or None`: the only result in NumPy, for operands
        that are known (and broadcastable to their shapes).
    """

    analyze: Callable[..., Any]
    rewrite: Callable[..., Any]
    constant: bool = False
    fold: Callable[[Any, Sequence[Any]], Any] | None = None


def register_rule(
    primitive: Any,
    analyze: Callable[..., Any],
    rewrite: Callable[..., Any] | None = None,
) -> None:
    """Teaches surgery a primitive it does not know (or replaces a rule).

    Args:
      primitive: a JAX primitive, or its name.
      analyze: `(ctx, eqn, ins) -> outs`, see `Rule`. `ins[i].axes` is a tuple of axis
        terms, one per dimension; return a list with one such tuple per result.
      rewrite: `(builder, eqn, ins, outs) -> cells`, see `Rule`. None for a primitive
        that can be bound unchanged at compact shapes and whose removed positions are
        computed from the same removed positions of its operands: position-wise ones.

    Raises:
      TypeError: if `primitive` is neither a primitive nor a string.

    Examples:
      An element-wise primitive of your own::

        from jprune.surgery import elementwise_axes, register_rule
        register_rule(my_gelu_p, analyze=elementwise_axes)
    """
    from jprune.surgery import rules  # the table lives beside the rules

    name = getattr(primitive, "name", primitive)
    if not isinstance(name, str) or not (
        isinstance(primitive, str | _compat.Primitive)
    ):
        raise type_error(
            "`primitive` must be a JAX primitive or its name, got "
            f"{type(primitive).__name__}."
        )
    if not callable(analyze):
        raise value_error("`analyze` must be a function (ctx, eqn, ins) -> outs.")
    rules.RULES[name] = Rule(analyze, rewrite or rules.positionwise)
