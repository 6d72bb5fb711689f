"""Reductions: where the value of a removed coordinate can reach what is kept.

A sum over a pruned axis is the sum over the kept positions plus, for each pattern of
removed classes on the reduced axes, multiplicity x ghost. Ghosts that are known zeros
add nothing, so a model whose removed coordinates stay zero sums as before. A maximum
takes the ghosts' maximum along. With the meaning "removed" (`Options.removed`) ghosts
are ignored on purpose, and the sum remembers its counts so that a mean can divide by
the kept one.

Order matters along a sorted, cumulative or windowed axis: it is frozen, and the other
axes pass. An arg-max returns positions, so its axis is frozen too.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._jaxpr import _compat
from jprune.surgery import _cells as ce
from jprune.surgery._axes import Axes, is_frozen
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._layout import Layout
from jprune.surgery._registry import Rule

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


def sum_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Drops axes; a pruned axis may be summed."""
    drop = set(eqn.params["axes"])
    ctx.summed.extend(i.axes[d] for i in ins for d in drop)
    return [tuple(t for d, t in enumerate(i.axes) if d not in drop) for i in ins]


def order_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """As a sum, but whether the reduced axis may shrink is decided later.

    Zero is not neutral for a maximum. The removal stays exact when the ghost is known
    (`Context.reductions` collects the axes, the certificate decides).
    """
    for d in eqn.params["axes"]:
        for info in ins:
            term = info.axes[d]
            if is_frozen(term):
                continue
            if ctx.reduce_max == "freeze":
                ctx.freeze(term, "zero is not neutral for it")
            elif ctx.reduce_max == "known":
                ctx.reductions.append((term, eqn.primitive.name))
    return sum_axes(ctx, eqn, ins)


def frozen_sum_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """The reduced axes may not shrink."""
    for d in eqn.params["axes"]:
        for info in ins:
            ctx.freeze(info.axes[d], "the position matters")
    out = sum_axes(ctx, eqn, ins)[0]
    return [out] * len(eqn.outvars)


def _full_bits(value: Value, axes: Sequence[int], bits: Bits, inner: Bits) -> Bits:
    """The operand's bits: `inner` on the reduced axes, the result's on the others."""
    rest = iter(bits)
    by_axis = dict(zip(axes, inner, strict=True))
    return tuple(
        by_axis[d] if d in by_axis else next(rest) for d in range(len(value.layouts))
    )


def reduce_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """The kept positions, and whatever the removed ones contribute."""
    (x,), name = ins, eqn.primitive.name
    axes = sorted(eqn.params["axes"])
    lays = [x.layouts[d] for d in axes]
    contributions = ce.patterns(lays)
    pruned = [d for d in axes if x.layouts[d].pruned]

    def cell(bits: Bits) -> Cell:
        ghosts = []
        for pattern in contributions[1:]:
            if site.options.removed:
                break
            ghost = x.cell(_full_bits(x, axes, bits, pattern))
            if name != "reduce_sum" and not any(bits):
                atoms = site.pruned_atoms(0, pruned)
                site.log.orders.append((name, atoms, ghost.known is not None))
            if ghost.zero and name == "reduce_sum":
                continue
            if ghost.bad is not None:
                if any(bits):
                    return ce.bad(ghost.bad)
                site.leak(0, pruned, f"{name}: {ghost.bad}")
                continue
            if not any(bits):
                site.corrected(0, pruned, ghost.known is not None)
            ghosts.append((pattern, ghost))
        base = x.cell(_full_bits(x, axes, bits, contributions[0]))
        folded = (
            _fold(name, base, ghosts, lays, axes, len(x.layouts)) if any(bits) else None
        )
        if folded is not None:
            return ce.known(folded)
        parts = [p for p, _ in ghosts]
        fn = functools.partial(_reduce, eqn, axes, [_mult(lays, p) for p in parts])
        return ce.compute(fn, base, *[g for _, g in ghosts], name=name)

    value = Value(outs[0], eqn.outvars[0].aval.dtype, cell)
    if name == "reduce_sum":
        before, kept = x.reduced or (1, 1)
        value.reduced = (
            before * math.prod(lay.size for lay in lays),
            kept * math.prod(lay.kept.size for lay in lays),
        )
    return [value]


