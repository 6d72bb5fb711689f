"""The order of removal: every step of every group, worst first.

A step takes a group from one allowed count down to the next (see `levels`); it is worth
the mean score of what it removes, and never less than the step before it in its group,
so that a group always loses its lowest scores first. A choice is a prefix of the order,
which is why nothing grows again when a target is raised.

All of it is vectors, NumPy's or, for scores that are traced, JAX's: the counts are
static, the order is data.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of all groups, group after group.

    Attributes:
      names: the groups that have steps.
      sizes: their numbers of coordinates.
      spans: for each the slice of its steps.
      removed: how many coordinates a step removes; static. [steps]
      position: the place of a step in the order. [steps]
      sets: for each set of groups that compete with each other the numbers of its steps
        (static), and how many coordinates it has.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    spans: tuple[slice, ...]
    removed: np.ndarray
    position: Any
    sets: tuple[tuple[np.ndarray, int], ...]

    def kept(self, taken: Any) -> dict[str, Any]:
        """The counts that are left when some steps are taken. `taken`: [steps] bool"""
        gone = taken * self.removed
        rows = zip(self.names, self.sizes, self.spans, strict=True)
        return {name: size - gone[span].sum() for name, size, span in rows}


def levels(
    size: int, round_to: int, least: int, allow_empty: bool = False
) -> np.ndarray:
    """The kept counts that a group may go down to, descending."""
    floor = -(-max(least, 1) // round_to) * round_to
    top = (size - 1) // round_to * round_to
    found = np.arange(top, floor - 1, -round_to)
    return np.append(found, 0) if allow_empty else found


def ordered(
    scores: Mapping[str, Any],
    allowed: Mapping[str, np.ndarray],
    sets: Mapping[str, Any],
    by_rank: bool,
) -> Steps:
    """Orders the steps of some groups.

    Args:
      scores: of each group. [size]
      allowed: of each group its `levels`; one without any takes no part.
      sets: of each group a key, equal for groups that compete with each other.
      by_rank: order by the fraction of its set that is gone after a step, instead of by
        what the step is worth.
    """
    names = tuple(n for n in scores if allowed[n].size)
    sizes = tuple(int(scores[n].shape[0]) for n in names)
    counts = [
        -np.diff(np.append(s, allowed[n])) for s, n in zip(sizes, names, strict=True)
    ]
    ends = np.cumsum([c.size for c in counts]).tolist()
    spans = tuple(slice(e - c.size, e) for e, c in zip(ends, counts, strict=True))
    removed = np.concatenate([np.zeros(0, int), *counts])
    xp = np if all(isinstance(scores[n], np.ndarray) for n in names) else jnp
    worth = [_worth(xp, scores[n], c) for n, c in zip(names, counts, strict=True)]
    key = xp.concatenate([*worth]) if names else np.zeros(0)
    members: dict[Any, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(sets[name], []).append(i)
    together = tuple(
        (
            np.concatenate([np.arange(spans[i].start, spans[i].stop) for i in some]),
            sum(s.shape[0] for n, s in scores.items() if sets[n] == which),
        )
        for which, some in members.items()
    )
    order = xp.argsort(key, stable=True)
    if by_rank:
        order = _by_rank(xp, key, order, removed, together)
    return Steps(names, sizes, spans, removed, _inverse(xp, order), together)


def _worth(xp: Any, score: Any, removed: np.ndarray) -> Any:
    """The mean score of each step, made to rise within the group. [steps of it]"""
    ascending = xp.sort(score)[: removed.sum()]
    first, last = removed[0], removed[-1]
    middle = ascending[first : ascending.size - (last if removed.size > 1 else 0)]
    parts = [ascending[:first].mean()[None]]
    if removed.size > 2:
        parts.append(middle.reshape(removed.size - 2, -1).mean(axis=1))
    if removed.size > 1:
        parts.append(ascending[ascending.size - last :].mean()[None])
    worth = xp.concatenate(parts)
    return np.maximum.accumulate(worth) if xp is np else jax.lax.cummax(worth)


def _by_rank(xp: Any, key: Any, order: Any, removed: np.ndarray, sets: Sequence) -> Any:
    """Steps by the fraction of their set that is gone after them; ties as they were."""
    rank = xp.zeros(removed.size, np.float64 if xp is np else np.float32)
    for steps, size in sets:
        inside = xp.asarray(steps)[xp.argsort(key[steps], stable=True)]
        gone = xp.cumsum(xp.asarray(removed)[inside]) / size
        rank = put(xp, rank, inside, gone)
    return xp.lexsort((_inverse(xp, order), rank))


def _inverse(xp: Any, order: Any) -> Any:
    """The place of each step in the order."""
    place = xp.arange(order.size)
    return put(xp, xp.zeros_like(place), order, place)


def put(xp: Any, x: Any, where: Any, values: Any) -> Any:
    """`x` with these values at these places."""
    if xp is jnp:
        return x.at[where].set(values)
    x[where] = values
    return x


def head(steps: Steps, many: Any) -> Any:
    """The first steps of the order. [steps] bool"""
    return steps.position < many


def within(steps: Steps, targets: Sequence[int]) -> Any:
    """Of each set the longest head that removes at most its target. [steps] bool"""
    xp = np if isinstance(steps.position, np.ndarray) else jnp
    taken = xp.zeros(steps.removed.size, bool)
    for (some, _), target in zip(steps.sets, targets, strict=True):
        order = xp.argsort(steps.position[some])
        fits = xp.cumsum(xp.asarray(steps.removed[some])[order]) <= target
        inside = xp.asarray(some)[order]
        taken = put(xp, taken, inside, fits)
    return taken


def best(score: Any, kept: Any) -> Any:
    """The highest-scored `kept` coordinates of a group; of equal ones the first."""
    if isinstance(score, np.ndarray):
        mask = np.zeros(score.size, bool)
        mask[np.argsort(-score, stable=True)[:kept]] = True
        return mask
    order = jnp.argsort(-score, stable=True)
    return jnp.zeros(score.shape, bool).at[order].set(jnp.arange(score.size) < kept)
