"""The certificate: whether removing a group equals zeroing it, before any plan exists.

The compact program is a graph of cells (see `_cells`); building it without computing
anything shows what it would have to correct. One probe covers every plan: every group
keeps only its first coordinate, and a constant must be the same at all of them. What is
uniform over a larger set is uniform over a smaller one, and constants aside a program
does the same with every coordinate of a group, or its axis would not have been found
free. Of two coordinates only one goes, so they may differ: then both are probed. Groups
that are found exact together are exact one by one, for the same reason.
"""

import dataclasses
from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from typing import Literal

import numpy as np

from jprune._jaxpr._trace import all_kept
from jprune._tree import KeyTuple
from jprune.surgery._axes import Atom, Reason, freeze, leaves
from jprune.surgery._build import Log, Options
from jprune.surgery._program import Program

Way = Literal["zero", "constant", "ghost", "no"]
_RANK: dict[str, int] = {"zero": 0, "constant": 1, "ghost": 2, "no": 3}


@dataclasses.dataclass(frozen=True)
class Exactness:
    """How the removal of a group equals zeroing it.

    Attributes:
      way: "zero": what is removed is zero wherever it is summed; "constant": a known
        number is added; "ghost": size-1 arithmetic is added; "no": not exact.
      why: for "no", where a sum met removed coordinates that differ.
      nonfinite: the zeroed model itself is not finite somewhere (0 / 0).
    """

    way: Way
    why: str = ""
    nonfinite: bool = False

    @property
    def exact(self) -> bool:
        """Whether the compact model equals the zeroed one."""
        return self.way != "no"


def probes(
    program: Program,
    atoms: Collection[Atom],
    zero: AbstractSet[KeyTuple] | None = None,
) -> Iterator[Log]:
    """The logs of compact programs that keep one coordinate of each atom.

    Args:
      program: the function.
      atoms: the atoms.
      zero: the parameters that are zero at what is removed; None: all.
    """
    from jprune.surgery._shrink import Graph

    for place in (0, -1) if any(a.size == 2 for a in atoms) else (0,):
        keep = {atom: np.zeros(atom.size, bool) for atom in atoms}
        for mask in keep.values():
            mask[place] = True
        with all_kept():
            log = Graph(program, keep, Options(zero=zero, every=True)).status()
        yield log


def certify(program: Program, atoms: dict[str, Atom]) -> dict[str, Exactness]:
    """The exactness of every group."""
    found = {a: Exactness("zero") for a in atoms.values()}
    for log in probes(program, found):
        for hit, constant in log.corrections:
            _worsen(found, hit, "constant" if constant else "ghost", "")
        for hit, why in log.leaks:
            _worsen(found, hit, "no", why)
        for hit, _ in log.nonfinite:
            for atom in hit & found.keys():
                found[atom] = dataclasses.replace(found[atom], nonfinite=True)
    return {name: found[atom] for name, atom in atoms.items()}


def exactness_of(log: Log) -> tuple[str, tuple[str, ...]]:
    """The way of one plan as a whole, and the reasons if it is not exact."""
    if log.leaks:
        return "no", tuple(dict.fromkeys(why for _, why in log.leaks))
    if not log.corrections:
        return "zero", ()
    return "constant" if all(c for _, c in log.corrections) else "ghost", ()


def _worsen(
    found: dict[Atom, Exactness], hit: frozenset[Atom], way: Way, why: str
) -> None:
    for atom in hit & found.keys():
        if _RANK[way] > _RANK[found[atom].way]:
            found[atom] = dataclasses.replace(found[atom], way=way, why=why)


def rounds(program: Program) -> list[Atom]:
    """The free atoms on parameters along which a scan takes its rounds."""
    stacked = {a for t in program.ctx.rounds for a in leaves(t) if not a.frozen}
    if not stacked:
        return []
    axes = (t for axes in program.params.values() for t in axes)
    return [
        a for a in dict.fromkeys(a for t in axes for a in leaves(t)) if a in stacked
    ]


def settle_rounds(program: Program) -> None:
    """Freezes the rounds of scans whose carry is not proved to pass a removed round."""
    while atoms := rounds(program):
        stuck: dict[Atom, str] = {}
        for log in probes(program, atoms):
            for hit, why in log.rounds:
                stuck.update(dict.fromkeys(hit & set(atoms), why))
        for atom, why in stuck.items():
            freeze(atom, Reason(why, "scan"))
        if not stuck:
            return


def without_effect(program: Program, atom: Atom, zero: AbstractSet[KeyTuple]) -> bool:
    """Whether rounds of a scan may go when only some parameters are zero there."""
    logs = probes(program, [atom], zero)
    return not any(atom in hit for log in logs for hit, _ in log.leaks)


def settle_reductions(program: Program) -> None:
    """Decides the axes that a maximum runs over: kept free where the ghost is known.

    Otherwise things nobody means to prune would become removable: the removal would be
    exact, but at the price of carrying the removed coordinates along.
    """
    pending = program.ctx.reductions
    while True:
        free = {a for term, _ in pending for a in leaves(term) if not a.frozen}
        if not free:
            return
        everything = {
            a
            for axes in program.params.values()
            for term in axes
            for a in leaves(term)
            if not a.frozen
        }
        bad: set[Atom] = set()
        for log in probes(program, everything | free):
            for _, atoms, known in log.orders:
                if not known:
                    bad |= atoms & free
        if not bad:
            return
        for term, primitive in pending:
            if any(a in bad for a in leaves(term)):
                freeze(term, Reason("zero is not neutral for it", primitive))
