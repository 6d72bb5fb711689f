"""Choosing what to remove: one order of removal, cut where the target is met.

Every coordinate of every candidate group gets a place in one order, worst first, in
steps that respect `round_to`, `min_keep` and `most` (see `_order`). A choice is a head
of that order, so a larger target only ever removes more: nothing grows again. Costs are
polynomials of the kept counts (`_cost`), so the shortest head that meets a FLOPs or
parameter target is found by bisection without tracing. One logic serves a plan made on
the host and a choice that training makes anew at every step, traced.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, SupportsFloat, get_args

import jax.numpy as jnp
import numpy as np

from jprune._errors import is_integer, listing, type_error, value_error, warn
from jprune._groups import Group, Kind
from jprune._tree import keys_text
from jprune.masks._count import is_traced, removed_count
from jprune.surgery import _cut, _order
from jprune.surgery._budget import Measured
from jprune.surgery._groups import Groups
from jprune.surgery._make import plan_from_keep, require_groups
from jprune.surgery._patterns import Patterns, excluded_groups, named, narrow_groups
from jprune.surgery._plan import Plan
from jprune.surgery._reach import still_connected

Ranking = Literal["balanced", "global", "group", "isomorphic"]
_BY_RANK = ("group", "isomorphic")
Scores = Mapping[str, Any]


def select(
    deps: Groups,
    scores: Scores,
    *,
    sparsity: float | None = None,
    flops: float | int | None = None,
    params: float | int | None = None,
    cost: Callable[[Plan], float] | None = None,
    at_most: float | None = None,
    ranking: Ranking = "balanced",
    exclude: Patterns = (),
    ratios: Mapping[str, float] | None = None,
    most: float = 1.0,
    round_to: int = 1,
    min_keep: int = 1,
    exact: bool = True,
    allow_empty: bool = False,
    kinds: Sequence[Kind] = ("coupled",),
) -> Plan:
    """The plan that removes the lowest-scored coordinates until a target is met.

    Exactly one of `sparsity`, `flops`, `params` and `cost` is given, or `ratios` alone.

    Args:
      deps: the groups. Coupled ones take part, and of these the ones in `scores`.
      scores: by group id, one finite number per coordinate (`deps.scores`); the lowest
        go first, and of equal ones the last.
      sparsity: fraction of the candidate coordinates to remove, exactly
        floor(s n + 1/2) of n (of each group with ranking "group", of each set of
        isomorphic groups with "isomorphic"). With `round_to` at most that many: what a
        group keeps is rounded up.
      flops: the cost to keep: a float is a fraction of the dense FLOPs, an int an
        absolute count. The plan removes the fewest steps that meet it.
      params: the same for the number of parameters.
      cost: a measure of a plan, in any unit that falls as more is removed: seconds,
        bytes, yours; `analysis.relative_cost` makes some. It is called at most 12
        times. The latency of the plan that is accepted is measured once more, in turns
        with the dense network: `plan.measured`, the median and quartiles, stands in
        `plan.table()`.
      at_most: the budget for `cost`, in its unit. A plan within 2 % of it ends the
        search.
      ranking: what competes with what. "balanced": every group loses the same share,
        half of it counted in coordinates and half in their squared scores, but one that
        k layers write (`deps.writers`; a residual stream) a k-th of it: the default,
        chosen by measurement (`docs/first_call.md`); "group": every group loses the
        same fraction of its coordinates;
        "isomorphic": layers of one kind compete with each other; "global": all
        coordinates compete, for which scores must be comparable between groups, as
        those of `deps.scores` are.
      exclude: regular expressions; groups that `deps.find` finds by them stay whole: a
        pattern is searched in `path:axis` of every member. "fc/" so keeps what the
        layer writes and what it reads (the stream before it); "fc/kernel:1" what it
        writes alone.
      ratios: by regular expression, the fraction that the groups found lose whatever
        their scores, floor(s n + 1/2) of n; a target is met by the others. Of several
        patterns that find a group the last counts.
      most: the largest fraction that any group may lose.
      round_to: kept counts are multiples of this, or all. 8 is the least that suits
        hardware, 64 or 128 wide layers on accelerators; a small network takes 4 or
        less, since a group no wider than it stays whole. With `sparsity` and ranking
        "group" or "isomorphic" a group whose share leaves less than the least multiple
        keeps that, with a warning; only if no group loses any is it an error.
      min_keep: least number kept of each group. It moves the budget to other groups.
      exact: only groups whose removal is proved to equal zeroing. False takes the
        others, too, and warns of those that it cuts.
      allow_empty: a group may also lose everything, where the output still depends on
        the input without it: a residual branch goes. It takes ranking="global" for a
        branch to lose all while the others lose little.
      kinds: which kinds of groups take part. Whole layers never go for a budget of
        widths: `("depth",)` removes rounds of scans and nothing else, `("coupled",
        "depth")` lets them compete.

    Returns:
      The plan.

    Raises:
      TypeError: `deps` are no groups, or scores are traced.
      ValueError: not exactly one target, scores that do not fit, a pattern that finds
        nothing, a target that cannot be met or that is met already (`params=1.0`,
        `sparsity=0.0`), or nothing that can be removed (with the reasons).

    Warns:
      UserWarning: a group that `ratios` does not name loses more than nine tenths;
        `round_to` keeps more of a group than its share leaves in any of its steps; a
        group that is cut is not exact; the second measurement of a latency is over the
        budget, or its spread as large as the saving that is asked for.
    """
    keep = choose(
        deps,
        scores,
        sparsity=sparsity,
        flops=flops,
        params=params,
        cost=cost,
        at_most=at_most,
        ranking=ranking,
        exclude=exclude,
        ratios=ratios,
        most=most,
        round_to=round_to,
        min_keep=min_keep,
        exact=exact,
        allow_empty=allow_empty,
        kinds=kinds,
    )
    _require_removal(keep, given=bool(ratios))
    asked = {name for p in ratios or () for name in named(deps, "ratios", p)}
    _warn_of(deps, keep, asked)
    plan = plan_from_keep(deps, keep)
    again = getattr(cost, "again", None)
    return plan if again is None else _measured_again(plan, again(plan), at_most)


def _measured_again(plan: Plan, found: Measured, at_most: float | None) -> Plan:
    """The plan with its second measurement, and a warning where that is in doubt."""
    assert at_most is not None
    if doubt := found.doubt(at_most):
        warn(
            f"[jprune] measured again, the plan takes {found} of the dense time. "
            f"{doubt}",
        )
    return dataclasses.replace(plan, measured=found)


def choose(
    deps: Groups,
    scores: Scores,
    *,
    sparsity: float | None = None,
    flops: float | int | None = None,
    params: float | int | None = None,
    cost: Callable[[Plan], float] | None = None,
    at_most: float | None = None,
    ranking: Ranking = "balanced",
    exclude: Patterns = (),
    ratios: Mapping[str, float] | None = None,
    most: float = 1.0,
    round_to: int = 1,
    min_keep: int = 1,
    exact: bool = True,
    allow_empty: bool = False,
    kinds: Sequence[Kind] = ("coupled",),
) -> dict[str, Any]:
    """What `select` keeps of each group, also of traced scores; it may be everything.

    With scores that are traced (inside a training step, which may ask again at every
    step) the result is traced. Costs are then float32: where two heads of the order
    cost the same to within its rounding, the choice may be one step off the host's. The
    vectors of scores are sorted.

    Args:
      deps: see `select`, also for all that follows.
      scores: by group id.
      sparsity: fraction of the coordinates to remove.
      flops: the FLOPs to keep.
      params: the parameters to keep.
      cost: a measure of a plan; on the host only.
      at_most: the budget for it.
      ranking: what competes with what.
      exclude: patterns of groups that stay whole.
      ratios: fractions by pattern.
      most: the largest fraction that any group may lose.
      round_to: multiples to keep.
      min_keep: least number kept of each group.
      exact: only groups proved exact.
      allow_empty: a group may lose everything; on the host only.
      kinds: which kinds of groups take part.

    Returns:
      `{group.id: [group.size] bool}`, True = keep, of the groups that take part: what
      `plan_from_keep` and `masks.from_groups` take.

    Raises:
      ValueError: as `select`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import surgery
      >>> fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
      >>> params = {"v": jnp.ones((3, 1)), "w": jnp.array([[1.0, 3.0, 2.0]])}
      >>> deps = surgery.groups(fn)(params, jnp.ones((1, 1)))
      >>> surgery.choose(deps, deps.scores(params), flops=0.7)
      {'w:1': array([False,  True,  True])}
    """
    require_groups(deps)
    targets = {"sparsity": sparsity, "flops": flops, "params": params, "cost": cost}
    given = [name for name, value in targets.items() if value is not None]
    if len(given) > 1 or not (given or ratios):
        raise value_error(
            "give exactly one of `sparsity`, `flops`, `params` and `cost`, got "
            f"{given or 'none'}."
        )
    _check_budget(cost, at_most)
    _check_options(ranking, round_to, min_keep, most)
    whole = named(deps, "exclude", exclude)
    pool = _candidates(deps, scores, exact, whole, kinds)
    excluded = excluded_groups(deps, whole) + narrow_groups(pool, round_to)
    fixed = _fixed(deps, pool, ratios or {}, round_to, min_keep)
    kept: dict[str, Any] = {name: score.shape[0] for name, score in pool.items()}
    kept |= fixed
    rest = {name: score for name, score in pool.items() if name not in fixed}
    if ranking == "balanced":
        rest = {n: _shares(score) * deps.writers[n] for n, score in rest.items()}
    if given and rest:
        allowed = {
            name: _allowed(score.shape[0], round_to, min_keep, most, allow_empty)
            for name, score in rest.items()
        }
        sets = _sets(deps, rest, ranking)
        if allow_empty:
            allowed = _without_cuts(deps, rest, allowed, sets, ranking)
        steps = _order.ordered(rest, allowed, sets, ranking in _BY_RANK)
        if sparsity is not None:
            floors = {n: _least(s.shape[0], min_keep, most) for n, s in rest.items()}
            own = floors if ranking in _BY_RANK else None
            taken = _cut.by_count(rest, sets, steps, sparsity, round_to, own, excluded)
        elif cost is not None and at_most is not None:
            taken = _cut.by_measure(deps, pool, steps, cost, at_most, fixed, excluded)
        else:
            name, target = given[0], targets[given[0]]
            taken = _cut.by_cost(deps, steps, name, target, fixed, excluded)
        kept |= steps.kept(taken)
    return {name: _order.best(pool[name], kept[name]) for name in pool}


def _check_budget(cost: Any, at_most: Any) -> None:
    if (cost is None) != (at_most is None):
        raise value_error("`cost` and `at_most` belong together: give both or neither.")
    if cost is not None and not callable(cost):
        raise value_error(f"`cost` must be a function of a plan, got {cost!r}.")
    if at_most is None:
        return
    if not isinstance(at_most, SupportsFloat) or not 0 < float(at_most) < math.inf:
        raise value_error(f"`at_most` must be a positive number, got {at_most!r}.")


def _check_options(ranking: str, round_to: int, min_keep: int, most: float) -> None:
    if ranking not in ("balanced", "global", "group", "isomorphic"):
        raise value_error(
            '`ranking` must be "balanced", "global", "group" or "isomorphic", got '
            f"{ranking!r}."
            + (' Torch-Pruning\'s "local" is "group".' if ranking == "local" else "")
        )
    for name, value in (("round_to", round_to), ("min_keep", min_keep)):
        if not is_integer(value) or value < 1:
            raise value_error(
                f"`{name}` must be an integer of at least 1, got {value!r}."
            )
    if not isinstance(most, float | int | np.number) or not 0 < most <= 1:
        raise value_error(f"`most` must be a fraction in (0, 1], got {most!r}.")


def _candidates(
    deps: Groups,
    scores: Scores,
    exact: bool,
    whole: Collection[str],
    kinds: Sequence[Kind],
) -> dict[str, Any]:
    """The scores of the groups that take part, checked, in the groups' order."""
    if not isinstance(scores, Mapping):
        raise value_error(
            f"`scores` must be a mapping by group id, got {type(scores).__name__}."
        )
    wrong = [kind for kind in kinds if kind not in get_args(Kind)]
    if isinstance(kinds, str) or wrong or not kinds:
        raise value_error(
            f"`kinds` must be a tuple of kinds of groups {get_args(Kind)}, got "
            f"{kinds!r}."
        )
    for name in scores:
        deps[name]  # an unknown id is an error
    traced = any(map(is_traced, scores.values()))
    pool = {}
    for group in deps:
        if group.id not in scores or group.kind not in kinds or group.id in whole:
            continue
        pool[group.id] = _checked(group, scores[group.id], traced)
    if exact:
        pool = {n: s for n, s in pool.items() if deps.exactness[n].exact}
    if not pool:
        raise value_error(
            f"nothing can be removed: no group with a score is of kind "
            f"{' or '.join(map(repr, kinds))}"
            f"{' and proved exact' if exact else ''} (coupled: produced and read by "
            f"parameters){' and not kept whole by `exclude`' if whole else ''}."
            f"{_why_nothing(deps, whole)}"
        )
    return pool


