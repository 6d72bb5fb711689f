r"""Counting: from an asked sparsity to the exact number of scalars kept.

Of n scalars at sparsity s, $\lfloor s n + 1/2 \rfloor$ are removed. The sparsity is
read as the decimal a person wrote (0.57 is 57/100, though no float is), so the count
has no float hazard: `int(10000 * 0.57)` is 5699, ours is 5700. A traced sparsity is
counted in float32 and cannot promise more than float32 does.
"""

from fractions import Fraction
from math import floor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import type_error, value_error

HALF = Fraction(1, 2)


def is_traced(x: Any) -> bool:
    """True for a value that only exists while a program is traced."""
    return isinstance(x, jax.core.Tracer)


def exact(x: Any) -> Fraction:
    """The decimal number that the shortest text of a float names, exactly."""
    value = np.asarray(x)
    if value.dtype.kind in "iu":
        return Fraction(int(value))
    if value.dtype.name in ("bfloat16", "float16"):
        value = value.astype(np.float32)
    return Fraction(str(value[()]))


def removed_count(n: int, sparsity: float) -> int:
    r"""How many of `n` scalars are removed: $\lfloor s n + 1/2 \rfloor$.

    Args:
      n: number of scalars ranked.
      sparsity: fraction removed, in [0, 1].

    Returns:
      An int in [0, n].

    Raises:
      ValueError: `sparsity` outside [0, 1].

    Examples:
      >>> from jprune import masks
      >>> masks.removed_count(10, 0.9), masks.removed_count(10, 0.25)
      (9, 3)
    """
    s = exact(sparsity)
    if not 0 <= s <= 1:
        raise value_error(f"A sparsity must be in [0, 1], got {sparsity}.")
    return floor(s * n + HALF)


def kept_count(n: int, sparsity: float) -> int:
    """`n - removed_count(n, sparsity)`."""
    return n - removed_count(n, sparsity)


def require_sparsity(sparsity: Any) -> None:
    """Raises unless a concrete sparsity is in [0, 1); a traced one passes."""
    if is_traced(sparsity):
        return
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
    if (sparsity is None) == (keep is None):
        raise value_error(
            "Give exactly one of `sparsity` (fraction of zeros) and `keep` (number "
            f"kept); got sparsity={sparsity}, keep={keep}."
        )
    if keep is not None:
        if not jnp.issubdtype(jnp.result_type(keep), jnp.integer):
            raise type_error(f"`keep` must be an integer, got {keep!r}.")
        if is_traced(keep):
            return jnp.clip(keep, 0, n).astype(jnp.int32)
        if not 0 <= int(keep) <= n:
            raise value_error(f"`keep` must be in [0, {n}], got {keep}.")
        return int(keep)
    require_sparsity(sparsity)
    if is_traced(sparsity):
        return traced_kept_count(n, sparsity)
    return kept_count(n, sparsity)


def traced_kept_count(n: int, sparsity: jax.Array) -> jax.Array:
    """`kept_count` in float32, for a sparsity known only inside the program."""
    removed = jnp.floor(jnp.asarray(sparsity, jnp.float32) * n + 0.5)
    return n - jnp.clip(removed, 0, n).astype(jnp.int32)
