"""Whether a tree is a mask, and one for these parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import listing, value_error
from jprune._tree import named_leaves, require_same_structure
from jprune._typing import Mask, Params


def require_fit(mask: Mask, params: Params, what: str = "mask") -> None:
    """Raises unless `mask` is one for `params`.

    Args:
      mask: arrays of bools or integers, or their shapes; 0-d where a leaf stays whole.
      params: the parameters, or their shapes.
      what: names the argument that holds the mask.

    Raises:
      ValueError: other structures, shapes or dtypes. Scores or weights in place of a
        mask would keep nearly everything, and nothing would tell.
    """
    require_same_structure(what, mask, params)
    leaves = named_leaves(mask)
    numbers = [
        f"{path}: {jnp.result_type(m)}"
        for path, m in leaves
        if jnp.issubdtype(jnp.result_type(m), jnp.inexact)
    ]
    if numbers:
        raise value_error(
            f"`{what}` must hold bools, True = keep. Got scores or weights? A method "
            "or `masks.unstructured` makes a mask of them, `masks.from_zeros` reads "
            f"one off pruned weights.{listing(numbers)}"
        )
    pairs = zip(leaves, jax.tree.leaves(params), strict=True)
    bad = [
        f"{path}: {np.shape(m)} against {np.shape(p)}"
        for (path, m), p in pairs
        if np.shape(m) not in ((), np.shape(p))
    ]
    if bad:
        raise value_error(
            f"`{what}` must have the shape of each parameter, or be 0-d where it keeps "
            f"a whole leaf:{listing(bad)}"
        )
