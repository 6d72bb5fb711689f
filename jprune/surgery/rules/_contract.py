"""Contractions: products summed over axes that both operands share.

Contracted axes are unified; batch axes too; every free axis passes. For cells, a
contraction is a sum: kept x kept, plus multiplicity x ghost x ghost for each pattern of
removed classes on the contracted axes. Either ghost being a known zero removes the
term, and parameters' ghosts are zero: nearly always nothing is emitted.

A grouped convolution is a product axis: the input features are `G.c_in`, the output
features `G.c_out`, the kernel's input axis is `c_in`. Removing coordinates of G removes
whole groups; a depthwise convolution has `c_in = 1`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune._jaxpr import _compat
from jprune.surgery import _cells as ce
from jprune.surgery._axes import Axes, split
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._cost import Contraction
from jprune.surgery._layout import Layout
from jprune.surgery._registry import Rule


def dot_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Result: batch, then the free axes of the left and of the right operand."""
    (contract, batch) = eqn.params["dimension_numbers"]
    lhs, rhs = ins[0].axes, ins[1].axes
    for a, b in [*zip(*contract, strict=True), *zip(*batch, strict=True)]:
        ctx.unify(lhs[a], rhs[b])
    out = (
        *(lhs[d] for d in batch[0]),
        *(lhs[d] for d in _free(lhs, contract[0], batch[0])),
        *(rhs[d] for d in _free(rhs, contract[1], batch[1])),
    )
    inner = tuple(lhs[d] for d in contract[0])
    ctx.summed.extend(inner)
    ctx.costs.append(Contraction(2 * ctx.repeat, (*out, *inner)))
    return [out]


def _free(axes: Sequence[Any], *used: Sequence[int]) -> list[int]:
    taken = {d for dims in used for d in dims}
    return [d for d in range(len(axes)) if d not in taken]


def dot_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """The kept product, and what pairs of ghosts add."""
    lhs, rhs = ins
    contract, batch = eqn.params["dimension_numbers"]
    free = (
        _free(lhs.layouts, contract[0], batch[0]),
        _free(rhs.layouts, contract[1], batch[1]),
    )
    lays = [lhs.layouts[d] for d in contract[0]]
    pruned = [d for d in contract[0] if lhs.layouts[d].pruned]
    n_batch, n_left = len(batch[0]), len(free[0])

    def operands(bits: Bits, pattern: Bits) -> tuple[Cell, Cell]:
        b, left, right = (
            bits[:n_batch],
            bits[n_batch : n_batch + n_left],
            bits[n_batch + n_left :],
        )
        one = _place(lhs, (batch[0], b), (free[0], left), (contract[0], pattern))
        two = _place(rhs, (batch[1], b), (free[1], right), (contract[1], pattern))
        return lhs.cell(one), rhs.cell(two)

    def weigh(pattern: Bits, array: Any) -> Any:
        mult = _spread(lays, pattern, contract[0], array.ndim)
        return array if mult is None else array * np.asarray(mult, array.dtype)

    bind = lambda a, b: _compat.bind(eqn, eqn.params, [a, b])[0]  # noqa: E731
    cell = _contraction(site, eqn, bind, operands, lays, pruned, weigh)
    return [cell]


def _place(value: Value, *parts: tuple[Sequence[int], Bits]) -> Bits:
    bits = [0] * len(value.layouts)
    for dims, chosen in parts:
        for d, b in zip(dims, chosen, strict=True):
            bits[d] = b if value.layouts[d].pruned else 0
    return tuple(bits)


def _spread(
    lays: Sequence[Layout], pattern: Bits, dims: Sequence[int], ndim: int
) -> np.ndarray | None:
    """Multiplicities of a pattern over some axes of an operand; None if all are 1."""
    out = np.ones((1,) * ndim)
    for lay, bit, d in zip(lays, pattern, dims, strict=True):
        if bit:
            shape = [1] * ndim
            shape[d] = lay.mult.size
            out = out * lay.mult.reshape(shape)
    return None if (out == 1).all() else out


