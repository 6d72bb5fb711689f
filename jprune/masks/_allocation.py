r"""Allocations: how a global sparsity is spread over the leaves.

Each function returns a tree of Python floats, the sparsity of each leaf, ready for the
`sparsity` argument of a pattern. The real-valued allocation of the paper is turned into
integers by largest remainders, so the counts add up to the global count exactly.
"""

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from math import floor, prod
from typing import Any

import jax
import numpy as np

from jprune._errors import require_regex, value_error
from jprune._stacks import layer_shape, stack_shape, stacked_axes
from jprune._tree import matches
from jprune._typing import Params, PyTree
from jprune.masks._count import exact, is_traced, kept_count, require_sparsity
from jprune.masks._scope import in_scope, in_scope_list, resolve_scope, scoped_names

Shape = tuple[int, ...]


def uniform(
    params: Params,
    sparsity: float,
    scope: Any = None,
    *,
    most: Mapping[str, float] | None = None,
    stacked: Any = None,
) -> PyTree:
    """The same sparsity in every leaf, with an exact total.

    (`ranking="leaf"` with a plain number rounds each leaf by itself instead.)

    Args:
      params: gives the shapes.
      sparsity: global sparsity in [0, 1), concrete.
      scope: see `masks.unstructured`.
      most: the largest sparsity of the leaves that a regular expression matches; the
        first that does counts. The others make up for it. `{"^conv1/": 0.0, "^fc/":
        0.8}` is Uniform+: the first convolution dense, the last layer at most at 80 %.
      stacked: see `masks.unstructured`.

    Returns:
      A tree of floats; 0.0 for leaves out of scope. A stack of layers has an array, the
      sparsity of each layer.

    Raises:
      ValueError: `sparsity` outside [0, 1), or as `masks.unstructured` for `scope`; a
        bound outside [0, 1], an expression that matches nothing, or bounds under which
        the sparsity cannot be reached.

    References:
      Gale, Elsen and Hooker, "The State of Sparsity in Deep Neural Networks", arXiv
      1902.09574, section 5 (Uniform+).
    """
    return _allocate(params, sparsity, scope, lambda shape: Fraction(1), stacked, most)


def erdos_renyi(
    params: Params, sparsity: float, scope: Any = None, *, stacked: Any = None
) -> PyTree:
    r"""Erdos-Renyi: density $\propto (n_{in} + n_{out}) / (n_{in} n_{out})$.

    $n_{in}, n_{out}$ are the last two axes; the spatial axes of a convolution do not
    count. A leaf whose density would pass 1 stays dense and the others make up for it.

    Args:
      params: gives the shapes; leaves in scope need two axes.
      sparsity: global sparsity in [0, 1), concrete.
      scope: see `masks.unstructured`.
      stacked: see `masks.unstructured`.

    Returns:
      A tree of floats; 0.0 for leaves out of scope. A stack of layers has an array, the
      sparsity of each layer.

    Raises:
      ValueError: a leaf in scope with fewer than two axes, or as `uniform`.

    References:
      Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive
      Sparse Connectivity inspired by Network Science", Nature Communications 2018, eq.
      (3).
    """
    return _allocate(params, sparsity, scope, lambda shape: _ratio(shape[-2:]), stacked)


def erk(
    params: Params,
    sparsity: float,
    scope: Any = None,
    power: float = 1,
    *,
    stacked: Any = None,
) -> PyTree:
    r"""Erdos-Renyi-kernel: density $\propto \sum_i d_i / \prod_i d_i$ over all axes.

    Args:
      params: gives the shapes; leaves in scope need two axes.
      sparsity: global sparsity in [0, 1), concrete.
      scope: see `masks.unstructured`.
      power: exponent of the ratio; 1 in the paper.
      stacked: see `masks.unstructured`.

    Returns:
      A tree of floats; 0.0 for leaves out of scope. A stack of layers has an array, the
      sparsity of each layer.

    Raises:
      ValueError: a leaf in scope with fewer than two axes, or as `uniform`.

    References:
      Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, section
      3 (1). The reference code floors each leaf's zeros; here the total is exact.
    """
    return _allocate(
        params, sparsity, scope, lambda shape: Fraction(_ratio(shape) ** power), stacked
    )


def _ratio(shape: Shape) -> Fraction:
    if len(shape) < 2:
        raise value_error(
            "An Erdos-Renyi allocation needs leaves with two or more axes, got one of "
            f"shape {shape} in scope."
        )
    return Fraction(sum(shape), prod(shape)) if prod(shape) else Fraction(1)


