"""Reductions: where the value of a removed coordinate can reach what is kept.

A sum over a pruned axis is the sum over the kept positions plus, for each pattern of
removed classes on the reduced axes, multiplicity x ghost. Ghosts that are known zeros
add nothing, so a model whose removed coordinates stay zero sums as before. A maximum
takes the ghosts' maximum along. With the meaning "removed" (`Options.removed`) ghosts
are ignored on purpose, and the sum remembers its counts so that a mean can divide by
the kept one.

Order matters along a sorted, cumulative or windowed axis: it is frozen, and the other
axes pass. What returns positions is in `_ranked`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes, is_frozen, is_symbolic
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Cells, Value
from jprune.surgery._layout import Layout
from jprune.surgery._registry import Rule
from jprune.surgery._scope import Info
from jprune.surgery.rules._ranked import ranked_axes, ranked_cells

_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "reduce_sum": jnp.add,
    "reduce_max": jnp.maximum,
    "reduce_min": jnp.minimum,
    "reduce_prod": jnp.multiply,
    "reduce_and": jnp.bitwise_and,
    "reduce_or": jnp.bitwise_or,
}
_NUMPY: dict[str, Callable[..., Any]] = {
    "reduce_sum": np.sum,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_and": np.all,
    "reduce_or": np.any,
}


def sum_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Drops axes; a pruned axis may be summed."""
    drop = set(eqn.params["axes"])
    site.summed(*(i.axes[d] for i in ins for d in drop))
    return [tuple(t for d, t in enumerate(i.axes) if d not in drop) for i in ins]


def order_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """As a sum, but whether the reduced axis may shrink is decided later.

    Zero is not neutral for a maximum. The removal stays exact when the ghost is known
    (`Context.reductions` collects the axes, the certificate decides).
    """
    for d in eqn.params["axes"]:
        for info in ins:
            term = info.axes[d]
            if is_frozen(term):
                continue
            if site.context.reduce_max == "freeze":
                site.freeze(term, "zero is not neutral for it")
            elif site.context.reduce_max == "known":
                site.context.reductions.append((term, eqn.primitive.name))
    return sum_axes(site, eqn, ins)


def frozen_sum_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """The reduced axes may not shrink; the others are equal over the operands."""
    stuck, first = _reduced(eqn), ins[0].axes
    for info in ins:
        for d, term in enumerate(info.axes):  # initial values have no axes
            if d in stuck:
                site.freeze(term, "the position matters")
            else:
                site.unify(first[d], term)
    out = tuple(t for d, t in enumerate(first) if d not in stuck)
    return [out] * len(eqn.outvars)


def _reduced(eqn: Equation) -> list[int]:
    """The reduced axes, in order."""
    name = "dimensions" if eqn.primitive.name == "reduce" else "axes"
    return sorted(eqn.params[name])


def _full_bits(value: Value, axes: Sequence[int], bits: Bits, inner: Bits) -> Bits:
    """The operand's bits: `inner` on the reduced axes, the result's on the others."""
    rest = iter(bits)
    by_axis = dict(zip(axes, inner, strict=True))
    return tuple(
        by_axis[d] if d in by_axis else next(rest) for d in range(len(value.layouts))
    )


def reduce_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """The kept positions, and whatever the removed ones contribute."""
    (x,), name = ins, eqn.primitive.name
    axes = sorted(eqn.params["axes"])
    lays = [x.layouts[d] for d in axes]
    kept, *removed = ce.patterns(lays)
    pruned = [d for d in axes if x.layouts[d].pruned]
    is_sum = name == "reduce_sum"

    def cell(bits: Bits) -> Cell:
        def at(pattern: Bits) -> tuple[Cell]:
            ghost = x.cell(_full_bits(x, axes, bits, pattern))
            if not is_sum and not any(bits):
                atoms = site.pruned_atoms(0, pruned)
                site.log.orders.append((name, atoms, ghost.known is not None))
            return (ghost,)

        found = site.ghosts(bits, removed, at, pruned, zero=is_sum)
        if isinstance(found, Cell):
            return found
        base = x.cell(_full_bits(x, axes, bits, kept))
        terms = [(kept, base), *((p, c) for p, (c,) in found)]
        folded = _fold(name, terms, lays, axes, len(x.layouts)) if any(bits) else None
        if folded is not None:
            return ce.known(folded)
        mults = [ce.multiplicity(lays, p, axes, len(x.layouts)) for p, _ in terms]
        fn = functools.partial(_reduce, eqn, eqn.params, mults)
        return ce.compute(fn, *[c for _, c in terms], name=name)

    value = Value(outs[0], eqn.outvars[0].aval.dtype, cell)
    if is_sum:
        before, count = x.reduced or (1, 1)
        value.reduced = (
            before * math.prod(lay.size for lay in lays),
            count * math.prod(lay.kept.size for lay in lays),
        )
    return [value]


