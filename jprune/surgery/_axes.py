"""The algebra of axes: what an axis of an array is made of.

Every axis of every intermediate value of a program is a *term*:

* `Atom`: an axis with no inner structure known so far. Its identity is the object; two
  axes that must shrink together have the same atom.
* `Sum(parts)`: the concatenation of its parts along the axis, in order.
* `Prod(factors)`: a row-major flattening; the last factor varies fastest.

Knowledge only ever grows by **refinement**: an atom is bound, once, to the term that it
turned out to be (a reshape splits it into a product, a slice cuts it into a sum, an
addition finds it equal to another axis). Following the bindings gives the current form
of a term (`resolve`). Sizes are the dense sizes and never change.

A removal is a choice of kept coordinates for every free atom. What makes the algebra
sound is one property, tested on random terms: after `unify(s, t)`, every choice gives
`s` and `t` the same kept positions. `cut` and `split` have the same character: the
pieces they return describe, for every choice, exactly the positions of the axis they
came from. Whatever cannot be said in these words is *frozen*: its atoms may lose
nothing. Coupling or freezing too much is always sound; only coupling too little is not.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

MAX_PIECES = 512
"""An axis that would be cut into more pieces is frozen."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why an axis may not shrink: a sentence, and the primitive that asked for it."""

    text: str
    primitive: str = ""


TRIVIAL = Reason("size 1")
SYMBOLIC = Reason("a symbolic size")
SINGLE = Reason("cut into single coordinates")


class Atom:
    """An axis, or a piece of one, with no inner structure (yet).

    Attributes:
      size: the dense size; a symbolic dimension of `jax.export` is one, too.
      bound: the term that the atom turned out to be, or None.
      frozen: why it may not shrink, or None while it may. Size <= 1 and symbolic sizes
        are born frozen.
    """

    __slots__ = ("bound", "frozen", "size")

    def __init__(self, size: int, frozen: Reason | None = None) -> None:
        self.size = size
        self.bound: Term | None = None
        if is_symbolic(size):
            self.frozen = frozen or SYMBOLIC
        else:
            self.frozen = frozen or (TRIVIAL if size <= 1 else None)


class Sum:
    """A concatenation: `parts` one after the other."""

    __slots__ = ("bound", "parts", "size")

    def __init__(self, parts: tuple["Term", ...]) -> None:
        self.bound: Term | None = None
        self.parts = parts
        self.size = sum(p.size for p in parts)


class Prod:
    """A row-major flattening: the last of `factors` varies fastest."""

    __slots__ = ("bound", "factors", "size")

    def __init__(self, factors: tuple["Term", ...]) -> None:
        self.bound: Term | None = None
        self.factors = factors
        self.size = math.prod(f.size for f in factors)


Term = Atom | Sum | Prod
Axes = tuple[Term, ...]
"""One term for each dimension of a value."""


def is_symbolic(size: object) -> bool:
    """Whether a size is an expression, as `jax.export.symbolic_shape` makes them."""
    return not isinstance(size, int | np.integer)


def shorter(a: int, b: int) -> bool:
    """Whether `a < b`, for symbolic sizes of which one divides the other, too.

    Raises:
      StructureError: if it cannot be told.
    """
    if not (is_symbolic(a) or is_symbolic(b)):
        return a < b
    if a == b or a % b == 0:
        return False
    if b % a == 0:
        return True
    raise StructureError(f"symbolic sizes {a} and {b} do not nest")


class StructureError(Exception):
    """Axes that the algebra cannot relate; the caller freezes them."""


def concat(parts: Sequence[Term]) -> Term:
    """The normal form of a concatenation: flat, without empty or single parts."""
    flat: list[Term] = []
    for part in map(resolve, parts):
        flat.extend(part.parts if isinstance(part, Sum) else (part,))
    flat = [p for p in flat if p.size != 0]
    if not flat:
        return Atom(0)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def product(factors: Sequence[Term]) -> Term:
    """The normal form of a flattening: flat, without factors of size 1."""
    flat: list[Term] = []
    for factor in map(resolve, factors):
        flat.extend(factor.factors if isinstance(factor, Prod) else (factor,))
    flat = [f for f in flat if f.size != 1]
    if not flat:
        return Atom(1)
    if any(f.size == 0 for f in flat):
        return Atom(0)
    return flat[0] if len(flat) == 1 else Prod(tuple(flat))


