"""What every transformation is built with: its type, its guards, small decisions."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune._errors import listing, require_static, value_error
from jprune._groups import Group, chosen
from jprune._tree import keys_text


def transformation(
    init: Callable[..., Any], update: Callable[..., Any]
) -> optax.GradientTransformationExtraArgs:
    """The pair as a `GradientTransformationExtraArgs`.

    The type checker cannot see that a state class of ours is a state: this is the one
    place that says so.
    """
    return optax.GradientTransformationExtraArgs(init, update)


def next_step(count: jax.Array) -> jax.Array:
    """`count + 1`, stopping at the largest int32."""
    return jnp.asarray(optax.safe_increment(count))


def end_within(
    total_steps: int | None, end: int | None, share: Fraction, least: int = 1
) -> int:
    """`end`, or the paper's share of `total_steps`.

    Raises:
      ValueError: neither is given, or an `end` outside `least` to `total_steps`.
    """
    require_static(total_steps=total_steps, end=end)
    if end is None:
        if total_steps is None:
            raise value_error(
                "Give `total_steps`, the length of the run, or `end`, the step at "
                "which the method stops moving; got neither."
            )
        end = max(round(share * total_steps), least)
    if end < least or (total_steps is not None and end > total_steps):
        most = (
            "" if total_steps is None else f" and at most `total_steps`, {total_steps}"
        )
        raise value_error(f"`end` must be at least {least}{most}, got {end}.")
    return end


def by_group(
    name: str, given: Mapping[str, Any], groups: Sequence[Group]
) -> dict[str, Any]:
    """A mapping by group id from one by ids or paths.

    A path is that of a leaf that makes the coordinates, such as `params/Conv_0/kernel`.

    Args:
      name: of the argument.
      given: what was given for it.
      groups: the groups.

    Returns:
      The same values by group id.

    Raises:
      ValueError: no mapping, a name that is no group, two for one group, or a path that
        belongs to several groups.
    """
    if not isinstance(given, Mapping):
        raise value_error(
            f"`{name}` must be a mapping from group ids, got {type(given).__name__}: "
            "write `{group.id: value}`."
        )
    ids = {group.id for group in groups}
    makers: dict[str, list[str]] = {}
    for group in groups:
        for ref in group.members:
            if ref.role not in ("in", "stat"):
                makers.setdefault(keys_text(ref.path), []).append(group.id)
    found: dict[str, Any] = {}
    for key, value in given.items():
        at = [key] if key in ids else makers.get(key, [])
        if len(at) != 1:
            why = f"belongs to {at}" if at else "is no group and no leaf that makes one"
            raise value_error(
                f"`{name}` names {key!r}, which {why}. The ids:" + listing(sorted(ids))
            )
        if at[0] in found:
            raise value_error(f"`{name}` names group {at[0]!r} twice.")
        found[at[0]] = value
    return found


def keeps_of(keeps: Mapping[str, Any], groups: Sequence[Group]) -> dict[str, Any]:
    """What stays of each group named, by id.

    Raises:
      ValueError: as `by_group`; an entry that is no bool vector of the group's size.
    """
    named = by_group("keeps", keeps, groups)
    return {group.id: keep for group, keep in chosen(groups, named)}
