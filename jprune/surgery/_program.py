"""A function analyzed: its jaxpr, its axes, and which outputs are state.

Outputs may not shrink, except for state that comes back updated (batch statistics): an
output *subtree* is tied to a subtree of the parameters when its key path ends with that
subtree's path and both have the same leaves, shapes and dtypes. Without its name
(`return logits, stats`) it must be a whole collection, one entry of the parameters'
tree, and each of its axes must already be the parameter's, where the function reads it:
an update is computed from what it updates. A single leaf is never tied by resemblance.
What is tied is listed in the report, and `state_outputs=` declares or forbids it. Which
outputs are state belongs to a function, not to its parameters: a plan made on
evaluation fits the training step that returns statistics, whose state is looked for
when that step is traced.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jprune._errors import value_error
from jprune._jaxpr._trace import Traced
from jprune._tree import KeyTuple, keys_text
from jprune.surgery import _carried, _numbering
from jprune.surgery import rules as _rules  # noqa: F401  fills the table
from jprune.surgery._analysis import Context, walk
from jprune.surgery._axes import Atom, Axes, Reason, freeze, same, unify
from jprune.surgery._numbering import Lookups
from jprune.surgery._scope import MANY, Info, Scope

Ties = tuple[tuple[KeyTuple, KeyTuple], ...]
"""(output path, parameter path) of every output leaf that is an updated parameter."""

INPUT = "model input"
"""Why an axis of an argument may not shrink."""

StateOutputs = bool | None | Callable[[KeyTuple], bool] | Sequence[KeyTuple]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The first pass over a function.

    Attributes:
      traced: the function as a jaxpr.
      params: the axes of each parameter leaf, in leaf order.
      ins: what is known of each input of the jaxpr.
      outs: what is known of each output.
      ties: outputs that are updated parameters.
      declared: whether the caller said which outputs those are.
      free: outputs that may shrink.
      ctx: roles, costs and pending reductions found.
      state: where declared state comes in, and where it comes back.
      inputs: the axes of each leaf of that state.
      carried: (input path, output path) of each leaf that comes back.
      lookups: the axes of parameters that may shrink although they are looked up.
      memo: what was found out about derivative rules, see `Builder`.
      still: parameters that are known to be statistics, whatever the function does.
    """

    traced: Traced
    params: dict[KeyTuple, Axes]
    ins: tuple[Info, ...]
    outs: tuple[Info, ...]
    scope: Scope
    ctx: Context
    ties: Ties
    declared: bool
    free: tuple[KeyTuple, ...]
    state: _carried.Roots = ()
    inputs: dict[KeyTuple, Axes] = dataclasses.field(default_factory=dict)
    carried: Ties = ()
    lookups: Lookups = ()
    memo: dict[int, bool] = dataclasses.field(default_factory=dict)
    still: frozenset[KeyTuple] = frozenset()


def analyze(
    traced: Traced,
    *,
    reduce_max: str = "known",
    state_outputs: StateOutputs = None,
    free_outputs: Callable[[KeyTuple], bool] | Sequence[KeyTuple] = (),
    ties: Ties | None = None,
    state: _carried.Roots = (),
    lookups: Lookups = (),
) -> Program:
    """Runs the first pass.

    Args:
      traced: the function.
      reduce_max: "known", "drop", "freeze" or "allow": see `surgery.groups`.
      state_outputs: see `surgery.groups`.
      free_outputs: output paths (or a predicate on them) that may shrink.
      ties: exactly these ties, instead of looking for them.
      state: arguments that shrink, see `surgery.groups`.
      lookups: axes that are looked up by number, see `surgery.groups`.
    """
    ctx = Context(reduce_max)
    _carried.require_found(state, traced.others)
    ins = _inputs(traced, state)
    params = {p: ins[i].axes for i, p in enumerate(traced.params)}
    ctx.lookups = _numbering.terms(lookups, params)
    scope, outs = walk(ctx, traced.jaxpr, ins)
    declared = ties is not None or state_outputs not in (None, True)
    if ties is None:
        ties = _find_ties(traced, state_outputs, params, outs)
    tied = dict(ties)
    others = zip(traced.others, ins[len(traced.params) :], strict=True)
    inputs = {p: info.axes for p, info in others if _carried.under(p, state)}
    terms = {p: info.axes for p, info in zip(traced.outputs, outs, strict=True)}
    carried = _carried.ties(state, inputs, terms)
    back = {path for _, path in carried}
    free = tuple(p for p in traced.outputs if _chosen(p, free_outputs))
    for path, info in zip(traced.outputs, outs, strict=True):
        if path in tied:
            for s, t in zip(info.axes, params[tied[path]], strict=True):
                unify(s, t, Reason("updated state of another structure"))
        elif path not in free and path not in back:
            for term in info.axes:
                if not ctx.looked_up(term):
                    freeze(term, Reason("model output"))
    return Program(
        traced,
        params,
        tuple(ins),
        tuple(outs),
        scope,
        ctx,
        ties,
        declared,
        free,
        state,
        inputs,
        carried,
        lookups,
    )


