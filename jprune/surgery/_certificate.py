"""The certificate: whether removing a group equals zeroing it, before any plan exists.

The compact program is a graph of cells (see `_cells`); building it without computing
anything shows what it would have to correct. Two probes are built, in which every group
keeps only its first two, respectively its last two coordinates: what is uniform over a
larger removed set is uniform over a smaller one, so two probes cover every plan. Groups
that are found exact together are exact one by one, for the same reason.
"""

import dataclasses
from typing import Literal

import numpy as np

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


def probe(program: Program, atoms: list[Atom], side: int) -> Log:
    """The log of the compact program that keeps two coordinates of each atom."""
    from jprune.surgery._shrink import Graph

    keep = {}
    for atom in atoms:
        kept = min(2, atom.size - 1)
        mask = np.zeros(atom.size, bool)
        mask[slice(0, kept) if side == 0 else slice(atom.size - kept, None)] = True
        keep[atom] = mask
    return Graph(program, keep, Options()).status()


def certify(program: Program, atoms: dict[str, Atom]) -> dict[str, Exactness]:
    """The exactness of every group."""
    found = {a: Exactness("zero") for a in atoms.values()}
    for side in (0, 1):
        log = probe(program, list(found), side)
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
        for side in (0, 1):
            log = probe(program, list(everything | free), side)
            for name, atoms, known in log.orders:
                if not known:
                    bad |= atoms & free
                del name
        if not bad:
            return
        for term, primitive in pending:
            if any(a in bad for a in leaves(term)):
                freeze(term, Reason("zero is not neutral for it", primitive))
