"""Shardings for optimizer states, scalars and 0-d masks included."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jprune._errors import value_error
from jprune._typing import Params, PyTree
from jprune.transforms._inner_state import map_moments


def state_sharding(
    tx: optax.GradientTransformation, params: Params, shardings: PyTree
) -> PyTree:
    """Where each array of `tx`'s state should live, given where the parameters live.

    Momenta, masks and other state of a parameter's shape follow their parameter;
    counters, warm starts, the 0-d True of a leaf out of scope and what else has another
    shape (rows and columns of Adafactor) are replicated over the mesh.

    Args:
      tx: the whole chain.
      params: the parameters, or their `jax.ShapeDtypeStruct`s.
      shardings: a `NamedSharding` for each parameter.

    Returns:
      A tree of `NamedSharding` with the structure of `tx.init(params)`, for
      `jax.jit(tx.init, out_shardings=...)` or `jax.device_put`.

    Raises:
      ValueError: no `NamedSharding` among `shardings`.
    """
    named = [s for s in jax.tree.leaves(shardings) if isinstance(s, NamedSharding)]
    if not named:
        raise value_error(
            "`shardings` must hold a `jax.sharding.NamedSharding` for each parameter."
        )
    shapes = jax.eval_shape(tx.init, params)

    def replicated(x: Any) -> NamedSharding:
        # As long as the array has axes: so a step returns it on an Explicit mesh, and
        # one that is handed back in another form compiles the step again.
        return NamedSharding(named[0].mesh, PartitionSpec(*[None] * len(x.shape)))

    def follow(moment: PyTree, param: Any, sharding: NamedSharding) -> PyTree:
        return jax.tree.map(
            lambda x: sharding if x.shape == param.shape else replicated(x), moment
        )

    return map_moments(tx, follow, shapes, params, shardings, other=replicated)
