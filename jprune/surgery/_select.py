"""Choosing what to remove: one order of removal, cut where the target is met.

Every coordinate of every candidate group gets a place in one order, worst first, in
steps that respect `round_to` and `min_keep`. A plan is a prefix of that order, so a
larger target only ever removes more: nothing grows again. Costs are polynomials of the
kept counts (`_cost`), so the shortest prefix that meets a FLOPs or parameter target is
found by bisection without tracing.

Between groups the order is by score ("global": scores must be comparable), by rank
within the group ("group": every group loses the same fraction), or by rank within
groups of one structure ("isomorphic": layers of one kind compete with each other only).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jprune._errors import listing, value_error
from jprune._groups import Group
from jprune._tree import keys_text
from jprune.masks._count import removed_count
from jprune.surgery._axes import Atom
from jprune.surgery._cost import total
from jprune.surgery._groups import Groups
from jprune.surgery._make import plan_from_keep
from jprune.surgery._plan import Plan
from jprune.surgery._reach import still_connected

Scope = Literal["global", "group", "isomorphic"]


def select(
    deps: Groups,
    scores: Mapping[str, Any],
    *,
    sparsity: float | None = None,
    flops: float | int | None = None,
    params: float | int | None = None,
    scope: Scope = "global",
    round_to: int = 1,
    min_keep: int = 1,
    exact: bool = False,
    allow_empty: bool = False,
) -> Plan:
    """The plan that removes the lowest-scored coordinates until a target is met.

    Exactly one of `sparsity`, `flops` and `params` is given.

    Args:
      deps: the groups. Only coupled ones take part, and of these the ones in `scores`.
      scores: by group id, one finite number per coordinate; the lowest go first, and of
        equal ones the last.
      sparsity: fraction of the candidate coordinates to remove, exactly
        floor(s n + 1/2) of n (of each group, or each set of isomorphic groups, in those
        scopes). With `round_to` at most that many.
      flops: the cost to keep: a float is a fraction of the dense FLOPs, an int an
        absolute count. The plan removes the fewest steps that meet it.
      params: the same for the number of parameters.
      scope: what competes with what, see above.
      round_to: kept counts are multiples of this, or all (8 or 128 suit hardware).
      min_keep: least number kept of each group. It moves the budget to other groups.
      exact: leave out groups whose removal is not proved to equal zeroing.
      allow_empty: a group may also lose everything, where the output still depends on
        the input without it: a residual branch goes.

    Returns:
      The plan.

    Raises:
      ValueError: not exactly one target, scores that do not fit, a target that cannot
        be met, or nothing that can be removed (with the reasons).
    """
    targets = {"sparsity": sparsity, "flops": flops, "params": params}
    given = [name for name, value in targets.items() if value is not None]
    if len(given) != 1:
        raise value_error(
            "give exactly one of `sparsity`, `flops` and `params`, got "
            f"{given or 'none'}."
        )
    _check_options(scope, round_to, min_keep)
    pool = _candidates(deps, scores, exact)
    steps = _order(deps, pool, scope, round_to, min_keep, allow_empty)
    if sparsity is not None:
        kept = _by_count(pool, steps, sparsity, scope, round_to)
    else:
        kept = _by_cost(deps, steps, given[0], targets[given[0]])
    return plan_from_keep(deps, _lowest_removed(pool, kept))


@dataclasses.dataclass(frozen=True)
class _Step:
    """Part of the order: a group goes down to `kept` coordinates.

    Attributes:
      group: its id.
      kept: count after the step.
      removed: how many coordinates the step removes.
      pool: the set of groups that it competes with.
    """

    group: str
    kept: int
    removed: int
    pool: Any


def _check_options(scope: str, round_to: int, min_keep: int) -> None:
    if scope not in ("global", "group", "isomorphic"):
        raise value_error(
            f'`scope` must be "global", "group" or "isomorphic", got {scope!r}.'
        )
    for name, value in (("round_to", round_to), ("min_keep", min_keep)):
        if int(value) != value or value < 1:
            raise value_error(
                f"`{name}` must be an integer of at least 1, got {value}."
            )


def _candidates(
    deps: Groups, scores: Mapping[str, Any], exact: bool
) -> dict[str, np.ndarray]:
    """The scores of the groups that take part, checked."""
    pool = {}
    for name, given in scores.items():
        group = deps[name]
        array = np.asarray(given, np.float64)
        if array.shape != (group.size,):
            raise value_error(
                f"`scores[{name!r}]` must have shape ({group.size},), got "
                f"{array.shape}."
            )
        if not np.isfinite(array).all():
            raise value_error(f"`scores[{name!r}]` must be finite.")
        if group.kind == "coupled" and (not exact or deps.exactness[name].exact):
            pool[name] = array
    if not pool:
        raise value_error(
            "nothing can be removed: no group is coupled (produced and read by "
            f"parameters){' and proved exact' if exact else ''}.{_why_nothing(deps)}"
        )
    return pool


def _why_nothing(deps: Groups) -> str:
    lines = [
        f"{g.id}: {g.kind}"
        + ("" if deps.exactness[g.id].exact else f", {deps.exactness[g.id].why}")
        for g in deps
    ]
    for item in deps.frozen():
        where = f"{keys_text(item.path)}:{item.axis}"
        lines.append(f"{where} is frozen: {item.why} {item.primitive}".rstrip())
    return listing(lines)


# -- the order -----------------------------------------------------------------------


def _order(
    deps: Groups,
    pool: dict[str, np.ndarray],
    scope: Scope,
    round_to: int,
    min_keep: int,
    allow_empty: bool,
) -> list[_Step]:
    """All steps, worst first; within a group always in the order of its scores."""
    sets = _sets(deps, pool, scope)
    keyed: list[tuple[float, int, int, _Step]] = []
    for index, (name, score) in enumerate(pool.items()):
        levels = _levels(score.size, round_to, min_keep, allow_empty)
        ascending = np.sort(score)
        last, start, number = -math.inf, 0, 0
        for before, after in zip([score.size, *levels], levels, strict=False):
            size = before - after
            key = max(last, float(ascending[start : start + size].mean()))
            step = _Step(name, after, size, sets[name])
            keyed.append((key, index, number, step))
            last, start, number = key, start + size, number + 1
    keyed.sort(key=lambda k: k[:3])
    steps = [k[3] for k in keyed]
    if scope != "global":
        steps = _by_rank(steps, pool, sets)
    return _without_cuts(deps, steps) if allow_empty else steps


def _sets(deps: Groups, pool: Mapping[str, Any], scope: Scope) -> dict[str, Any]:
    """For each group the set that it competes in."""
    if scope == "global":
        return dict.fromkeys(pool, 0)
    if scope == "group":
        return {name: name for name in pool}
    return {name: _structure(deps, deps[name]) for name in pool}


def _structure(deps: Groups, group: Group) -> Any:
    """Equal for groups of the same size with members of the same roles and shapes."""
    members = sorted(
        (m.role, m.axis, deps.shapes[m.path], m.labels is None) for m in group.members
    )
    return (group.size, tuple(members))


def _levels(size: int, round_to: int, min_keep: int, allow_empty: bool) -> list[int]:
    """The kept counts that a group may go down to, descending."""
    floor = -(-max(min_keep, 1) // round_to) * round_to
    top = (size - 1) // round_to * round_to
    levels = list(range(top, floor - 1, -round_to))
    return [*levels, 0] if allow_empty else levels


def _by_rank(
    steps: list[_Step], pool: Mapping[str, np.ndarray], sets: Mapping[str, Any]
) -> list[_Step]:
    """Reorders by the fraction of its set that is gone after a step."""
    sizes: dict[Any, int] = {}
    for name, score in pool.items():
        sizes[sets[name]] = sizes.get(sets[name], 0) + score.size
    gone = dict.fromkeys(sizes, 0)
    ranked = []
    for place, step in enumerate(steps):
        gone[step.pool] += step.removed
        ranked.append((gone[step.pool] / sizes[step.pool], place, step))
    return [step for *_, step in sorted(ranked, key=lambda r: r[:2])]


def _without_cuts(deps: Groups, steps: list[_Step]) -> list[_Step]:
    """Leaves out the steps that empty a group the output cannot do without."""
    emptied: set[Atom] = set()
    out = []
    for step in steps:
        if step.kept == 0:
            atom = deps.atoms[step.group]
            if not still_connected(deps.program, emptied | {atom}):
                continue
            emptied.add(atom)
        out.append(step)
    return out


# -- the prefix ----------------------------------------------------------------------


def _kept_after(
    pool: Mapping[str, np.ndarray], steps: Sequence[_Step]
) -> dict[str, int]:
    kept = {name: score.size for name, score in pool.items()}
    for step in steps:
        kept[step.group] = step.kept
    return kept


def _by_count(
    pool: dict[str, np.ndarray],
    steps: list[_Step],
    sparsity: float,
    scope: Scope,
    round_to: int,
) -> dict[str, int]:
    """The prefix of each set that removes the asked number of coordinates."""
    sets: dict[Any, list[_Step]] = {}
    for step in steps:
        sets.setdefault(step.pool, []).append(step)
    sizes: dict[Any, int] = {}
    names = {step.group: step.pool for step in steps}
    alone = {name: ("alone", name) for name in pool if name not in names}
    for name, score in pool.items():
        place = names.get(name, 0 if scope == "global" else alone.get(name))
        sizes[place] = sizes.get(place, 0) + score.size
    chosen: list[_Step] = []
    for place, size in sizes.items():
        target = removed_count(size, sparsity)
        prefix, count = [], 0
        for step in sets.get(place, []):
            if count + step.removed > target:
                break
            prefix.append(step)
            count += step.removed
        most = sum(s.removed for s in sets.get(place, []))
        if count < target and most < target:
            raise value_error(
                f"`sparsity` {sparsity} asks for {target} of {size} coordinates, but "
                f"`min_keep` and `round_to` let at most {most} go. Lower the sparsity, "
                'or use scope="global".'
            )
        chosen += prefix
    if (
        sparsity > 0
        and not chosen
        and any(removed_count(n, sparsity) for n in sizes.values())
    ):
        raise value_error(
            f"`sparsity` {sparsity} with `round_to` {round_to} removes nothing: the "
            "first step is larger. Raise the sparsity or lower `round_to`."
        )
    return _kept_after(pool, chosen)


def _by_cost(
    deps: Groups, steps: list[_Step], name: str, target: Any
) -> dict[str, int]:
    """The shortest prefix whose cost is at most the target."""
    costs = deps.program.ctx.costs if name == "flops" else deps.parameter_costs
    everything = {g.id: g.size for g in deps}

    def cost(count: int) -> int:
        counts = dict(everything)
        counts.update({s.group: s.kept for s in steps[:count]})
        return total(costs, {deps.atoms[i]: n for i, n in counts.items()})

    limit = _limit(name, target, cost(0))
    if cost(len(steps)) > limit:
        raise value_error(
            f"`{name}` {target} cannot be met: with every candidate group at its "
            f"minimum {cost(len(steps))} of {cost(0)} remain. Lower `min_keep` or "
            "`round_to`, or give scores for more groups."
        )
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
    return {s.group: s.kept for s in steps[:low]}


def _limit(name: str, target: Any, dense: int) -> float:
    """The cost allowed."""
    whole = isinstance(target, int | np.integer) and not isinstance(target, bool)
    if whole and target >= 0:
        return int(target)
    if not isinstance(target, float | np.floating) or not 0 <= target <= 1:
        raise value_error(
            f"`{name}` must be a fraction to keep in [0, 1] or an integer count, got "
            f"{target!r}."
        )
    return float(target) * dense


def _lowest_removed(
    pool: Mapping[str, np.ndarray], kept: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The highest-scored `kept` coordinates of each group; of equal ones the first."""
    masks = {}
    for name, count in kept.items():
        best = np.argsort(-pool[name], kind="stable")[:count]
        mask = np.zeros(pool[name].size, bool)
        mask[best] = True
        masks[name] = mask
    return masks
