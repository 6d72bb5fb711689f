"""What a choice of kept coordinates does to the positions of an axis.

Given the kept coordinates of every free atom (a `Choice`), each axis term has a
`Layout`:

* `keep`: which dense positions stay. For a sum they are concatenated, for a product a
  position stays when all its factors do.
* `rep`: for each position its *representative*. A kept position represents itself; the
  removed coordinates of an atom are all represented by the first of them. On a product
  the representative of a position is the position of its factors' representatives, so
  an axis `H.W.C` with channels removed has `H*W` classes of removed positions, and a
  sum of two pruned parts has two. Positions of one class hold equal values in the
  reference model (that is what `_cells` tracks and checks); `mult` counts them.

`solve` is the inverse of `keep`: from the kept positions of an axis to the coordinates
of its atoms, refusing what is not such a choice.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from jprune._groups import Run
from jprune.surgery._axes import (
    Atom,
    Prod,
    Sum,
    Term,
    children,
    is_symbolic,
    leaves,
    resolve,
    why_frozen,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The positions of one axis under one choice.

    Attributes:
      size: the dense size.
      keep: bool [size], the positions that stay.
      rep: int [size], the representative of each position.
      kept: int, the kept positions in order.
      classes: int, one representative for each class of removed positions, in order.
      mult: int, the number of positions in each class.
    """

    size: int
    keep: np.ndarray
    rep: np.ndarray
    kept: np.ndarray
    classes: np.ndarray
    mult: np.ndarray

    @functools.cached_property
    def pruned(self) -> bool:
        """Whether anything is removed."""
        return self.classes.size > 0

    @functools.cached_property
    def sizes(self) -> tuple[int, int]:
        """How many kept positions, and how many classes."""
        return self.kept.size, self.classes.size

    def positions(self, bit: int) -> np.ndarray:
        """The dense positions that a cell holds: the kept ones, or the classes."""
        return self.classes if bit else self.kept

    @functools.cached_property
    def index(self) -> np.ndarray:
        """Where each dense position, or its class, lies in its cell. [size]"""
        out = np.zeros(self.size, np.int64)
        out[self.kept] = np.arange(self.kept.size)
        out[self.classes] = np.arange(self.classes.size)
        return out[self.rep]


def make_layout(keep: np.ndarray, rep: np.ndarray) -> Layout:
    """The layout with the derived index vectors."""
    kept = np.flatnonzero(keep)
    classes, mult = np.unique(rep[~keep], return_counts=True)
    return Layout(keep.size, keep, rep, kept, classes, mult)


class _Positions(NamedTuple):
    """All positions of an axis of symbolic size: they cannot be listed."""

    size: int


@functools.lru_cache(maxsize=4096)
def whole(size: int) -> Layout:
    """The layout of an axis that loses nothing."""
    if is_symbolic(size):
        none = np.zeros(0, np.int64)
        return Layout(size, none, none, _Positions(size), none, none)  # type: ignore[arg-type]
    return make_layout(np.ones(size, bool), np.arange(size))


class Choice:
    """Kept coordinates for some atoms; every other atom keeps everything.

    Args:
      keep: bool array for each atom that loses coordinates.
      refined: atoms whose removed coordinates form one class each, because they are
        known to hold different values.
      every: whether this choice stands for every choice of these atoms.

    Attributes:
      emptied: whether some atom loses everything.
    """

    def __init__(
        self,
        keep: dict[Atom, np.ndarray],
        refined: frozenset[Atom] = frozenset(),
        every: bool = False,
    ) -> None:
        self.keep = {a: k for a, k in keep.items() if not k.all()}
        self.refined = refined
        self.every = every
        self.memo: dict[Any, Any] = {}  # what rules found out about layouts
        self.emptied = any(not k.any() for k in keep.values())
        self._memo: dict[Term, Layout] = {}
        self._shared: dict[Any, Layout] = {}
        self._equal: dict[Any, Layout] = {}
        self._axes: dict[tuple[Term, ...], tuple[Layout, ...]] = {}

    def layout(self, term: Term) -> Layout:
        """The layout of an axis; equal layouts are one object."""
        found = self._memo.get(term)
        if found is not None:
            return found
        resolved = resolve(term)
        key = structure(resolved)
        if key not in self._shared:
            made = self._layout(resolved)
            if made.pruned:
                content = (made.keep.tobytes(), made.rep.tobytes())
                made = self._equal.setdefault(content, made)
            self._shared[key] = made
        self._memo[term] = self._shared[key]
        return self._memo[term]

    def layouts(self, axes: tuple[Term, ...]) -> tuple[Layout, ...]:
        """The layouts of the axes of a value."""
        found = self._axes.get(axes)
        if found is None:
            found = self._axes[axes] = tuple(map(self.layout, axes))
        return found

    def alike(self, term: Term) -> Layout:
        """The layout whose classes must hold equal numbers in a constant.

        That of the choice, or of one that keeps nothing where it stands for every
        choice. Of two coordinates no choice removes both: they may differ.
        """
        return self._none.layout(term) if self.every else self.layout(term)

    @functools.cached_property
    def _none(self) -> "Choice":
        return Choice({a: np.zeros(a.size, bool) for a in self.keep if a.size > 2})

    def _layout(self, term: Term) -> Layout:
        if not any(a in self.keep for a in leaves(term)):
            return whole(term.size)
        if isinstance(term, Atom):
            return _atom_layout(self.keep[term], term in self.refined)
        if isinstance(term, Sum):
            parts = [self.layout(p) for p in term.parts]
            offsets = np.cumsum([0] + [p.size for p in parts])
            keep = np.concatenate([p.keep for p in parts])
            reps = [p.rep + o for p, o in zip(parts, offsets[:-1], strict=True)]
            return make_layout(keep, np.concatenate(reps))
        keep, rep = np.ones(1, bool), np.zeros(1, np.int64)
        for factor in map(self.layout, term.factors):
            keep = np.logical_and.outer(keep, factor.keep).reshape(-1)
            rep = np.add.outer(rep * factor.size, factor.rep).reshape(-1)
        return make_layout(keep, rep)

    def count(self, term: Term) -> int:
        """The number of kept positions."""
        return self.layout(term).kept.size


