"""Which parameters are trained, and which are statistics held beside them."""

from collections.abc import Mapping
from typing import Any, cast

from jprune._groups import Role
from jprune._jaxpr._trace import Traced
from jprune._tree import KeyTuple
from jprune._weights import is_parameter, named_as_statistic
from jprune.surgery._axes import Axes
from jprune.surgery._program import Program, analyze


def roles_of(program: Program) -> Mapping[tuple[int, int], Role]:
    """The role of each parameter axis, running statistics among them.

    The program shows some ("stat": subtracted, or under a root). In training mode a
    running average is only scaled and returned, and an evaluation may not read it at
    all: what the function returns updated is a statistic (unless it returns updated
    kernels, too), and so is what its path says to be one. What a product contracts or a
    look-up reads is a weight whatever its name; what lies in "params" of Flax is one.
    """
    found = cast("Mapping[tuple[int, int], Role]", program.ctx.roles)
    axes_of = list(program.params.values())
    roles: dict[tuple[int, int], Role] = {
        (i, a): r for (i, a), r in found.items() if axes_of[i][a].size != 1
    }
    weights = _read(roles)
    state = {param for _, param in program.ties}
    paths = list(program.params)
    if any(paths[i] in state for i in weights):
        state = set()
    for index, (path, axes) in enumerate(program.params.items()):
        known = path in state or path in program.still or named_as_statistic(path)
        if index not in weights and known:
            roles |= {(index, axis): "stat" for axis in range(len(axes))}
        elif path[:1] == ("params",):  # of Flax: trained, also where it is subtracted
            mine = ((index, axis) for axis in range(len(axes)))
            roles |= {at: "bias" for at in mine if roles.get(at) == "stat"}
    return roles


def _read(roles: Mapping[tuple[int, int], Role]) -> set[int]:
    """The parameters that a product contracts or a look-up reads."""
    return {i for (i, _), role in roles.items() if role in ("in", "out", "table")}


def weights_named_otherwise(traced: Traced) -> set[KeyTuple]:
    """Paths that say "statistics" of parameters that a product or a look-up reads."""
    program = analyze(traced)
    roles = cast("Mapping[tuple[int, int], Role]", program.ctx.roles)
    paths = list(program.params)
    return {paths[i] for i in _read(roles) if named_as_statistic(paths[i])}


def trained_axes(program: Program, known: Mapping[KeyTuple, Any]) -> list[Axes]:
    """The axes of the leaves that are trained: no statistics, counters, keys."""
    roles = roles_of(program)
    read = _read(roles)
    still = {i for (i, _), role in roles.items() if role == "stat"}
    return [
        axes
        for i, (path, axes) in enumerate(program.params.items())
        if i in read
        or (
            i not in still
            and path not in program.still
            and is_parameter(path, known.get(path))
        )
    ]