def _checked(group: Group, given: Any, traced: bool) -> Any:
    score = jnp.asarray(given) if traced else np.asarray(given, np.float64)
    if score.shape != (group.size,):
        raise value_error(
            f"`scores[{group.id!r}]` must have shape ({group.size},), got "
            f"{score.shape}."
        )
    if not traced and not np.isfinite(score).all():
        members = [f"{keys_text(m.path)}:{m.axis}" for m in group.members]
        raise value_error(
            f"`scores[{group.id!r}]` must be finite, got "
            f"{np.flatnonzero(~np.isfinite(score)).size} of {group.size} that are not. "
            "Look for NaN or inf in the weights (or gradients) that they were made of:"
            f"{listing(members)}"
        )
    return score


def _why_nothing(deps: Groups, whole: Collection[str]) -> str:
    lines = [
        f"{g.id}: {g.kind}"
        + (", kept whole by `exclude`" if g.id in whole else "")
        + ("" if deps.exactness[g.id].exact else f", {deps.exactness[g.id].why}")
        for g in deps
    ]
    for item in deps.frozen():
        where = f"{keys_text(item.path)}:{item.axis}"
        lines.append(f"{where} is frozen: {item.why} {item.primitive}".rstrip())
    return listing(lines)


def _fixed(
    deps: Groups,
    pool: Scores,
    ratios: Mapping[str, float],
    round_to: int,
    min_keep: int,
) -> dict[str, int]:
    """The kept counts of the groups that `ratios` names."""
    kept: dict[str, int] = {}
    if not isinstance(ratios, Mapping):
        raise value_error(
            f"`ratios` must be a mapping from patterns to fractions, got {ratios!r}."
        )
    for pattern, share in ratios.items():
        if not isinstance(share, float | int | np.number) or not 0 <= share < 1:
            raise value_error(
                f"`ratios[{pattern!r}]` must be a fraction in [0, 1), got {share!r}."
            )
        for name in named(deps, "ratios", pattern) & pool.keys():
            size = pool[name].shape[0]
            least = size - removed_count(size, share)
            allowed = _order.levels(size, round_to, max(least, min_keep))
            kept[name] = int(allowed[-1]) if allowed.size else size
    return kept


