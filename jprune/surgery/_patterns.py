"""Groups by regular expressions, and what errors say of groups that stay whole."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jprune._errors import listing, nearest, require_regex, value_error
from jprune._tree import keys_text
from jprune.surgery._groups import Groups

Patterns = str | Sequence[str]


def excluded_groups(deps: Groups, whole: Collection[str]) -> str:
    """What an error says of the groups that `exclude` found."""
    if not whole:
        return ""
    ids = [g.id for g in deps if g.id in whole]
    return (
        " `exclude` keeps these groups whole, in each of which a pattern finds some "
        f"member, written or read ('fc/kernel:1' finds one axis):{listing(ids)}"
    )


def narrow_groups(pool: Mapping[str, Any], round_to: int) -> str:
    """What an error says of the groups that `round_to` lets lose nothing."""
    sizes = {name: score.shape[0] for name, score in pool.items()}
    narrow = [f"{name}: {n}" for name, n in sizes.items() if n <= round_to]
    if not narrow or round_to == 1:
        return ""
    return (
        f" These groups are no wider than `round_to` {round_to} and stay whole:"
        f"{listing(narrow)}"
    )


def named(deps: Groups, argument: str, patterns: Patterns) -> set[str]:
    """The ids of the groups that some patterns find."""
    found: set[str] = set()
    if not isinstance(patterns, Collection):
        raise value_error(
            f"`{argument}` must be a regular expression or several, got {patterns!r}."
        )
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        require_regex(argument, pattern)
        here = {group.id for group in deps.find(pattern)}
        if not here:
            raise _finds_nothing(deps, argument, pattern)
        found |= here
    return found


def _finds_nothing(deps: Groups, argument: str, pattern: str) -> ValueError:
    """The error of a pattern, with the members that it may have meant."""
    members = {
        f"{keys_text(m.path)}:{m.axis}": group.id
        for group in deps
        for m in group.members
    }
    near = nearest(pattern, list(members))
    if near:
        lines = [f"{name}, of the group {members[name]!r}" for name in near]
        return value_error(
            f"`{argument}` {pattern!r} finds no group: it is searched in the "
            f"`path:axis` of every member, as it is written. Near it:{listing(lines)}"
        )
    return value_error(
        f"`{argument}` {pattern!r} finds no group: it is searched in the `path:axis` "
        f"of every member.{_frozen_near(deps, pattern)} The members:"
        f"{listing(list(members))}"
    )


def _frozen_near(deps: Groups, pattern: str) -> str:
    """A sentence on what the pattern finds outside of the groups."""
    free = [keys_text(p) for p in deps.shapes if re.search(pattern, keys_text(p))]
    if not free:
        return ""
    return f" What it finds, {free[0]}, belongs to no group: it stays whole anyway."
