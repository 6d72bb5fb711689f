"""Where the order of removal is cut: by a count, by a polynomial cost, by a measure."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
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
    excluded: str = "",
) -> Any:
    """The head of each set that removes the asked number of coordinates.

    `excluded`: a sentence for errors, on what was kept out; also below.
    """
    require_sparsity(sparsity)
    sizes: dict[Any, int] = {}
    for name, score in pool.items():
        sizes[sets[name]] = sizes.get(sets[name], 0) + score.shape[0]
    most = dict.fromkeys(sizes, 0)
    for name, span in zip(steps.names, steps.spans, strict=True):
        most[sets[name]] += int(steps.removed[span].sum())
    for key, size in sizes.items():
        target = removed_count(size, sparsity)
        if most[key] < target:
            raise value_error(
                f"`sparsity` {sparsity} asks for {target} of {size} coordinates, but "
                f"`min_keep`, `most` and `round_to` let at most {most[key]} go. Lower "
                f'the sparsity or what limits it, or use ranking="global".{excluded}'
            )
    targets = [removed_count(size, sparsity) for _, size in steps.sets]
    taken = _order.within(steps, targets)
    if sparsity > 0 and any(targets) and not is_traced(taken) and not taken.any():
        raise value_error(
            f"`sparsity` {sparsity} with `round_to` {round_to} removes nothing: the "
            "first step is larger. Raise the sparsity or lower `round_to`."
        )
    return taken


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
        raise value_error(
            f"`{name}` {target} cannot be met: with every candidate group at its "
            f"minimum {least} of {dense} remain.{count} Lower `min_keep` or "
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