def resolve(term: Term) -> Term:
    """The term with every binding followed, in normal form."""
    if term.bound is not None:
        term.bound = resolve(term.bound)  # path compression
        return term.bound
    if isinstance(term, Atom) or _settled(term):
        return term
    if isinstance(term, Sum):
        term.bound = concat(term.parts)
    else:
        term.bound = product(term.factors)
    return term.bound


def children(term: Sum | Prod) -> tuple[Term, ...]:
    """The parts of a concatenation, the factors of a flattening."""
    return term.parts if isinstance(term, Sum) else term.factors


def _settled(term: Sum | Prod) -> bool:
    """Whether nothing inside a term has been bound since it was made."""
    for child in children(term):
        if child.bound is not None:
            return False
        if not isinstance(child, Atom) and not _settled(child):
            return False
    return True


def leaves(term: Term) -> Iterator[Atom]:
    """The unbound atoms of a term, in order, with repetition."""
    term = resolve(term)
    return iter((term,)) if isinstance(term, Atom) else _inside(term)


def _inside(term: Sum | Prod) -> Iterator[Atom]:
    """The atoms of a resolved term: resolved all the way down."""
    for child in children(term):
        if isinstance(child, Atom):
            yield child
        else:
            yield from _inside(child)


def is_frozen(term: Term) -> bool:
    """Whether no coordinate of the axis may go."""
    return all(a.frozen for a in leaves(term))


def freeze(term: Term, why: Reason) -> None:
    """Forbids removal on the axis. The first reason of an atom stays."""
    for atom in leaves(term):
        atom.frozen = atom.frozen or why


def same(s: Term, t: Term) -> bool:
    """Whether two terms are literally the same structure over the same atoms."""
    s, t = resolve(s), resolve(t)
    if s is t:
        return True
    if isinstance(s, Sum) and isinstance(t, Sum):
        pairs = (s.parts, t.parts)
    elif isinstance(s, Prod) and isinstance(t, Prod):
        pairs = (s.factors, t.factors)
    else:
        return False
    return len(pairs[0]) == len(pairs[1]) and all(map(same, *pairs))


def why_frozen(term: Term) -> Reason:
    """The first reason found on a term that is frozen.

    A longer axis may be frozen only because it was cut into single coordinates; that is
    a reason like any other for whatever is found to be equal to it.
    """
    for atom in leaves(term):
        if atom.frozen and atom.frozen is not TRIVIAL:
            return atom.frozen
    return SINGLE if is_symbolic(term.size) or term.size > 1 else TRIVIAL


def _bind(atom: Atom, term: Term) -> None:
    if atom.frozen and atom.frozen is not TRIVIAL:
        freeze(term, atom.frozen)
    atom.bound = term


def cut(term: Term, sizes: Sequence[int]) -> list[Term]:
    """The axis as consecutive pieces of the given sizes.

    Args:
      term: the axis.
      sizes: non-negative integers whose sum is `term.size`.

    Returns:
      One term for each size; a piece of size 0 is an atom of size 0.

    Raises:
      StructureError: for more than `MAX_PIECES` pieces.
    """
    if sum(sizes) != term.size:
        raise StructureError(f"pieces {tuple(sizes)} of an axis of {term.size}")
    real = [n for n in sizes if n != 0]
    pieces = iter(_cut(resolve(term), real))
    return [next(pieces) if n != 0 else Atom(0) for n in sizes]