def _reduce(
    eqn: Equation,
    params: dict[str, Any],
    mults: Sequence[np.ndarray | None],
    *arrays: Any,
) -> Any:
    """The reductions of the kept positions and of each ghost, put together."""
    name, out = eqn.primitive.name, None
    for mult, array in zip(mults, arrays, strict=True):
        if mult is not None:
            small = jnp.asarray(mult, array.dtype)  # sizes beside it may be symbolic
            weight = jnp.broadcast_to(small, array.shape)
            if "sum" in name:
                array = lax.mul(array, weight)
            elif name == "reduce_prod":
                array = lax.pow(array, weight)
        (term,) = _compat.bind(eqn, params, [array])
        out = term if out is None else _COMBINE.get(name, jnp.add)(out, term)
    return out


def _fold(
    name: str,
    terms: Sequence[tuple[Bits, Cell]],
    lays: Sequence[Layout],
    axes: Sequence[int],
    rank: int,
) -> np.ndarray | None:
    """The reduction of known cells."""
    if name not in ("reduce_sum", "reduce_max", "reduce_min"):
        return None
    totals = []
    for pattern, cell in terms:
        if cell.known is None:
            return None
        sizes = [lay.positions(b).size for lay, b in zip(lays, pattern, strict=True)]
        if 0 in sizes:
            continue
        if any(map(is_symbolic, sizes)):
            if not cell.zero:
                return None
            totals.append(np.zeros((1,) * (rank - len(axes))))
            continue
        if name != "reduce_sum":
            totals.append(_NUMPY[name](cell.known, axis=tuple(axes)))
            continue
        mult = ce.multiplicity(lays, pattern, axes, rank)
        full = [1] * rank  # a sum over known values repeats the single ones
        for d, n in zip(axes, sizes, strict=True):
            full[d] = n
        value = cell.known if mult is None else cell.known * mult
        full = np.broadcast_shapes(value.shape, tuple(full))
        totals.append(np.broadcast_to(value, full).sum(axis=tuple(axes)))
    if not totals:
        return None
    combine = _PAIR.get(name, np.add)
    dtype = terms[0][1].known.dtype  # type: ignore[union-attr]
    return np.asarray(functools.reduce(combine, totals)).astype(dtype)


_PAIR = {"reduce_max": np.maximum, "reduce_min": np.minimum}


def _fold_dense(eqn: Equation, args: Sequence[np.ndarray]) -> np.ndarray | None:
    dtype = _compat.numpy_dtype(eqn.outvars[0].aval.dtype)
    name = eqn.primitive.name
    if dtype is None or math.prod(eqn.invars[0].aval.shape) > ce.FOLD_LIMIT:
        return None
    if name in ("reduce_and", "reduce_or") and dtype != np.bool_:
        return None
    full = np.broadcast_to(args[0], eqn.invars[0].aval.shape)
    if full.size == 0:
        return None
    return np.asarray(_NUMPY[name](full, axis=tuple(eqn.params["axes"]))).astype(dtype)


def frozen_reduce_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """Reductions over whole axes only: the primitive on each cell."""
    axes = _reduced(eqn)

    @functools.cache
    def results(bits: Bits) -> Cell:
        cells = [v.cell(_full_bits(v, axes, bits, (0,) * len(axes))) for v in ins]
        return ce.compute(lambda *arrays: _compat.bind(eqn, eqn.params, arrays), *cells)

    return [lambda bits, i=i: ce.item(results(bits), i) for i in range(len(outs))]


# -- psum and friends over positional axes (what vmap with an axis name leaves) ------


_PSUMS = ("psum", "psum2", "psum_invariant")


