"""Where the order of removal is cut: by a count, by a polynomial cost, by a measure."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import listing, value_error, warn
from jprune.masks._count import is_traced, removed_count, require_sparsity
from jprune.surgery import _budget, _order
from jprune.surgery._axes import is_symbolic
from jprune.surgery._cost import total
from jprune.surgery._groups import Groups
from jprune.surgery._make import plan_from_keep
from jprune.surgery._plan import Plan

Scores = Mapping[str, Any]


def by_count(
    pool: Scores,
    sets: Mapping[str, Any],
    steps: _order.Steps,
    sparsity: float,
    round_to: int,
    floors: Mapping[str, int] | None,
    excluded: str = "",
) -> Any:
    """The head of each set that removes the asked number of coordinates.

    A set that has a share of its own keeps what rounding leaves of it, if anything.

    Args:
      pool: scores of the groups.
      sets: of each group the set that it competes in.
      steps: the order.
      sparsity: the share.
      round_to: for errors.
      floors: the least that each group may keep before it is rounded; None where all
        groups are one set, which the others must make up for.
      excluded: a sentence for errors, on what was kept out; also below.
    """
    require_sparsity(sparsity)
    sizes = _by_set(sets, {name: score.shape[0] for name, score in pool.items()})
    rounded = dict(zip(steps.names, steps.spans, strict=True))
    rounded = {name: int(steps.removed[s].sum()) for name, s in rounded.items()}
    most = _by_set(sets, {name: rounded.get(name, 0) for name in pool})
    may = most
    if floors is not None:
        may = _by_set(
            sets,
            {
                n: max(s.shape[0] - floors[n], rounded.get(n, 0))  # it may go whole
                for n, s in pool.items()
            },
        )
    wanted = {key: removed_count(size, sparsity) for key, size in sizes.items()}
    if any(wanted[key] > may[key] for key in sizes):
        worst = min(sizes, key=lambda key: may[key] / sizes[key])
        raise _beyond(
            sparsity, wanted[worst], sizes[worst], may[worst], floors, excluded
        )
    targets = [removed_count(size, sparsity) for _, size in steps.sets]
    taken = _order.within(steps, targets)
    if any(wanted.values()) and not is_traced(taken) and not taken.any():
        raise value_error(
            f"`sparsity` {sparsity} with `round_to` {round_to} removes nothing: the "
            "first step is larger. Raise the sparsity or lower `round_to`."
            f"{excluded}"
        )
    narrow = [
        f"{name}: {score.shape[0] - rounded.get(name, 0)} of {score.shape[0]}"
        for name, score in pool.items()
        if wanted[sets[name]] > most[sets[name]]
    ]
    if narrow:
        warn(
            f"[jprune] these groups cannot lose their share, {sparsity}, in steps of "
            f"`round_to` {round_to}, and keep what rounding leaves; the others lose no "
            "more for it. Lower `round_to`, or take a `ranking` or a budget that moves "
            f"it to other groups:{listing(narrow)}"
        )
    return taken


def _by_set(sets: Mapping[str, Any], counts: Mapping[str, int]) -> dict[Any, int]:
    """Counts by group, summed over each set."""
    found: dict[Any, int] = {}
    for name, count in counts.items():
        found[sets[name]] = found.get(sets[name], 0) + count
    return found


def _beyond(
    sparsity: float, target: int, size: int, most: int, floors: Any, excluded: str
) -> ValueError:
    """The error of a share that the floors do not leave, with the largest they do."""
    limits, other = "`min_keep`, `most` and `round_to` let", ""
    if floors is not None:
        limits, other = "`min_keep` and `most` let", ', or use ranking="global"'
    tried = (most * 10**d // size / 10**d for d in range(2, 16))
    share = next((s for s in tried if removed_count(size, s) == most), 0.0)
    say = f": `sparsity={share}`" if most else ""
    return value_error(
        f"`sparsity` {sparsity} asks for {target} of {size} coordinates, but {limits} "
        f"at most {most} go{say}. Lower the sparsity or what limits it{other}."
        f"{excluded}"
    )


def by_cost(
    deps: Groups,
    steps: _order.Steps,
    name: str,
    target: Any,
    fixed: Mapping[str, int],
    excluded: str = "",
) -> Any:
    """The shortest head whose cost is at most the target."""
    costs = deps.program.ctx.costs if name == "flops" else deps.parameter_costs
    counts = {atom: deps[group].size for group, atom in deps.atoms.items()}
    dense = total(costs, counts)
    if is_symbolic(dense):
        raise value_error(
            f"`{name}` needs numbers, but the dense network has {dense}: its groups "
            "were found at symbolic sizes. Find them on an example of the size that "
            "counts; the plan serves every size."
        )
    counts |= {deps.atoms[group]: n for group, n in fixed.items()}

    def cost(many: Any) -> Any:
        kept = steps.kept(_order.head(steps, many))
        return total(costs, counts | {deps.atoms[g]: n for g, n in kept.items()})

    limit, every = _limit(name, target, dense), steps.removed.size
    smallest = {g: steps.sizes[i] for i, g in enumerate(steps.names)}
    for group, span in zip(steps.names, steps.spans, strict=True):
        smallest[group] -= int(steps.removed[span].sum())
    least = total(costs, counts | {deps.atoms[g]: n for g, n in smallest.items()})
    if least > limit:
        whole = not isinstance(target, float | np.floating)
        count = " (An int is a count; 0.5 would keep half.)" if whole else ""
        met = least if whole else _budget.upwards(least / dense)
        say = f": `{name}={met}` is the least" if least < dense else ""
        raise value_error(
            f"`{name}` {target} cannot be met: with every candidate group at its "
            f"minimum {least} of {dense} remain{say}.{count} Lower `min_keep` or "
            f"`round_to`, raise `most`, or give scores for more groups.{excluded}"
        )
    return _order.head(steps, _first(lambda k: cost(k) <= limit, every, steps.position))


def by_measure(
    deps: Groups,
    pool: Scores,
    steps: _order.Steps,
    cost: Callable[[Plan], float],
    at_most: float,
    fixed: Mapping[str, int],
    excluded: str = "",
) -> Any:
    """The head whose measured cost is at most the budget."""
    if not isinstance(steps.position, np.ndarray):
        raise value_error("`cost` needs scores that are not traced.")
    sizes = {name: score.shape[0] for name, score in pool.items()}

    def kept(many: int) -> dict[str, int]:
        return sizes | dict(fixed) | steps.kept(_order.head(steps, many))

    def measure(many: int) -> float:
        chosen = {name: _order.best(pool[name], n) for name, n in kept(many).items()}
        return cost(plan_from_keep(deps, chosen))

    dense = deps.flops()

    def share(many: int) -> float:
        return deps.flops(kept(many)) / dense

    last = steps.removed.size

    def head(left: float) -> int:
        return _first(lambda k: share(k) <= left, last, steps.position)

    many = _budget.cut_by_measure(measure, at_most, share, head, last, excluded)
    return _order.head(steps, many)


def _first(holds: Callable[[Any], Any], last: int, like: Any) -> Any:
    """The first of 0..last that holds, where what holds once holds for all after it."""
    if isinstance(like, np.ndarray):
        low, high = 0, last
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle + 1, high)
        return low

    def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = (low + high) // 2
        good = holds(middle) | (low >= high)
        return jnp.where(good, low, middle + 1), jnp.where(good, middle, high)

    start = (jnp.int32(0), jnp.int32(last))
    return jax.lax.fori_loop(0, last.bit_length(), halve, start)[0]


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
    return float(target) * dense * (1 + 1e-12)  # 49 / 88 of 88 is 49
