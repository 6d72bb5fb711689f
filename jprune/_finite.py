"""Values that are known and not finite, found by the path of their leaf."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jprune._errors import listing, value_error


def require_finite(what: str, leaves: Iterable[tuple[str, Any]], advice: str) -> None:
    """Raises if an array holds NaN or infinities; what is traced passes.

    Args:
      what: is asked to be finite: an argument, or what it gives.
      leaves: path and array.
      advice: what to do, a sentence.

    Raises:
      ValueError: naming the leaves.
    """
    with jax.ensure_compile_time_eval():  # inside of `jit`, a constant is known, too
        bad = [
            f"{path}: {int((~jnp.isfinite(x)).sum())} of {x.size}"
            for path, x in leaves
            if not isinstance(x, Tracer | jax.ShapeDtypeStruct)
            and jnp.issubdtype(x.dtype, jnp.inexact)
            and not jnp.isfinite(x).all()
        ]
    if bad:
        raise value_error(f"{what} must be finite: {advice} Not finite:{listing(bad)}")