def psum_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Integer axes are reduced; named axes pass every dimension."""
    places = [a for a in eqn.params["axes"] if isinstance(a, int)]
    if places and eqn.primitive.name not in _PSUMS:
        for info in ins:
            for d in places:
                site.freeze(info.axes[d], "zero is not neutral for it")
    return [tuple(t for d, t in enumerate(i.axes) if d not in places) for i in ins]


def psum_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    """The primitive on each operand by itself, ghosts on reduced axes added."""
    places = sorted(a for a in eqn.params["axes"] if isinstance(a, int))

    def one(place: int, x: Value) -> Cells:
        lays = [x.layouts[d] for d in places]
        pruned = [d for d in places if x.layouts[d].pruned]
        kept, *removed = ce.patterns(lays)

        def cell(bits: Bits) -> Cell:
            at = lambda pattern: x.cell(_full_bits(x, places, bits, pattern))  # noqa: E731
            found = site.ghosts(bits, removed, lambda p: (at(p),), pruned, place=place)
            if isinstance(found, Cell):
                return found
            if any(bits) and at(kept).zero and not found:
                return ce.known(np.zeros((1,) * len(bits), x.dtype))
            terms = [(kept, at(kept)), *((p, c) for p, (c,) in found)]
            mults = [ce.multiplicity(lays, p, places, len(x.layouts)) for p, _ in terms]
            fn = functools.partial(_reduce, eqn, eqn.params, mults)
            return ce.compute(fn, *[c for _, c in terms], name=eqn.primitive.name)

        return cell

    return [one(i, v) for i, v in enumerate(ins)]


# -- sort, top_k, cumulative, windows, reverse ---------------------------------------


def _freezing(
    dims: Callable[[Equation, Sequence[Info]], Sequence[int]],
) -> Callable[[AxisSite, Equation, Sequence[Info]], list[Axes]]:
    """The given dimensions are frozen and new; the operands' others are equal."""

    def axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
        stuck = set(dims(eqn, ins))
        rank = len(ins[0].axes)
        full = [i for i in ins if len(i.axes) == rank]
        for info in full:
            for d in stuck:
                site.freeze(info.axes[d], "the position matters")
            for d in set(range(rank)) - stuck:
                site.unify(full[0].axes[d], info.axes[d])
        return [
            tuple(
                site.fixed(n, "the position matters") if d in stuck else full[0].axes[d]
                for d, n in enumerate(var.aval.shape)
            )
            for var in eqn.outvars
        ]

    return axes


def _window_dims(eqn: Equation, ins: Sequence[Info]) -> list[int]:
    """The dimensions of a window reduction that are not passed through one by one."""
    p, rank = eqn.params, eqn.invars[0].aval.ndim
    ones = (1,) * rank
    spans = zip(
        p["window_dimensions"],
        p.get("window_strides") or ones,
        p.get("padding") or ((0, 0),) * rank,
        p.get("base_dilation") or ones,
        p.get("window_dilation") or ones,
        strict=True,
    )
    return [d for d, span in enumerate(spans) if span != (1, 1, (0, 0), 1, span[4])]


def passing_cells(
    site: CellSite, eqn: Equation, ins: list[Value], outs: Outs
) -> Results:
    """The primitive on each cell: only axes it treats one by one are pruned."""

    @functools.cache
    def results(bits: Bits) -> Cell:
        cells = [v.cell(bits if v.layouts else ()) for v in ins]
        return ce.compute(
            lambda *arrays: _compat.bind(eqn, eqn.params, arrays),
            *cells,
            name=eqn.primitive.name,
        )

    def one(index: int) -> Callable[[Bits], Cell]:
        def cell(bits: Bits) -> Cell:
            zero = eqn.primitive.name in _ZERO_TO_ZERO and any(bits)
            if zero and ins[0].cell(bits).zero:
                return ce.known(np.zeros((1,) * len(bits), ins[0].dtype))
            return ce.item(results(bits), index)

        return cell

    return [one(i) for i in range(len(outs))]


_ZERO_TO_ZERO = {"cumsum", "cummax", "cummin", "rev", "reduce_window_sum"}

_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
_WINDOWS = (
    "reduce_window_sum",
    "reduce_window_max",
    "reduce_window_min",
    "reduce_window",
)


def _passing(dims: Callable[[Equation, Sequence[Info]], Sequence[int]]) -> Rule:
    """Some dimensions are frozen, the others treated one by one."""
    return Rule(axes=_freezing(dims), cells=passing_cells)


def _axis(eqn: Equation, ins: Sequence[Info]) -> list[int]:
    return [eqn.params["axis"]]


RULES: dict[str, Rule] = {
    "reduce_sum": Rule(axes=sum_axes, cells=reduce_cells, fold=_fold_dense),
    **{
        name: Rule(axes=order_axes, cells=reduce_cells, fold=_fold_dense)
        for name in _COMBINE
        if name != "reduce_sum"
    },
    **{
        name: Rule(axes=frozen_sum_axes, cells=frozen_reduce_cells)
        for name in ("reduce_xor", "reduce")
    },
    **{
        name: Rule(axes=psum_axes, cells=psum_cells)
        for name in (*_PSUMS, "pmax", "pmin")
    },
    **{name: _passing(_axis) for name in _CUMULATIVE},
    **{name: _passing(_window_dims) for name in _WINDOWS},
    "sort": _passing(lambda eqn, ins: [eqn.params["dimension"]]),
    **{
        name: Rule(axes=ranked_axes, cells=ranked_cells)
        for name in ("top_k", "argmax", "argmin")
    },
    "rev": _passing(lambda eqn, ins: eqn.params["dimensions"]),
}
