r"""Kernels of low rank become two thin ones: less to store, and less to compute.

A kernel W of rank k is a product, $W = A B$ with $A = U_k \sqrt{s_k}$ and
$B = \sqrt{s_k} V_k^T$. A contraction with W is then two, the first k wide:

* a matrix (in, out): two matrices (in, k) and (k, out);
* channel-wise, a convolution: $H \times W$ to k channels, with the layer's own stride
  and padding, then 1 x 1;
* spatial-wise: $H \times 1$ with the stride and padding of the height, then
  $1 \times W$ with those of the width;
* decoupled: 1 x 1 to k channels for each output, then a depthwise $H \times W$.

The outer shapes stay, so that nothing around the layer changes: biases, norms, residual
sums. The network is the one whose kernels are truncated, not an approximation of it.

Which contraction that is, the program says, not a layer's name: the function is traced
and evaluated with products in the place of kernels. So the result is a function as the
one given, for `jit`, `grad`, `vmap`, `surgery.groups` (the k axis is a group) and other
batch sizes.

Xu et al., "TRP: Trained Rank Pruning for Efficient Deep Neural Networks", IJCAI 2020
(arXiv 2004.14566, 1812.02402).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._dtypes import owned
from jprune._errors import listing, value_error
from jprune._factors import Factors, Thin, split
from jprune._finite import require_finite
from jprune._jaxpr import _compat
from jprune._jaxpr._trace import is_array, jitted_call, trace
from jprune._tree import (
    KeyTuple,
    named_leaves,
    path_keys,
    path_text,
    require_same_structure,
)
from jprune._typing import PyTree
from jprune._unfolding import (
    Unfold,
    Unfolding,
    first_values,
    folded,
    spectrum,
    unfolding_of,
)
from jprune.compress._difference import relative_difference, require_shown
from jprune.compress._thin import Walk


class LowRank(NamedTuple):
    """The result of `low_rank`.

    Attributes:
      fn: `fn(params, *args, **kwargs)`, as the function given, for these parameters.
      params: the parameters with `Factors` in the place of the kernels that were split.
      ranks: by path, the rank of each of them.
      whole: by path, why a leaf with a rank was left whole.
    """

    fn: Callable[..., Any]
    params: PyTree
    ranks: dict[str, int]
    whole: dict[str, str]


class _Kernel(NamedTuple):
    """What the function expects where there are factors now."""

    path: KeyTuple
    shape: tuple[int, ...]
    unfolding: Unfolding


def low_rank(
    fn: Callable[..., Any],
    params: PyTree,
    ranks: PyTree | Mapping[str, Any],
    *args: Any,
    kind: Unfold = "channel",
    break_even: bool = True,
    tolerance: float | None = None,
) -> LowRank:
    """Splits kernels in two, at given ranks.

    Args:
      fn: `fn(params, *args, **kwargs)`, any function of any pytree.
      params: the parameters. A kernel that is not of its rank is truncated by the way.
      ranks: a tree of integers with the structure of `params`, 0 where a leaf stays
        whole (`Truncated.ranks`, or `ranks` of the state of `truncate_rank`); or a
        mapping from path texts to integers. An array has one rank for each matrix of a
        kernel; the largest is the width.
      *args: arguments to check the result on: a few real examples. Without them, a use
        that cannot be factored is found when the result is first called.
      kind: how kernels are read as matrices, the same as in training; see
        `compress.truncate`.
      break_even: leave a kernel whole whose factors would hold as many numbers as it.
      tolerance: how far the outputs may differ from those of the truncated kernels,
        relative to the largest. Default: `64 * eps ** 0.75` of the kernels'
        dtype, 4e-4 in float32.

    Returns:
      A `LowRank`. Its parameters can be trained on as they are.

    Raises:
      ValueError: ranks that fit no leaf or are out of range; a kernel that is not
        finite; nothing to split; with `args`, outputs that differ, or are NaN, 0 or
        none, which shows nothing. With `args`, and whenever the result is called: a
        kernel that the function reads in a way that two factors cannot serve (an
        element-wise function of it, a grouped convolution, a contraction over other
        axes than its rows or its columns), each named with the reason.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jprune import compress
      >>> def net(p, x):
      ...     return jax.nn.relu(x @ p["w"])
      >>> params = {"w": jnp.outer(jnp.arange(4.0), jnp.ones(6))}
      >>> thin = compress.low_rank(net, params, {"w": 1}, jnp.ones((2, 4)))
      >>> jax.tree.map(jnp.shape, thin.params["w"])
      Factors(first=(4, 1), second=(1, 6))
      >>> thin.fn(thin.params, jnp.ones((1, 4))).round(4)
      Array([[6., 6., 6., 6., 6., 6.]], dtype=float32)

    References:
      Xu et al., arXiv 2004.14566; factors of the authors' `decompose.py`, which knows
      3 x 3 kernels of stride 1 only and puts all of s on the second spatial factor.
    """
    asked = _asked(ranks, params)
    kernels: dict[str, _Kernel] = {}
    pairs: dict[str, Factors] = {}
    whole: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_text(path)
        if name not in asked:
            continue
        unfolding = unfolding_of(name, leaf, kind)
        rank = _rank(name, asked[name], leaf, unfolding)
        why = _too_large(rank, leaf, unfolding) if break_even else ""
        if why:
            whole[name] = why
            continue
        require_finite(
            "`params`",
            [(name, leaf)],
            "a kernel with NaN or infinities has no singular values.",
        )
        kernels[name] = _Kernel(path_keys(path), tuple(leaf.shape), unfolding)
        parts = spectrum(leaf, unfolding)
        keep = first_values(parts.s, rank)
        pairs[name] = split(parts, keep, unfolding, leaf)
    if not kernels:
        raise value_error(
            "No kernel would be split: `ranks` has none below the break-even of its "
            f"kernel.{listing([f'{name}: {why}' for name, why in whole.items()])}"
        )
    result = LowRank(
        _thinned(fn, kernels),
        owned(_replaced(params, pairs), params),
        {name: int(np.max(asked[name])) for name in kernels},
        whole,
    )
    if args:
        cut = {name: _whole(pair, kernels[name]) for name, pair in pairs.items()}
        _compare(fn, _replaced(params, cut), result, args, tolerance)
    return result


def _replaced(params: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves.get(path_text(path), leaf), params
    )


def _asked(ranks: PyTree, params: PyTree) -> dict[str, np.ndarray]:
    """The ranks that are not 0, by path."""
    leaves = dict(named_leaves(params))
    if jax.tree.structure(ranks) == jax.tree.structure(params):
        given = dict(named_leaves(ranks))
    elif isinstance(ranks, Mapping):
        given = dict(ranks)
        unknown = [name for name in given if name not in leaves]
        if unknown:
            raise value_error(
                f"`ranks` names no leaf with {unknown}. A key is a path text; the "
                f"leaves are:{listing(list(leaves))}"
            )
    else:
        require_same_structure("ranks", ranks, params)
    traced = [name for name, rank in given.items() if _compat.is_tracer(rank)]
    if traced:
        raise value_error(
            "`ranks` decide shapes, so they must be known: call `low_rank` outside of "
            f"`jit`. Traced at:{listing(traced)}"
        )
    arrays = {name: np.asarray(rank) for name, rank in given.items()}
    return {name: rank for name, rank in arrays.items() if rank.any()}


def _rank(name: str, given: np.ndarray, leaf: Any, unfolding: Unfolding) -> np.ndarray:
    """The rank of each matrix of a kernel, [*each]."""
    _, rows, columns = unfolding.sizes(leaf.shape)
    each = tuple(leaf.shape[a] for a in unfolding.each)
    most = min(rows, columns)
    fits = given.dtype.kind in "iu" and given.shape in ((), each)
    if not fits or given.min() < 1 or given.max() > most:
        raise value_error(
            f"`ranks` at {name} must be integers from 1 to {most}, one or of shape "
            f"{each}, for a kernel of shape {tuple(leaf.shape)} read as {rows} x "
            f"{columns}; got {given.dtype} of shape {given.shape}: {given}."
        )
    return np.broadcast_to(given, each)


def _too_large(rank: np.ndarray, leaf: Any, unfolding: Unfolding) -> str:
    """Why splitting would not pay, or nothing."""
    count, rows, columns = unfolding.sizes(leaf.shape)
    width, even = int(rank.max()), rows * columns / (rows + columns)
    if width < even:
        return ""
    return f"rank {width} of {rows} x {columns} is not below break-even at {even:.1f}"


def _whole(pair: Factors, kernel: _Kernel) -> jax.Array:
    """The truncated kernel: the product of its factors."""
    count, rows, columns = kernel.unfolding.sizes(kernel.shape)
    first = pair.first.reshape(count, rows, -1)
    second = pair.second.reshape(count, -1, columns)
    like = jax.ShapeDtypeStruct(kernel.shape, pair.first.dtype)
    product = jnp.matmul(first, second, precision=jax.lax.Precision.HIGHEST)
    return folded(product, kernel.unfolding, like)


def _thinned(
    fn: Callable[..., Any], kernels: Mapping[str, _Kernel]
) -> Callable[..., Any]:
    """`fn` for parameters in which some kernels are `Factors`."""

    def kernel_at(path: Any) -> _Kernel:
        name = path_text(path)
        if name not in kernels:
            raise value_error(f"`params` has factors at {name}, which was not split.")
        return kernels[name]

    def dense(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Factors):
            return leaf
        return jax.ShapeDtypeStruct(kernel_at(path).shape, leaf.first.dtype)

    def product(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Factors):
            return leaf
        kernel = kernel_at(path)
        dims = tuple(range(len(kernel.shape)))
        return Thin(leaf, kernel.path, kernel.unfolding, dims)

    def thin(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        shapes = _map_leaves(dense, params)
        traced = trace(fn)(shapes, *args, **kwargs)
        inputs = ((_map_leaves(product, params), *args), kwargs)
        leaves = jax.tree.leaves(inputs, is_leaf=lambda x: isinstance(x, Thin))
        values = [x for x in leaves if isinstance(x, Thin) or is_array(x)]
        walk = Walk()
        outs = walk.run(traced.jaxpr, values)
        outs = walk.whole(outs, traced.jaxpr.out_avals, "it is a result")
        walk.close()
        return jax.tree.unflatten(traced.out_tree, outs)

    return thin


def _map_leaves(fn: Callable[[Any, Any], Any], params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        fn, params, is_leaf=lambda x: isinstance(x, Factors)
    )


def _compare(
    fn: Callable[..., Any],
    truncated: PyTree,
    result: LowRank,
    args: tuple,
    tolerance: float | None,
) -> None:
    """Raises unless the outputs are those of the truncated kernels."""
    expected = jitted_call(fn, truncated, args)
    require_shown("low_rank", expected)
    found = jitted_call(result.fn, result.params, args)
    if tolerance is None:
        pairs = [
            pair.first.dtype
            for pair in jax.tree.leaves(
                result.params, is_leaf=lambda x: isinstance(x, Factors)
            )
            if isinstance(pair, Factors)
        ]
        tolerance = float(64 * max(jnp.finfo(d).eps for d in pairs) ** 0.75)
    error = relative_difference(found, expected)
    if not error <= tolerance:
        raise value_error(
            f"The outputs differ from those of the truncated kernels by {error:.1e} "
            f"(`tolerance` {tolerance:.1e}): rounding, if the precision is low. Give a "
            "`tolerance` that you accept."
        )
