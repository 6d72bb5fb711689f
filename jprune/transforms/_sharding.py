"""Shardings for optimizer states, scalars and 0-d masks included."""

from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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

    everywhere = NamedSharding(named[0].mesh, PartitionSpec())

    def replicated(x: Any) -> NamedSharding:
        return _returned(everywhere, len(x.shape))

    def follow(moment: PyTree, param: Any, sharding: NamedSharding) -> PyTree:
        own = _returned(sharding, len(param.shape))
        return jax.tree.map(
            lambda x: own if x.shape == param.shape else replicated(x), moment
        )

    return map_moments(tx, follow, shapes, params, shardings, other=replicated)


def _returned(sharding: NamedSharding, rank: int) -> NamedSharding:
    """The sharding in the form in which a jitted step returns it.

    As long as the array has axes on a mesh with Explicit ones, else without None at its
    end. What is handed back in another form compiles the step again.
    """
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = [*sharding.spec, *[None] * (rank - len(sharding.spec))]
    if AxisType.Explicit not in sharding.mesh.axis_types:
        while spec and spec[-1] is None:
            spec.pop()
    return NamedSharding(
        sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind
    )
