r"""SynFlow: prune without data so that no layer of a chain is ever emptied.

Replace every parameter by its magnitude, feed ones, and call the summed output R: the
sum over all paths from an input to an output of the product of their weights. The score

$$ S = \Big| \frac{\partial R}{\partial \theta} \odot \theta \Big| $$

is the share of R that runs through a weight. It is conserved: what enters a hidden unit
leaves it, and each layer of a chain sums to R. So a thin layer has large scores, and
pruning in many small rounds, scoring anew after each, leaves one weight in each layer
before it empties one.

The promise is about chains. Of two parallel branches one may go: in ResNet-18 the 1 x 1
shortcut convolutions are reported to (issue 7 of the authors' repository), on digits
the 3 x 3 ones beside them did. `emptied` tells.

R is a product over layers and overflows float32 in deep networks, a residual one of 30
convolutions among them. Under `jax.enable_x64(True)` the flow is float64, whatever the
parameters are, and the ranking that of the paper. `normalize` stays in float32 and
divides each kernel by one number: every path of a chain has that factor, so that no
ranking changes there; beside a shortcut it weighs branches differently `[inferred]`.

Tanaka et al., "Pruning neural networks without any data by iteratively conserving
synaptic flow", NeurIPS 2020 (arXiv 2006.05467).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._dtypes import wide
from jprune._errors import value_error
from jprune._stacks import Axes, layer_axes, stacked_axes
from jprune._typing import Mask, Params, PyTree, Scores
from jprune.at_init._gradients import put, scored
from jprune.at_init._iterate import Schedule, iterate
from jprune.masks._count import is_traced
from jprune.masks._scope import in_scope, in_scope_list, resolve_scope

ApplyFn = Callable[[Params, Any], PyTree]
"""`apply_fn(params, x)` -> outputs, any tree of arrays."""


def synflow(
    apply_fn: ApplyFn,
    params: Params,
    inputs: PyTree,
    *,
    normalize: bool = False,
    scope: Any = None,
    stacked: Any = None,
) -> Scores:
    r"""$|\partial R/\partial\theta \odot \theta|$ of the network of magnitudes.

    Args:
      apply_fn: the network in eval mode. Activations must be rectifiers, or the
        identity on what is not negative.
      params: the parameters; every floating leaf is replaced by its magnitude, biases
        too. With batch norm give the running statistics as well, as one tree of
        variables, if they are not those of a fresh network.
      inputs: an array, or a tree of arrays or `jax.ShapeDtypeStruct`, shaped as one
        example with its batch axis; only shape and dtype count.
      normalize: divide each leaf in scope, of a stack each layer, by the mean sum over
        one of its outputs.
      scope: the leaves scored; see `masks.unstructured`.
      stacked: see `masks.unstructured`; only `normalize` asks.

    Returns:
      Non-negative scores of the shapes of `params`, 0 for leaves out of scope: float32
      or wider, float64 under `jax.enable_x64(True)`. For the mask of the paper use
      `synflow_mask`.

    Raises:
      ValueError: R overflowed (not checked under `jit`); as `masks.unstructured` for
        `scope`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import at_init
      >>> def net(p, x):
      ...     return jax.nn.relu(x @ p["a"]) @ p["b"]
      >>> p = {"a": jnp.array([[1.0, -2], [3, 0.5]]), "b": jnp.array([[2.0], [-1]])}
      >>> at_init.synflow(net, p, jnp.ones((1, 2)))["a"]
      Array([[2. , 2. ],
             [6. , 0.5]], dtype=float32)

    References:
      Tanaka et al., arXiv 2006.05467 (synaptic saliency of the flow).
    """
    scope = resolve_scope(scope, params)
    x = jax.tree.map(lambda s: jnp.ones(np.shape(s), jnp.result_type(s)), inputs)
    positive = jax.tree.map(_magnitude, params)
    weights = in_scope(positive, scope)
    if normalize:
        stacks = in_scope_list(stacked_axes(params, stacked), scope)
        pairs = zip(weights, stacks, strict=True)
        weights = [w / _mean_column(w, axes) for w, axes in pairs]

    def flow(weights: list[jax.Array]) -> jax.Array:
        outputs = jax.tree.leaves(apply_fn(put(weights, positive, scope), x))
        return sum((jnp.sum(wide(y)) for y in outputs), jnp.zeros(()))

    grads = jax.grad(flow)(weights)
    found = [jnp.abs(g * w) for g, w in zip(grads, weights, strict=True)]
    _require_finite(found)
    return scored(found, params, scope)


def synflow_mask(
    apply_fn: ApplyFn,
    params: Params,
    inputs: PyTree,
    sparsity: Any = None,
    *,
    keep: int | None = None,
    rounds: int = 100,
    schedule: Schedule = "exponential",
    normalize: bool = False,
    scope: Any = None,
    min_keep: int = 0,
    stacked: Any = None,
) -> Mask:
    """SynFlow as published: many rounds, scored anew after each.

    Synaptic-Flow's code keeps `N - int((1 - d) N)` of N in a round, here it is d N
    rounded, and the last round is exact.

    Args:
      apply_fn: as for `synflow`.
      params: as for `synflow`.
      inputs: as for `synflow`.
      sparsity: fraction of zeros over the scope; a concrete number.
      keep: number kept instead.
      rounds: 100 in the paper.
      schedule: of the kept share over the rounds, "exponential" or "linear".
      normalize: as for `synflow`.
      scope: see `masks.unstructured`.
      min_keep: the fewest weights any leaf keeps; 0 leaves it to the score.
      stacked: see `masks.unstructured`.

    Returns:
      A mask with exactly the asked count.

    Raises:
      ValueError: R overflowed, or is 0 in the end (not checked under `jit`); nothing
        or less than `min_keep` a leaf to be kept, `rounds` below 1, a traced target.

    References:
      Tanaka et al., arXiv 2006.05467, algorithm 1.
    """
    score = jax.jit(
        partial(
            synflow,
            apply_fn,
            inputs=inputs,
            normalize=normalize,
            scope=scope,
            stacked=stacked,
        )
    )
    # Every score only falls as weights go, so the first round is the one to overflow.
    _require_finite(jax.tree.leaves(score(params)))
    mask = iterate(
        score,
        params,
        sparsity,
        keep=keep,
        rounds=rounds,
        schedule=schedule,
        scope=scope,
        min_keep=min_keep,
        stacked=stacked,
    )
    left = jax.tree.leaves(score(masks.apply(mask, params)))
    if not any(is_traced(s) or jnp.any(s > 0) for s in left):
        raise value_error(
            "Nothing flows from input to output any more: the asked `sparsity` leaves "
            "fewer weights than a path has, or R fell below the float range (call it "
            "under `with jax.enable_x64(True):` for float64, or use `normalize=True`)."
        )
    return mask


def _magnitude(x: Any) -> Any:
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jnp.abs(jnp.asarray(x, jnp.promote_types(x.dtype, jnp.result_type(float))))


def _mean_column(w: jax.Array, stack: Axes) -> jax.Array:
    """The mean over the last axis of the sums over all others; 1 for zeros.

    Of a stack one for each layer, with axes of length 1 beside it.
    """
    layer = layer_axes(w.ndim, stack)
    total = jnp.sum(w, axis=layer, keepdims=True) / (w.shape[layer[-1]] if layer else 1)
    return jnp.where(total > 0, total, 1)


def _require_finite(found: list[jax.Array]) -> None:
    if any(not is_traced(s) and not jnp.all(jnp.isfinite(s)) for s in found):
        raise value_error(
            "The flow R overflowed: it is a product over layers. For float64 call it "
            "under `with jax.enable_x64(True):`, with a network that computes in the "
            "dtype of its parameters. `normalize=True` stays in float32, and weighs "
            "what runs beside a shortcut differently."
        )
