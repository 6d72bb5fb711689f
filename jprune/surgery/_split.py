"""Static positions of an axis that an array is split along over several devices.

Taken in place, XLA would put the axis together on every device. So the split moves to
another axis first (an exchange between the devices), the positions are taken where the
axis is whole, and the split moves back if it divides the new length. No device ever
holds more than its share of the leaf, but for vectors, which have no other axis.
"""

import math
from typing import Any

import jax
import jax.core
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jprune.surgery._cells import take


def is_split(x: Any, axis: int) -> bool:
    """Whether an array (no tracer) is split over devices along an axis."""
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
        return False
    if not isinstance(x.sharding, NamedSharding):
        return False
    return _pieces(x.sharding.mesh, _spec(x)[axis]) > 1


def take_split(x: jax.Array, positions: np.ndarray, axis: int) -> jax.Array:
    """`x` at the positions of an axis along which it is split.

    Args:
      x: an array with a `NamedSharding`.
      positions: in order.
      axis: counted from 0.

    Returns:
      The new array. The axis is split as before where the split divides its new length.
      Else it is whole, and on an Auto mesh another axis is split in its place.
    """
    mesh, spec = x.sharding.mesh, _spec(x)  # type: ignore[union-attr]
    aside = _aside(x.shape, mesh, spec, axis)
    out = take(resharded(x, mesh, aside), positions, axis)
    if positions.size % _pieces(mesh, spec[axis]) == 0:
        return resharded(out, mesh, spec)
    if all(kind is AxisType.Auto for kind in mesh.axis_types):
        return out
    return resharded(out, mesh, [*spec[:axis], None, *spec[axis + 1 :]])


def resharded(x: jax.Array, mesh: Any, spec: list[Any]) -> jax.Array:
    """`x` split in another way; the devices exchange what they need."""
    where = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.jit(_same, out_shardings=where)(x)


def _same(x: jax.Array) -> jax.Array:
    return x


def _spec(x: Any) -> list[Any]:
    spec = list(x.sharding.spec)
    return spec + [None] * (x.ndim - len(spec))


def _aside(shape: tuple[int, ...], mesh: Any, spec: list[Any], axis: int) -> list[Any]:
    """The split with one axis whole, its devices along the longest other that divides.

    Along none (a vector), the axis is put together.
    """
    out = [None if d == axis else names for d, names in enumerate(spec)]
    for other in sorted(range(len(shape)), key=lambda d: -shape[d]):
        both = (*_names(spec[other]), *_names(spec[axis]))
        if other != axis and shape[other] % _pieces(mesh, both) == 0:
            out[other] = both
            break
    return out


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _pieces(mesh: Any, entry: Any) -> int:
    return math.prod(mesh.shape[name] for name in _names(entry))
