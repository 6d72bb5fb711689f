"""What a parameter does with the coordinates on each of its axes.

A value computed from a single parameter (a cast, a transpose, a standardized kernel)
still stands for that parameter; the first equation that mixes it with anything else
shows the role: contracted in a product ("in"), a free axis of a product ("out"), added
("bias"), multiplied ("scale"), subtracted or square-rooted ("stat": running
statistics), looked up ("table"). An axis contracted between two parameters (the rank
of `a @ b`) is made by the first and read by the second.
"""

from collections.abc import Sequence

from jprune._groups import Role
from jprune._jaxpr._compat import Equation
from jprune._jaxpr._moves import Dims
from jprune.surgery._axes import Axes
from jprune.surgery._registry import Rule
from jprune.surgery._scope import CONST, MANY, Info

Roles = dict[tuple[int, int], Role]
"""For (parameter index, axis), its role, from its first use."""


_MADE: Role = "out"


def source_of(ins: Sequence[Info]) -> int:
    """What a value computed from some operands depends on."""
    source = CONST
    for info in ins:
        if info.source != CONST and info.source != source:
            source = info.source if source == CONST else MANY
    return source


def sources(
    roles: Roles,
    rule: Rule | None,
    eqn: Equation,
    ins: Sequence[Info],
    outs: Sequence[Axes],
    source: int,
) -> list[Info]:
    """Adds sources to the results, and records the roles that the equation shows."""
    if source == CONST or (rule and rule.free):
        return [Info(axes, CONST) for axes in outs]
    if source == MANY or len(ins) == 1:  # a root of one parameter alone shows its role
        product = all(info.source >= 0 and info.dims for info in ins)
        for place, info in enumerate(ins):
            if info.source >= 0 and info.dims:
                shown: dict[int, Role] = {}
                if rule and rule.role:
                    shown = rule.role(eqn, place)
                if product and place == 0 and source == MANY:
                    made = [d for d, r in shown.items() if r == "in"]
                    shown = {**shown, **dict.fromkeys(made, _MADE)}
                if shown or source == MANY:
                    _assign(roles, info, shown)
    if source == MANY:
        return [Info(axes) for axes in outs]
    return [Info(axes, source, _dims(rule, eqn, ins, axes)) for axes in outs]


def _assign(roles: Roles, info: Info, shown: dict[int, Role]) -> None:
    """Records the role of each axis of a parameter that is read there.

    An axis of size 1 may be there for a broadcast: it has a role in a product alone.
    """
    for dim, axis in enumerate(info.dims or ()):
        if axis is not None and (info.axes[dim].size != 1 or shown.get(dim) == "in"):
            roles.setdefault((info.source, axis), shown.get(dim, "other"))


def _dims(
    rule: Rule | None, eqn: Equation, ins: Sequence[Info], out: Axes
) -> Dims | None:
    """The parameter axis behind each dimension of a value of a single parameter."""
    if rule and rule.dims:
        return None if ins[0].dims is None else rule.dims(eqn, ins[0].dims)
    for info in ins:
        if info.dims and len(info.axes) == len(out):
            pairs = zip(info.axes, out, strict=True)
            fits = all(a is b or a.size == b.size for a, b in pairs)
            return info.dims if fits else None
    return None