def _mult(lays: Sequence[Layout], pattern: Bits) -> np.ndarray:
    """How many dense positions each position of a pattern stands for."""
    grid = np.ones(())
    for lay, bit in zip(lays, pattern, strict=True):
        count = lay.mult if bit else np.ones(lay.kept.size)
        grid = np.multiply.outer(grid, count)
    return grid


def _spread(mult: np.ndarray, axes: Sequence[int], ndim: int) -> np.ndarray:
    """Multiplicities over the reduced axes, broadcastable against the operand."""
    shape = [1] * ndim
    for n, d in zip(mult.shape, axes, strict=True):
        shape[d] = n
    return mult.reshape(shape)


def _reduce(
    eqn: Any, axes: Sequence[int], mults: Sequence[np.ndarray], base: Any, *ghosts: Any
) -> Any:
    name = eqn.primitive.name
    (out,) = _compat.bind(eqn, eqn.params, [base])
    for mult, ghost in zip(mults, ghosts, strict=True):
        weight = _spread(mult, axes, ghost.ndim)
        if name == "reduce_sum":
            weight = np.broadcast_to(weight, ghost.shape).astype(ghost.dtype)
            ghost = ghost if (weight == 1).all() else lax.mul(ghost, weight)
        elif name == "reduce_prod":
            weight = np.broadcast_to(weight, ghost.shape).astype(ghost.dtype)
            ghost = lax.pow(ghost, weight)
        (term,) = _compat.bind(eqn, eqn.params, [ghost])
        out = _COMBINE[name](out, term)
    return out


def _fold(
    name: str,
    base: Cell,
    ghosts: Any,
    lays: Sequence[Layout],
    axes: Sequence[int],
    rank: int,
) -> np.ndarray | None:
    """The reduction of known cells."""
    cells = [base, *[g for _, g in ghosts]]
    if name not in ("reduce_sum", "reduce_max", "reduce_min"):
        return None
    if any(c.known is None for c in cells):
        return None
    totals = []
    for pattern, cell in [((0,) * len(lays), base), *ghosts]:
        mult = _spread(_mult(lays, pattern), axes, rank)
        value = np.asarray(cell.known)
        if mult.size == 0:
            continue
        if name == "reduce_sum":  # a sum over known values repeats the single ones
            full = np.broadcast_shapes(mult.shape, value.shape)
            totals.append(np.broadcast_to(value * mult, full).sum(axis=tuple(axes)))
        else:
            totals.append(_NUMPY[name](value, axis=tuple(axes)))
    if not totals:
        return None
    out = totals[0]
    for other in totals[1:]:
        out = out + other if name == "reduce_sum" else _PAIR[name](out, other)
    return np.asarray(out).astype(base.known.dtype)  # type: ignore[union-attr]


_PAIR = {"reduce_max": np.maximum, "reduce_min": np.minimum}


def _fold_dense(eqn: Any, args: Sequence[np.ndarray]) -> np.ndarray | None:
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


def frozen_reduce_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """Reductions over whole axes only: the primitive on each cell."""
    axes = sorted(eqn.params["axes"])

    @functools.cache
    def results(bits: Bits) -> Cell:
        cells = [v.cell(_full_bits(v, axes, bits, (0,) * len(axes))) for v in ins]
        return ce.compute(lambda *arrays: _compat.bind(eqn, eqn.params, arrays), *cells)

    return [lambda bits, i=i: ce.item(results(bits), i) for i in range(len(outs))]


# -- psum and friends over positional axes (what vmap with an axis name leaves) ------


