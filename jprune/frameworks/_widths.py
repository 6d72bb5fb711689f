"""What must change in a model's constructor for its own class to have compact widths.

A class at smaller widths computes the compact function when no norm, mean or rotation
runs over removed coordinates, or with `mean="compact"`. Which numbers it must be built
with follows from the plan: each group that shrank, its size before and after, and the
parameter axes that carry it.
"""

import dataclasses

import numpy as np

from jprune._errors import value_error
from jprune._groups import Group
from jprune.surgery import Groups, Plan


@dataclasses.dataclass(frozen=True)
class Width:
    """One number of the architecture that a plan changes.

    Attributes:
      group: id of the group.
      before: its size in the dense model.
      after: its size in the compact one.
      chunk: how many positions of its first axis one coordinate holds: 1 for a feature,
        the head width for a head.
      axes: (path text, axis, length before, length after) of each member.
    """

    group: str
    before: int
    after: int
    chunk: int
    axes: tuple[tuple[str, int, int, int], ...]

    def __str__(self) -> str:
        kind = "" if self.chunk == 1 else f" (of {self.chunk} positions each)"
        where = [f"  {p}:{axis}  {a} -> {b}" for p, axis, a, b in self.axes]
        return "\n".join([f"{self.before} -> {self.after}{kind}", *where])


class Widths(tuple[Width, ...]):
    """The changed widths; `str()` lists them with the axes they lie on."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing changes"


def widths(deps: Groups, plan: Plan) -> Widths:
    """The widths of a model that a plan changes, before and after.

    Args:
      deps: the groups that the plan was made from.
      plan: the plan.

    Returns:
      One `Width` for each group that shrinks; print them.

    Raises:
      ValueError: if the plan is not over the parameters of the groups.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import frameworks, surgery
      >>> net = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> p = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> deps = surgery.groups(net)(p, jnp.ones((1, 4)))
      >>> plan = surgery.plan_from_keep(deps, {"up:1": [0, 1, 2]})
      >>> print(frameworks.widths(deps, plan))
      8 -> 3
        down:0  8 -> 3
        up:1  8 -> 3
    """
    if plan.dense_shapes != {p: tuple(s) for p, s in deps.shapes.items()}:
        raise value_error(
            "`plan` is not over the parameters that `deps` was found on: their paths "
            "or shapes differ."
        )
    found = (_width(group, plan) for group in deps)
    return Widths(w for w in found if w.after < w.before)


def _width(group: Group, plan: Plan) -> Width:
    first = group.members[0]
    where = first.coordinates(group.size)
    kept = plan.keep[first.path][first.axis] & (where >= 0)
    after = np.unique(where[kept]).size
    axes = []
    for ref in group.members:
        mask = plan.keep[ref.path][ref.axis]
        name = "/".join(map(str, ref.path))
        axes.append((name, ref.axis, mask.size, int(mask.sum())))
    chunk = int((where >= 0).sum()) // group.size
    return Width(group.id, group.size, after, chunk, tuple(axes))