def _allowed(
    size: int, round_to: int, min_keep: int, most: float, allow_empty: bool
) -> np.ndarray:
    least = _least(size, min_keep, most)
    return _order.levels(size, round_to, least, allow_empty and most == 1)


def _least(size: int, min_keep: int, most: float) -> int:
    """What a group must keep at the least, not rounded."""
    return min(size, max(min_keep, math.ceil(size * (1 - most) - 1e-9)))


def _shares(score: Any) -> Any:
    """For each coordinate the share that is gone when it goes, worst first.

    The mean of two shares: of the coordinates, so that a few large scores let no group
    empty, and of the squared scores, so that what is worth little goes cheaply.
    """
    xp: Any = np if isinstance(score, np.ndarray) else jnp
    size = score.shape[0]
    order = xp.argsort(-score, stable=True)[::-1]  # as `best` removes them
    worth = xp.square(xp.maximum(score, 0) / xp.maximum(xp.abs(score).max(), 1e-30))
    gone = xp.cumsum(worth[order])
    count = xp.arange(1, size + 1) / size
    energy = xp.where(gone[-1] > 0, gone / xp.where(gone[-1] > 0, gone[-1], 1), count)
    return _order.put(xp, xp.zeros(size), order, (count + energy) / 2)


def _sets(deps: Groups, pool: Scores, ranking: Ranking) -> dict[str, Any]:
    """For each group the set that it competes in."""
    if ranking not in _BY_RANK:
        return dict.fromkeys(pool, 0)
    if ranking == "group":
        return {name: name for name in pool}
    return {name: _structure(deps, deps[name]) for name in pool}


