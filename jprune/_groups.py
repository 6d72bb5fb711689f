"""Groups as data: axes of several parameters that must shrink together.

`jprune.surgery` discovers groups; transforms, masks and scores receive them as plain
frozen data and never ask where they come from. A group has `size` coordinates
(channels, heads, units). Each member says where those coordinates lie on one axis of
one parameter. Whatever belongs to a group (scores, what is kept, clusters) is a mapping
by its id, traced or on the host.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune._axes import whole_along
from jprune._errors import listing, value_error
from jprune._tree import (
    KeyTuple,
    keys_text,
    leaf_numbers,
    prefix_of,
    variable_path,
)
from jprune._typing import PyTree

Role = Literal["out", "in", "bias", "scale", "stat", "table", "other"]
Kind = Literal["coupled", "consumer", "producer", "unused", "pad", "depth"]


@dataclasses.dataclass(frozen=True)
class Run(Sequence[int]):
    """Labels of an axis on which a group lies in one run, as a part of a concatenation.

    It reads as the tuple `(-1, ..., 0, 1, ..., size - 1, -1, ...)`; a network of dense
    blocks has hundreds of them.

    Attributes:
      start: position of coordinate 0.
      size: number of coordinates.
      length: length of the axis.
    """

    start: int
    size: int
    length: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.start + self.size <= self.length:
            raise value_error(
                f"`Run`: {self.size} coordinates from position {self.start} do not fit "
                f"an axis of {self.length}."
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.__array__()[index].tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The labels as an array."""
        out = np.full(self.length, -1, dtype or np.int64)
        out[self.start : self.start + self.size] = np.arange(self.size)
        return out


@dataclasses.dataclass(frozen=True)
class AxisRef:
    """Where a group's coordinates lie on one axis of one parameter.

    Attributes:
      path: key tuple of the leaf, e.g. `("params", "Conv_0", "kernel")`.
      axis: index of the axis, counted from 0.
      role: what the parameter does with the coordinates: produces them ("out"), reads
        them ("in"), shifts ("bias") or scales them, holds their statistics or a table.
      labels: for each position of the axis, the group coordinate that lives there, or
        -1 where the position belongs to something else. None when the axis is the group
        itself (position i is coordinate i). A flattened `(H, W, C)` axis has the labels
        `0..C-1` repeated `H*W` times.
    """

    path: KeyTuple
    axis: int
    role: Role = "other"
    labels: tuple[int, ...] | Run | None = None

    def coordinates(self, size: int) -> np.ndarray:
        """The labels as an int array, whether stored or implied. [axis length]"""
        return np.arange(size) if self.labels is None else np.asarray(self.labels)

    def spread(self, vector: Any, ndim: int, fill: Any = 1) -> Any:
        """A vector of the group laid along the axis of a leaf.

        Args:
          vector: one number for each coordinate; NumPy's or JAX's. [group size]
          ndim: the leaf's number of dimensions.
          fill: what stands where the axis belongs to something else.

        Returns:
          The vector at the positions of its coordinates, in the shape `(1, ..., axis
          length, ..., 1)` that broadcasts over the leaf.
        """
        host = isinstance(vector, np.ndarray)
        xp = np if host else jnp
        v = vector if host else whole_along(vector, (0,))
        if self.labels is not None:
            labels = np.asarray(self.labels)
            there = v[np.maximum(labels, 0)]
            v = xp.where(labels >= 0, there, xp.asarray(fill, v.dtype))
        return xp.expand_dims(v, self.others(ndim))

    def collect(self, along: Any, size: int, how: Literal["sum", "max"] = "sum") -> Any:
        """What lies along the axis of a leaf, gathered for each coordinate.

        Args:
          along: one number for each position, as a reduction over `others` leaves it;
            NumPy's or JAX's. [axis length]
          size: of the group.
          how: "sum" or "max" of the positions of one coordinate; a maximum starts at 0.

        Returns:
          The vector of the group, `spread` the other way. [group size]
        """
        host = isinstance(along, np.ndarray)
        v = along if host else whole_along(along, (0,))
        if self.labels is None:
            return v
        labels = np.asarray(self.labels)
        at = np.flatnonzero(labels >= 0)
        if not host:
            zero = jnp.zeros(size, v.dtype).at[labels[at]]
            return zero.add(v[at]) if how == "sum" else zero.max(v[at])
        out = np.zeros(size, v.dtype)
        (np.add if how == "sum" else np.maximum).at(out, labels[at], v[at])
        return out

    def place(self, size: int) -> str:
        """Where the coordinates lie on the axis, as the factors of a reshape of it.

        Args:
          size: of the group.

        Returns:
          `[8]` for the whole axis, the group in brackets; `[4] x 8` for 4 runs of 8
          positions (heads), `4 x [8]` for 8 positions in each of 4 runs (their
          dimensions), `4 x [4] x 2` for pairs of positions in each; `[4] at 8 of 32`
          for a part of it; `[4] in parts of 32` for anything else.
        """
        if self.labels is None:
            return f"[{size}]"
        if isinstance(self.labels, Run):
            return f"[{size}] at {self.labels.start} of {len(self.labels)}"
        labels = np.asarray(self.labels)
        run = int(np.argmax(labels != labels[0])) or len(labels)
        block = np.repeat(np.arange(size), run)
        times, left = divmod(len(labels), len(block))
        if left or not np.array_equal(labels, np.tile(block, times)):
            return f"[{size}] in parts of {len(labels)}"
        before = f"{times} x " if times > 1 else ""
        return f"{before}[{size}]" + (f" x {run}" if run > 1 else "")

    def others(self, ndim: int) -> tuple[int, ...]:
        """All axes of a leaf of `ndim` dimensions but this one."""
        return tuple(axis for axis in range(ndim) if axis != self.axis)


