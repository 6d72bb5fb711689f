"""Magnitudes that the free scale of normalized filters does not change."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jprune._errors import listing, value_error
from jprune._scale_groups import ScaleGroup, filter_norms, group_leaves
from jprune._tree import named_leaves
from jprune._typing import Mask, Params, Scores


def invariant_magnitude(
    params: Params,
    groups: Sequence[ScaleGroup],
    *,
    kind: Literal["unit", "rms"] = "rms",
    mask: Mask | None = None,
    rest: Literal["magnitude"] | None = None,
) -> Scores:
    r"""$|w_i| / |w_c|$: a weight's share of its filter, whatever the filter's scale.

    In front of a norm the length of a filter is free, so that |w| compares filters by
    how they were trained, not by what they do.

    Args:
      params: the parameters.
      groups: scale-invariant filters, from `analysis.scale_invariance(...).groups`.
      kind: divide by the norm of the filter ("unit"), or by its root mean square
        ("rms"), which is fair between filters of unlike size.
      mask: what is kept so far; removed weights do not count for their filter's norm.
      rest: "magnitude": other leaves get |w|. The two do not compare, so rank such a
        tree by leaf (`ranking="leaf"`). None: other leaves of two axes or more are
        an error.

    Returns:
      Non-negative scores, float32 or wider, with the structure of `params`; zeros on
      vectors and scalars.

    Raises:
      ValueError: leaves of two axes or more outside of `groups`, and no `rest`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import analysis, scores
      >>> def net(p, x):
      ...     h = x @ p["w"]
      ...     return h * jax.lax.rsqrt((h * h).mean(0)[None])
      >>> p = {"w": jnp.array([[1.0, 10.0], [2.0, 20.0]])}
      >>> groups = analysis.scale_invariance(net, p, jnp.eye(2)).groups
      >>> scores.invariant_magnitude(p, groups, kind="unit")["w"].round(4)
      Array([[0.4472, 0.4472],
             [0.8944, 0.8944]], dtype=float32)

    References:
      Liu et al., "Weight Rescaling", arXiv 2102.03497 (the score is ours).
    """
    if kind not in ("unit", "rms"):
        raise value_error(f'`kind` must be "unit" or "rms", got {kind!r}.')
    leaves, tree = jax.tree.flatten(params)
    keeps: list[Any] = [None] * len(leaves) if mask is None else jax.tree.leaves(mask)
    axes = {i: g.kernel.axis for g, i, _ in group_leaves(params, groups)}
    scope = [jnp.ndim(w) >= 2 for w in leaves]
    outside = [
        name
        for i, (name, _) in enumerate(named_leaves(params))
        if scope[i] and i not in axes
    ]
    if outside and rest is None:
        raise value_error(
            "These leaves are not scale invariant; pass `rest` and rank by leaf, or "
            f"leave them out of the tree:{listing(outside)}"
        )

    def score(i: int, w: jax.Array) -> jax.Array:
        size = jnp.abs(w.astype(jnp.promote_types(w.dtype, jnp.float32)))
        if i not in axes:
            return size if scope[i] else jnp.zeros_like(size)
        kept = size if keeps[i] is None else jnp.where(keeps[i], size, 0)
        norm = filter_norms(kept, axes[i])
        if kind == "rms":
            count = jnp.ones_like(size) if keeps[i] is None else (kept > 0) * 1.0
            rest_axes = tuple(d for d in range(w.ndim) if d != axes[i])
            norm = norm / jnp.sqrt(
                jnp.maximum(jnp.sum(count, rest_axes, keepdims=True), 1)
            )
        return size / jnp.where(norm > 0, norm, 1)

    return jax.tree.unflatten(tree, [score(i, w) for i, w in enumerate(leaves)])
