"""Where gates lie in a network's parameters, and what those parameters cost.

A channel's gate multiplies the scale and the bias of the norm behind it, for a gate
before a norm would be undone by it. Where there is no norm it multiplies what reads the
channel, its rows of the next kernels: a unit is gated behind its activation, a head
before the output projection. A branch's gate multiplies the parameters that its output
is a multiple of.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._errors import listing, value_error
from jprune._groups import AxisRef, Group, member_leaves, no_member
from jprune._tree import KeyTuple, named_leaves
from jprune._typing import Mask, Params
from jprune.reparam._hard_concrete import Cost


class Branch(NamedTuple):
    """A residual branch under one gate.

    Attributes:
      leaves: paths of the parameters that make what the branch adds to its stream: the
        scale and the bias of its last norm, or its last kernel and bias. The whole
        output must be a multiple of them.
      inner: the groups inside, which go when the branch goes: what closing it frees.
        They need no gates of their own. May be empty under a `branch_price` only.
    """

    leaves: tuple[str, ...]
    inner: tuple[Group, ...] = ()


def multiplied(
    params: Params,
    groups: Sequence[Group],
    branches: Mapping[str, Branch],
    channel_gates: Mapping[str, jax.Array],
    branch_gates: Mapping[str, jax.Array],
) -> Params:
    """The parameters times their gates, which are given by group id and by name."""
    leaves, treedef = jax.tree.flatten(params)
    for group, members in member_leaves(params, groups):
        for ref, i, leaf in _gated(members):
            z = ref.spread(channel_gates[group.id], jnp.ndim(leaf))
            leaves[i] = leaves[i] * z.astype(leaf.dtype)
    number = _numbers(params)
    for name, branch in branches.items():
        for i in map(number.__getitem__, branch.leaves):
            leaves[i] = leaves[i] * branch_gates[name].astype(leaves[i].dtype)
    return jax.tree.unflatten(treedef, leaves)


def closed_mask(
    params: Params,
    groups: Sequence[Group],
    branches: Mapping[str, Branch],
    open_channels: Mapping[str, jax.Array],
    open_branches: Mapping[str, jax.Array],
) -> Mask:
    """False on every member of a closed channel, and on all of a closed branch."""
    every = all_groups(groups, branches)
    keeps = {g.id: open_channels.get(g.id, jnp.ones(g.size, bool)) for g in every}
    for name, branch in branches.items():
        for group in branch.inner:
            keeps[group.id] = keeps[group.id] & open_branches[name]
    mask = masks.from_groups(params, every, keeps)
    kept, treedef = jax.tree.flatten(mask)
    number, leaves = _numbers(params), jax.tree.leaves(params)
    for name, branch in branches.items():
        for i in map(number.__getitem__, branch.leaves):
            kept[i] = kept[i] & jnp.ones_like(leaves[i], bool) & open_branches[name]
    return jax.tree.unflatten(treedef, kept)


def all_groups(
    groups: Sequence[Group], branches: Mapping[str, Branch]
) -> tuple[Group, ...]:
    """The groups that may shrink, each once: gated, or inside a branch."""
    inner = [g for branch in branches.values() for g in branch.inner]
    return tuple({g.id: g for g in (*groups, *inner)}.values())


def _gated(members: Sequence[tuple[AxisRef, int, Any]]) -> list:
    """The members that a gate multiplies."""
    levels = {_level(ref) for ref, _, _ in members if ref.role == "scale"}
    if levels:
        beside = ("scale", "bias")
        return [m for m in members if m[0].role in beside and _level(m[0]) in levels]
    readers = [m for m in members if m[0].role == "in"]
    return readers or [m for m in members if m[0].role in ("out", "table", "bias")]


def _level(ref: AxisRef) -> KeyTuple:
    """Where a leaf lies; NNX keeps an array as the attribute `value` of its name."""
    return ref.path[:-2] if ref.path[-1:] == ("value",) else ref.path[:-1]


def _numbers(params: Params) -> dict[str, int]:
    """The place of each leaf in flattening order, by path."""
    return {name: i for i, (name, _) in enumerate(named_leaves(params))}


def require_gates(
    params: Params,
    groups: Sequence[Group],
    branches: Mapping[str, Branch],
    branch_price: float = 0.0,
) -> None:
    """Every gate multiplies something, and once, and has a price.

    Raises:
      ValueError: otherwise.
    """
    ids = [g.id for g in groups]
    inner = [g.id for branch in branches.values() for g in branch.inner]
    for names, what in ((ids, "twice in `groups`"), (inner, "inside two `branches`")):
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise value_error(f"Group {twice[0]!r} is {what}.")
    if not ids and not branches:
        raise value_error(
            "There is nothing to gate: `groups` and `branches` are empty."
        )
    for name, branch in branches.items():
        if isinstance(branch.leaves, str):
            raise value_error(
                f"`leaves` of the branch {name!r} must be a tuple of paths, got a "
                f"text: write `({branch.leaves!r},)`."
            )
    free = [name for name, branch in branches.items() if not branch.inner]
    if free and not branch_price:
        raise value_error(
            f"Branch {free[0]!r} has no `inner`, closing it frees nothing: list the "
            "groups inside, or use `branch_price` of `learned_gates`."
        )
    for group, members in member_leaves(params, groups):
        if not _gated(members):
            raise no_member(group, ("scale", "in", "out", "table", "bias"))
    number = _numbers(params)
    wrong = [
        f"{name}: {leaf}"
        for name, branch in branches.items()
        for leaf in branch.leaves or ("(none)",)
        if leaf not in number
    ]
    if wrong:
        raise value_error(
            "The `leaves` of these branches are not parameters; give paths such as "
            f"{next(iter(number), '')!r}.{listing(wrong)}"
        )


def parameter_cost(params: Params, groups: Sequence[Group]) -> Cost:
    """The number of parameters that are left, from the kept counts of groups.

    Each leaf counts its size times, for each axis, the share of positions that stay. A
    position that several groups share (heads times head dimension) stays with all.
    """
    sizes = [float(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(params)]
    axes: dict[tuple[int, int], list[tuple[Group, np.ndarray]]] = {}
    for group, members in member_leaves(params, groups):
        for ref, i, _ in members:
            inside = ref.coordinates(group.size) >= 0
            axes.setdefault((i, ref.axis), []).append((group, inside))
    shares = [
        (i, [g for g, _ in refs], *np.unique(rows, axis=1, return_counts=True))
        for (i, _), refs in axes.items()
        for rows in [np.stack([inside for _, inside in refs])]
    ]

    def cost(counts: Mapping[str, Any]) -> Any:
        left: list[Any] = list(sizes)
        for i, held, kinds, many in shares:
            ratios = [counts[g.id] / g.size for g in held]
            parts: list[Any] = []
            for kind, positions in zip(kinds.T, many.tolist(), strict=True):
                part = positions / sum(many.tolist())
                for on, ratio in zip(kind, ratios, strict=True):
                    part = part * ratio if on else part
                parts.append(part)
            left[i] = left[i] * sum(parts[1:], parts[0])
        return sum(left[1:], left[0])

    return cost