def psum_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Integer axes are reduced; named axes pass every dimension."""
    places = [a for a in eqn.params["axes"] if isinstance(a, int)]
    if places and eqn.primitive.name not in ("psum", "psum2"):
        for info in ins:
            for d in places:
                ctx.freeze(info.axes[d], "zero is not neutral for it")
    return [tuple(t for d, t in enumerate(i.axes) if d not in places) for i in ins]


def psum_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """The primitive on each operand by itself, ghosts on reduced axes added."""
    places = sorted(a for a in eqn.params["axes"] if isinstance(a, int))
    params = dict(eqn.params)

    def run(mults: Sequence[np.ndarray], base: Any, *ghosts: Any) -> Any:
        (out,) = _compat.bind(eqn, params, [base])
        for mult, ghost in zip(mults, ghosts, strict=True):
            weight = _spread(mult, places, ghost.ndim)
            weight = np.broadcast_to(weight, ghost.shape).astype(ghost.dtype)
            (term,) = _compat.bind(eqn, params, [lax.mul(ghost, weight)])
            out = jnp.add(out, term)
        return out

    def one(place: int, x: Value) -> Callable[[Bits], Cell]:
        lays = [x.layouts[d] for d in places]
        pruned = [d for d in places if x.layouts[d].pruned]

        def cell(bits: Bits) -> Cell:
            found = []
            for pattern in ce.patterns(lays)[1:]:
                ghost = x.cell(_full_bits(x, places, bits, pattern))
                if ghost.zero or site.options.removed:
                    continue
                if ghost.bad is not None:
                    if any(bits):
                        return ce.bad(ghost.bad)
                    site.leak(place, pruned, f"psum: {ghost.bad}")
                    continue
                if not any(bits):
                    site.corrected(place, pruned, ghost.known is not None)
                found.append((pattern, ghost))
            base = x.cell(_full_bits(x, places, bits, (0,) * len(places)))
            if any(bits) and base.zero and not found:
                return ce.known(np.zeros((1,) * len(bits), x.dtype))
            mults = [_mult(lays, p) for p, _ in found]
            return ce.compute(
                functools.partial(run, mults), base, *[g for _, g in found]
            )

        return cell

    return [one(i, v) for i, v in enumerate(ins)]


# -- sort, top_k, cumulative, windows, reverse ---------------------------------------


def _freezing(dims: Callable[[Any, Any], Sequence[int]]) -> Callable[..., list[Axes]]:
    """The given dimensions are frozen and new; the operands' others are equal."""

    def analyze(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
        stuck = set(dims(eqn, ins))
        rank = len(ins[0].axes)
        full = [i for i in ins if len(i.axes) == rank]
        for info in full:
            for d in stuck:
                ctx.freeze(info.axes[d], "the position matters")
            for d in set(range(rank)) - stuck:
                ctx.unify(full[0].axes[d], info.axes[d])
        return [
            tuple(
                ctx.fixed(n, "the position matters") if d in stuck else full[0].axes[d]
                for d, n in enumerate(var.aval.shape)
            )
            for var in eqn.outvars
        ]

    return analyze


def _window_dims(eqn: Any, ins: Sequence[Any]) -> list[int]:
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


def passing_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
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
    "select_and_gather_add",
    "select_and_scatter_add",
)


def _last(eqn: Any, ins: Sequence[Any]) -> list[int]:
    return [len(ins[0].axes) - 1]


RULES: dict[str, Rule] = {
    "reduce_sum": Rule(sum_axes, reduce_cells, False, _fold_dense),
    **{
        name: Rule(order_axes, reduce_cells, False, _fold_dense)
        for name in _COMBINE
        if name != "reduce_sum"
    },
    **{
        name: Rule(frozen_sum_axes, frozen_reduce_cells)
        for name in ("reduce_xor", "argmax", "argmin", "reduce")
    },
    **{name: Rule(psum_axes, psum_cells) for name in ("psum", "psum2", "pmax", "pmin")},
    **{
        name: Rule(_freezing(lambda eqn, ins: [eqn.params["axis"]]), passing_cells)
        for name in _CUMULATIVE
    },
    **{name: Rule(_freezing(_window_dims), passing_cells) for name in _WINDOWS[:4]},
    "sort": Rule(_freezing(lambda eqn, ins: [eqn.params["dimension"]]), passing_cells),
    "top_k": Rule(_freezing(_last), passing_cells),
    "rev": Rule(_freezing(lambda eqn, ins: eqn.params["dimensions"]), passing_cells),
}
