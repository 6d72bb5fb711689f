"""Cells: the compact program as a lazy graph of what has to be computed.

Under a choice of kept coordinates an axis has kept positions (bit 0) and classes of
removed ones (bit 1, see `_layout`). A value of rank r therefore has one *cell* for each
pattern of r bits: cell 00..0 is the compact array, the others are the *ghosts*, the
values that the reference model (all parameters of removed coordinates set to zero)
holds at the removed positions. A broadcast axis has a ghost equal to the value itself,
a parameter's ghosts are zero, and so on: the rules say.

A cell is one of

* **known**: a NumPy array that depends on neither parameters nor inputs;
* **bad**: not one value per class, so nothing can be said;
* **dynamic**: a function of other cells.

Dynamic cells only describe a computation: the graph holds no arrays and is never run as
a whole. A reduction over a pruned axis asks for the ghosts on that axis and adds them
unless they are known zeros; nothing else looks at a ghost. So a model whose removed
coordinates stay zero emits exactly the equations it had, and a certificate is the graph
itself: what it had to ask for, before anything is computed.

`emit` computes some cells: it marks what they need, then evaluates once, each in an
order in which its operands come first. A `Call` (a scan, a cond, a jitted function) is
a graph of its own; it computes exactly the results that are asked of it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, reshard

from jprune._axes import mesh_of, whole_along
from jprune._errors import PREFIX, value_error
from jprune.surgery._axes import is_symbolic
from jprune.surgery._layout import Layout

Bits = tuple[int, ...]
FOLD_LIMIT = 1 << 14
"""Known arrays of more elements are computed by the program instead."""


class Cell:
    """One cell of a value: known, bad, or a function of other cells.

    Attributes:
      known: the value, broadcastable to `shape`, or None.
      bad: why the cell has no single value per class, or None.
      fn: computes the array from the arrays of `deps`; None for a leaf.
      loose: `fn` takes known operands unbroadcast.
      nothing: the cell is 0 because it is a sum over an emptied axis.
      shape: what the array must have, once it is known; a tuple of results has none.
      name: the primitive, for errors.
    """

    __slots__ = ("bad", "deps", "fn", "known", "loose", "name", "nothing", "shape")

    def __init__(
        self,
        fn: Callable[..., Any] | None = None,
        deps: Sequence["Cell"] = (),
        *,
        known: np.ndarray | None = None,
        bad: str | None = None,
        loose: bool = False,
        name: str = "",
    ) -> None:
        self.fn = fn
        self.deps = tuple(deps)
        self.known = known
        self.bad = bad
        self.loose = loose
        self.name = name
        self.nothing = False
        self.shape: tuple[int, ...] | None = None

    def run(self, *arrays: Any) -> Any:
        """Computes the array from the arrays of `deps`."""
        assert self.fn is not None
        return self.fn(*arrays)

    @property
    def zero(self) -> bool:
        """Whether the cell is known to be 0 everywhere."""
        return self.known is not None and not self.known.any()

    @property
    def open(self) -> bool:
        """Whether nobody has asked yet if the cell is known (see `Lazy`)."""
        return False

    @property
    def infinite(self) -> bool:
        """Whether the cell is known not to be finite somewhere."""
        return _infinite(self.known)


def _infinite(value: np.ndarray | None) -> bool:
    if value is None or not issubclass(value.dtype.type, np.inexact):
        return False
    return not np.isfinite(value).all()


def known(value: Any) -> Cell:
    """A known cell; an array of one value is stored as one element."""
    array = np.asarray(value)
    if array.size > 1 and (array == array.flat[0]).all():
        array = array[(slice(0, 1),) * array.ndim]
    return Cell(known=array)


def nothing(rank: int, dtype: Any) -> Cell:
    """A sum over an emptied axis."""
    out = known(np.zeros((1,) * rank, dtype))
    out.nothing = True
    return out


def bad(why: str) -> Cell:
    """A cell that has no single value per class."""
    return Cell(bad=why)


def first_bad(cells: Iterable[Cell]) -> str | None:
    """The reason of the first bad cell."""
    for cell in cells:
        if cell.bad is not None:
            return cell.bad
    return None


def compute(
    fn: Callable[..., Any], *deps: Cell, loose: bool = False, name: str = ""
) -> Cell:
    """A dynamic cell, or bad if an operand is."""
    why = first_bad(deps)
    return bad(why) if why else Cell(fn, deps, loose=loose, name=name)


def item(cells: Cell, index: int) -> Cell:
    """One result of a cell that computes several."""
    return compute(lambda results: results[index], cells)


class Call(Cell):
    """A computation with a graph of its own, whose results are asked for one by one.

    Subclasses implement `want(key)`: note that a result is needed and return the outer
    cells that it needs (in the end `deps` holds them all), and `run(*arrays)`: the
    results by key.
    """

    __slots__ = ("wanted",)

    def __init__(self, name: str = "") -> None:
        super().__init__(type(self).run, (), name=name)  # bound, it would be a cycle
        self.wanted: dict[Any, None] = {}

    def want(self, key: Any) -> list[Cell]:
        """Notes that the result `key` is needed; returns new outer cells needed."""
        raise NotImplementedError

    def run(self, *arrays: Any) -> dict[Any, Any]:
        """Computes the wanted results from the arrays of `deps`."""
        raise NotImplementedError


class Item(Cell):
    """One result of a `Call`."""

    __slots__ = ("call", "key")

    def __init__(self, call: Call, key: Any) -> None:
        super().__init__(lambda results: results[key], (call,), name=call.name)
        self.call = call
        self.key = key


class Lazy(Item):
    """A result that may be known: it is decided when it is first asked for.

    To ask may cost a trace of a derivative rule, and most ghosts meet a zero weight and
    are never asked. An inner program sees such a cell as one without a `call`.

    Attributes:
      value: what it holds if it is known, for `infinite`.
      decide: gives the known value, or None.
    """

    __slots__ = ("_asked", "_known", "decide", "value")

    def __init__(
        self,
        call: Call | None,
        key: Any,
        value: np.ndarray,
        decide: Callable[[], np.ndarray | None],
    ) -> None:
        if call is None:
            Cell.__init__(self, name="input")
        else:
            super().__init__(call, key)
        self.value, self.decide = value, decide
        self._asked = False

    @property
    def known(self) -> np.ndarray | None:  # type: ignore[override]
        """The value, if it is known. A known cell needs no computation."""
        if not self._asked:
            self._asked, self._known = True, self.decide()
            if self._known is not None:
                self.fn, self.deps = None, ()
        return self._known

    @known.setter
    def known(self, value: np.ndarray | None) -> None:
        self._known, self._asked = value, value is not None

    @property
    def open(self) -> bool:
        """Whether nobody has asked yet if the cell is known."""
        return not self._asked

    @property
    def infinite(self) -> bool:
        """Whether what it holds is not finite, whoever may know it."""
        return _infinite(self.value)


def mark(roots: Iterable[Cell], seen: set[Cell] | None = None) -> list[Cell]:
    """Notes everything that the roots need; returns the leaves met first here."""
    seen = set() if seen is None else seen
    stack, found = list(roots), []
    while stack:
        cell = stack.pop()
        if cell in seen:
            continue
        seen.add(cell)
        if cell.fn is None:
            if cell.open or cell.known is None:
                found.append(cell)
        elif isinstance(cell, Item) and cell.key not in cell.call.wanted:
            stack.extend(cell.call.want(cell.key))
        stack.extend(cell.deps)
    return found


def emit(roots: Sequence[Cell], leaves: dict[Cell, Any]) -> list[Any]:
    """The arrays of some cells, given those of the leaves. Call `mark` first."""
    env = dict(leaves)
    stack = list(reversed(roots))
    while stack:
        cell = stack[-1]
        if cell in env:
            stack.pop()
            continue
        missing = [d for d in cell.deps if d not in env]
        if missing:
            stack.extend(reversed(missing))
            continue
        env[cell] = _evaluate(cell, env)
        stack.pop()
    return [_exact(cell, env[cell]) for cell in roots]


def _evaluate(cell: Cell, env: dict[Cell, Any]) -> Any:
    if cell.bad is not None:
        raise value_error(f"internal: a bad cell was asked for ({cell.bad}).")
    if cell.fn is None:
        if cell.known is None:
            raise value_error("internal: a leaf of the compact program has no value.")
        return cell.known
    args = [env[d] if cell.loose else _exact(d, env[d]) for d in cell.deps]
    try:
        out = cell.run(*[_scalar(a) for a in args] if cell.loose else args)
    except Exception as error:
        error.add_note(f"{PREFIX}in `{cell.name}` rewritten at compact shapes.")
        raise
    if cell.shape is not None and tuple(out.shape) != cell.shape:
        if cell.loose and _repeats(tuple(out.shape), cell.shape):
            return jnp.broadcast_to(out, cell.shape)
        raise value_error(
            f"`{cell.name}` rewritten at compact shapes gave {tuple(out.shape)}, "
            f"expected {cell.shape}: please report this primitive."
        )
    return out


def _repeats(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether repeating gives the wanted shape: all operands were known or repeated."""
    same_rank = len(shape) == len(wanted)
    pairs = zip(shape, wanted, strict=False)
    return shape == () or (same_rank and all(a in (1, b) for a, b in pairs))


