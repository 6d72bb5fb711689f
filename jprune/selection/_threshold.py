r"""What a selection returns, and what is remembered of it from one step to the next.

Weights move a little per step, and so does the k-th magnitude. A search that starts at
the last threshold $T$, with pivots at $T$ and $T \pm d$, needs 1-5 sweeps where a cold
one needs about 8. The rule for $d$ is closed-loop: twice the last miss $|T - guess|$,
and at least 64 images. A search that ends in its first pass did so because a gap of the
data lies within $\pm d$. How far the threshold moved is then not known, so $d$ is kept,
or falls back to the least if the guess itself was right.

A wrong memory costs sweeps, never exactness.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._typing import PyTree
from jprune.selection._image import Image, common_image
from jprune.selection._leaves import float_dtypes

Ranking = Literal["global", "leaf"]


class Threshold(NamedTuple):
    """The k-th largest entry, as an integer.

    Attributes:
      bits: an integer image that separates the kept from the rest: an entry is kept if
        its image is at least `bits` (up to ties). It is the image of the k-th largest
        entry, or lies in the gap below it. Meant for `keep_mask` on the same tree; an
        image of float32 magnitudes is the bit pattern, that of bfloat16 ones its upper
        half. 0-d, or [leaves] for `ranking="leaf"`. int32; int64 for a tree with
        float64 leaves
      count: how many entries reach `bits`: k, or more by ties. Same shape, int32
      passes: sweeps over the tree that the search took. Same shape, int32
    """

    bits: jax.Array
    count: jax.Array
    passes: jax.Array


class WarmStart(NamedTuple):
    """Where the next search begins: two scalars for an optimizer's state.

    Attributes:
      bits: the last threshold's `bits`. 0-d or [leaves], int32 or int64
      spread: how far around it to look first; 0 (or less) means nothing is known yet.
        Same shape and dtype

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import selection
      >>> w = jnp.array([0.3, -2.0, 0.1, 1.0])
      >>> memory = selection.WarmStart.cold(w)
      >>> threshold = selection.kth_magnitude(w, 2, init=memory)
      >>> memory = memory.after(threshold)
      >>> int(selection.kth_magnitude(w, 2, init=memory).passes)
      1
    """

    bits: jax.Array
    spread: jax.Array

    @classmethod
    def cold(
        cls, tree: PyTree | None = None, *, ranking: Ranking = "global"
    ) -> "WarmStart":
        """The memory before the first search, which knows nothing.

        Args:
          tree: the tree that will be searched, or its shapes; needed for per-leaf
            ranking and for float64 leaves, since they decide shape and dtype.
          ranking: `"global"` or `"leaf"`.

        Returns:
          A `WarmStart`.
        """
        require_ranking(ranking)
        dtypes = float_dtypes(tree)
        if tree is None and ranking == "leaf":
            raise value_error(
                '`cold` needs `tree` for ranking="leaf": one entry per leaf.'
            )
        dtype = common_image(dtypes, "magnitude").dtype
        zero = jnp.zeros((len(dtypes),) if ranking == "leaf" else (), dtype)
        return cls(zero, zero)

    def after(self, threshold: Threshold) -> "WarmStart":
        """The memory after a search that began here.

        Args:
          threshold: what the search returned.

        Returns:
          The `WarmStart` for the next step, of the same shapes and dtypes.
        """
        bits = threshold.bits
        unsigned = np.dtype("uint64" if bits.dtype == jnp.int64 else "uint32")
        # A difference of two images wraps in the signed type, not in the unsigned.
        ahead = bits > self.bits
        miss = jnp.where(ahead, bits - self.bits, self.bits - bits).astype(unsigned)
        twice = 2 * jnp.minimum(miss, np.iinfo(bits.dtype).max // 2).astype(bits.dtype)
        measured = jnp.where(miss == 0, 1, jnp.maximum(self.spread, 1))
        spread = jnp.where(threshold.passes > 1, jnp.maximum(twice, 1), measured)
        spread = jnp.where(self.spread > 0, spread, 1)
        return WarmStart(bits, spread.astype(bits.dtype))


def first_guess(image: Image, init: WarmStart | None) -> tuple[jax.Array, jax.Array]:
    """Guess and spread of a search: remembered, or typical of trained weights.

    The typical ones are the magnitude 1/64, give or take four octaves, and for signed
    values 0, give or take 1/64.
    """
    typical = image.of_float(2.0**-6)
    guess, spread = (0, typical) if image.signed else (typical, 4 << image.mantissa)
    guess, spread = jnp.asarray(guess, image.dtype), jnp.asarray(spread, image.dtype)
    if init is None:
        return guess, spread
    known = init.spread > 0
    least = max(1, (1 << image.mantissa) >> 17)
    near = jnp.maximum(init.spread.astype(image.dtype), least)
    return (
        jnp.where(known, init.bits.astype(image.dtype), guess),
        jnp.where(known, near, spread),
    )


def require_ranking(ranking: Ranking) -> None:
    """Raises unless `ranking` is one of the two."""
    if ranking not in ("global", "leaf"):
        raise value_error(f'`ranking` must be "global" or "leaf", got {ranking!r}.')
