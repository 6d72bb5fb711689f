"""Arguments that shrink with the parameters: caches, recurrent states.

`groups(fn, state={2: 1})` declares that argument 2 of `fn` (the parameters are argument
0) is state that comes back updated as output 1. Its axes are then free like those of a
parameter, and each axis of the output is the axis of the argument: what leaves one call
enters the next. A removed coordinate of the state is 0, as that of a parameter is; the
certificate says "no" where it would not come back as 0.

A plan keeps which coordinates of the state stay, for the axes that lose some;
the others (batch, time) may have another size at every call.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.tree_util as jtu
import numpy as np

from jprune._errors import listing, value_error
from jprune._tree import KeyTuple, keys_text, path_keys, prefix_of
from jprune.surgery._axes import Axes, Reason, freeze, unify
from jprune.surgery._layout import Choice

State = Mapping[Any, Any]
"""Argument (number, keyword or key path) -> output (number, key or path), or None."""
Roots = tuple[tuple[KeyTuple, KeyTuple | None], ...]
"""The same as key paths: where state comes in, and where it comes back."""
Kept = tuple[np.ndarray | None, ...]
"""For each axis of a leaf the kept positions; None: whole, of any size."""


def roots_of(state: State | None) -> Roots:
    """The paths of arguments that are state, and of the outputs that they become."""
    roots = []
    for argument, output in (state or {}).items():
        path = prefix_of(argument)
        if not path or path[0] == 0:
            raise value_error(
                "`state` must name arguments other than the parameters: their number "
                f"(the parameters are 0), keyword or key path, got {argument!r}."
            )
        roots.append((path, None if output is None else prefix_of(output)))
    return tuple(roots)


def under(path: KeyTuple, roots: Roots) -> bool:
    """Whether an input leaf belongs to declared state."""
    return any(path[: len(root)] == root for root, _ in roots)


def require_found(roots: Roots, others: Sequence[KeyTuple]) -> None:
    """Raises for a declared argument that the call does not have."""
    for root, _ in roots:
        if not any(path[: len(root)] == root for path in others):
            raise value_error(
                f"`state` names the argument {keys_text(root)!r}, which the call does "
                "not have. Its arrays (number or keyword of the argument first):"
                + listing([keys_text(path) for path in others])
            )


def ties(
    roots: Roots, inputs: Mapping[KeyTuple, Axes], outputs: Mapping[KeyTuple, Axes]
) -> tuple[tuple[KeyTuple, KeyTuple], ...]:
    """(input path, output path) of each state leaf that comes back; relates their axes.

    Raises:
      ValueError: if what comes back has not the leaves of the argument.
    """
    found = []
    for root, back in roots:
        if back is None:
            continue
        ins = {p[len(root) :]: p for p in inputs if p[: len(root)] == root}
        outs = {p[len(back) :]: p for p in outputs if p[: len(back)] == back}
        ranks = [
            {rest: len(axes[path]) for rest, path in side.items()}
            for side, axes in ((ins, inputs), (outs, outputs))
        ]
        if ranks[0] != ranks[1]:
            raise value_error(
                f"`state` says that argument {keys_text(root)!r} comes back as the "
                f"output {keys_text(back)!r}, which must have its leaves (paths and "
                f"ranks): {_text(ranks[0])} go in, {_text(ranks[1])} come back."
            )
        found += [(path, outs[rest]) for rest, path in ins.items()]
    for path, back in found:
        for s, t in zip(inputs[path], outputs[back], strict=True):
            if s.size == t.size:
                unify(s, t, Reason("updated state of another structure"))
            else:
                for term in (s, t):
                    freeze(term, Reason("state that comes back in another length"))
    return tuple(found)


def kept_of(inputs: Mapping[KeyTuple, Axes], choice: Choice) -> dict[KeyTuple, Kept]:
    """Which coordinates of the state stay under a choice."""
    layouts = {p: tuple(map(choice.layout, axes)) for p, axes in inputs.items()}
    return {
        path: tuple(lay.keep.copy() if lay.pruned else None for lay in axes)
        for path, axes in layouts.items()
    }


def located(
    plan: Any, state: State | None, others: Mapping[KeyTuple, tuple[int, ...]]
) -> tuple[Roots, dict[KeyTuple, Kept]]:
    """Where the state of a plan enters another call, and what stays of it.

    Args:
      plan: the plan.
      state: as given to `shrink`; None: where `groups` found it, if the call has it.
      others: shape of each input of the call, the parameters aside.

    Raises:
      ValueError: for declared state that the call or the plan has not.
    """
    if state is None:
        pairs = [
            (root, back)
            for root, back in plan.state
            if _ranks(root, plan.inputs) == _ranks(root, others)
        ]
        roots = tuple(pairs)
        return roots, {p: masks for p, masks in plan.inputs.items() if under(p, roots)}
    roots = roots_of(state)
    require_found(roots, tuple(others))
    found = {}
    for path, shape in others.items():
        for root, _ in roots:
            if path[: len(root)] == root:
                found[path] = _twin(plan, path, root, len(shape))
    return roots, found


def _twin(plan: Any, path: KeyTuple, root: KeyTuple, rank: int) -> Kept:
    """What stays of a leaf of the state that another function takes elsewhere."""
    places = [(*start, *path[len(root) :]) for start, _ in plan.state]
    places = [path] if path in plan.inputs else places
    leaves = [plan.inputs[p] for p in places if p in plan.inputs]
    fits = [masks for masks in leaves if len(masks) == rank]
    if len(fits) != 1:
        raise value_error(
            f"`state` declares {keys_text(path)}, and {len(fits)} leaves of the plan's "
            "state have this path and rank. The plan's state:"
            + listing([keys_text(p) for p in plan.inputs])
        )
    return fits[0]


def dense_shapes(
    inputs: Mapping[KeyTuple, Kept], others: Mapping[KeyTuple, tuple[int, ...]]
) -> dict[KeyTuple, tuple[int, ...]]:
    """The dense shapes of the compact state of a call.

    Raises:
      ValueError: for a leaf that has not the compact sizes.
    """
    shapes = {}
    for path, masks in inputs.items():
        got, want = others[path], compact(masks, others[path])
        if got != want:
            raise value_error(
                f"the state at {keys_text(path)} must have the compact shape {want}, "
                f"got {got}: pass `plan.pack(state, argument={path[0]!r})`. If that "
                "argument is no state here, give `shrink(..., state={})`."
            )
        shapes[path] = dense(masks, got)
    return shapes


def compact(masks: Kept, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape with the kept count where an axis loses coordinates."""
    pairs = zip(masks, shape, strict=True)
    return tuple(n if m is None else int(m.sum()) for m, n in pairs)