def _exact(cell: Cell, array: Any) -> Any:
    """Known values are stored broadcastable; give them the shape of the cell."""
    if not isinstance(array, np.ndarray):
        return array
    shape = array.shape if cell.shape is None else cell.shape
    size = math.prod(shape)  # an equation instead of a large constant
    if is_symbolic(size) or size > FOLD_LIMIT:
        return jnp.broadcast_to(array, shape)
    return np.broadcast_to(array, shape)


def _scalar(array: Any) -> Any:
    if isinstance(array, np.ndarray) and array.size == 1:
        return array.reshape(())
    return array


class Value:
    """An array of the program under a choice: its layouts and its cells.

    Attributes:
      layouts: one for each dimension.
      pruned: whether any axis loses something.
      dtype: of the dense value.
      dense: the cell of the full-size array, for values free of parameters.
      reduced: dense and kept number of elements summed over, for means.
    """

    __slots__ = ("_memo", "_rule", "dense", "dtype", "layouts", "pruned", "reduced")

    def __init__(
        self,
        layouts: Sequence[Layout],
        dtype: Any,
        rule: Callable[[Bits], Cell],
        dense: Cell | None = None,
        reduced: tuple[int, int] | None = None,
    ) -> None:
        self.layouts = tuple(layouts)
        self.pruned = any([lay.pruned for lay in self.layouts])
        self.dtype = dtype
        self.dense = dense
        self.reduced = reduced
        self._rule = rule
        self._memo: dict[Bits, Cell] = {}

    @property
    def kept(self) -> Cell:
        """The compact array."""
        return self.cell((0,) * len(self.layouts))

    def cell(self, bits: Bits) -> Cell:
        """The cell of a pattern of bits."""
        cell = self._memo.get(bits)
        if cell is None:
            cell = self._rule(bits)
            if cell.shape is None:
                cell.shape = self.shape(bits)
            self._memo[bits] = cell
        return cell

    def own(self, bits: Iterable[int]) -> Bits:
        """The bits with 0 on the axes that lose nothing: those of one of its cells."""
        pairs = zip(self.layouts, bits, strict=True)
        return tuple([bit if lay.pruned else 0 for lay, bit in pairs])

    def shape(self, bits: Bits | None = None) -> tuple[int, ...]:
        """The shape of a cell (of the compact array, without bits)."""
        bits = (0,) * len(self.layouts) if bits is None else bits
        pairs = zip(self.layouts, bits, strict=True)
        return tuple([lay.sizes[bit] for lay, bit in pairs])


