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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jprune._groups import Role
from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes, split
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Cells, Value
from jprune.surgery._cost import Work
from jprune.surgery._layout import Layout
from jprune.surgery._registry import NoRule, Rule
from jprune.surgery._scope import Info
from jprune.surgery.rules._low_rank import contract, convolve


class Numbers(NamedTuple):
    """The dimension numbers of a product, for each of its two operands.

    Attributes:
      contract: dimensions that are summed over.
      batch: dimensions in common, which lead the result.
      free: the others; those of the left operand, then of the right, end the result.
    """

    contract: tuple[Sequence[int], Sequence[int]]
    batch: tuple[Sequence[int], Sequence[int]]
    free: tuple[Sequence[int], Sequence[int]]

    def operand_bits(self, place: int, bits: Bits, pattern: Bits, value: Value) -> Bits:
        """The bits of an operand: of its free, batch and summed axes."""
        start = len(self.batch[0]) + (len(self.free[0]) if place else 0)
        own = [0] * len(value.layouts)
        own_dims = (*self.batch[place], *self.free[place], *self.contract[place])
        here = bits[start : start + len(self.free[place])]
        given = (*bits[: len(self.batch[0])], *here, *pattern)
        for d, bit in zip(own_dims, given, strict=True):
            own[d] = bit
        return value.own(own)


def numbers_of(eqn: Equation) -> Numbers:
    """Of `dot_general`, or of a ragged product, whose groups are the result's rows."""
    given, group = eqn.params.get("dimension_numbers"), ()
    if given is None:
        ragged = eqn.params["ragged_dot_dimension_numbers"]
        given, group = ragged.dot_dimension_numbers, ragged.rhs_group_dimensions
    contract, batch = given
    ranks = [eqn.invars[i].aval.ndim for i in (0, 1)]
    used = [{*contract[0], *batch[0]}, {*contract[1], *batch[1], *group}]
    free = [
        [d for d in range(n) if d not in u] for n, u in zip(ranks, used, strict=True)
    ]
    return Numbers(contract, batch, (free[0], free[1]))


