r"""What a mask made before training is worth: emptied layers, and what still flows.

A global ranking can empty a layer. `emptied` names such layers; it is a fact to report,
and fatal only when input and output lose each other: then the effective mask is empty.
`masks.unstructured(..., min_keep=1)`, the default, keeps the best weight of each layer.

`masks.effective(mask, flow(apply_fn, params, inputs))` is what of a mask lies on a path
from an input to an output, for networks that `flow` can write in linear form.

`shuffle` is the sanity check of Frankle et al., "Pruning Neural Networks at
Initialization: Why Are We Missing the Mark?" (arXiv 2009.08576): the published methods
are as accurate, or more, with their masks shuffled within each layer, so what they find
is how many weights each layer needs, and not which.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import scores, selection
from jprune._axes import Axes
from jprune._errors import type_error
from jprune._finite import require_finite
from jprune._stacks import as_said, layer_axes, stacked_axes
from jprune._tree import leaf_name, map_named, named_leaves
from jprune._typing import Mask, Params, PyTree, Scores
from jprune.at_init._synflow import ApplyFn
from jprune.masks._count import is_traced
from jprune.masks._fit import require_fit
from jprune.masks._scope import (
    in_scope,
    in_scope_list,
    resolve_scope,
    scoped_names,
)
from jprune.masks._unstructured import ranked

_ADDED = "bias b beta offset mean".split()


def emptied(mask: Mask, *, stacked: Any = None) -> tuple[str, ...]:
    """The paths of the leaves of which a mask keeps nothing.

    Of a stack of layers (see `masks.unstructured`) the layers: `layers/kernel[3]`.

    Args:
      mask: a concrete mask.
      stacked: see `masks.unstructured`.

    Returns:
      Path texts, in the order of the tree; empty if no layer is.

    Raises:
      TypeError: under `jit`.
      ValueError: no mask.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import at_init
      >>> at_init.emptied({"a": jnp.array([False]), "b": jnp.array([True])})
      ('a',)
    """
    require_fit(mask, mask)
    leaves = named_leaves(mask)
    if any(is_traced(m) for _, m in leaves):
        raise type_error("`emptied` reads a mask on the host: call it outside `jit`.")
    empty = []
    for (path, m), axes in zip(leaves, stacked_axes(mask, stacked), strict=True):
        some = np.any(m, axis=_others(m, axes))
        layers = np.argwhere(~np.asarray(some)).tolist() if np.size(m) else []
        empty += [path + (str(i) if axes else "") for i in layers]
    return tuple(empty)


def _others(x: Any, axes: Axes) -> Axes:
    return tuple(i for i in range(np.ndim(x)) if i not in axes)


def _of_layers(mask: jax.Array, axes: Axes) -> jax.Array:
    """How many each layer keeps; 0-d for a leaf that is no stack."""
    return jnp.sum(mask, axis=_others(mask, axes), dtype=jnp.int32)


def critical_sparsity(
    scores: Scores, scope: Any = None, signed: bool = False, *, stacked: Any = None
) -> jax.Array:
    r"""The least sparsity at which one global ranking empties a layer.

    The layer whose best score is the smallest goes empty when that score is removed:
    $s_{cr} = (1 + \#\{\text{scores below } \min_l \max s_l\}) / N$. Scores are taken to
    be distinct.

    Args:
      scores: of any kind.
      scope: see `masks.unstructured`.
      signed: whether they rank by value, as GraSP's do.
      stacked: see `masks.unstructured`.

    Returns:
      A 0-d float32 array.

    Raises:
      ValueError: as `masks.unstructured` for `scope`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import at_init
      >>> s = [jnp.array([5.0, 4]), jnp.array([3, 0.5, 0.2]), jnp.ones(1)]
      >>> at_init.critical_sparsity(s, scope="[012]")
      Array(0.5, dtype=float32)
    """
    scope = resolve_scope(scope, scores)
    stacks = in_scope_list(stacked_axes(scores, stacked), scope)
    named = zip(scoped_names(scores, scope), in_scope(scores, scope), strict=True)
    require_finite("`scores`", named, "NaN has no place in an order.")
    pairs = zip(in_scope(scores, scope), stacks, strict=True)
    taken = [(s if signed else jnp.abs(s), a) for s, a in pairs if s.size]
    leaves = [s for s, _ in taken]
    best = [jnp.max(s, axis=_others(s, a)) for s, a in taken]
    weakest = jnp.min(jnp.stack([jnp.min(b) for b in best]))
    below = sum((jnp.sum(s < weakest) for s in leaves), jnp.int32(0))
    return (1 + below) / jnp.float32(sum(s.size for s in leaves))


def flow(
    apply_fn: ApplyFn, params: Params, inputs: PyTree, *, stacked: Any = None
) -> Callable[[Params], jax.Array]:
    """The linear form of a network of rectifiers, for `masks.effective`.

    Where the weights are 0 or 1, the biases 0 and the input ones, a rectifier passes
    everything, so the network is its own linear form. Leaves named bias, b, beta,
    offset or mean become 0 and the others that a mask does not cover 1; each kernel is
    divided by the mean sum over one of its outputs (of a stack each layer), which keeps
    R in the float range.

    Args:
      apply_fn: `apply_fn(params, x)`, in eval mode: rectifiers or no activation,
        averages or sums for pooling, batch norm with running statistics. With maxima,
        layer norm or softmax inside, write the linear form by hand.
      params: the parameters, with the running statistics if there are any.
      inputs: an array or `jax.ShapeDtypeStruct`, or a tree of them; only shape and
        dtype count.
      stacked: see `masks.unstructured`.

    Returns:
      A function from weights of zeros and ones to R.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import at_init, masks
      >>> def net(p, x):
      ...     return jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]
      >>> p = {"a": jnp.ones((1, 2)), "bias": jnp.ones(2), "b": jnp.ones((2, 1))}
      >>> mask = {
      ...     "a": jnp.array([[True, True]]),
      ...     "bias": jnp.array(True),
      ...     "b": jnp.array([[True], [False]]),
      ... }
      >>> linear = at_init.flow(net, p, jnp.ones(1))
      >>> masks.effective(mask, linear)["a"]
      Array([[ True, False]], dtype=bool)
    """
    x = jax.tree.map(lambda s: jnp.ones(np.shape(s), jnp.result_type(s)), inputs)
    named = zip(named_leaves(params), stacked_axes(params, stacked), strict=True)
    stacks = {path: axes for (path, _), axes in named}

    def weight(path: str, w: jax.Array, p: Any) -> Any:
        if w.ndim == 0:
            like = jnp.ones_like(p)
            return 0 * like if leaf_name(path) in _ADDED else like
        one = layer_axes(w.ndim, stacks[path])
        total = jax.lax.stop_gradient(jnp.sum(w, one, keepdims=True)) / w.shape[one[-1]]
        return w / jnp.where(total > 0, total, 1)

    def linear(weights: Params) -> jax.Array:
        outputs = apply_fn(map_named(weight, weights, params), x)
        return sum((jnp.sum(y) for y in jax.tree.leaves(outputs)), jnp.zeros(()))

    return linear


def shuffle(key: jax.Array, mask: Mask, *, stacked: Any = None) -> Mask:
    """A random mask that keeps as many weights of each leaf as `mask` does.

    A stack of layers (see `masks.unstructured`) is shuffled layer by layer.

    Args:
      key: a PRNG key.
      mask: a mask.
      stacked: see `masks.unstructured`.

    Returns:
      A mask like it. Within a leaf every choice of so many weights is equally likely.

    Raises:
      ValueError: no mask.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import at_init
      >>> mask = jnp.arange(8).reshape(2, 4) < 3
      >>> int(at_init.shuffle(jax.random.key(0), mask).sum())
      3
    """
    require_fit(mask, mask)
    covered = jax.tree.map(lambda m: jnp.ndim(m) > 0, mask)
    leaves = in_scope(mask, covered)
    stacks = in_scope_list(stacked_axes(mask, stacked), covered)
    counts = [_of_layers(m, a) for m, a in zip(leaves, stacks, strict=True)]
    if not counts:
        return mask
    drawn = scores.random(key, mask)
    cold = selection.WarmStart.cold(in_scope(drawn, covered), ranking="leaf")
    how = {"scope": covered, "min_keep": 0, "stacked": as_said(mask, stacked)}
    return ranked(drawn, counts, ranking="leaf", init=cold, **how)[0]
