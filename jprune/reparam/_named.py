"""The leaves of a reparameterization by path: one scalar or one mask for each.

Learned scalars (a threshold, an attention) are kept in a dict from leaf path to array,
which reads well in a checkpoint and a report. A stack of layers has one for each layer,
an array of the shape of the stack.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._stacks import Axes, layer_axes, layer_shape, stacked_axes
from jprune._tree import map_named, named_leaves, require_same_structure
from jprune._typing import Mask, Params, PyTree
from jprune.masks._scope import resolve_scope


def chosen(params: Params, scope: Any) -> dict[str, jax.Array]:
    """The leaves in scope, by path, in flattening order.

    Raises:
      ValueError: two leaves have one path text.
    """
    names = [name for name, _ in named_leaves(params)]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise value_error(f"Two leaves are called {twice[0]!r}; rename a key.")
    taken = jax.tree.leaves(resolve_scope(scope, params))
    pairs = zip(names, jax.tree.leaves(params), taken, strict=True)
    return {name: leaf for name, leaf, t in pairs if t}


def replaced(params: Params, leaves: Mapping[str, Any]) -> Params:
    """`params` with these leaves in place of its own."""
    return map_named(lambda name, leaf: leaves.get(name, leaf), params)


def as_mask(params: Params, keeps: Mapping[str, jax.Array]) -> Mask:
    """A mask: `keeps` where there is one, a 0-d True elsewhere."""
    return map_named(lambda name, _: keeps.get(name, jnp.array(True)), params)


def cost_each(costs: PyTree | None, params: Params) -> Callable[[str], float]:
    """What one weight of a leaf costs, by path; 1 (it counts parameters) by default.

    Raises:
      ValueError: `costs` of another structure than the parameters.
    """
    if costs is None:
        return lambda name: 1.0
    require_same_structure("costs", costs, params)
    table = {name: float(cost) for name, cost in named_leaves(costs)}
    return table.__getitem__


def scalar(value: float, shape: Sequence[int] = ()) -> jax.Array:
    """An array of the default float dtype that keeps its dtype under updates; 0-d."""
    return jnp.full(shape, value, jnp.result_type(float))


def stacks(params: Params, stacked: Any) -> dict[str, Axes]:
    """The axes along which each leaf is a stack of layers, by path."""
    names = [name for name, _ in named_leaves(params)]
    return dict(zip(names, stacked_axes(params, stacked), strict=True))


def layer_size(leaf: Any, axes: Axes) -> int:
    """Number of scalars of one layer."""
    return int(np.prod(layer_shape(np.shape(leaf), axes)))


def spread(each: jax.Array, leaf: jax.Array, axes: Axes) -> jax.Array:
    """One number for each layer, of the rank of the leaf: it broadcasts against it."""
    return jnp.expand_dims(each, layer_axes(leaf.ndim, axes))


def copied(params: Params) -> Params:
    """The parameters in arrays of their own: a donated theta leaves the caller's be."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), params)


def clip(x: jax.Array, low: float, high: float) -> jax.Array:
    """`jnp.clip` with derivative 1 on the closed interval and 0 outside."""
    outside = jax.lax.stop_gradient(jnp.clip(x, low, high))
    return jnp.where((x >= low) & (x <= high), x, outside)


def size(leaf: Any) -> int:
    """Number of scalars of an array, from its shape."""
    return int(np.prod(np.shape(leaf)))
