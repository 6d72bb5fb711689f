"""Every scale-invariant filter at length 1, the function unchanged."""

from collections.abc import Sequence

import jax.numpy as jnp

from jprune._dtypes import owned
from jprune._scale_groups import ScaleGroup, flat_norms, group_leaves, rescaled
from jprune._typing import PyTree


def canonicalize(variables: PyTree, groups: Sequence[ScaleGroup]) -> PyTree:
    """Filters of norm 1, with what has to scale with them.

    Afterwards any criterion of magnitude compares filters, whatever their training made
    of their lengths. Filters of zeros stay.

    Args:
      variables: parameters and running statistics.
      groups: from `analysis.scale_invariance` of the network in evaluation, so that the
        statistics are among them: mean / |w|, variance / |w|^2.

    Returns:
      Variables of the same function, up to the epsilon of the norms.

    Raises:
      ValueError: groups of another network.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import analysis, compress
      >>> def net(p, x):
      ...     y = x @ p["w"] - p["mean"][None]
      ...     return y / jnp.sqrt(p["var"][None] + 1e-6)
      >>> p = {"w": jnp.array([[3.0], [4.0]]), "mean": jnp.ones(1), "var": jnp.ones(1)}
      >>> found = analysis.scale_invariance(net, p, jnp.ones((2, 2)))
      >>> new = compress.canonicalize(p, found.groups)
      >>> [round(float(new[n][0]), 2) for n in ("mean", "var")]
      [0.2, 0.04]
    """
    found = group_leaves(variables, groups)
    sizes = [flat_norms(w, g.kernel.axis) for g, _, w in found]
    factors = [1 / jnp.where(s > 0, s, 1) for s in sizes]
    new = rescaled(variables, [g for g, _, _ in found], factors)
    return owned(new, variables)