def _contraction(
    site: Any,
    eqn: Any,
    bind: Callable[[Any, Any], Any],
    operands: Callable[[Bits, Bits], tuple[Cell, Cell]],
    lays: Sequence[Layout],
    pruned: Sequence[int],
    weigh: Callable[[Bits, Any], Any],
) -> Callable[[Bits], Cell]:
    """The cells of a bilinear equation summed over the axes `lays`."""
    name = eqn.primitive.name
    dtype = eqn.outvars[0].aval.dtype
    rank = eqn.outvars[0].aval.ndim
    all_patterns = ce.patterns(lays)

    def cell(bits: Bits) -> Cell:
        terms: list[tuple[Bits, Cell, Cell]] = []
        for pattern in all_patterns:
            ghostly, kept_out = any(pattern), not any(bits)
            if ghostly and site.options.removed:
                break
            left, right = operands(bits, pattern)
            if (ghostly or not kept_out) and (left.zero or right.zero):
                if _infinite(left) or _infinite(right):
                    site.log.nonfinite.append((site.pruned_atoms(0, pruned), name))
                continue
            why = ce.first_bad((left, right))
            if why and kept_out:
                site.leak(0, pruned, f"{name}: {why}")
                continue
            if why:
                return ce.bad(why)
            if ghostly and kept_out:
                both = left.known is not None and right.known is not None
                site.corrected(0, pruned, both)
            terms.append((pattern, left, right))
        if not terms:
            return ce.known(np.zeros((1,) * rank, dtype))
        fn = functools.partial(_run, bind, [p for p, _, _ in terms], weigh)
        return ce.compute(fn, *[c for _, a, b in terms for c in (a, b)], name=name)

    return cell


def _infinite(cell: Cell) -> bool:
    return (
        cell.known is not None
        and np.issubdtype(cell.known.dtype, np.inexact)
        and not bool(np.isfinite(cell.known).all())
    )


def _run(
    bind: Callable[[Any, Any], Any],
    chosen: Sequence[Bits],
    weigh: Callable[[Bits, Any], Any],
    *arrays: Any,
) -> Any:
    out = None
    for i, pattern in enumerate(chosen):
        left, right = arrays[2 * i], arrays[2 * i + 1]
        if any(pattern):
            left = weigh(pattern, left)
        term = bind(left, right)
        out = term if out is None else jnp.add(out, term)
    return out


# -- convolution ---------------------------------------------------------------------