def _inputs(traced: Traced, state: _carried.Roots) -> list[Info]:
    """Free axes for parameters and declared state, frozen ones for other inputs."""
    count, ins = len(traced.params), []
    for i, aval in enumerate(traced.input_avals):
        if i < count:
            dims = tuple(range(len(aval.shape)))
            ins.append(Info(tuple(map(Atom, aval.shape)), i, dims))
            continue
        free = _carried.under(traced.others[i - count], state)
        why = None if free else Reason(INPUT)
        ins.append(Info(tuple(Atom(n, why) for n in aval.shape), MANY))
    return ins


def _chosen(path: KeyTuple, wanted: Any) -> bool:
    if callable(wanted):
        return bool(wanted(path))
    return any(path[: len(tuple(w))] == tuple(w) for w in wanted)


def _find_ties(
    traced: Traced,
    state_outputs: StateOutputs,
    params: dict[KeyTuple, Axes],
    outs: Sequence[Info],
) -> Ties:
    """Output leaves that are updated parameters."""
    if state_outputs is False:
        return ()
    shapes = _signatures(traced.params, traced.input_avals)
    results = _signatures(traced.outputs, traced.jaxpr.out_avals)
    if state_outputs is not None and state_outputs is not True:
        return _declared(shapes, results, state_outputs)
    terms = dict(zip(traced.outputs, outs, strict=True))
    ties: dict[KeyTuple, KeyTuple] = {}
    for root in sorted(_prefixes(traced.outputs), key=len):
        if any(path[: len(root)] == root for path in ties):
            continue
        leaves = [p for p in traced.outputs if p[: len(root)] == root]
        named = _matching(root, leaves, shapes, results)
        found = named or _collection(root, leaves, shapes, results)
        if not found:
            continue
        if named is None or len(found) == 1:  # a resemblance proves nothing: ask
            read = paths_read(traced)
            pairs = [
                pair
                for out, param in found
                for pair in zip(terms[out].axes, params[param], strict=True)
                if param in read and pair[0].size > 1
            ]
            if not pairs or not all(same(s, t) for s, t in pairs):
                continue
        ties.update(found)
    return tuple(ties.items())


def paths_read(traced: Traced) -> set[KeyTuple]:
    """Paths of the parameters that the function reads."""
    jaxpr = traced.jaxpr.jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
    read.update(map(id, jaxpr.outvars))
    names = zip(jaxpr.invars, traced.params, strict=False)
    return {path for var, path in names if id(var) in read}


def _signatures(paths: Sequence[KeyTuple], avals: Sequence[Any]) -> dict[KeyTuple, Any]:
    return {p: (a.shape, a.dtype) for p, a in zip(paths, avals, strict=False)}


def _prefixes(paths: Sequence[KeyTuple]) -> set[KeyTuple]:
    """The paths of all containers."""
    return {path[:n] for path in paths for n in range(len(path))}


def _matching(
    root: KeyTuple,
    leaves: Sequence[KeyTuple],
    shapes: dict[KeyTuple, Any],
    results: dict[KeyTuple, Any],
) -> list[tuple[KeyTuple, KeyTuple]] | None:
    """The parameters' subtree that an output subtree equals: longest path first."""
    wanted = {p[len(root) :]: results[p] for p in leaves}
    for n in range(len(root), -1, -1):
        at = root[len(root) - n :]
        inside = {p[n:]: s for p, s in shapes.items() if p[:n] == at and len(p) > n}
        if inside and inside == wanted:
            return [(p, (*at, *p[len(root) :])) for p in leaves]
    return None


def _collection(
    root: KeyTuple,
    leaves: Sequence[KeyTuple],
    shapes: dict[KeyTuple, Any],
    results: dict[KeyTuple, Any],
) -> list[tuple[KeyTuple, KeyTuple]] | None:
    """The one collection of several leaves that an output subtree equals, if any."""
    wanted = {p[len(root) :]: results[p] for p in leaves}
    if len(wanted) < 2:
        return None
    inside: dict[Any, dict[KeyTuple, Any]] = {}
    for path, signature in shapes.items():
        inside.setdefault(path[:1], {})[path[1:]] = signature
    fits = [at for at, found in inside.items() if found == wanted]
    if len(fits) != 1:
        return None
    return [(p, (*fits[0], *p[len(root) :])) for p in leaves]


def _declared(
    shapes: dict[KeyTuple, Any], results: dict[KeyTuple, Any], wanted: Any
) -> Ties:
    """Each declared output leaf with the parameter of the longest common suffix."""
    ties = []
    for path, signature in results.items():
        if not _chosen(path, wanted):
            continue
        fits = [p for p in shapes if path[max(len(path) - len(p), 0) :] == p]
        fits = [p for p in fits if shapes[p] == signature] or [
            p
            for p in shapes
            if p[max(len(p) - len(path), 0) :] == path and shapes[p] == signature
        ]
        if not fits:
            raise value_error(
                f"`state_outputs` declares the output {_text(path)}, but no parameter "
                "of its path, shape and dtype exists."
            )
        longest = max(map(len, fits))
        best = [p for p in fits if len(p) == longest]
        if len(best) > 1:
            raise value_error(
                f"the output {_text(path)} could be any of "
                f"{', '.join(map(_text, best))}: return it under its full path."
            )
        ties.append((path, best[0]))
    return tuple(ties)


def _text(path: KeyTuple) -> str:
    return keys_text(path) or "(the tree itself)"