Cells = Callable[[Bits], Cell]
"""The cells of a result, by their bits."""


def multiplicity(
    layouts: Sequence[Layout], bits: Bits, dims: Sequence[int], ndim: int
) -> np.ndarray | None:
    """How many dense positions each position of a cell stands for, on some axes.

    Args:
      layouts: of those axes.
      bits: the cell's bits there.
      dims: where the axes lie in an array of rank `ndim`.
      ndim: rank of the result, which is broadcastable against the cell.

    Returns:
      The counts in float64, or None if all are 1.
    """
    out = np.ones((1,) * ndim)
    for lay, bit, d in zip(layouts, bits, dims, strict=True):
        if bit:
            shape = [1] * ndim
            shape[d] = lay.mult.size
            out = out * lay.mult.reshape(shape)
    return None if (out == 1).all() else out


def patterns(layouts: Sequence[Layout]) -> list[Bits]:
    """Every pattern of bits over some axes, all zeros first."""
    return list(_patterns(tuple([lay.pruned for lay in layouts])))


@functools.lru_cache(maxsize=4096)
def _patterns(pruned: tuple[bool, ...]) -> tuple[Bits, ...]:
    bits = itertools.product(*[(0, 1) if each else (0,) for each in pruned])
    return tuple(sorted(bits, key=lambda p: (sum(p), p)))


