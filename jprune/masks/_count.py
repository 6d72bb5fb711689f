r"""Counting: from an asked sparsity to the exact number of scalars kept.

Of n scalars at sparsity s, $\lfloor s n + 1/2 \rfloor$ are removed. The sparsity is
read as the decimal a person wrote (0.57 is 57/100, though no float is), so the count
has no float hazard: `int(10000 * 0.57)` is 5699, ours is 5700. A traced sparsity can
only be counted in floating point (float32 at least): where s n is within its rounding
of a half the count may differ by one, and from 2^24 scalars on by two. To trace an
exact count, trace `keep`.
"""

from fractions import Fraction
from math import floor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune._dtypes import wide
from jprune._errors import is_integer, short, type_error, value_error
from jprune._typing import Scalar

HALF = Fraction(1, 2)


def is_traced(x: Any) -> bool:
    """Whether a value only exists while a program is traced.

    Args:
      x: anything.

    Returns:
      A Python bool. A range check must pass a traced value by.
    """
    return isinstance(x, Tracer)


def exact(x: Any) -> Fraction:
    """The decimal number that the shortest text of a float names, exactly.

    Args:
      x: a finite number: of Python, of NumPy, or a concrete 0-d array of any float or
        integer dtype.

    Returns:
      A `Fraction`.

    Raises:
      ValueError: NaN or infinite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune.masks._count import exact
      >>> exact(0.57), exact(jnp.bfloat16(0.57))
      (Fraction(57, 100), Fraction(57, 100))
    """
    value = np.asarray(x)[()]
    if value.dtype.kind in "biu":
        return Fraction(int(value))
    if not np.isfinite(value):
        raise value_error(f"Expected a finite number, got {x}.")
    texts = (f"{float(value):.{digits}g}" for digits in range(1, 18))
    return Fraction(next(t for t in texts if value.dtype.type(float(t)) == value))


def removed_count(n: int, sparsity: Any) -> int:
    r"""How many of `n` scalars are removed: $\lfloor s n + 1/2 \rfloor$.

    Args:
      n: number of scalars ranked.
      sparsity: fraction removed, in [0, 1]; a number `exact` takes.

    Returns:
      An int in [0, n].

    Raises:
      ValueError: `sparsity` outside [0, 1].

    Examples:
      >>> from jprune.masks._count import removed_count
      >>> removed_count(10, 0.9), removed_count(10, 0.25)
      (9, 3)
    """
    s = exact(sparsity)
    if not 0 <= s <= 1:
        raise value_error(f"A sparsity must be in [0, 1], got {sparsity}.")
    return floor(s * n + HALF)


def kept_count(n: int, sparsity: Scalar) -> int:
    r"""How many of `n` scalars are kept: $n - \lfloor s n + 1/2 \rfloor$.

    The one counting rule, exact: s is the decimal number that the shortest text of a
    float names, so that 0.57 of 10,000 are 5,700.

    Args:
      n: number of scalars ranked.
      sparsity: s, the fraction removed, in [0, 1]; concrete.

    Returns:
      An int in [0, n].

    Raises:
      ValueError: `sparsity` outside [0, 1].
    """
    return n - removed_count(n, sparsity)


def require_sparsity(sparsity: Any) -> None:
    """Raises unless a concrete sparsity is one number in [0, 1); a traced one passes.

    Args:
      sparsity: what a caller gave.

    Raises:
      TypeError: a text, or None.
      ValueError: not one number, or out of range.
    """
    if is_traced(sparsity):
        return
    if isinstance(sparsity, str | bytes) or sparsity is None:
        raise type_error(
            f"`sparsity` must be a number, got {sparsity!r}, a "
            f"{type(sparsity).__name__}."
        )
    if np.ndim(sparsity) != 0:
        raise value_error(
            f"`sparsity` must be one number, got shape {np.shape(sparsity)}."
        )
    if not 0 <= float(sparsity) < 1:
        raise value_error(
            f"`sparsity` must be in [0, 1): the fraction of zeros, got {sparsity}. "
            "(0.9 keeps one weight in ten.)"
        )


def resolve_keep(n: int, sparsity: Any, keep: Any) -> Any:
    """The number kept out of `n`, from exactly one of `sparsity` and `keep`.

    Returns:
      A Python int, or an int32 0-d array where the argument was traced.

    Raises:
      ValueError: both or neither given, or out of range.
      TypeError: `keep` is not an integer.
    """
    require_one(sparsity, keep)
    if keep is None:
        require_sparsity(sparsity)
        return share_kept(n, sparsity)
    require_integer(keep)
    if is_traced(keep):
        return jnp.clip(keep, 0, n).astype(jnp.int32)
    if not 0 <= int(keep) <= n:
        raise value_error(f"`keep` must be in [0, {n}], got {keep}.")
    return int(keep)


def require_integer(keep: Any) -> None:
    """Raises unless a number kept is one integer, traced or not."""
    traced = is_traced(keep) and np.ndim(keep) == 0
    if not (traced and jnp.issubdtype(keep.dtype, jnp.integer) or is_integer(keep)):
        raise type_error(f"`keep` must be one integer, got {short(keep)}.")


def require_one(sparsity: Any, keep: Any) -> None:
    """Raises unless exactly one of the two targets is given."""
    if (sparsity is None) == (keep is None):
        raise value_error(
            "Give exactly one of `sparsity` (fraction of zeros) and `keep` (number "
            f"kept); got sparsity={sparsity}, keep={keep}."
        )


def share_kept(n: int, sparsity: Any) -> Any:
    """`kept_count`, also for a traced sparsity: an int, or an int32 0-d array."""
    if not is_traced(sparsity):
        return kept_count(n, sparsity)
    return n - jnp.clip(traced_share(sparsity, n), 0, n)


def traced_share(share: Any, n: Any) -> jax.Array:
    r"""$\lfloor s n + 1/2 \rfloor$ in floating point, float32 at least. [] int32"""
    product = wide(share) * n
    whole = jnp.floor(product)  # from 2^23 on a float has no half to add
    return (whole + (product - whole >= 0.5)).astype(jnp.int32)