def dot_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Result: batch, then the free axes of the left and of the right operand."""
    n, (lhs, rhs) = numbers_of(eqn), (ins[0].axes, ins[1].axes)
    for a, b in (*zip(*n.contract, strict=True), *zip(*n.batch, strict=True)):
        site.unify(lhs[a], rhs[b])
    site.summed(*(lhs[d] for d in n.contract[0]))
    left, right = (*n.batch[0], *n.free[0]), n.free[1]
    return [(*(lhs[d] for d in left), *(rhs[d] for d in right))]


def dot_work(eqn: Equation) -> Work:
    """2 x outputs x contracted size."""
    result = tuple(range(eqn.outvars[0].aval.ndim))
    return Work(2, result, tuple((0, d) for d in numbers_of(eqn).contract[0]))


def dot_roles(eqn: Equation, place: int) -> dict[int, Role]:
    """Contracted axes are read, free ones produced."""
    if place > 1:
        return {}
    n = numbers_of(eqn)
    inside: dict[int, Role] = dict.fromkeys(n.contract[place], "in")
    return {**inside, **dict.fromkeys(n.free[place], "out")}


def dot_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    """The kept product, and what pairs of ghosts add."""
    lhs, rhs, *sizes = ins
    n = numbers_of(eqn)

    def operands(bits: Bits, pattern: Bits) -> tuple[Cell, Cell]:
        return (
            lhs.cell(n.operand_bits(0, bits, pattern, lhs)),
            rhs.cell(n.operand_bits(1, bits, pattern, rhs)),
        )

    def bind(left: Any, right: Any, *rest: Any) -> Any:
        return _compat.bind(eqn, eqn.params, [left, right, *rest])[0]

    ragged = "removed units of a ragged product are not zero" if sizes else ""
    rest = [v.kept for v in sizes]
    return [_contraction(site, operands, lhs, n.contract[0], bind, rest, ragged)]


def _contraction(
    site: CellSite,
    operands: Callable[[Bits, Bits], tuple[Cell, Cell]],
    lhs: Value,
    dims: Sequence[int],
    bind: Callable[..., Any],
    rest: Sequence[Cell] = (),
    unsupported: str = "",
) -> Cells:
    """The cells of a bilinear equation summed over some dimensions of `lhs`."""
    aval, name = site.eqn.outvars[0].aval, site.eqn.primitive.name
    lays = [lhs.layouts[d] for d in dims]
    pruned = [d for d in dims if lhs.layouts[d].pruned]
    kept, *removed = ce.patterns(lays)
    emptied = any(lay.pruned and lay.kept.size == 0 for lay in lays)

    def cell(bits: Bits) -> Cell:
        first = operands(bits, kept)
        found = site.ghosts(
            bits,
            removed,
            lambda pattern: operands(bits, pattern),
            pruned,
            unsupported=unsupported,
        )
        if isinstance(found, Cell):
            return found
        terms = found
        if not any(bits):
            why = ce.first_bad(first)
            if why:
                site.leak(0, pruned, f"{name}: {why}")
            elif not (emptied or any(c.nothing for c in first)):
                terms = [(kept, first), *found]
            elif not found:
                return ce.nothing(aval.ndim, aval.dtype)
        elif not any(c.zero for c in reversed(first)):
            terms = [(kept, first), *found]
        elif any(c.infinite for c in first):
            site.log.nonfinite.append((site.pruned_atoms(0, pruned), name))
        if not terms:
            return ce.known(np.zeros((1,) * aval.ndim, aval.dtype))
        mults = [ce.multiplicity(lays, p, dims, len(lhs.layouts)) for p, _ in terms]
        fn = functools.partial(_sum_products, bind, mults)
        return ce.compute(fn, *[c for _, pair in terms for c in pair], *rest, name=name)

    return cell


def _sum_products(
    bind: Callable[..., Any], mults: Sequence[np.ndarray | None], *arrays: Any
) -> Any:
    """The sum of one product for each pattern, weighed by its multiplicity."""
    rest, out = arrays[2 * len(mults) :], None
    for mult, left, right in zip(mults, arrays[::2], arrays[1::2], strict=False):
        if mult is not None:
            left = left * np.asarray(mult, left.dtype)
        term = bind(left, right, *rest)
        out = term if out is None else jnp.add(out, term)
    return out


# -- convolution ---------------------------------------------------------------------


def conv_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """Features like a contraction, batch passes, space stays."""
    p = eqn.params
    if p["batch_group_count"] != 1:
        raise NoRule("batch groups, which appear only in gradients")
    lhs, rhs, numbers = ins[0].axes, ins[1].axes, p["dimension_numbers"]
    groups = p["feature_group_count"]
    for d in numbers.lhs_spec[2:]:
        site.freeze(lhs[d], "a spatial axis of a convolution")
    for d in numbers.rhs_spec[2:]:
        site.freeze(rhs[d], "a spatial axis of a convolution")
    feature, inner = lhs[numbers.lhs_spec[1]], rhs[numbers.rhs_spec[1]]
    out_feature = rhs[numbers.rhs_spec[0]]
    if groups == 1:
        site.unify(feature, inner)
    else:
        g_in, c_in = split(feature, (groups, feature.size // groups))
        g_out, _ = split(out_feature, (groups, out_feature.size // groups))
        site.unify(c_in, inner)
        site.unify(g_in, g_out)
        if inner.size == 1:
            site.channelwise(ins[1], numbers.rhs_spec[0])
    shape = eqn.outvars[0].aval.shape
    out: list[Any] = [site.fixed(n, "a spatial axis of a convolution") for n in shape]
    out[numbers.out_spec[0]] = lhs[numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = out_feature
    site.summed(inner)
    return [tuple(out)]


def conv_work(eqn: Equation) -> Work:
    """2 x outputs x taps x input channels of a group; inserted zeros are no taps."""
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    kernel, image = eqn.invars[1].aval.shape, eqn.invars[0].aval.shape
    out, factor, result = eqn.outvars[0].aval.shape, 2, list(numbers.out_spec[:2])
    spans = zip(
        numbers.lhs_spec[2:],
        numbers.rhs_spec[2:],
        numbers.out_spec[2:],
        p["window_strides"],
        p["padding"],
        p["lhs_dilation"],
        p["rhs_dilation"],
        strict=True,
    )
    for here, tap, there, stride, pads, holes, spread in spans:
        reach = spread * (kernel[tap] - 1)
        if holes == 1 and not 0 < reach <= min(pads):
            factor *= kernel[tap]
            result.append(there)
        else:  # a transposed convolution: each element meets each tap it reaches
            sizes = (image[here], kernel[tap], out[there])
            factor *= _meetings(*sizes, stride, pads[0], holes, spread)
    return Work(factor, tuple(result), ((1, numbers.rhs_spec[1]),))


@functools.lru_cache(maxsize=4096)
def _meetings(
    n: int, taps: int, outs: int, stride: int, low: int, holes: int, spread: int
) -> int:
    """How many pairs of an output and a tap read an element of the image, on one axis.

    Args:
      n: elements of the image.
      taps: of the kernel.
      outs: of the result.
      stride: between windows.
      low: padding before the first element.
      holes: distance of two elements after zeros are inserted.
      spread: distance of two taps.
    """
    at = np.add.outer(np.arange(outs) * stride, np.arange(taps) * spread) - low
    return int(((at >= 0) & (at <= (n - 1) * holes) & (at % holes == 0)).sum())


def conv_roles(eqn: Equation, place: int) -> dict[int, Role]:
    """Of a kernel: its input features are read, its output features produced."""
    if place != 1:
        return {}
    out, inner, *_ = eqn.params["dimension_numbers"].rhs_spec
    return {out: "out", inner: "in"}


def conv_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    """As a contraction over the features of one group."""
    lhs, rhs = ins
    numbers = eqn.params["dimension_numbers"]
    n_dim, f_dim = numbers.lhs_spec[:2]
    o_dim, i_dim = numbers.rhs_spec[:2]
    groups = eqn.params["feature_group_count"]
    if groups > 1:
        return [_grouped(site, eqn, lhs, rhs, outs[0])]

    def operands(bits: Bits, pattern: Bits) -> tuple[Cell, Cell]:
        one, two = [0] * len(lhs.layouts), [0] * len(rhs.layouts)
        one[n_dim], one[f_dim] = bits[numbers.out_spec[0]], pattern[0]
        two[o_dim], two[i_dim] = bits[numbers.out_spec[1]], pattern[0]
        return lhs.cell(lhs.own(one)), rhs.cell(rhs.own(two))

    return [_contraction(site, operands, lhs, [f_dim], _convolve(eqn, 1))]


def _convolve(eqn: Equation, groups: int) -> Callable[[Any, Any], Any]:
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
    site: CellSite, eqn: Equation, lhs: Value, rhs: Value, out: Sequence[Layout]
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

    why = "a grouped convolution of removed channels that are not zero"

    def image(n_bit: int, f_bit: int) -> Cell:
        bits = [0] * len(lhs.layouts)
        bits[n_dim], bits[f_dim] = n_bit, f_bit
        return lhs.cell(lhs.own(bits))

    def kernel(o_bit: int, i_bit: int = 0) -> Cell:
        bits = [0] * len(rhs.layouts)
        bits[o_dim], bits[i_dim] = o_bit, i_bit
        return rhs.cell(rhs.own(bits))

    def cell(bits: Bits) -> Cell:
        n_bit, o_bit = bits[numbers.out_spec[0]], bits[numbers.out_spec[1]]
        if o_bit:
            return ghost(n_bit)
        if inner.pruned:  # removed channels inside the groups
            pairs = lambda _: (image(n_bit, 1), kernel(0, 1))  # noqa: E731
            site.ghosts((0,), [(1,)], pairs, [f_dim], unsupported=why)
        groups = feature.kept.size // max(inner.kept.size, 1)
        run = _convolve(eqn, max(groups, 1))
        return ce.compute(run, image(n_bit, 0), kernel(0))

    def ghost(n_bit: int) -> Cell:
        zero = image(n_bit, 1).zero and not inner.pruned
        if kernel(1).zero or (zero and feature.size == dense_groups):
            return ce.known(np.zeros((1,) * rank, dtype))
        same = out[numbers.out_spec[1]].classes.size == feature.classes.size
        if inner.size > 1 or not same:
            return ce.bad(why)
        run = _convolve(eqn, feature.classes.size)
        return ce.compute(run, image(n_bit, 1), kernel(1))

    return cell


# -- ragged --------------------------------------------------------------------------


def ragged_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Axes]:
    """`ragged_dot`: rows and groups stay, features like a contraction."""
    given, n = eqn.params["ragged_dot_dimension_numbers"], numbers_of(eqn)
    lhs, rhs = ins[0].axes, ins[1].axes
    ragged, group = given.lhs_ragged_dimensions, given.rhs_group_dimensions
    if set(ragged) & {*n.contract[0], *n.batch[0]} or len(group) != 1:
        raise NoRule("a ragged contracted or batch axis")
    for term in (*(lhs[d] for d in ragged), *(rhs[d] for d in group), *ins[2].axes):
        site.freeze(term, "rows of a ragged product")
    return dot_axes(site, eqn, ins)


RULES: dict[str, Rule] = {
    "conv_general_dilated": Rule(
        axes=conv_axes,
        cells=conv_cells,
        role=conv_roles,
        work=conv_work,
        low_rank=convolve,
    ),
    "dot_general": Rule(
        axes=dot_axes,
        cells=dot_cells,
        role=dot_roles,
        work=dot_work,
        low_rank=contract,
    ),
    "ragged_dot_general": Rule(
        axes=ragged_axes, cells=dot_cells, role=dot_roles, work=dot_work
    ),
}
