"""What the first pass knows of the values of one jaxpr at one call site."""

import dataclasses
from typing import Any, NamedTuple

from jprune._jaxpr import _compat
from jprune.surgery._axes import Atom, Axes

CONST, MANY = -1, -2
"""Sources of a value that depends on nothing, and on more than one parameter."""


class Info(NamedTuple):
    """What the first pass knows of a value.

    Attributes:
      axes: one term per dimension.
      source: CONST, the index of the single parameter it is computed from, or MANY.
      dims: for a value computed from a single parameter, the axis of that parameter
        behind each dimension (None: unknown).
    """

    axes: Axes
    source: int = MANY
    dims: tuple[int | None, ...] | None = None


@dataclasses.dataclass
class Scope:
    """The terms found for one jaxpr at one call site.

    JAX shares one jaxpr between call sites, so a call site has its own scope.

    Attributes:
      infos: what is known of each variable.
      inner: by equation index, the scopes of its sub-jaxprs.
      generators: indices of equations computed at full size and indexed.
      opaque: by equation index, why it has no rule.
    """

    infos: dict[Any, Info] = dataclasses.field(default_factory=dict)
    inner: dict[int, list["Scope"]] = dataclasses.field(default_factory=dict)
    generators: set[int] = dataclasses.field(default_factory=set)
    opaque: dict[int, str] = dataclasses.field(default_factory=dict)

    def info(self, var: Any) -> Info:
        """What is known of a variable or literal."""
        if isinstance(var, _compat.Literal):
            return Info(fresh_axes(var), CONST)
        return self.infos[var]


def fresh_axes(var: Any) -> Axes:
    """Free axes that nothing is known of."""
    return tuple(map(Atom, var.aval.shape))