def conv_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """Features like a contraction, batch passes, space stays."""
    p = eqn.params
    if p["batch_group_count"] != 1:
        raise NotImplementedError("batch groups, which appear only in gradients")
    lhs, rhs, numbers = ins[0].axes, ins[1].axes, p["dimension_numbers"]
    groups = p["feature_group_count"]
    for d in numbers.lhs_spec[2:]:
        ctx.freeze(lhs[d], "a spatial axis of a convolution")
    for d in numbers.rhs_spec[2:]:
        ctx.freeze(rhs[d], "a spatial axis of a convolution")
    feature, inner = lhs[numbers.lhs_spec[1]], rhs[numbers.rhs_spec[1]]
    out_feature = rhs[numbers.rhs_spec[0]]
    if groups == 1:
        ctx.unify(feature, inner)
    else:
        g_in, c_in = split(feature, (groups, feature.size // groups))
        g_out, _ = split(out_feature, (groups, out_feature.size // groups))
        ctx.unify(c_in, inner)
        ctx.unify(g_in, g_out)
    shape = eqn.outvars[0].aval.shape
    out: list[Any] = [ctx.fixed(n, "a spatial axis of a convolution") for n in shape]
    out[numbers.out_spec[0]] = lhs[numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = out_feature
    ctx.summed.append(inner)
    taps = math.prod(rhs[d].size for d in numbers.rhs_spec[2:])
    ctx.costs.append(Contraction(2 * taps * ctx.repeat, (*out, inner)))
    return [tuple(out)]


def conv_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """As a contraction over the features of one group."""
    lhs, rhs = ins
    numbers = eqn.params["dimension_numbers"]
    n_dim, f_dim = numbers.lhs_spec[:2]
    o_dim, i_dim = numbers.rhs_spec[:2]
    groups = eqn.params["feature_group_count"]
    if groups > 1:
        return [_grouped(site, eqn, lhs, rhs, outs[0])]
    lays = [lhs.layouts[f_dim]]

    def operands(bits: Bits, pattern: Bits) -> tuple[Cell, Cell]:
        one = _place(lhs, ((n_dim,), (bits[numbers.out_spec[0]],)), ((f_dim,), pattern))
        two = _place(rhs, ((o_dim,), (bits[numbers.out_spec[1]],)), ((i_dim,), pattern))
        return lhs.cell(one), rhs.cell(two)

    def weigh(pattern: Bits, array: Any) -> Any:
        mult = _spread(lays, pattern, (f_dim,), array.ndim)
        return array if mult is None else array * np.asarray(mult, array.dtype)

    pruned = [f_dim] if lays[0].pruned else []
    bind = _convolve(eqn, 1)
    cell = _contraction(site, eqn, bind, operands, lays, pruned, weigh)
    return [cell]


def _convolve(eqn: Any, groups: int) -> Callable[[Any, Any], Any]:
    """The convolution with another number of groups, on operands that may be empty.

    An emptied feature axis makes the result a sum over nothing. XLA has no convolution
    of no features, so the zeros are made directly.
    """
    params = {**eqn.params, "feature_group_count": groups}
    spec, aval = params["dimension_numbers"], eqn.outvars[0].aval

    def run(left: Any, right: Any) -> Any:
        if left.size and right.size:
            return _compat.bind(eqn, params, [left, right])[0]
        shape = list(aval.shape)
        shape[spec.out_spec[0]] = left.shape[spec.lhs_spec[0]]
        shape[spec.out_spec[1]] = right.shape[spec.rhs_spec[0]]
        return jnp.zeros(shape, aval.dtype)

    return run


def _grouped(
    site: Any, eqn: Any, lhs: Value, rhs: Value, out: Sequence[Layout]
) -> Callable[[Bits], Cell]:
    """Cells of a grouped convolution.

    A ghost of the result is zero where the kernel's is. In a depthwise convolution the
    removed channels are groups of their own and convolve like the kept ones. Inside a
    group, removed input channels add nothing where either ghost is zero; two ghosts
    that are not are more than this rule can say.
    """
    numbers = eqn.params["dimension_numbers"]
    dense_groups = eqn.params["feature_group_count"]
    n_dim, f_dim = numbers.lhs_spec[:2]
    o_dim, i_dim = numbers.rhs_spec[:2]
    feature, inner = lhs.layouts[f_dim], rhs.layouts[i_dim]
    rank, dtype = len(out), eqn.outvars[0].aval.dtype

    def cell(bits: Bits) -> Cell:
        n_bit, o_bit = bits[numbers.out_spec[0]], bits[numbers.out_spec[1]]
        kernel = rhs.cell(_place(rhs, ((o_dim,), (o_bit,))))
        if o_bit:
            return ghost(n_bit, kernel)
        image = lhs.cell(_place(lhs, ((n_dim,), (n_bit,)), ((f_dim,), (0,))))
        if inner.pruned and not site.options.removed:
            crossing(n_bit, bits)
        kept_inner = max(inner.kept.size, 1)
        groups = feature.kept.size // kept_inner
        return ce.compute(_convolve(eqn, max(groups, 1)), image, kernel)

    def ghost(n_bit: int, kernel: Cell) -> Cell:
        if kernel.zero:
            return ce.known(np.zeros((1,) * rank, dtype))
        image = lhs.cell(_place(lhs, ((n_dim,), (n_bit,)), ((f_dim,), (1,))))
        if image.zero and not inner.pruned and feature.size == dense_groups:
            return ce.known(np.zeros((1,) * rank, dtype))
        same = out[numbers.out_spec[1]].classes.size == feature.classes.size
        if inner.size > 1 or not same:
            return ce.bad("a grouped convolution of removed channels that are not zero")
        return ce.compute(_convolve(eqn, feature.classes.size), image, kernel)

    def crossing(n_bit: int, bits: Bits) -> None:
        image = lhs.cell(_place(lhs, ((n_dim,), (n_bit,)), ((f_dim,), (1,))))
        kernel = rhs.cell(_place(rhs, ((o_dim,), (0,)), ((i_dim,), (1,))))
        if not (image.zero or kernel.zero):
            why = "a grouped convolution of removed channels that are not zero"
            site.leak(0, [f_dim], why)

    return cell


# -- ragged --------------------------------------------------------------------------


def ragged_axes(ctx: Any, eqn: Any, ins: Sequence[Any]) -> list[Axes]:
    """`ragged_dot`: rows and groups stay, features like a contraction."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contract, batch) = numbers.dot_dimension_numbers
    lhs, rhs = ins[0].axes, ins[1].axes
    ragged, group = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    if set(ragged) & {*contract[0], *batch[0]} or len(group) != 1:
        raise NotImplementedError("a ragged contracted or batch axis")
    for term in (*(lhs[d] for d in ragged), *(rhs[d] for d in group), *ins[2].axes):
        ctx.freeze(term, "rows of a ragged product")
    for a, b in [*zip(*contract, strict=True), *zip(*batch, strict=True)]:
        ctx.unify(lhs[a], rhs[b])
    out = (
        *(lhs[d] for d in batch[0]),
        *(lhs[d] for d in _free(lhs, contract[0], batch[0])),
        *(rhs[d] for d in _free(rhs, contract[1], batch[1], group)),
    )
    inner = tuple(lhs[d] for d in contract[0])
    ctx.summed.extend(inner)
    ctx.costs.append(Contraction(2 * ctx.repeat, (*out, *inner)))
    return [out]


def ragged_cells(site: Any, eqn: Any, ins: list[Value], outs: Any) -> list[Any]:
    """As `dot_general`, the group sizes carried along."""
    lhs, rhs, sizes = ins
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contract, batch = numbers.dot_dimension_numbers
    free = (
        _free(lhs.layouts, contract[0], batch[0]),
        _free(rhs.layouts, contract[1], batch[1], numbers.rhs_group_dimensions),
    )
    lays = [lhs.layouts[d] for d in contract[0]]
    pruned = [d for d in contract[0] if lhs.layouts[d].pruned]
    n_batch, n_left = len(batch[0]), len(free[0])
    rank, dtype = len(outs[0]), eqn.outvars[0].aval.dtype

    def cell(bits: Bits) -> Cell:
        parts = (
            bits[:n_batch],
            bits[n_batch : n_batch + n_left],
            bits[n_batch + n_left :],
        )
        for pattern in ce.patterns(lays)[1:]:
            left = lhs.cell(
                _place(
                    lhs,
                    (batch[0], parts[0]),
                    (free[0], parts[1]),
                    (contract[0], pattern),
                )
            )
            right = rhs.cell(
                _place(
                    rhs,
                    (batch[1], parts[0]),
                    (free[1], parts[2]),
                    (contract[1], pattern),
                )
            )
            if not (left.zero or right.zero or site.options.removed):
                why = "a ragged product of removed units that are not zero"
                if any(bits):
                    return ce.bad(why)
                site.leak(0, pruned, why)
        left = lhs.cell(_place(lhs, (batch[0], parts[0]), (free[0], parts[1])))
        right = rhs.cell(_place(rhs, (batch[1], parts[0]), (free[1], parts[2])))
        if any(bits) and (left.zero or right.zero):
            return ce.known(np.zeros((1,) * rank, dtype))
        return ce.compute(
            lambda a, b, n: _compat.bind(eqn, eqn.params, [a, b, n])[0],
            left,
            right,
            sizes.kept,
        )

    return [cell]


RULES: dict[str, Rule] = {
    "conv_general_dilated": Rule(conv_axes, conv_cells),
    "dot_general": Rule(dot_axes, dot_cells),
    "ragged_dot_general": Rule(ragged_axes, ragged_cells),
}
