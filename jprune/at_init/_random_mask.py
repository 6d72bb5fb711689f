"""The random masks that K-starts compares: uniform, with exact counts, from a key."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._dtypes import wide
from jprune._stacks import Axes, layer_shape, stack_shape, stacked_axes
from jprune._tree import require_same_structure
from jprune._typing import Mask, Params, PyTree, Scope
from jprune.masks._count import is_traced, require_sparsity
from jprune.masks._fit import require_fit
from jprune.masks._scope import in_scope, in_scope_list, resolve_scope

Pattern = Callable[..., Mask]
"""`pattern(scores, sparsity=, within=, scope=)` -> mask, each leaf ranked by itself;
with `stacked=` where that is given. `sparsity` is a tree of shares: `masks.channels`,
or `functools.partial(masks.blocks, block=(4, 4))`."""

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
    stacked: Any = None,
) -> Mask:
    """One of the random masks that K-starts compares, with an exact count in each leaf.

    Candidate j of leaf i is drawn from `fold_in(fold_in(key, i), j)`, so that it is the
    same whatever k, and only its number has to be kept; each layer of a stack folds in
    its place too.

    Args:
      key: a PRNG key.
      params: gives structure and shapes.
      sparsity: fraction of zeros in each leaf, or a tree of fractions. Every leaf keeps
        at least one weight, however small it is.
      start: which candidate, or one number `[layers in scope]` for each leaf, and for
        each layer of a stack; may be traced.
      pattern: what is removed together; single weights by default. Blocks that reach
        over the edge of a leaf are drawn a little less often than whole ones.
      within: a mask; only what it keeps can be kept. If it keeps fewer than asked, all
        of them stay.
      scope: see `masks.unstructured`.
      stacked: see `masks.unstructured`.

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
    taken, stacks = jax.tree.leaves(scope), stacked_axes(params, stacked)
    total = sum(layer_counts(params, scope, stacked))
    numbers = iter(jnp.broadcast_to(jnp.asarray(start), (total,)))

    def draw(i: int, w: Any) -> jax.Array:
        own, axes = jax.random.fold_in(key, i), stacks[i]
        each = [next(numbers) for _ in range(_layers(w, axes))]
        if not axes:
            return _uniform(jax.random.fold_in(own, each[0]), jnp.shape(w))
        keys = jax.vmap(partial(jax.random.fold_in, own))(jnp.stack(each))
        keys = jax.vmap(jax.random.fold_in)(keys, jnp.arange(len(each)))
        shape = layer_shape(jnp.shape(w), axes)
        drawn = jax.vmap(lambda k: _uniform(k, shape))(keys)
        drawn = drawn.reshape(*stack_shape(jnp.shape(w), axes), *shape)
        return jnp.moveaxis(drawn, range(len(axes)), axes)

    drawn = [
        draw(i, w) if t else jnp.zeros(())
        for i, (w, t) in enumerate(zip(leaves, taken, strict=True))
    ]
    scores = jax.tree.unflatten(treedef, drawn)
    shares = _leaving_one(sparsity, params, scope, stacks)
    said = {} if stacked is None else {"stacked": stacked}
    mask = pattern(scores, sparsity=shares, within=within, scope=scope, **said)
    require_fit(mask, params, "pattern(...)")
    return mask


def layer_counts(params: Params, scope: Scope, stacked: Any) -> list[int]:
    """How many layers each leaf in scope is: 1, or those of a stack."""
    stacks = in_scope_list(stacked_axes(params, stacked), scope)
    return [_layers(w, a) for w, a in zip(in_scope(params, scope), stacks, strict=True)]


def _layers(w: Any, axes: Axes) -> int:
    return prod(stack_shape(np.shape(w), axes))


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, jnp.float32)


def _leaving_one(
    sparsity: Any, params: Params, scope: Scope, stacks: list[Axes]
) -> PyTree:
    """The share of zeros in each layer, less where it would take every weight."""
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(sparsity)):
        require_sparsity(sparsity)
        sparsity = jax.tree.map(lambda t: sparsity if t else 0.0, scope)
    require_same_structure("sparsity", sparsity, params)

    rest = iter(stacks)

    def leaf(share: Any, w: Any) -> Any:
        most = 1 - 1 / max(prod(layer_shape(np.shape(w), next(rest))), 1)
        if is_traced(share):
            return jnp.minimum(wide(share), most)
        # What is no share at all is left to the pattern, which names the leaf.
        return most if np.ndim(share) == 0 and most < np.asarray(share) <= 1 else share

    return jax.tree.map(leaf, sparsity, params)