def _cut(term: Term, sizes: list[int]) -> list[Term]:
    """`cut` without empty pieces."""
    if len(sizes) <= 1:
        return [term] if sizes else []
    if is_frozen(term):
        return [Atom(n, why_frozen(term)) for n in sizes]
    if len(sizes) > MAX_PIECES:
        raise StructureError(f"an axis cut into {len(sizes)} pieces")
    if isinstance(term, Atom):
        atoms = [Atom(n, term.frozen) for n in sizes]
        _bind(term, Sum(tuple(atoms)))
        return list(atoms)
    if isinstance(term, Sum):
        return _cut_parts(term.parts, sizes)
    outer, inner = term.factors[0], product(term.factors[1:])
    if all(n % inner.size == 0 for n in sizes):
        pieces = _cut(resolve(outer), [n // inner.size for n in sizes])
        return [product((piece, inner)) for piece in pieces]
    # Not aligned with the inner factor: keep the outer one whole. The axis is then that
    # many copies of the inner axis, which is cut at the position within a copy.
    if outer.size > MAX_PIECES:
        raise StructureError(f"a cut across {outer.size} blocks of {inner.size}")
    freeze(outer, Reason("cut at a position inside its blocks"))
    return _cut_parts((inner,) * outer.size, sizes)


def _cut_parts(parts: Sequence[Term], sizes: list[int]) -> list[Term]:
    """Cuts a concatenation: first every part at the wanted positions, then regroups."""
    ends, marks = 0, set()
    for n in sizes:
        ends += n
        marks.add(ends)
    start = 0
    for part in parts:  # refine; a repeated part collects the cuts of all its places
        inside = sorted(m - start for m in marks if start < m < start + part.size)
        if inside:
            bounds = [0, *inside, part.size]
            _cut(resolve(part), [b - a for a, b in pairwise(bounds)])
        start += part.size
    flat: list[Term] = []
    for part in parts:
        done = resolve(part)
        flat.extend(done.parts if isinstance(done, Sum) else (done,))
    return _regroup(flat, sizes)


def _regroup(flat: list[Term], sizes: list[int]) -> list[Term]:
    """Groups consecutive pieces into terms of the given sizes, cutting where needed."""
    out: list[Term] = []
    queue = list(reversed(flat))
    for n in sizes:
        group: list[Term] = []
        while n > 0:
            piece = queue.pop()
            if piece.size > n:  # a product or a frozen piece, which a cut does not bind
                head, tail = _cut(resolve(piece), [n, piece.size - n])
                queue.append(tail)
                piece = head
            group.append(piece)
            n -= piece.size
        out.append(concat(group))
    return out


def split(term: Term, sizes: Sequence[int]) -> list[Term]:
    """The axis as a row-major grid: one term for each of `sizes`, outermost first.

    Args:
      term: the axis.
      sizes: positive integers whose product is `term.size`.

    Raises:
      StructureError: where the sizes do not nest with the factors already known.
    """
    if math.prod(sizes) != term.size:
        raise StructureError(f"a grid {tuple(sizes)} of an axis of {term.size}")
    real = [n for n in sizes if n != 1]
    factors = iter(_split(resolve(term), real))
    return [next(factors) if n != 1 else Atom(1) for n in sizes]


def _split(term: Term, sizes: list[int]) -> list[Term]:
    """`split` without sizes of 1."""
    if len(sizes) <= 1:
        return [term] if sizes else []
    if is_frozen(term):
        return [Atom(n, why_frozen(term)) for n in sizes]
    if isinstance(term, Atom):
        atoms = [Atom(n, term.frozen) for n in sizes]
        _bind(term, Prod(tuple(atoms)))
        return list(atoms)
    if isinstance(term, Sum):
        outer, inner = _split_sum(term, sizes[0])
        return [outer, *_split(resolve(inner), sizes[1:])]
    return _split_prod(list(term.factors), sizes)


def _split_prod(factors: list[Term], sizes: list[int]) -> list[Term]:
    """Aligns the factors with the grid from the outermost one."""
    out: list[Term] = []
    queue = list(reversed(factors))
    for n in sizes:
        group: list[Term] = []
        while n > 1:
            factor = resolve(queue.pop())
            if isinstance(factor, Prod):
                queue.extend(reversed(factor.factors))
                continue
            if n % factor.size:
                if factor.size % n:
                    raise StructureError(f"{factor.size} and {n} do not nest")
                head, tail = _split(factor, [n, factor.size // n])
                queue.append(tail)
                factor = head
            group.append(factor)
            n //= factor.size
        out.append(product(group))
    return out


def _split_sum(term: Sum, outer: int) -> tuple[Term, Term]:
    """A concatenation as a grid of `outer` rows.

    Parts that hold whole rows are split each, and their rows unified; otherwise the
    axis is cut into its rows, which are all the same, and their number is fixed.
    """
    inner = term.size // outer
    if all(p.size % inner == 0 for p in term.parts):
        grids = [_split_two(p, p.size // inner, inner) for p in term.parts]
        rows = [rest for _, rest in grids]
        for row in rows[1:]:
            unify(rows[0], row)
        return concat([first for first, _ in grids]), resolve(rows[0])
    if outer > MAX_PIECES:
        raise StructureError(f"{outer} rows across a concatenation")
    rows = _cut(term, [inner] * outer)
    for row in rows[1:]:
        unify(rows[0], row)
    return Atom(outer, Reason("rows of a concatenation")), resolve(rows[0])


def _split_two(term: Term, outer: int, inner: int) -> tuple[Term, Term]:
    if outer == 1:
        return Atom(1), term
    first, rest = split(term, (outer, inner))
    return first, rest


def unify(s: Term, t: Term, why: Reason | None = None) -> None:
    """Makes two axes of equal size the same, refining both as far as needed.

    Where the structures cannot be reconciled both are frozen (with `why`).

    Raises:
      StructureError: if the sizes differ.
    """
    s, t = resolve(s), resolve(t)
    if s.size != t.size:
        raise StructureError(f"axes of {s.size} and {t.size} cannot be the same")
    if s is t or s.size == 0 or s.size == 1 or same(s, t):
        return
    try:
        _unify(s, t)
    except StructureError as error:
        reason = why or Reason(str(error))
        freeze(s, reason)
        freeze(t, reason)


def _unify(s: Term, t: Term) -> None:
    if isinstance(s, Atom):
        _bind(s, t)
    elif isinstance(t, Atom):
        _bind(t, s)
    elif is_frozen(s) or is_frozen(t):
        why = why_frozen(s if is_frozen(s) else t)
        freeze(s, why)
        freeze(t, why)
    elif isinstance(s, Prod) and isinstance(t, Prod):
        _unify_products(list(s.factors), list(t.factors))
    else:
        marks = sorted(_marks(s) | _marks(t))
        sizes = [b - a for a, b in pairwise([0, *marks])]
        ours, theirs = _cut(s, sizes), _cut(resolve(t), sizes)
        for a, b in zip(ours, theirs, strict=True):
            a, b = resolve(a), resolve(b)
            if a is not b and not same(a, b):
                _unify(a, b)


def _marks(term: Term) -> set[int]:
    """The end position of every part of a concatenation."""
    ends, marks = 0, set()
    for part in term.parts if isinstance(term, Sum) else (term,):
        ends += part.size
        marks.add(ends)
    return marks


def _unify_products(left: list[Term], right: list[Term]) -> None:
    """Aligns two flattenings from the outermost factor, splitting the larger one."""
    left.reverse()
    right.reverse()
    while left and right:
        a, b = resolve(left.pop()), resolve(right.pop())
        if isinstance(a, Prod) or isinstance(b, Prod):
            left.extend(reversed(a.factors if isinstance(a, Prod) else (a,)))
            right.extend(reversed(b.factors if isinstance(b, Prod) else (b,)))
        elif a.size == b.size:
            if not same(a, b):
                _unify(a, b)
        elif a.size % b.size == 0:
            head, tail = _split(a, [b.size, a.size // b.size])
            left.append(tail)
            left.append(head)
            right.append(b)
        elif b.size % a.size == 0:
            head, tail = _split(b, [a.size, b.size // a.size])
            right.append(tail)
            right.append(head)
            left.append(a)
        else:
            raise StructureError(f"factors of {a.size} and {b.size} do not nest")
