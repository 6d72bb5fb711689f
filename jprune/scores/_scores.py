"""Element-wise scores: one line of mathematics each."""

import jax
import jax.numpy as jnp

from jprune._axes import axis_list, contraction_axis
from jprune._errors import value_error
from jprune._tree import named_leaves, require_same_structure
from jprune._typing import Params, PyTree, Scores


def magnitude(params: Params) -> Scores:
    r"""$|w|$, the score of magnitude pruning.

    Args:
      params: any pytree of float arrays.

    Returns:
      Scores, same structure and dtypes as `params`.

    References:
      Han et al., "Learning both Weights and Connections for Efficient Neural
      Networks", NeurIPS 2015.
    """
    return jax.tree.map(jnp.abs, params)


def saliency(params: Params, grads: Params) -> Scores:
    r"""$|w \cdot \partial L/\partial w|$: the first-order change of the loss.

    The score of SNIP (at initialization, one batch), of Molchanov et al. and of GSM.

    Args:
      params: parameters $w$.
      grads: gradient of the loss, same structure.

    Returns:
      Non-negative scores.

    References:
      Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
      ICLR 2019, eq. (6) without its normalization by the sum, which no ranking sees.
    """
    require_same_structure("grads", grads, params)
    return jax.tree.map(lambda w, g: jnp.abs(w * g), params, grads)


def movement(params: Params, grads: Params) -> Scores:
    r"""$-w \cdot \partial L/\partial w$, **signed**: positive where w moves away from
    0.

    Sum it over steps for movement pruning; rank with `signed=True`.

    Args:
      params: parameters $w$.
      grads: gradient of the loss, same structure.

    Returns:
      Signed scores.

    References:
      Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020.
    """
    require_same_structure("grads", grads, params)
    return jax.tree.map(lambda w, g: -w * g, params, grads)


def random(key: jax.Array, params: Params) -> Scores:
    """Uniform scores in [0, 1): random pruning, the baseline of every method.

    Args:
      key: a PRNG key; the leaf's position in the flattened tree is folded into it.
      params: gives structure, shapes and dtypes.

    Returns:
      Scores in [0, 1).
    """
    leaves, treedef = jax.tree.flatten(params)
    drawn = [
        jax.random.uniform(jax.random.fold_in(key, i), jnp.shape(w), jnp.result_type(w))
        for i, w in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, drawn)


def channel_norm(params: Params, axis: int = -1, order: int = 2) -> Scores:
    r"""The norm of the whole channel an element belongs to, repeated over the channel.

    Args:
      params: parameters; a leaf of rank 0 scores its own magnitude.
      axis: the channel axis of every leaf; -1, the last, is the output of Flax kernels.
      order: 1 for the sum of magnitudes, 2 for the Euclidean norm.

    Returns:
      Scores of the shape of `params`, constant within a channel.

    Raises:
      ValueError: for another `order`.

    References:
      Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (order 1).
    """
    if order not in (1, 2):
        raise value_error(f"`order` must be 1 or 2, got {order!r}.")

    def norm(w: jax.Array) -> jax.Array:
        if jnp.ndim(w) == 0:
            return jnp.abs(w)
        others = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
        total = jnp.sum(jnp.abs(w) ** order, axis=others, keepdims=True)
        return jnp.broadcast_to(total if order == 1 else jnp.sqrt(total), w.shape)

    return jax.tree.map(norm, params)


def normalized(scores: Scores) -> Scores:
    """Each leaf divided by its Euclidean norm, so that leaves of unlike scale compare.

    A leaf of zeros stays zero. This is what jaxpruner's global pruners rank by default.

    Args:
      scores: any scores.

    Returns:
      Scores whose leaves have norm 1 (or 0).
    """

    def divide(s: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(s)))
        return jnp.where(norm > 0, s / jnp.where(norm > 0, norm, 1), 0).astype(s.dtype)

    return jax.tree.map(divide, scores)


def wanda(params: Params, norms: PyTree, axis: int | PyTree | None = None) -> Scores:
    r"""$|w_{ij}| \cdot \lVert x_i \rVert_2$: magnitude times the norm of the input it
    reads.

    Args:
      params: parameters $w$.
      norms: same structure; a leaf is `[inputs]`, the Euclidean norm over a calibration
        batch of each input feature, or 0-d for a leaf that is scored by magnitude
        alone.
      axis: the contracted axis; needed where a leaf is not a `kernel` or `w` of rank 2
        or
        4. A number for all leaves, or a tree.

    Returns:
      Non-negative scores. Wanda ranks them within each output: use
      `masks.n_of_m` or rank per leaf.

    Raises:
      ValueError: a `norms` leaf of the wrong length, or no default axis for a leaf.

    References:
      Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
      ICLR 2024, eq. (1).
    """
    require_same_structure("norms", norms, params)

    def score(path: str, w: jax.Array, norm: jax.Array, given: int | None) -> jax.Array:
        if jnp.ndim(norm) == 0:
            return jnp.abs(w) * norm
        at = contraction_axis(path, w, given)
        if jnp.shape(norm) != (w.shape[at],):
            raise value_error(
                f"`norms` at {path} must be [{w.shape[at]}], one norm for each position"
                f" of axis {at} of {w.shape}; got {jnp.shape(norm)}."
            )
        shape = [1] * w.ndim
        shape[at] = -1
        return jnp.abs(w) * jnp.reshape(norm, shape)

    treedef = jax.tree.structure(params)
    rows = zip(
        named_leaves(params),
        jax.tree.leaves(norms),
        axis_list(axis, params),
        strict=True,
    )
    scored = [score(path, w, norm, given) for (path, w), norm, given in rows]
    return jax.tree.unflatten(treedef, scored)
