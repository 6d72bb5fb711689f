"""The rounds of a scan as an axis: which of them may go.

All that a scan takes one slice of for each round shares an axis with what it stacks.
That axis may shrink where a round whose parameters are zero hands its carry on
unchanged, as a residual block does: then the compact scan leaves the round out. It is
proved from the jaxpr of the body (`_facts`), with the parameters' slices zero and the
carry arbitrary; what holds for the whole dense carry holds for every part of it.

Stacked values that may not shrink (keys, caches: inputs of the caller) do not stop it.
They are indexed at the rounds that stay, for the proof takes them as arbitrary. What a
removed round would have stacked is known if the proof finds it (an auxiliary loss of
0), else it has no single value, and a sum over the rounds says so.
"""

from collections.abc import Sequence
from typing import Any

from jprune._jaxpr import _walk
from jprune._jaxpr._compat import Equation, Jaxpr
from jprune.surgery import _cells as ce
from jprune.surgery import _facts
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Term, is_frozen, is_symbolic, why_frozen
from jprune.surgery._build import CellSite
from jprune.surgery._cells import Cell, Value
from jprune.surgery._facts import Fact, Same
from jprune.surgery._layout import Layout
from jprune.surgery._scope import Info

_CARRIED = "carried by a scan: "


def axis(site: AxisSite, eqn: Equation, xs: Sequence[Info]) -> Term:
    """The axis of the rounds: that of every stacked input that may shrink."""
    found = [i.axes[0] for i in xs if not is_frozen(i.axes[0])]
    if not found:
        return site.fixed(eqn.params["length"], "the rounds of a scan")
    for other in found[1:]:
        site.unify(found[0], other)
    site.context.rounds.append(found[0])
    return found[0]


def carried(site: AxisSite, info: Info) -> Info:
    """The initial carry, seen from the body: a reason says that a scan carried it."""

    def term(t: Term) -> Term:
        if is_symbolic(t.size) or t.size <= 1 or not is_frozen(t):
            return t
        return site.fixed(t.size, _CARRIED + why_frozen(t).text.removeprefix(_CARRIED))

    return Info(tuple(map(term, info.axes)))


def layout(xs: Sequence[Value]) -> Layout | None:
    """The layout of the rounds, if any of them goes."""
    found = (v.layouts[0] for v in xs)
    return next((lay for lay in found if lay.pruned), None)


def indexed(cell: Cell, rounds: Layout) -> Cell:
    """The slices of a whole stack at the rounds that stay."""
    out = ce.compute(lambda x: ce.take(x, rounds.kept, 0), cell, name="scan")
    if cell.shape is not None:
        out.shape = (rounds.kept.size, *cell.shape[1:])
    return out


def removed(
    site: CellSite, eqn: Equation, consts: Sequence[Value], xs: Sequence[Value]
) -> list[Cell]:
    """Checks that the carry passes removed rounds; what these would have stacked."""
    loop = _walk.loop(eqn, [v.aval for v in eqn.invars])
    before = [Same(i, aval.dtype) for i, aval in enumerate(loop.carry)]
    ins = [*map(_whole, consts), *before, *map(_row, xs)]
    outs = _facts.facts(loop.body, ins)
    changed = [i for i, b in enumerate(before) if not _facts.agree(outs[i], b)]
    if changed:
        by = _maker(loop.body.jaxpr, changed[0])
        why = "a round whose parameters are zero changes the carry" + (
            f" (it comes out of `{by}`)" if by else ""
        )
        for place, value in enumerate(xs, len(consts) + len(before)):
            if value.layouts[0].pruned:
                site.leak(place, (0,), why)
                site.log.rounds.append((site.pruned_atoms(place, (0,)), why))
    return list(map(_stacked, outs[len(before) :]))


def _maker(jaxpr: Jaxpr, place: int) -> str:
    """The name of the primitive that a result comes out of."""
    var = jaxpr.outvars[place]
    names = (e.primitive.name for e in jaxpr.eqns if any(v is var for v in e.outvars))
    return next(names, "")


def _whole(value: Value) -> Fact:
    """What is known of a value at its dense shape."""
    cell = value.dense if value.pruned else value.kept
    known = None if cell is None else cell.known
    return None if known is None else _facts.of_constant(known)


def _row(value: Value) -> Fact:
    """What is known of the slice of a removed round, at its dense shape."""
    if not value.layouts[0].pruned:
        return None
    patterns = ce.patterns(value.layouts[1:])
    arrays = [value.cell((1, *bits)).known for bits in patterns]
    first = arrays[0]
    if first is None or first.shape[0] != 1:  # removed rounds differ
        return None
    if len(arrays) == 1:
        return _facts.of_constant(first[0])
    rows = [None if a is None or a.size != 1 else a.reshape(()) for a in arrays]
    same = all(_facts.agree(rows[0], row) for row in rows)
    return first.reshape((1,) * (first.ndim - 1)) if same else None


def _stacked(fact: Any) -> Cell:
    """The cell of a stacked result at removed rounds."""
    if _facts.single(fact):
        return ce.known(fact[None])
    return ce.bad("what removed rounds of a scan would stack differs between them")
