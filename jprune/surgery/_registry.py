"""What surgery knows about a primitive: one `Rule`, in one place.

A rule says how the axes of a primitive's operands and results are related (`axes`,
first pass), how its results are computed at compact shapes (`cells`, second pass), and
what else any part of jprune asks of a primitive. Each family of primitives has one file
under `rules/`; `register_rule` adds one from outside. A primitive without a rule is
*opaque*: its operands may not shrink, its results are computed at full size and
indexed.

`docs/surgery_rules.md` explains how a program is read, and adds a rule step by step.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jprune._errors import type_error
from jprune._groups import Role
from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune._jaxpr._moves import Dims
from jprune.surgery._axes import Axes
from jprune.surgery._cost import Work

if TYPE_CHECKING:
    from jprune.surgery._analysis import AxisSite
    from jprune.surgery._build import CellSite
    from jprune.surgery._cells import Cells, Value
    from jprune.surgery._layout import Layout
    from jprune.surgery._scope import Info

    AxesRule = Callable[[AxisSite, Equation, Sequence[Info]], Sequence[Axes | Info]]
    CellsRule = Callable[
        [CellSite, Equation, list[Value], list[tuple[Layout, ...]]],
        Sequence[Cells | Value],
    ]


class NoRule(Exception):
    """Raised by a rule for a form of the primitive that it does not cover.

    The equation is then opaque, with the text as the reason.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """All that jprune knows about one primitive.

    Attributes:
      axes: `(site, eqn, ins) -> outs`, first pass: from the `Info` of each operand
        (`ins[i].axes` has one axis term per dimension) the axes of each result, a tuple
        of terms. It relates axes through `site.unify`, `site.freeze`, `site.fixed`,
        `site.fresh`. It raises `rules.NoRule` for a form that it does not cover.
      cells: `(site, eqn, ins, outs) -> cells`, second pass: from the `Value` of each
        operand and the layouts of each result, for each result a function from bits to
        its cell (see `surgery._cells`), or a whole `Value`.
      constant: whether the rule is also the way to treat operands that depend on no
        parameter and no input; otherwise such an equation is computed at full size and
        its results indexed, whatever the primitive.
      free: the results are as free as constants, whatever the operands (random bits).
      fold: `(eqn, arrays) -> array or None`: the only result in NumPy, for operands
        that are known (and broadcastable to their shapes).
      role: `(eqn, place) -> role of each dimension` of operand `place`, for a parameter
        that is read there ("in", "out", "bias", "scale", "stat", "table"); a dimension
        that is absent is "other".
      dims: `(eqn, dims) -> dims`: for a primitive that only moves axes, which axis of
        the first operand stands behind each axis of the result, or None where the
        equation does more than that.
      work: `eqn -> Work`: the floating-point operations. None: not counted.
      low_rank: `(eqn, place, thin, other) -> array`: the contraction of a kernel that
        is a product of two factors (operand `place`) with the other operand. It raises
        `Refused` where there is no such form.
    """

    axes: AxesRule
    cells: CellsRule
    constant: bool = False
    free: bool = False
    fold: Callable[[Equation, Sequence[np.ndarray]], np.ndarray | None] | None = None
    role: Callable[[Equation, int], dict[int, Role]] | None = None
    dims: Callable[[Equation, Dims], Dims | None] | None = None
    work: Callable[[Equation], Work] | None = None
    low_rank: Callable[[Equation, int, Any, Any], Any] | None = None


RULES: dict[str, Rule] = {}
"""The rule of each primitive, by its name. `rules` fills it."""


def register_rule(primitive: Any, rule: Rule) -> None:
    """Teaches surgery a primitive that it does not know, or replaces a rule.

    Args:
      primitive: a JAX primitive, or its name.
      rule: what is known about it, see `Rule`.

    Raises:
      TypeError: if `primitive` is neither a primitive nor a string, or `rule` is not a
        `Rule`.

    Examples:
      An element-wise primitive of your own::

        from jprune.surgery import rules
        rules.register_rule(
            my_gelu_p,
            rules.Rule(axes=rules.elementwise_axes, cells=rules.positionwise),
        )
    """
    name = getattr(primitive, "name", primitive)
    if not isinstance(name, str) or not (
        isinstance(primitive, str | _compat.Primitive)
    ):
        raise type_error(
            "`primitive` must be a JAX primitive or its name, got "
            f"{type(primitive).__name__}."
        )
    if not isinstance(rule, Rule):
        raise type_error(
            f"`rule` must be a `rules.Rule`, got {type(rule).__name__}: write "
            "`Rule(axes=..., cells=...)`."
        )
    RULES[name] = rule


_strict: contextvars.ContextVar[bool] = contextvars.ContextVar("strict", default=False)


@contextlib.contextmanager
def strict(on: bool = True) -> Iterator[None]:
    """Within it, what a rule raises is raised; otherwise the equation is opaque.

    A user's function must not fail because a rule meets a form that nobody thought of.
    Who writes a rule wants to see its errors. `rules.NoRule` never is one.

    Args:
      on: False for the other way round, inside a strict part.

    Yields:
      Nothing.

    Examples:
      >>> from jprune.surgery import rules
      >>> with rules.strict():
      ...     pass  # surgery.groups(fn)(params, x)
    """
    token = _strict.set(on)
    try:
        yield
    finally:
        _strict.reset(token)


def is_strict() -> bool:
    """Whether errors of rules are to be raised."""
    return _strict.get()
