"""What else one sweep can tell: images of an array, and counts leaf by leaf."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jprune._errors import value_error
from jprune._typing import Mask, PyTree
from jprune.selection._image import ImageKind, common_image
from jprune.selection._leaves import read
from jprune.selection._sweep import sweep_images
from jprune.selection._threshold import Threshold


def image_of(x: jax.Array, image: ImageKind = "magnitude") -> jax.Array:
    """The order-preserving integers by which entries of one array compare.

    Args:
      x: a floating array.
      image: `"magnitude"` or `"signed"`, as for `kth_magnitude`.

    Returns:
      Integers of the shape of `x`; the lowest for NaN and infinities.
    """
    return common_image([x.dtype], image).of(x)


def counts_above(
    tree: PyTree,
    threshold: Threshold,
    *,
    image: ImageKind = "magnitude",
    within: Mask | None = None,
    axis_name: str | Sequence[str] | None = None,
    specs: PyTree | None = None,
) -> jax.Array:
    """How many entries of each leaf lie strictly above a global threshold.

    These are kept whatever happens to the ties at the threshold. One sweep.

    Args:
      tree: the tree that `kth_magnitude` saw.
      threshold: what it returned, 0-d.
      image: the same as there.
      within: the same as there.
      axis_name: the same as there.
      specs: the same as there.

    Returns:
      [leaves] int32.

    Raises:
      ValueError: a threshold of a per-leaf ranking; and as `kth_magnitude`.
    """
    table = read(tree, image, within, axis_name, specs)
    if jnp.ndim(threshold.bits):
        raise value_error(
            "`threshold` must be of a global ranking (0-d), got shape "
            f"{threshold.bits.shape}."
        )
    if not table.leaves:
        return jnp.zeros((0,), jnp.int32)
    bits = jnp.broadcast_to(threshold.bits, (len(table.leaves),))
    # What reaches `top` ties with `top - 1`; after k = 0 nothing is above.
    last = bits >= table.image.top - 1
    next_up = jnp.where(last, bits, bits + 1)
    seen = sweep_images(table, True)([bits, next_up])
    return jnp.where(last, 0, seen.at[1])
