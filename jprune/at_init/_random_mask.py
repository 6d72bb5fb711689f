"""The random masks that K-starts compares: uniform, with exact counts, from a key."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._dtypes import wide
from jprune._tree import require_same_structure
from jprune._typing import Mask, Params, PyTree, Scope
from jprune.masks._count import is_traced, require_sparsity
from jprune.masks._scope import resolve_scope

Pattern = Callable[..., Mask]
"""`pattern(scores, sparsity=, within=, scope=)` -> mask, each leaf ranked by itself.
`sparsity` is a tree of shares: `masks.channels`, or `functools.partial(masks.blocks,
block=(4, 4))`."""

ELEMENT: Pattern = partial(masks.unstructured, ranking="leaf")


def random_mask(
    key: jax.Array,
    params: Params,
    sparsity: Any,
    *,
    start: Any = 0,
    pattern: Pattern = ELEMENT,
    within: Mask | None = None,
    scope: Any = None,
) -> Mask:
    """One of the random masks that K-starts compares, with an exact count in each leaf.

    Candidate j of leaf i is drawn from `fold_in(fold_in(key, i), j)`, so that it is the
    same whatever k, and only its number has to be kept.

    Args:
      key: a PRNG key.
      params: gives structure and shapes.
      sparsity: fraction of zeros in each leaf, or a tree of fractions. Every leaf keeps
        at least one weight, however small it is.
      start: which candidate, or one number `[leaves in scope]` for each leaf; may be
        traced.
      pattern: what is removed together; single weights by default. Blocks that reach
        over the edge of a leaf are drawn a little less often than whole ones.
      within: a mask; only what it keeps can be kept. If it keeps fewer than asked, all
        of them stay.
      scope: see `masks.unstructured`.

    Returns:
      A mask, uniform over all with its counts.

    Raises:
      ValueError: as the pattern.

    Examples:
      >>> import jax
      >>> from jprune import masks
      >>> from jprune.at_init._random_mask import random_mask
      >>> params = {"kernel": jax.numpy.ones((8, 5))}
      >>> mask = random_mask(jax.random.key(0), params, 0.7)
      >>> int(masks.count(mask))
      12
    """
    scope = resolve_scope(scope, params)
    leaves, treedef = jax.tree.flatten(params)
    taken = jax.tree.leaves(scope)
    numbers = iter(jnp.broadcast_to(jnp.asarray(start), (sum(taken),)))

    def draw(i: int, w: Any) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, i), next(numbers))
        return jax.random.uniform(own, jnp.shape(w), jnp.float32)

    drawn = [
        draw(i, w) if t else jnp.zeros(())
        for i, (w, t) in enumerate(zip(leaves, taken, strict=True))
    ]
    scores = jax.tree.unflatten(treedef, drawn)
    shares = _leaving_one(sparsity, params, scope)
    return pattern(scores, sparsity=shares, within=within, scope=scope)


def _leaving_one(sparsity: Any, params: Params, scope: Scope) -> PyTree:
    """The share of zeros in each leaf, less where it would take every weight."""
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(sparsity)):
        require_sparsity(sparsity)
        sparsity = jax.tree.map(lambda t: sparsity if t else 0.0, scope)
    require_same_structure("sparsity", sparsity, params)

    def leaf(share: Any, w: Any) -> Any:
        most = 1 - 1 / max(np.size(w), 1)
        if is_traced(share):
            return jnp.minimum(wide(share), most)
        # What is no share at all is left to the pattern, which names the leaf.
        return most if np.ndim(share) == 0 and most < share <= 1 else share

    return jax.tree.map(leaf, sparsity, params)
