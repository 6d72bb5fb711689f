"""Blocks of the trailing axes of a leaf: split it into tiles, and put it together."""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jprune._axes import whole_along
from jprune._errors import is_integer, value_error

Shape = tuple[int, ...]


def block_shape(block: Sequence[int], name: str, leaf: jax.Array) -> Shape:
    """`block` over all axes of a leaf, 1 along those it does not name.

    Raises:
      ValueError: a block that is not of positive integers, or has more axes than the
        leaf.
    """
    block = tuple(block)
    if not block or any(not is_integer(b) or b < 1 for b in block):
        raise value_error(f"`block` must be positive integers, got {block}.")
    if leaf.ndim < len(block):
        raise value_error(
            f"`block` {block} has more axes than {name} of shape {leaf.shape}; leave "
            "that leaf out of `scope`."
        )
    return (1,) * (leaf.ndim - len(block)) + tuple(map(operator.index, block))


def tiles(x: jax.Array, block: Shape) -> jax.Array:
    """Each axis split in (blocks, block), ragged ends filled with zeros."""
    x = whole_along(x, [axis for axis, b in enumerate(block) if b > 1])
    pads = [(0, -n % b) for n, b in zip(x.shape, block, strict=True)]
    split = [s for n, b in zip(x.shape, block, strict=True) for s in (-(-n // b), b)]
    return jnp.pad(x, pads).reshape(split)


def within_tiles(block: Shape) -> tuple[int, ...]:
    """The axes of `tiles` that run within a block."""
    return tuple(range(1, 2 * len(block), 2))


def untiled(kept: jax.Array, shape: Shape, block: Shape) -> jax.Array:
    """Each block's decision over its scalars. [shape]"""
    for axis, b in enumerate(block):
        kept = jnp.repeat(kept, b, axis=axis) if b > 1 else kept
    return kept[tuple(slice(0, n) for n in shape)]
