"""Sub-programs as graphs of their own: what calls, branches and loops share.

A `Frame` is a sub-jaxpr built at one call site. Its inputs are seen through a boundary:
what is known or bad outside is known or bad inside, and a dynamic cell becomes a leaf
that remembers where its array comes from. Marking the wanted results of a frame yields
the leaves they need, hence the outer cells that the call must be given; nothing else
crosses the boundary.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jprune._jaxpr._compat import ClosedJaxpr, Jaxpr
from jprune.surgery import _cells as ce
from jprune.surgery._build import Builder
from jprune.surgery._cells import Bits, Call, Cell, Item, Lazy, Value
from jprune.surgery._scope import Scope

Key = tuple[int, Bits]
"""A result of a call: its index and the bits of the cell."""


class Frame:
    """A sub-jaxpr built at a call site.

    Attributes:
      outs: the values of its outputs.
      roots: cells that must be computed for their side effects.
    """

    def __init__(
        self,
        builder: Builder,
        jaxpr: Jaxpr | ClosedJaxpr,
        scope: Scope,
        ins: Sequence[Value],
    ) -> None:
        sub = builder.sub()
        self.outs = sub.build(jaxpr, scope, ins)
        self.roots = sub.effects
        self._seen: set[Cell] = set()

    def need(self, cells: Iterable[Cell]) -> list[Cell]:
        """Marks some cells; returns the leaves met for the first time."""
        return ce.mark([*cells, *self.roots], self._seen)

    def compute(self, cells: Sequence[Cell], leaves: dict[Cell, Any]) -> list[Any]:
        """The arrays of some cells, given those of the leaves."""
        done = ce.emit([*self.roots, *cells], leaves)
        return done[len(self.roots) :]


class Boundary:
    """The inputs of frames: which leaf stands for which outer cell."""

    def __init__(self) -> None:
        self.outer: dict[Cell, Cell] = {}

    def leaf(self, cell: Cell) -> Cell:
        """The cell as seen from inside."""
        if cell.bad is not None:
            return ce.bad(cell.bad)
        if isinstance(cell, Lazy) and cell.open:
            inside: Cell = Lazy(None, None, cell.value, lambda: cell.known)
        elif cell.known is not None:
            inside = ce.known(cell.known)
            inside.nothing = cell.nothing
            return inside
        else:
            inside = Cell(name="input")
        inside.shape = cell.shape
        self.outer[inside] = cell
        return inside

    def value(self, value: Value) -> Value:
        """The value as seen from inside."""
        dense = None if value.dense is None else self.leaf(value.dense)
        if dense is not None and value.dense is not None:
            dense.shape = value.dense.shape
        return Value(
            value.layouts,
            value.dtype,
            lambda bits: self.leaf(value.cell(bits)),
            dense,
            value.reduced,
        )


class GraphCall(Call):
    """A call of one sub-program, or of one of several branches.

    Args:
      frames: the sub-programs, which have results of the same axes.
      boundary: of all of them.
      run_frames: from one function per frame and the arrays of the outer cells, the
        results; each function takes those arrays.
      extra: outer cells passed to `run_frames` first (a branch index).
    """

    __slots__ = ("boundary", "extra", "frames", "run_frames")

    def __init__(
        self,
        frames: Sequence[Frame],
        boundary: Boundary,
        run_frames: Callable[..., list[Any]],
        extra: Sequence[Cell] = (),
        name: str = "",
    ) -> None:
        super().__init__(name)
        self.frames = frames
        self.boundary = boundary
        self.run_frames = run_frames
        self.extra = tuple(extra)
        self.deps = tuple(extra)

    def want(self, key: Key | None) -> list[Cell]:
        """Marks the result in every frame; without a key, only side effects."""
        self.wanted[key] = None
        new = []
        for frame in self.frames:
            for leaf in frame.need([] if key is None else [self._cell(frame, key)]):
                outer = self.boundary.outer[leaf]
                if outer not in self.deps:
                    self.deps = (*self.deps, outer)
                    new.append(outer)
        return [*self.extra, *new]

    def _cell(self, frame: Frame, key: Key) -> Cell:
        index, bits = key
        return frame.outs[index].cell(bits)

    def run(self, *arrays: Any) -> dict[Any, Any]:
        """Emits every frame inside what the primitive wraps it in."""
        keys = [k for k in self.wanted if k is not None]
        first = len(self.extra)
        outer = self.deps[first:]

        def body(frame: Frame) -> Callable[..., list[Any]]:
            def run(*given: Any) -> list[Any]:
                by_cell = dict(zip(outer, given, strict=True))
                leaves = {
                    leaf: by_cell[cell]
                    for leaf, cell in self.boundary.outer.items()
                    if cell in by_cell
                }
                return frame.compute([self._cell(frame, k) for k in keys], leaves)

            return run

        bodies = [body(f) for f in self.frames]
        out = self.run_frames(bodies, arrays[:first], arrays[first:])
        return {None: (), **dict(zip(keys, out, strict=True))}

    def effect(self) -> Cell:
        """A cell that runs the call for its side effects."""
        return Item(self, None)

    def results(self, like: Sequence[Value]) -> list[Value]:
        """The values of the call's outputs, with the axes of `like`."""
        return [self._result(i, v) for i, v in enumerate(like)]

    def _result(self, index: int, like: Value) -> Value:
        def rule(bits: Bits) -> Cell:
            cells = [f.outs[index].cell(bits) for f in self.frames]
            first, key = cells[0], (index, bits)
            if len(cells) == 1 and isinstance(first, Lazy) and first.open:
                return Lazy(self, key, first.value, lambda: first.known)
            return joined(cells, lambda: Item(self, key), any(bits))

        dense = like.dense
        if dense is not None and dense.known is None:
            dense = None
        return Value(like.layouts, like.dtype, rule, dense, like.reduced)


def joined(cells: Sequence[Cell], dynamic: Callable[[], Cell], ghost: bool) -> Cell:
    """The status of a cell that is one of several: known only where all agree."""
    why = ce.first_bad(cells)
    if why:
        return ce.bad(why)
    known = cells[0].known
    agree = known is not None and all(same_known(cells[0], c) for c in cells[1:])
    if agree and ghost:
        return ce.known(known)
    if known is not None and all(c.nothing for c in cells):
        return ce.nothing(known.ndim, known.dtype)
    out = dynamic()
    if agree:
        out.known = known
    return out


def same_known(a: Cell, b: Cell) -> bool:
    """Whether two cells are known and equal."""
    if a.known is None or b.known is None or a.known.shape != b.known.shape:
        return False
    equal = a.known == b.known
    if a.known.dtype.kind in "fc":
        equal |= (a.known != a.known) & (b.known != b.known)
    return bool(equal.all())


def plain(bodies: Sequence[Any], extra: Any, arrays: Sequence[Any]) -> list[Any]:
    """Runs the only frame in place."""
    return bodies[0](*arrays)


def jitted(name: str) -> Callable[..., list[Any]]:
    """Runs the only frame under `jax.jit`, so that the call stays a call."""

    def run(bodies: Sequence[Any], extra: Any, arrays: Sequence[Any]) -> list[Any]:
        body = bodies[0]
        body.__name__ = body.__qualname__ = name
        return jax.jit(body)(*arrays)

    return run
