"""Axes that a program looks up by number: tokens, experts; old numbers and new ones.

`groups(fn, lookups=["embedding:0"])` lets the rows of an embedding go. The compact
function still takes the dense numbers: a removed one finds the row of zeros that the
zeroed dense model has. A `Numbering` is the map for the user's side, the tokenizer.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.core
import jax.numpy as jnp
import numpy as np

from jprune._errors import listing, nearest, require_regex, value_error
from jprune._tree import KeyTuple, keys_text
from jprune.surgery._axes import Axes, Term, unify

Lookups = tuple[tuple[tuple[KeyTuple, int], ...], ...]
"""Axes as (path, axis); those that are one axis together."""


class Numbering(NamedTuple):
    """The numbers along one axis before and after removal.

    Attributes:
      new: for each old number the new one, -1 where it is removed. [dense size]
      old: for each new number the old one. [kept size]
    """

    new: np.ndarray
    old: np.ndarray

    def compact(self, ids: Any, unknown: int | None = None) -> Any:
        """New numbers for old ones.

        Args:
          ids: integers, old numbers.
          unknown: the old number that takes the place of removed ones.

        Returns:
          The new numbers; inside `jax.jit` -1 for what is removed.

        Raises:
          ValueError: for numbers out of range or, without `unknown`, removed.
        """
        new = self.new
        if unknown is not None:
            if not 0 <= unknown < new.size or new[unknown] < 0:
                raise value_error(f"`unknown` {unknown} must be a number that is kept.")
            new = np.where(new < 0, new[unknown], new)
        return _looked(new, ids, "removed or out of range: give `unknown=`")

    def dense(self, ids: Any) -> Any:
        """Old numbers for new ones, as the compact function takes them.

        Args:
          ids: integers, new numbers, such as the largest of compact logits.

        Raises:
          ValueError: for numbers out of range (inside `jax.jit` they give -1).
        """
        return _looked(self.old, ids, "out of range")


def _looked(table: np.ndarray, ids: Any, why: str) -> Any:
    if isinstance(ids, jax.core.Tracer):
        wide = jnp.asarray(table, jnp.int32)
        safe = jnp.where((ids >= 0) & (ids < table.size), ids, table.size)
        return wide.at[safe].get(mode="fill", fill_value=-1)
    given = np.asarray(ids)
    inside = (given >= 0) & (given < table.size)
    out = np.where(inside, table[np.where(inside, given, 0)], -1)
    if (out < 0).any():
        bad = np.unique(given[out < 0])[:10].tolist()
        raise value_error(f"`ids` holds numbers that are {why}: {bad}.")
    return out


def lookups_of(
    given: Sequence[str | Sequence[str]], ranks: Mapping[KeyTuple, int]
) -> Lookups:
    """The axes that texts `path:axis`, or regular expressions of them, name.

    Args:
      given: as in `surgery.groups`.
      ranks: the rank of each parameter.

    Raises:
      ValueError: for a text that names no axis.
    """
    known = {
        f"{keys_text(path)}:{axis}": (path, axis)
        for path, rank in ranks.items()
        for axis in range(rank)
    }
    out: list[tuple[tuple[KeyTuple, int], ...]] = []
    for entry in given:
        together: dict[Any, list[tuple[KeyTuple, int]]] = {}
        for text in [entry] if isinstance(entry, str) else entry:
            for key, axis in _named(text, known):
                together.setdefault(key, []).append(axis)
        out += map(tuple, together.values())
    return tuple(out)


def _named(text: str, known: Mapping[str, tuple[KeyTuple, int]]) -> list:
    """The axes that a text finds, each with the groups of the expression there."""
    if text in known:
        return [((), known[text])]
    require_regex("lookups", text)
    hits = ((re.fullmatch(text, name), axis) for name, axis in known.items())
    found = [(hit.groups(), axis) for hit, axis in hits if hit]
    if not found:
        names = dict.fromkeys([*nearest(text, list(known)), *known])
        raise value_error(
            f"`lookups` {text!r} must be a parameter's path, whole, a colon and "
            f"an axis, such as 'embedding:0', or a pattern of these:{listing([*names])}"
        )
    return found


def texts(lookups: Lookups) -> list[tuple[str, ...]]:
    """The texts that name some axes."""
    return [tuple(f"{keys_text(p)}:{a}" for p, a in axes) for axes in lookups]


def terms(lookups: Lookups, params: Mapping[KeyTuple, Axes]) -> list[Term]:
    """The terms of declared axes; those that are one axis become one.

    Raises:
      ValueError: for axes of different sizes.
    """
    found = []
    for axes in lookups:
        group = [params[path][axis] for path, axis in axes]
        sizes = [term.size for term in group]
        if len(set(sizes)) > 1:
            names = ", ".join(texts((axes,))[0])
            raise value_error(f"`lookups`: {names} are not one axis: sizes {sizes}.")
        for term in group[1:]:
            unify(group[0], term)
        found += group[:1]
    return found


def numbering_of(plan: Any, axis: str | None) -> Numbering:
    """See `Plan.numbering`."""
    if axis is None:
        if len(plan.lookups) != 1:
            names = [" and ".join(names) for names in texts(plan.lookups)]
            raise value_error(
                f"the plan has {len(names)} axes that are looked up; name one, as "
                f"`plan.numbering('embedding:0')`:{listing(names)}"
            )
        path, number = plan.lookups[0][0]
    else:
        ranks = {path: len(masks) for path, masks in plan.keep.items()}
        (path, number), *_ = lookups_of([axis], ranks)[0]
    keep = plan.keep[path][number]
    new = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)
    return Numbering(new, np.flatnonzero(keep).astype(np.int32))
