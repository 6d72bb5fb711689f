"""What to log about a pruning run, the same few numbers for every method."""

import jax
import jax.numpy as jnp
import optax

from jprune import masks
from jprune._typing import Mask, Params, PyTree
from jprune.masks._fit import require_fit


def diagnostics(
    params: Params,
    mask: Mask,
    *,
    previous: Mask | None = None,
    state: PyTree | None = None,
) -> dict[str, jax.Array]:
    """Targeted fraction, mask churn, largest targeted weight, threshold passes.

    Pure and jittable: call it at the steps you log, with the method's own choice of the
    set (`masks.unstructured(params, s)` for SWD, the mask in the state otherwise).

    Args:
      params: the parameters.
      mask: the set in force; False = targeted or removed.
      previous: the mask at the last call; gives the churn.
      state: the optimizer state; gives the passes of its jprune transformations.

    Returns:
      0-d arrays: `targeted_fraction` of what the mask covers, `largest_targeted`
      magnitude, with `previous` also `mask_churn` (fraction of covered scalars that
      changed sides), with `state` also `threshold_passes` (the most of any).

    Raises:
      ValueError: `mask` is none of the parameters.
    """
    require_fit(mask, params)
    fraction = masks.sparsity(mask)
    targeted = [
        jnp.max(jnp.where(m, 0, jnp.abs(p)), initial=0).astype(jnp.float32)
        for m, p in zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True)
        if jnp.ndim(m)
    ]
    out = {
        "targeted_fraction": fraction,
        "largest_targeted": jnp.max(jnp.stack(targeted)) if targeted else fraction * 0,
    }
    if previous is not None:
        same = jax.tree.map(lambda a, b: a == b, mask, previous)
        out["mask_churn"] = masks.sparsity(same)
    if state is not None:
        passes = [p for _, p in optax.tree.get_all_with_path(state, "passes")]
        if passes:
            out["threshold_passes"] = jnp.max(jnp.stack(passes))
    return out
