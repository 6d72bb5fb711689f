r"""Order-preserving integer images of floating-point numbers.

IEEE numbers of one sign are ordered as their bit patterns. With `u` the pattern without
its sign bit,

- the **magnitude** image is `u`: comparing images is comparing `|x|`;
- the **signed** image is `u` for `x >= 0` and `-u` for `x < 0`.

Both send -0 and +0 to 0, and both are integers, so no comparison depends on rounding or
on whether the hardware flushes subnormal numbers to zero. What is not finite never
ranks: NaN and infinities of either sign have the lowest image of all, that of 0 or of
minus infinity, so that a broken score keeps nothing in place of a sound one.

Every leaf of a tree is imaged in one format, float32 (float64 if any leaf is float64).
The low bits that are zero for every dtype of the tree are shifted out, so that
neighbouring images are neighbouring numbers: a bfloat16 tree has 15-bit images.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._errors import value_error

ImageKind = Literal["magnitude", "signed"]


class Image(NamedTuple):
    """How the floats of one tree become integers.

    Attributes:
      wide: whether the common format is float64 (images are int64), not float32
      (int32).
      shift: number of low bits that are zero in every pattern of the tree, shifted out.
      signed: the signed image, not the magnitude image.
    """

    wide: bool
    shift: int
    signed: bool

    @property
    def dtype(self) -> np.dtype:
        """The integer dtype of the images."""
        return np.dtype("int64" if self.wide else "int32")

    @property
    def float_dtype(self) -> np.dtype:
        """The common floating format."""
        return np.dtype("float64" if self.wide else "float32")

    @property
    def mantissa(self) -> int:
        """Mantissa bits left in an image: `2**mantissa` images to an octave."""
        return (52 if self.wide else 23) - self.shift

    @property
    def lowest(self) -> int:
        """The smallest image of a number: of 0, or of minus infinity."""
        return -self.of_float(np.inf) if self.signed else 0

    @property
    def top(self) -> int:
        """At least every image; the open upper end of a search."""
        return int(np.iinfo(self.dtype).max) >> self.shift

    @property
    def excluded(self) -> int:
        """The image of an entry that takes no part: below `lowest`."""
        return int(np.iinfo(self.dtype).min)

    def of_float(self, value: float) -> int:
        """The image of a non-negative Python float."""
        return int(np.array(value, self.float_dtype).view(self.dtype)) >> self.shift

    def of(
        self,
        x: jax.Array,
        within: jax.Array | None = None,
        times: jax.Array | None = None,
        instead: jax.Array | None = None,
        which: jax.Array | None = None,
    ) -> jax.Array:
        """The images of a leaf, element-wise; `excluded` where `within` is False.

        With `times` they are those of the product, rounded to the common format. Where
        the 0-d `which` is true they are those of `instead`, and `excluded` where
        `within` is True.
        """
        number = self._widen(x)
        if instead is not None and which is not None:
            number = jnp.where(which, self._widen(instead), number)
            within = None if within is None else within ^ which
        if times is not None:
            number *= self._widen(times)
        bits = lax.bitcast_convert_type(number, self.dtype)
        size = bits & np.iinfo(self.dtype).max
        size = size >> self.shift if self.shift else size
        finite = size < self.of_float(np.inf)
        if self.signed:
            size = jnp.where(bits < 0, -size, size)
        size = jnp.where(finite, size, jnp.asarray(self.lowest, self.dtype))
        if within is None:
            return size
        return jnp.where(within, size, jnp.asarray(self.excluded, self.dtype))

    def _widen(self, x: jax.Array) -> jax.Array:
        if x.dtype == jnp.bfloat16 and not self.wide:
            # Exact by construction, also for subnormals: bfloat16 is the upper half.
            half = lax.bitcast_convert_type(x, jnp.int16).astype(jnp.int32)
            return lax.bitcast_convert_type(half << 16, jnp.float32)
        return x.astype(self.float_dtype)


def common_image(
    dtypes: Sequence[np.dtype], kind: ImageKind, *, products: bool = False
) -> Image:
    """The image that serves every dtype of a tree.

    Args:
      dtypes: the floating dtypes of the leaves; none for an empty tree.
      kind: `"magnitude"` or `"signed"`.
      products: whether products of such numbers are imaged: they use every bit.

    Returns:
      The image.

    Raises:
      ValueError: for another `kind`.
    """
    if kind not in ("magnitude", "signed"):
        raise value_error(
            f'`image` must be "magnitude" or "signed", got {kind!r}: ranked '
            "by absolute value, or by signed value."
        )
    wide = any(dtype == np.float64 for dtype in dtypes)
    full = 52 if wide else 23
    used = max((int(jnp.finfo(dtype).nmant) for dtype in dtypes), default=full)
    used = full if products else used
    return Image(wide, full - used, kind == "signed")


def image_of(x: jax.Array, image: ImageKind = "magnitude") -> jax.Array:
    """The order-preserving integers by which entries of one array compare.

    Args:
      x: a floating array.
      image: `"magnitude"` or `"signed"`, as for `kth_magnitude`.

    Returns:
      Integers of the shape of `x`; the lowest for NaN and infinities.
    """
    x = jnp.asarray(x)  # float64 of NumPy is float32 unless x64 is on
    return common_image([x.dtype], image).of(x)