def _structure(deps: Groups, group: Group) -> Any:
    """Equal for groups of the same size with members of the same roles and shapes."""
    members = sorted(
        (m.role, m.axis, deps.shapes[m.path], m.labels is None) for m in group.members
    )
    return (group.size, tuple(members))


def _without_cuts(
    deps: Groups,
    pool: Scores,
    allowed: dict[str, np.ndarray],
    sets: Mapping[str, Any],
    ranking: Ranking,
) -> dict[str, np.ndarray]:
    """Takes the 0 from groups that the output cannot do without, in their order."""
    steps = _order.ordered(pool, allowed, sets, ranking in _BY_RANK)
    if not isinstance(steps.position, np.ndarray):
        raise value_error("`allow_empty` needs scores that are not traced.")
    last = {
        n: steps.position[s.stop - 1]
        for n, s in zip(steps.names, steps.spans, strict=True)
    }
    emptied: set[Any] = set()
    for name in sorted(last, key=last.__getitem__):
        atom = deps.atoms[name]
        if still_connected(deps.program, emptied | {atom}):
            emptied.add(atom)
        else:
            allowed = {**allowed, name: allowed[name][:-1]}
    return allowed


def _require_removal(keep: Mapping[str, np.ndarray], given: bool) -> None:
    """Raises for a plan that would remove nothing, or whose shapes are not known."""
    if any(map(is_traced, keep.values())):
        raise type_error(
            "`scores` are traced, and a plan decides shapes: call `select` outside of "
            "`jit` and `grad`, or `choose`, which gives masks of the groups."
        )
    if all(mask.all() for mask in keep.values()):
        target = "the target is met already" if not given else "nothing is asked"
        raise value_error(
            f"nothing would be removed: {target} (`flops` and `params` are what to "
            "keep, `sparsity` and `ratios` what to remove). The plan that removes "
            "nothing is `plan_from_keep(deps, {})`."
        )


def _warn_of(
    deps: Groups, keep: Mapping[str, np.ndarray], asked: Collection[str]
) -> None:
    """Warns of groups cut to almost nothing unasked, and of those not exact."""
    kept = {name: int(mask.sum()) for name, mask in keep.items()}
    thin = [
        f"{name}: {n} of {keep[name].size} left"
        for name, n in kept.items()
        if 0 < 10 * n < keep[name].size and name not in asked
    ]
    if thin:
        warn(
            "[jprune] these groups lose more than nine tenths, which rarely leaves a "
            "network that works: give a floor (`min_keep=8`, or `most=0.9` of each "
            "group), or ask for less. If it is meant, `ratios` says it group by group."
            f"{listing(thin)}",
        )
    cut = [name for name, n in kept.items() if n < keep[name].size]
    wrong = [
        f"{name}: {deps.exactness[name].why}"
        for name in cut
        if not deps.exactness[name].exact
    ]
    if wrong:
        warn(
            "[jprune] removing from these groups is not the same as setting them to "
            f"zero; leave `exact=True`, or verify the result.{listing(wrong)}",
        )