def select(array: Any, layouts: Sequence[Layout], bits: Bits) -> Any:
    """The positions of a dense array that a cell holds; NumPy in, NumPy out."""
    for axis, (lay, bit) in enumerate(zip(layouts, bits, strict=True)):
        if lay.pruned:
            array = take(array, lay.positions(bit), axis)
    return array


def take(array: Any, positions: np.ndarray, axis: int) -> Any:
    """`array` at static positions of one axis: a slice where they are contiguous.

    An axis that is split over a mesh with Explicit axes is put together for it, and
    split again where the positions divide evenly.
    """
    if isinstance(array, np.ndarray):
        return _take(array, positions, axis)
    sharding = jax.typeof(array).sharding
    out = _take(whole_along(array, [axis]), positions, axis)
    if positions.size % pieces(sharding, axis):
        return out
    if not any(sharding.spec):
        return out
    return reshard(out, NamedSharding(mesh_of(array), sharding.spec))


def pieces(sharding: Any, axis: int) -> int:
    """Into how many pieces an Explicit mesh splits an axis."""
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    names = names if isinstance(names, tuple) else () if names is None else (names,)
    types = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    return math.prod(
        sharding.mesh.shape[n] for n in names if types[n] is AxisType.Explicit
    )


def _take(array: Any, positions: np.ndarray, axis: int) -> Any:
    n = positions.size
    if n and positions[-1] - positions[0] == n - 1 and (np.diff(positions) == 1).all():
        if n == array.shape[axis]:
            return array
        start = int(positions[0])
        if isinstance(array, np.ndarray):
            return array[(slice(None),) * axis + (slice(start, start + n),)]
        return lax.slice_in_dim(array, start, start + n, axis=axis)
    if isinstance(array, np.ndarray):
        return np.take(array, positions, axis=axis)
    return jnp.take(array, positions, axis=axis, mode="clip")


def looked_at(
    array: np.ndarray, layouts: Sequence[Layout], alike: Sequence[Layout]
) -> Callable[[Bits], Cell]:
    """The cells of an array that can be looked at: equal inside each class, or bad.

    Args:
      array: the dense array.
      layouts: one for each axis.
      alike: those whose classes are meant, see `Choice.alike`.
    """
    uniform: list[bool] = []

    def cell(bits: Bits) -> Cell:
        chosen = known(select(array, layouts, bits))
        if not any(bits):
            return chosen
        if not uniform:
            uniform.append(_uniform(array, alike))
        return (
            chosen
            if uniform[0]
            else bad("a constant differs between removed coordinates")
        )

    return cell


def _uniform(array: np.ndarray, layouts: Sequence[Layout]) -> bool:
    """Whether each position equals its representative (nan equals nan)."""
    if array.size == 1 or (array == array.flat[0]).all():
        return True
    rep = array
    for axis, lay in enumerate(layouts):
        if lay.pruned:
            rep = np.take(rep, lay.rep, axis=axis)
    equal = rep == array
    if np.issubdtype(array.dtype, np.inexact):
        equal |= np.isnan(rep) & np.isnan(array)
    return bool(equal.all())
