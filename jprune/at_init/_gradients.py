"""Gradients with respect to the leaves in scope, averaged over chunks of a batch.

A score at initialization may need more examples than one pass can hold, or batch norm
that sees small batches: the batch is then cut into chunks along its first axis and what
a chunk gives is averaged, signs and all, before any absolute value.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._dtypes import wide
from jprune._errors import listing, value_error
from jprune._finite import require_finite
from jprune._tree import named_leaves
from jprune._typing import Params, PyTree, Scope, Scores
from jprune.masks._count import is_traced
from jprune.masks._scope import scoped_names

LossFn = Callable[..., jax.Array]
"""`loss_fn(params, batch)`, or `loss_fn(params, batch, key)` where a key is given: from
parameters and examples to a scalar."""

Weights = list[jax.Array]


def loss_of_weights(
    loss_fn: LossFn, params: Params, scope: Scope
) -> Callable[[Weights, Any, Any], jax.Array]:
    """The loss as a function of the leaves in scope alone: `(weights, batch, key)`."""

    def loss(weights: Weights, batch: Any, key: Any) -> jax.Array:
        extra = () if key is None else (key,)
        return loss_fn(put(weights, params, scope), batch, *extra)

    return loss


def put(weights: Weights, params: Params, scope: Scope) -> Params:
    """`params` with other values at the leaves in scope."""
    rest = iter(weights)
    return jax.tree.map(lambda p, t: next(rest) if t else p, params, scope)


def scored(values: Weights, params: Params, scope: Scope) -> Scores:
    """Scores of the shapes of `params`: `values` in scope, 0 elsewhere.

    Raises:
      ValueError: values that are known and not finite, or all 0: they would not rank.
    """
    require_finite(
        "What `loss_fn` gives",
        zip(scoped_names(params, scope), values, strict=True),
        "look for NaN in the batch and in the parameters, and for a logarithm, a root "
        "or a division at 0 in the loss.",
    )
    some = [v for v in values if v.size]
    if some and not any(is_traced(v) or bool(jnp.any(v != 0)) for v in some):
        raise value_error(
            "Every score is 0, so that position alone would rank. Does `loss_fn` (or "
            "`apply_fn`) use the parameters that it is given, not others that it "
            "closes over, and are these not all 0?"
        )
    rest = iter(values)
    return jax.tree.map(
        lambda p, t: next(rest) if t else jnp.zeros(np.shape(p), jnp.float32),
        params,
        scope,
    )


def mean_over_chunks(
    fn: Callable[[Any, Any], Weights],
    weights: Weights,
    batch: PyTree,
    key: Any,
    chunks: int,
) -> Weights:
    """The mean of `fn(chunk, key)` over chunks of the batch, in float32 at least.

    Args:
      fn: from a chunk and a key to arrays shaped as the weights.
      weights: the weights.
      batch: a tree of arrays `[n, ...]`; anything at all for one chunk.
      key: a PRNG key or None; each chunk gets its own.
      chunks: how many.

    Raises:
      ValueError: `chunks` is not a positive integer that divides n.
    """
    if not isinstance(chunks, int | np.integer) or chunks < 1:
        raise value_error(f"`chunks` must be a positive integer, got {chunks!r}.")
    if chunks == 1:
        return jax.tree.map(wide, fn(batch, key))
    parts = _cut(batch, int(chunks))

    def add(total: Weights, at: tuple[jax.Array, PyTree]) -> tuple[Weights, None]:
        index, part = at
        own = None if key is None else jax.random.fold_in(key, index)
        found = fn(part, own)
        return [t + wide(x) for t, x in zip(total, found, strict=True)], None

    # Zeros like the weights are laid out as they are, which an explicit mesh wants.
    nothing = [wide(jnp.zeros_like(w)) for w in weights]
    total, _ = jax.lax.scan(add, nothing, (jnp.arange(chunks), parts))
    return [x / chunks for x in total]


def _cut(batch: PyTree, chunks: int) -> PyTree:
    """Every `[n, ...]` as `[chunks, n / chunks, ...]`, in the order of the batch."""
    leaves = named_leaves(batch)
    sizes = {np.shape(x)[0] for _, x in leaves if np.ndim(x)}
    if any(np.ndim(x) == 0 for _, x in leaves) or len(sizes) != 1:
        raise value_error(
            "To cut `batch` into `chunks`, all its arrays must be [n, ...] with one n; "
            "got:" + listing([f"{path}: {np.shape(x)}" for path, x in leaves])
        )
    (n,) = sizes
    if n % chunks:
        raise value_error(f"`chunks` must divide the {n} examples, got {chunks}.")
    return jax.tree.map(
        lambda x: jnp.reshape(x, (chunks, n // chunks, *np.shape(x)[1:])), batch
    )