@dataclasses.dataclass(frozen=True)
class Group:
    """Axes that must shrink together.

    Attributes:
      id: stable, readable name, unique within one analysis.
      size: number of coordinates.
      members: every parameter axis on which the coordinates lie.
      kind: "coupled" (produced and read by parameters), "consumer" or "producer" (only
        one of the two), "unused" (no parameter that the function reads), "pad", "depth"
        (the rounds of a scan: a coordinate is all that the round reads of its stacks).
    """

    id: str
    size: int
    members: tuple[AxisRef, ...]
    kind: Kind = "coupled"

    @property
    def place(self) -> str:
        """Where the coordinates lie on the axis that names the group.

        See `AxisRef.place`: heads of a fused axis are `[4] x 8`, their dimensions
        `4 x [8]`. Empty for a group without members.
        """
        if not self.members:
            return ""
        first = next((r for r in self.members if r.role == "out"), self.members[0])
        return first.place(self.size)

    def __repr__(self) -> str:
        """One line; the labels of the members are in `members`."""
        return (
            f"<Group {self.id!r}: {self.place}, {self.kind}, {len(self.members)} axes>"
        )

    def __post_init__(self) -> None:
        # Axes of one structure share one tuple of labels: each is looked at once.
        for ref in {id(ref.labels): ref for ref in self.members}.values():
            if ref.labels is None:
                continue
            if isinstance(ref.labels, Run):
                covered = ref.labels.size == self.size
            else:
                covered = set(ref.labels) - {-1} == set(range(self.size))
            if not covered:
                raise value_error(
                    f"Group {self.id!r}: the labels of {ref.path} axis {ref.axis} must "
                    f"cover the coordinates 0..{self.size - 1} (and -1 elsewhere)."
                )


def member_leaves(
    tree: PyTree, groups: Sequence[Group], at: Any = None
) -> list[tuple[Group, list[tuple[AxisRef, int, Any]]]]:
    """Each group with those of its members that `tree` holds: (ref, leaf number, leaf).

    A tree may be a part of what the groups were found on: some of its leaves under
    their full paths, or a sub-tree such as the `params` of a Flax variables dict.

    Args:
      tree: the parameters, or a part of them.
      groups: the groups.
      at: where `tree` lies inside what the groups were found on, a key or a tuple of
        keys; None finds it.

    Raises:
      ValueError: a leaf that does not fit the group it should carry, or a tree that may
        be either of two sub-trees.
    """
    leaves, number = jax.tree.leaves(tree), leaf_numbers(tree)
    # Groups of a state of NNX name the arrays of its variables; `nnx.pure` has no such
    # level.
    bare = not any(path[-1:] == ("value",) for path in number)
    path_of = variable_path if bare else lambda path: path
    if at is None:
        refs = [ref for group in groups for ref in group.members]
        at = _sub_tree(number, [path_of(ref.path) for ref in refs])
    else:
        at = prefix_of(at)
    found = []
    for group in groups:
        members = []
        for ref in group.members:
            path = path_of(ref.path)
            i = number.get(path[len(at) :]) if path[: len(at)] == at else None
            if i is None:
                continue
            leaf = leaves[i]
            length = np.shape(leaf)[ref.axis] if ref.axis < np.ndim(leaf) else None
            if length != (group.size if ref.labels is None else len(ref.labels)):
                raise value_error(
                    f"Group {group.id!r} of {group.size} coordinates does not fit axis "
                    f"{ref.axis} of {keys_text(ref.path)}, shape "
                    f"{np.shape(leaf)}: the groups belong to another model."
                )
            members.append((ref, i, leaf))
        found.append((group, members))
    return found


