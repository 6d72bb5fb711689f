"""Element-wise scores: one line of mathematics each.

Products and norms are taken in float32 at least: in half precision small saliencies
underflow and many become equal, and then position would decide.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._axes import Axes, axes_list, contraction_axis
from jprune._dtypes import divisible, is_weight, wide
from jprune._errors import value_error
from jprune._stacks import stacked_axes
from jprune._tiles import block_shape, tiles, untiled, within_tiles
from jprune._tree import map_named, named_leaves, require_same_structure
from jprune._typing import Params, PyTree, Scores
from jprune.scores._random import uniform


def magnitude(params: Params) -> Scores:
    r"""$|w|$, the score of magnitude pruning.

    Args:
      params: any pytree of arrays.

    Returns:
      Scores, same structure and dtypes as `params`.

    References:
      Han et al., "Learning both Weights and Connections for Efficient Neural
      Networks", NeurIPS 2015.
    """
    return _of_weights(jnp.abs, params)


def saliency(params: Params, grads: Params) -> Scores:
    r"""$|w \cdot \partial L/\partial w|$: the first-order change of the loss.

    The score of SNIP (at initialization, one batch), of Molchanov et al. and of GSM.

    Args:
      params: parameters $w$.
      grads: gradient of the loss, same structure.

    Returns:
      Non-negative scores, float32 or wider.

    Raises:
      ValueError: `grads` of another structure.

    References:
      Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
      ICLR 2019, eq. (6) without its normalization by the sum, which no ranking sees.
    """
    require_same_structure("grads", grads, params)
    return _of_weights(lambda w, g: jnp.abs(wide(w) * wide(g)), params, grads)


def second_order(params: Params, curvature: PyTree) -> Scores:
    r"""$h w^2 / 2$: what removing a weight adds to the loss, at a minimum.

    `deps.scores(scores.second_order(params, h), norm="l1")` adds it up by channel. The
    usual h is the empirical Fisher, the mean over examples of the squared gradient:
    `jax.tree.map(lambda g: jnp.mean(g**2, 0), grads)` of per-example gradients.

    Args:
      params: parameters $w$.
      curvature: $h$, the diagonal of the Hessian of the loss or what stands for it;
        same structure, non-negative.

    Returns:
      Scores, float32 or wider.

    Raises:
      ValueError: `curvature` of another structure.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import scores
      >>> scores.second_order(jnp.array([2.0, 3.0]), jnp.array([1.0, 4.0]))
      Array([ 2., 18.], dtype=float32)

    References:
      LeCun, Denker and Solla, "Optimal Brain Damage", NIPS 1989, eq. (5).
    """
    require_same_structure("curvature", curvature, params)

    def score(w: jax.Array, h: jax.Array) -> jax.Array:
        return wide(h) * jnp.square(wide(w)) / 2

    return _of_weights(score, params, curvature)


def movement(params: Params, grads: Params) -> Scores:
    r"""$-w \cdot \partial L/\partial w$: positive where descent moves w away from 0.

    **Signed**: rank it with `masks.unstructured(..., signed=True)`. Movement pruning
    sums it over steps.

    Args:
      params: parameters $w$.
      grads: gradient of the loss, same structure.

    Returns:
      Signed scores, float32 or wider.

    Raises:
      ValueError: `grads` of another structure.

    References:
      Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020.
    """
    require_same_structure("grads", grads, params)
    return _of_weights(lambda w, g: -wide(w) * wide(g), params, grads)


def random(key: jax.Array, params: Params) -> Scores:
    """Uniform scores in [0, 1): random pruning, the baseline of every method.

    Args:
      key: a PRNG key; the leaf's position in the flattened tree is folded into it.
      params: gives structure and shapes; a mask does, too.

    Returns:
      Scores, float32 whatever the parameters (half precision has too few numbers).
    """
    leaves, treedef = jax.tree.flatten(params)
    weights = [i for i, w in enumerate(leaves) if is_weight(w) or _is_mask(w)]
    if not weights:
        return params
    sizes = tuple(prod(jnp.shape(leaves[i])) for i in weights)
    drawn = list(leaves)
    for i, lots in zip(weights, uniform(key, tuple(weights), sizes), strict=True):
        drawn[i] = lots.reshape(jnp.shape(leaves[i]))
    return jax.tree.unflatten(treedef, drawn)


def channel_norm(
    params: Params, axis: int = -1, order: int = 2, *, stacked: Any = None
) -> Scores:
    r"""The norm of the whole channel an element belongs to, repeated over the channel.

    Args:
      params: parameters. A leaf of rank 0 or 1 scores its own magnitude: each of its
        entries is a channel.
      axis: the channel axis of every leaf; -1, the last, is the output of Flax kernels.
      order: 1 for the sum of magnitudes, 2 for the Euclidean norm.
      stacked: see `masks.unstructured`; each layer of a stack has channels of its own.

    Returns:
      Scores of the shape of `params`, constant within a channel; float32 or wider.

    Raises:
      ValueError: another `order`, or `axis` out of range for a leaf of rank 2 or more.

    References:
      Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (order 1).
    """
    _require_order(order)

    def norm(path: str, w: jax.Array, stack: Axes) -> jax.Array:
        size = jnp.abs(wide(w))
        if size.ndim < 2:
            return size
        if not -size.ndim <= axis < size.ndim:
            raise value_error(
                f"`axis` {axis} is out of range for {path} of shape {size.shape}."
            )
        own = (axis % size.ndim, *stack)
        others = tuple(i for i in range(size.ndim) if i not in own)
        total = jnp.sum(size**order, axis=others, keepdims=True)
        return jnp.broadcast_to(total if order == 1 else jnp.sqrt(total), size.shape)

    return _by_stack(norm, params, stacked)


def block_norm(params: Params, block: Sequence[int], order: int = 2) -> Scores:
    r"""The norm of the block an element belongs to, repeated over the block.

    Args:
      params: parameters. A leaf with fewer axes than the block scores its own
        magnitude.
      block: the block's shape over the last axes, as for `masks.blocks`.
      order: 1 for the sum of magnitudes, 2 for the Euclidean norm.

    Returns:
      Scores of the shape of `params`, constant within a block; float32 or wider.

    Raises:
      ValueError: another `order`, or a block that is not of positive integers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import scores
      >>> scores.block_norm(jnp.array([[3.0, 4.0, 1.0]]), (1, 2))
      Array([[5., 5., 1.]], dtype=float32)
    """
    _require_order(order)

    def norm(path: str, w: jax.Array) -> jax.Array:
        if not is_weight(w):
            return w
        size = jnp.abs(wide(w))
        if size.ndim < len(block):
            return size
        shape = block_shape(block, path, size)
        total = jnp.sum(tiles(size**order, shape), axis=within_tiles(shape))
        return untiled(total if order == 1 else jnp.sqrt(total), size.shape, shape)

    return map_named(norm, params)


def relative_change(
    params: Params,
    initial: Params,
    unit: Callable[[Params], Scores] = magnitude,
) -> Scores:
    r"""$|w - w_0| / |w_0|$: how far a weight has gone, in units of where it started.

    The score behind dissipating gradients: what stays within a fraction of its initial
    value is not needed. A weight that started at 0 scores 0 if it is still there, and
    beyond all others if it is not.

    Args:
      params: parameters $w$ now.
      initial: $w_0$, same structure.
      unit: the size of what is judged together, as a tree of scores: `magnitude` for
        single weights, `functools.partial(channel_norm, order=1)` or a `block_norm` for
        whole channels or blocks. It is taken of the change and of $w_0$.

    Returns:
      Non-negative finite scores, float32 or wider.

    Raises:
      ValueError: `initial` of another structure.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import scores
      >>> scores.relative_change(jnp.array([1.5, -2.0]), jnp.array([1.0, -2.0]))
      Array([0.5, 0. ], dtype=float32)

    References:
      Haroon, "What to Prune and What Not to Prune at Initialization", arXiv 2209.02201,
      abstract ("remain within a fraction of their initial value").
    """
    require_same_structure("initial", initial, params)
    changed = _of_weights(lambda w, w0: wide(w) - wide(w0), params, initial)

    def ratio(change: jax.Array, size: jax.Array) -> jax.Array:
        change, size = wide(change), wide(size)
        limits = jnp.finfo(change.dtype)
        return jnp.minimum(change / (size + limits.tiny), limits.max)

    return _of_weights(ratio, unit(changed), unit(initial))


def normalized(scores: Scores, *, stacked: Any = None) -> Scores:
    """Each leaf divided by its Euclidean norm, so that leaves of unlike scale compare.

    A leaf of zeros stays zero. This is what jaxpruner's global pruners rank by default.

    Args:
      scores: any scores.
      stacked: see `masks.unstructured`; each layer of a stack is divided by its own.

    Returns:
      Scores whose leaves, or layers, have norm 1 (or 0); float32 or wider. Entries that
      are not finite stay so, and count in no norm.
    """

    def divide(path: str, s: jax.Array, stack: Axes) -> jax.Array:
        del path
        s = wide(s)
        how: Any = {"keepdims": True}
        how["axis"] = tuple(i for i in range(s.ndim) if i not in stack)
        finite = jnp.where(jnp.isfinite(s), s, 0)
        largest = jnp.max(jnp.abs(finite), initial=0, **how)
        s, largest = divisible(s, largest)
        # At scale 1 no square leaves the float range.
        unit = jnp.where(jnp.isfinite(s), s, 0) / largest
        norm = jnp.sqrt(jnp.sum(unit * unit, **how))
        return s / largest / jnp.where(norm > 0, norm, 1)

    return _by_stack(divide, scores, stacked)


def _is_mask(x: Any) -> bool:
    return getattr(x, "dtype", None) == np.dtype(bool)


def _of_weights(fn: Callable[..., jax.Array], *trees: PyTree) -> PyTree:
    """`fn` of the leaves that are weights; others stay as the first tree has them."""

    def leaf(w: Any, *rest: Any) -> Any:
        return fn(w, *rest) if is_weight(w) else w

    return jax.tree.map(leaf, *trees)


def _by_stack(
    fn: Callable[[str, jax.Array, Axes], jax.Array], tree: PyTree, stacked: Any
) -> PyTree:
    """`fn` of each leaf's path, the leaf, and the axes along which it is a stack."""
    stacks = stacked_axes(tree, stacked)
    rows = zip(named_leaves(tree), stacks, strict=True)
    mapped = [
        fn(path, leaf, stack) if is_weight(leaf) else leaf
        for (path, leaf), stack in rows
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), mapped)


