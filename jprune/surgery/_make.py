"""Plans from decisions: kept coordinates of groups, or masks left by training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jprune._errors import listing, type_error, value_error, warn
from jprune._groups import AxisRef, Group
from jprune._tree import KeyTuple, keyed_leaves, keys_text, prefix_of
from jprune._typing import Mask
from jprune.surgery._carried import kept_of
from jprune.surgery._certificate import without_effect
from jprune.surgery._groups import Groups
from jprune.surgery._layout import Choice
from jprune.surgery._plan import Plan
from jprune.surgery._reach import still_connected


def plan_from_keep(deps: Groups, keep: Mapping[str, Any]) -> Plan:
    """A plan from the kept coordinates of some groups; the others stay whole.

    Args:
      deps: the groups.
      keep: by group id, a bool array [size] (True = keep) or the kept indices.

    Returns:
      The plan.

    Raises:
      TypeError: `deps` are no groups.
      ValueError: no mapping, an unknown id, a wrong length, an index that is out of
        range, no integer, or given twice.
    """
    require_groups(deps)
    if not isinstance(keep, Mapping):
        raise value_error(
            f"`keep` must be a mapping by group id, got {type(keep).__name__}."
        )
    chosen = {}
    for name, kept in keep.items():
        chosen[deps.atoms[deps[name].id]] = _as_mask(deps[name], kept)
    choice = Choice(chosen)
    axes = {
        path: tuple(choice.layout(t).keep.copy() for t in terms)
        for path, terms in deps.params.items()
    }
    program = deps.program
    counts = {name: deps.atoms[name] for name in keep}
    held = {n: (int(chosen[a].sum()), chosen[a].size) for n, a in counts.items()}
    return Plan(
        axes,
        program.ties,
        program.free,
        program.declared,
        held,
        state=program.state,
        lookups=program.lookups,
        inputs=kept_of(program.inputs, choice),
    )


def _as_mask(group: Group, kept: Any) -> np.ndarray:
    array = np.asarray(kept)
    if array.dtype == bool:
        if array.shape != (group.size,):
            raise value_error(
                f"`keep` of {group.id!r} must have shape ({group.size},), got "
                f"{array.shape}."
            )
        return array
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise value_error(
            f"`keep` of {group.id!r} must hold bools or indices along one axis, got "
            f"{array.dtype} of shape {array.shape}."
        )
    mask = np.zeros(group.size, bool)
    index = array.astype(np.int64)
    found, times = np.unique(index, return_counts=True)
    if (times > 1).any():
        twice = ", ".join(map(str, found[times > 1][:6]))
        raise value_error(
            f"`keep` of {group.id!r} must name each index once, got {twice} more than "
            "once. A mask holds bools: `.astype(bool)`."
        )
    if index.size and (index.min() < 0 or index.max() >= group.size):
        raise value_error(
            f"`keep` of {group.id!r} must hold indices in 0..{group.size - 1}, got "
            f"{index.min()}..{index.max()}."
        )
    mask[index] = True
    return mask


def require_groups(deps: Any) -> None:
    """Raises unless `deps` are groups.

    Args:
      deps: what was given; a function, often.

    Raises:
      TypeError: anything else.
    """
    if not isinstance(deps, Groups):
        raise type_error(
            "`deps` must be the groups of a function, `surgery.groups(fn)(params, "
            f"*args)`, got {type(deps).__name__}."
        )


def plan_from_masks(
    deps: Groups, masks: Mask, at: Any = None, *, allow_empty: bool = False
) -> Plan:
    """The plan that removes every coordinate which masks leave without effect.

    Masks that keep everything give the plan that removes nothing, with a warning.

    A coordinate goes when every parameter that produces it ("out" and "table" members),
    or every one that reads it ("in"), or every norm scale over it, is masked there
    altogether. What else lives on a removed coordinate (a bias, running statistics)
    goes with it: `surgery.verify` says whether that changes the function, and
    `compress.fold_constants` keeps a constant that it leaves behind.

    Args:
      deps: the groups.
      masks: a mask tree of the parameters, or of a sub-tree of them; a leaf out of
        scope is a 0-d True.
      at: where `masks` lies inside the parameters ("params"); found by itself when
        there is only one place where it fits.
      allow_empty: a group may lose everything, where the output still depends on the
        input without it: a residual branch goes.

    Returns:
      The plan.

    Raises:
      TypeError: `deps` are no groups.
      ValueError: if the masks fit nowhere or lack a leaf, would empty a group that
        must not be emptied, or mask entries without masking any coordinate altogether
        (element-wise sparsity removes nothing).
    """
    require_groups(deps)
    arrays = _located(deps, masks, at)
    keep = {}
    for group in deps:
        if group.kind == "unused":
            continue
        dead = _dead(deps, group, arrays)
        if dead.all() and not allow_empty:
            raise value_error(
                f"the masks remove all {group.size} coordinates of {group.id!r}: use "
                "`masks.channels(..., min_keep=1)`, or `allow_empty=True` if the "
                "network works without them (a residual branch)."
            )
        if dead.any():
            keep[group.id] = ~dead
    emptied = [name for name, kept in keep.items() if not kept.any()]
    if emptied and not still_connected(deps.program, {deps.atoms[n] for n in emptied}):
        raise value_error(
            "the masks empty groups that the output cannot do without: one of "
            f"{', '.join(map(repr, emptied))}."
        )
    touched = any(not m.all() for m in arrays.values())
    if not touched:
        warn(
            "[jprune] `masks` keep everything, so the plan removes nothing: have the "
            "weights been set to zero (`transforms.finish`), or the gates closed?",
        )
    if touched and not keep:
        raise value_error(
            "`masks` remove entries but no coordinate of any group altogether, so "
            "nothing can be taken out. It takes whole slices (`masks.channels`), of "
            "all parameters that write a coordinate, or of all that read it: see "
            "`deps.table(fold=False)`."
            f"{listing([f'{g.id}: {g.size} coordinates' for g in deps])}"
        )
    return plan_from_keep(deps, keep)


def _located(deps: Groups, masks: Mask, at: Any) -> dict[KeyTuple, np.ndarray]:
    """The in-scope masks by full parameter path."""
    leaves = [(p, np.asarray(m)) for p, m in keyed_leaves(masks)]
    if at is not None:
        prefixes = [prefix_of(at)]
    else:
        lengths = range(max(map(len, deps.shapes)) + 1)
        prefixes = sorted({p[:n] for p in deps.shapes for n in lengths}, key=len)
    fits = [
        prefix
        for prefix in prefixes
        if all((*prefix, *p) in deps.shapes for p, _ in leaves)
    ]
    if len(fits) != 1:
        raise value_error(
            "`masks` must have the paths of the parameters or of one sub-tree; "
            f"{len(fits)} places fit: give `at=`."
        )
    _require_all(deps, fits[0], {(*fits[0], *path) for path, _ in leaves})
    arrays = {}
    for path, mask in leaves:
        full = (*fits[0], *path)
        if mask.ndim == 0 and deps.shapes[full] != ():
            continue
        if mask.shape != deps.shapes[full]:
            raise value_error(
                f"the mask of {keys_text(full)} must have shape "
                f"{deps.shapes[full]}, got {mask.shape}."
            )
        arrays[full] = mask.astype(bool)
    return arrays


def _require_all(deps: Groups, prefix: KeyTuple, given: set[KeyTuple]) -> None:
    """Raises if a leaf that belongs to a group has no mask; statistics need none."""
    under = {
        m.path: None
        for group in deps
        for m in group.members
        if m.role != "stat" and m.path[: len(prefix)] == prefix
    }
    missing = [keys_text(path) for path in under if path not in given]
    if missing:
        raise value_error(
            "`masks` must have every leaf of the parameters, or of one sub-tree; a "
            f"leaf that is not masked is a 0-d True. Missing:{listing(missing)}"
        )


def _dead(deps: Groups, group: Group, arrays: dict[KeyTuple, np.ndarray]) -> np.ndarray:
    """The coordinates that some class of members masks altogether. [size]"""
    dead = np.zeros(group.size, bool)
    if group.kind == "depth":
        return _dead_rounds(deps, group, arrays)
    for roles in (("out", "table"), ("in",), ("scale",)):
        members = [m for m in group.members if m.role in roles]
        if members and all(m.path in arrays for m in members):
            dead |= ~_alive(group, members, arrays)
    return dead


def _dead_rounds(
    deps: Groups, group: Group, arrays: dict[KeyTuple, np.ndarray]
) -> np.ndarray:
    """The rounds of which enough is masked for the carry to pass unchanged. [size]"""
    gone = {
        member.path: ~_alive(group, [member], arrays)
        for member in group.members
        if member.path in arrays
    }
    dead, answers = np.zeros(group.size, bool), {}
    for i in range(group.size):
        zero = frozenset(path for path, mask in gone.items() if mask[i])
        if zero not in answers:
            atom = deps.atoms[group.id]
            answers[zero] = bool(zero) and without_effect(deps.program, atom, zero)
        dead[i] = answers[zero]
    return dead


def _alive(
    group: Group, members: Sequence[AxisRef], arrays: dict[KeyTuple, np.ndarray]
) -> np.ndarray:
    alive = np.zeros(group.size, bool)
    for ref in members:
        mask = np.moveaxis(arrays[ref.path], ref.axis, 0)
        here = mask.reshape(mask.shape[0], -1).any(axis=1)
        where = ref.coordinates(group.size)
        alive[where[(where >= 0) & here]] = True
    return alive
