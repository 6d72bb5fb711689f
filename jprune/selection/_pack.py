r"""Small leaves, swept as one.

A network has more leaves than it has large ones: two thirds of those of ResNet-50 are
biases and scales with 0.2 % of its parameters. Every leaf is one more reduction to
compile, twice, and to launch, in each sweep. So leaves of at most 4,096 entries are
copied, once for each selection and outside its loops, into packs of at most 65,536.

Only leaves that are not sharded: to concatenate sharded ones would gather them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune.selection._leaves import Leaf, Table

SMALL = 4_096
PACK = 65_536


def unsharded(table: Table) -> bool:
    """Whether no leaf is sharded, as far as tracing can know.

    What is not known here (a layout given to `jit` as `in_shardings` only) costs time
    and changes no result.
    """
    if table.axis_names:
        return False
    if jax.device_count() == 1:
        return True
    meshes = [jax.typeof(leaf.value).sharding.mesh for leaf in table.leaves]
    meshes.append(jax.sharding.get_abstract_mesh())
    return all(mesh.empty or mesh.size == 1 for mesh in meshes)


def laid_flat(x: jax.Array) -> jax.Array:
    """An array along one axis, where nothing has to move for that.

    A row-major array has the same bytes either way, and one kernel then serves all
    arrays of a length. Not where one may be sharded, unknown to tracing, nor on a TPU,
    which tiles the last axes.
    """
    moves = jax.device_count() > 1 or jax.default_backend() == "tpu"
    return x if moves or x.ndim < 2 else x.reshape(-1)


def flat(table: Table) -> Table:
    """The same leaves, `laid_flat`: the place of an entry is then one index."""
    if jax.device_count() > 1 or jax.default_backend() == "tpu" or table.axis_names:
        return table

    leaves = [
        dataclasses.replace(
            leaf,
            **jax.tree.map(
                laid_flat,
                {
                    "value": leaf.value,
                    "within": leaf.within,
                    "times": leaf.times,
                    "instead": leaf.instead,
                },
            ),
        )
        for leaf in table.leaves
    ]
    return dataclasses.replace(table, leaves=tuple(leaves))


def gathered(leaves: list[jax.Array]) -> list[jax.Array]:
    """The same numbers in fewer arrays: the small ones of a dtype are joined.

    Not where one may be sharded, unknown to tracing.
    """
    if jax.device_count() > 1:
        return leaves
    small: dict[Any, list[jax.Array]] = {}
    for x in leaves:
        if x.size <= SMALL:
            small.setdefault(x.dtype, []).append(x.reshape(-1))
    large = [x for x in leaves if x.size > SMALL]
    return large + [jnp.concatenate(few) for few in small.values()]


def pack(table: Table) -> Table:
    """The same entries at the same positions in fewer leaves, for a global ranking."""
    if not unsharded(table):
        return table
    packs: list[list[Leaf]] = []
    filling: dict[tuple, list[Leaf]] = {}
    rest = []
    for leaf in table.leaves:
        if leaf.size > SMALL:
            rest.append(leaf)
            continue
        dtypes = (leaf.value.dtype, None if leaf.times is None else leaf.times.dtype)
        held = filling.get(dtypes)
        if held is None or sum(one.size for one in held) + leaf.size > PACK:
            held = filling[dtypes] = []
            packs.append(held)
        held.append(leaf)
    joined = [_join(held) if len(held) > 1 else held[0] for held in packs]
    return dataclasses.replace(table, leaves=(*rest, *joined))


def _join(leaves: list[Leaf]) -> Leaf:
    value = jnp.concatenate([leaf.value.reshape(-1) for leaf in leaves])
    factors = [leaf.times for leaf in leaves if leaf.times is not None]
    times = jnp.concatenate([x.reshape(-1) for x in factors]) if factors else None
    within = None
    if any(leaf.within is not None for leaf in leaves):
        within = jnp.concatenate([_flat_within(leaf) for leaf in leaves])
    # A constant: as XLA operations it would be one more kernel for each small leaf.
    places = np.concatenate([leaf.offset + np.arange(leaf.size) for leaf in leaves])
    places = places.astype(np.int32)
    return Leaf(value, times, within, None, ((),), (), value.shape, 0, places)


def _flat_within(leaf: Leaf) -> jax.Array:
    mask = True if leaf.within is None else leaf.within
    return jnp.broadcast_to(mask, leaf.value.shape).reshape(-1)