def structure(term: Term) -> Any:
    """A key that equal structures over the same atoms share."""
    term = resolve(term)
    return term if isinstance(term, Atom) else _structure(term)


def _structure(term: Sum | Prod) -> Any:
    """`structure` of a resolved term, which is resolved all the way down."""
    return (
        type(term),
        *(c if isinstance(c, Atom) else _structure(c) for c in children(term)),
    )


def _atom_layout(keep: np.ndarray, refined: bool) -> Layout:
    rep = np.arange(keep.size)
    if not refined:
        rep[~keep] = np.flatnonzero(~keep)[0]
    return make_layout(keep, rep)


class Unsolvable(Exception):
    """Kept positions of an axis that no choice of coordinates gives."""


class Solver:
    """Collects the kept positions of axes and solves for the atoms' coordinates."""

    def __init__(self) -> None:
        self.keep: dict[Atom, np.ndarray] = {}
        self._emptied: list[Prod] = []

    def add(self, term: Term, mask: np.ndarray) -> None:
        """Takes the kept positions of one axis into account.

        Args:
          term: the axis.
          mask: bool [term.size].

        Raises:
          Unsolvable: if the axis is frozen, the mask is not a product over the factors
            of the axis, or it contradicts an axis added before.
        """
        term = resolve(term)
        if isinstance(term, Sum):
            start = 0
            for part in term.parts:
                self.add(part, mask[start : start + part.size])
                start += part.size
        elif isinstance(term, Prod):
            self._add_product(term, mask)
        else:
            self._add_atom(term, mask)

    def _add_atom(self, atom: Atom, mask: np.ndarray) -> None:
        if atom.frozen and not mask.all():
            why = why_frozen(atom)
            by = f" ({why.primitive})" if why.primitive else ""
            raise Unsolvable(f"it may not shrink: {why.text}{by}")
        known = self.keep.setdefault(atom, mask)
        if known is not mask and not np.array_equal(known, mask):
            raise Unsolvable(
                "axes that must shrink together keep different coordinates: "
                f"{_brief(known)} against {_brief(mask)}"
            )

    def _add_product(self, term: Prod, mask: np.ndarray) -> None:
        grid = mask.reshape([f.size for f in term.factors])
        if not mask.any():
            self._emptied.append(term)
            return
        rebuilt: Any = np.ones((), bool)
        for axis, factor in enumerate(term.factors):
            others = tuple(i for i in range(grid.ndim) if i != axis)
            part = np.asarray(grid.any(axis=others))
            rebuilt = np.logical_and.outer(rebuilt, part)
            self.add(factor, part)
        if not np.array_equal(rebuilt, grid):
            raise Unsolvable(
                "the kept positions are not a choice per factor of the flattened axis "
                f"{tuple(grid.shape)}"
            )

    def solve(self) -> dict[Atom, np.ndarray]:
        """The kept coordinates of every atom that was determined.

        A flattened axis that is emptied altogether does not say which of its factors
        was; it is left to the axes that do, else the outermost free factor is emptied.
        """
        pending, self._emptied = self._emptied, []
        for term in pending:
            factors = [resolve(f) for f in term.factors]
            known = [f for f in factors if self._is_empty(f)]
            free = [f for f in factors if any(not a.frozen for a in leaves(f))]
            target = known or [f for f in free if not self._is_known(f)] or free
            if not target:
                raise Unsolvable(f"it may not be emptied: {why_frozen(term).text}")
            self.add(target[0], np.zeros(target[0].size, bool))
        return self.solve() if self._emptied else dict(self.keep)

    def _is_known(self, term: Term) -> bool:
        return all(a in self.keep for a in leaves(term))

    def _is_empty(self, term: Term) -> bool:
        return all(a in self.keep and not self.keep[a].any() for a in leaves(term))


def labels(term: Term, atom: Atom) -> np.ndarray:
    """For each position of the axis the coordinate of `atom` there, else -1. [size]"""
    term = resolve(term)
    if isinstance(term, Atom):
        return np.arange(atom.size) if term is atom else np.full(term.size, -1)
    if isinstance(term, Sum):
        return np.concatenate([labels(p, atom) for p in term.parts])
    out = np.full(1, -1)
    for factor in term.factors:
        inner = labels(factor, atom)
        # One atom may be two factors of an axis (a flattened Gram matrix); the outer
        # occurrence then names the position.
        out = np.where(out[:, None] >= 0, out[:, None], inner[None, :]).reshape(-1)
    return out


def every_label(term: Term) -> dict[Atom, tuple[int, ...] | Run]:
    """The `labels` of every free atom of an axis."""
    term = resolve(term)
    out: dict[Atom, tuple[int, ...] | Run] = {}
    start = 0
    parts = term.parts if isinstance(term, Sum) else (term,)
    for part in parts:
        for atom in leaves(part):
            if atom.frozen:
                continue
            if atom is part and atom not in out:
                out[atom] = Run(start, atom.size, term.size)
            else:
                out[atom] = tuple(labels(term, atom).tolist())
        start += part.size
    return out


def _brief(mask: np.ndarray) -> str:
    return f"{int(mask.sum())} of {mask.size}"