def dense(masks: Kept, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape with the dense size where an axis loses coordinates."""
    pairs = zip(masks, shape, strict=True)
    return tuple(n if m is None else m.size for m, n in pairs)


def filled(masks: Kept, shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """A bool vector for each axis of a dense leaf of this shape."""
    pairs = zip(masks, shape, strict=True)
    return tuple(np.ones(n, bool) if m is None else m for m, n in pairs)


def with_state(
    inputs: Mapping[KeyTuple, Kept],
    args: tuple,
    kwargs: dict[str, Any],
    fn: Callable[[Any, tuple[np.ndarray, ...]], Any],
) -> tuple[tuple, dict[str, Any]]:
    """The arguments behind the parameters, with `fn(leaf, masks)` for the state."""

    def leaf(path: Any, x: Any) -> Any:
        masks = inputs.get(path_keys(path[1:]))
        return x if masks is None else fn(x, filled(masks, x.shape))

    (_, *rest), kwargs = jtu.tree_map_with_path(leaf, ((None, *args), kwargs))
    return tuple(rest), kwargs


def joined(
    first: Mapping[KeyTuple, Kept], second: Mapping[KeyTuple, Kept]
) -> dict[KeyTuple, Kept]:
    """What two plans, one after the other, leave of the state of the first.

    Raises:
      ValueError: if the second was found without the state of the first.
    """
    missing = [keys_text(path) for path in first if path not in second]
    if missing:
        raise value_error(
            "`other` was found without the state of this plan; declare it again in "
            f"`groups(shrink(fn, plan), state=...)`:{listing(missing)}"
        )
    both = {p: tuple(map(_compose, m, second[p])) for p, m in first.items()}
    return {**second, **both}


def _compose(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    out = np.zeros_like(first)
    out[np.flatnonzero(first)[second]] = True
    return out


def _ranks(root: KeyTuple, leaves: Mapping[KeyTuple, Sequence[Any]]) -> dict:
    return {p: len(x) for p, x in leaves.items() if p[: len(root)] == root}


def _text(ranks: Mapping[KeyTuple, int]) -> str:
    names = (f"{keys_text(p) or 'one array'} (rank {n})" for p, n in ranks.items())
    return ", ".join(names) or "none"