def require_whole(
    found: Sequence[tuple[Group, Sequence[tuple[AxisRef, Any, Any]]]],
    roles: Sequence[Role] | None,
) -> None:
    """Raises where a tree holds some members of a group and lacks others that count.

    Scores of half a group say nothing beside those of whole ones. A group of which the
    tree holds nothing is no error: it has no score.

    Args:
      found: what `member_leaves` gave.
      roles: those that count; None for all but "stat".

    Raises:
      ValueError: naming the group and the leaves that are missing.
    """

    def counts(ref: AxisRef) -> bool:
        return ref.role != "stat" if roles is None else ref.role in roles

    lines = []
    for group, members in found:
        held = {ref.path for ref, _, _ in members if counts(ref)}
        lacks = dict.fromkeys(
            keys_text(ref.path)
            for ref in group.members
            if held and ref.path not in held and counts(ref)
        )
        lines += [f"{path}, of the group {group.id!r}" for path in lacks]
    if lines:
        raise value_error(
            "`tree` holds some members of these groups and lacks others, so their "
            "scores would be those of a part. Pass the tree that the groups were found "
            "on, or one that leaves whole groups out (`roles=` counts some members "
            f"only). Missing:{listing(lines)}"
        )


def chosen(
    groups: Sequence[Group], keeps: Mapping[str, Any], what: str = "keeps"
) -> list[tuple[Group, Any]]:
    """The groups that a mapping by id names, in their own order, each with its vector.

    Raises:
      ValueError: unless `keeps` is a mapping from ids of `groups` to bool vectors, True
        = keep. Numbers are refused, as `~` of an integer is no opposite.
    """
    if not isinstance(keeps, Mapping):
        raise value_error(
            f"`{what}` must be a mapping from group ids to bool vectors, got "
            f"{type(keeps).__name__}: write `{{group.id: keep}}`."
        )
    ids = [group.id for group in groups]
    unknown = sorted(map(str, set(keeps) - set(ids)))
    if unknown:
        raise value_error(
            f"`{what}` names {unknown}, which are no ids of the groups given. Their "
            f"ids:{listing(ids)}"
        )
    pairs = [(group, keeps[group.id]) for group in groups if group.id in keeps]
    for group, keep in pairs:
        dtype = keep.dtype if hasattr(keep, "dtype") else np.asarray(keep).dtype
        if np.shape(keep) != (group.size,) or dtype.kind != "b":
            raise value_error(
                f"`{what}` must have a bool vector of {group.size} for group "
                f"{group.id!r}, True = keep; got {dtype} of shape {np.shape(keep)}."
            )
    return pairs


def no_member(
    groups: Group | Sequence[Group], roles: Sequence[Role] | None
) -> ValueError:
    """The error of groups that a tree holds nothing of (in the given roles)."""
    some = [groups] if isinstance(groups, Group) else groups
    members = [f"{keys_text(r.path)} ({r.role})" for g in some for r in g.members]
    which = f" in the roles {tuple(roles)}" if roles is not None else ""
    who = f"Group {some[0].id!r} has" if len(some) == 1 else "None of the groups has a"
    who = who if len(some) > 1 else f"{who} no"
    return value_error(
        f"{who} member{which} among the leaves given. Leave the group out, or pass the "
        f"tree that holds one of its members:{listing(members)}"
    )


def _sub_tree(number: dict[KeyTuple, int], paths: Sequence[KeyTuple]) -> KeyTuple:
    """The prefix of `paths` at which a tree with the leaves `number` sits.

    It is the prefix all of whose paths are leaves of the tree (a whole sub-tree), or
    the empty one (some leaves under their full paths), or the one that finds most. If
    these disagree, a scalar of one layer could be taken for that of another of the same
    name, which is an error.
    """
    under, hits = Counter[KeyTuple](), Counter[KeyTuple]()
    for path in paths:
        for i in range(len(path)):
            under[path[:i]] += 1
            hits[path[:i]] += path[i:] in number
    if hits[()] == under[()] or not any(hits.values()):
        return ()
    whole = {at for at, n in hits.items() if n and n == under[at]}
    enough = max((hits[at] for at in whole), default=max(hits.values()) - 1)
    fits = whole | {at for at, n in hits.items() if n > enough or (n and not at)}
    if len(fits) > 1:
        raise value_error(
            f"The tree fits the groups at each of {sorted(fits, key=len)}: pass the "
            "whole tree that the groups were found on."
        )
    return fits.pop()