def wanda(
    params: Params,
    norms: PyTree,
    axis: int | tuple[int, ...] | PyTree | None = None,
    *,
    stacked: Any = None,
) -> Scores:
    r"""$|w_{ij}| \cdot \lVert x_i \rVert_2$: a magnitude times its input's norm.

    Args:
      params: parameters $w$.
      norms: same structure; a leaf is `[inputs]`, the Euclidean norm over a calibration
        batch of each input feature, or 0-d for a leaf that is scored by magnitude
        alone. With several contracted axes it has all of them, in their order; a stack
        of layers has its own axes first, `[layers, inputs]`.
      axis: the contracted axis or axes: a number, a tuple (`(0, 1)` for an attention
        output kernel `(heads, head_dim, d)`), a tree of these, or None for the default
        of leaves named `kernel` or `w` of rank 2 (axis 0) or 4 (axis 2).
      stacked: see `masks.unstructured`.

    Returns:
      Non-negative scores, float32 or wider. The paper ranks them within each output:
      `masks.unstructured(scores, sparsity, ranking="output")`.

    Raises:
      ValueError: a `norms` leaf of the wrong shape, or no default axis for a leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import scores
      >>> params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 1.0]])}
      >>> scores.wanda(params, {"kernel": jnp.array([1.0, 10.0])})["kernel"]
      Array([[ 1.,  2.],
             [30., 10.]], dtype=float32)

    References:
      Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
      ICLR 2024, eq. (1).
    """
    require_same_structure("norms", norms, params)

    def score(path: str, w: jax.Array, norm: Any, given: Any, stack: Axes) -> jax.Array:
        if not is_weight(w):
            return w
        size = jnp.abs(wide(w))
        if jnp.ndim(norm) == 0:
            return size * wide(norm)
        many = given if isinstance(given, tuple) else (given,)
        inputs = tuple(contraction_axis(path, w, a, stack) for a in many)
        at = (*stack, *inputs)
        expected = tuple(size.shape[i] for i in at)
        if jnp.shape(norm) != expected:
            raise value_error(
                f"`norms` at {path} must be {list(expected)}, one norm for each "
                f"position of axes {at} of {size.shape}; got {jnp.shape(norm)}."
            )
        ordered = jnp.transpose(wide(norm), np.argsort(at).tolist())
        others = tuple(i for i in range(size.ndim) if i not in at)
        return size * jnp.expand_dims(ordered, others)

    treedef, leaves = jax.tree.structure(params), named_leaves(params)
    axes, stacks = axes_list(axis, params), stacked_axes(params, stacked)
    rows = zip(leaves, jax.tree.leaves(norms), axes, stacks, strict=True)
    scored = [score(path, w, norm, a, stack) for (path, w), norm, a, stack in rows]
    return jax.tree.unflatten(treedef, scored)


def _require_order(order: int) -> None:
    if order not in (1, 2):
        raise value_error(f"`order` must be 1 or 2, got {order!r}.")