def _allocate(
    params: Params,
    sparsity: float,
    scope: Any,
    ratio: Callable[[Shape], Fraction],
    stacked: Any,
    most: Mapping[str, float] | None = None,
) -> PyTree:
    if is_traced(sparsity):
        raise value_error(
            "An allocation is made on the host: `sparsity` must not be traced."
        )
    require_sparsity(sparsity)
    scope = resolve_scope(scope, params)
    axes = in_scope_list(stacked_axes(params, stacked), scope)
    whole = [tuple(np.shape(x)) for x in in_scope(params, scope)]
    stacks = [stack_shape(s, a) for s, a in zip(whole, axes, strict=True)]
    # One entry for each layer of a stack, as if they were leaves of their own.
    shapes = [
        layer_shape(s, a)
        for s, a, stack in zip(whole, axes, stacks, strict=True)
        for _ in range(prod(stack))
    ]
    sizes = [prod(shape) for shape in shapes]
    if most:
        names = zip(scoped_names(params, scope), stacks, strict=True)
        layers = [name for name, stack in names for _ in range(prod(stack))]
        wanted = _bounded(layers, sizes, sparsity, most)
    else:
        wanted = densities(sizes, [ratio(shape) for shape in shapes], sparsity)
    kept = largest_remainder(wanted, sizes, kept_count(sum(sizes), sparsity))
    # Read back by the counting rule, 1 - k/n gives exactly k again.
    shares = [1 - k / max(n, 1) for k, n in zip(kept, sizes, strict=True)]
    rest, leaves = iter(shares), iter(stacks)
    return jax.tree.map(lambda taken: _next(rest, leaves) if taken else 0.0, scope)


def _bounded(
    names: list[str], sizes: list[int], sparsity: float, most: Mapping[str, float]
) -> list[Fraction]:
    """One density for all but the leaves whose sparsity it would put above a bound."""
    least = [Fraction(0)] * len(names)
    for pattern, bound in reversed(list(most.items())):
        require_regex("most", pattern)
        matched = [i for i, name in enumerate(names) if matches(pattern, name)]
        if not matched or not 0 <= bound <= 1:
            raise value_error(
                f"`most` must map expressions for leaf paths to sparsities in [0, 1]; "
                f"{pattern!r}: {bound} "
                + ("is out of range." if matched else "matches no leaf in scope.")
            )
        for i in matched:  # upwards to whole scalars, so that rounding keeps the bound
            kept = sizes[i] - floor(exact(bound) * sizes[i])
            least[i] = Fraction(kept, max(sizes[i], 1))
    left = Fraction(kept_count(sum(sizes), sparsity))
    bound, rest = set(), set(range(len(names)))
    while rest:
        held = sum(least[i] * sizes[i] for i in bound)
        common = (left - held) / max(sum(sizes[i] for i in rest), 1)
        over = {i for i in rest if least[i] > common}
        if common < 0 or over == rest:
            fewest = sum(d * n for d, n in zip(least, sizes, strict=True))
            raise value_error(
                f"`sparsity` {sparsity} cannot be reached: under `most` at least "
                f"{int(fewest)} of {sum(sizes)} weights stay."
            )
        if not over:
            return [least[i] if i in bound else common for i in range(len(names))]
        bound, rest = bound | over, rest - over
    return least


def _next(shares: Iterator[float], stacks: Iterator[Shape]) -> float | np.ndarray:
    """The share of the next leaf, or the shares of its layers."""
    stack = next(stacks)
    if not stack:
        return next(shares)
    return np.array([next(shares) for _ in range(prod(stack))]).reshape(stack)


def densities(
    sizes: list[int], ratio: list[Fraction], sparsity: float
) -> list[Fraction]:
    r"""$d_l = \min(1, \epsilon r_l)$ with $\sum_l d_l N_l = (1 - S) \sum_l N_l$.

    Whenever the largest density passes 1, the leaves that attain it become dense and
    $\epsilon$ is solved again for the rest.
    """
    left = (1 - exact(sparsity)) * sum(sizes)
    rest = [i for i, n in enumerate(sizes) if n]
    density = [Fraction(1)] * len(sizes)
    while rest:
        epsilon = left / sum(ratio[i] * sizes[i] for i in rest)
        largest = max(ratio[i] for i in rest)
        if epsilon * largest <= 1:
            break
        left -= sum(sizes[i] for i in rest if ratio[i] == largest)
        rest = [i for i in rest if ratio[i] < largest]
    for i in rest:
        density[i] = epsilon * ratio[i]
    return density


def largest_remainder(
    wanted: list[Fraction], sizes: list[int], total: int
) -> list[int]:
    """Integers near `wanted[i] * sizes[i]` that add up to `total`; ties by position."""
    real = [d * n for d, n in zip(wanted, sizes, strict=True)]
    kept = [floor(x) for x in real]
    by_remainder = sorted(range(len(real)), key=lambda i: kept[i] - real[i])
    for i in by_remainder[: total - sum(kept)]:
        kept[i] += 1
    return kept
