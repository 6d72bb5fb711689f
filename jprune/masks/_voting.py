r"""Channels to keep by their norm scales, with one vote for layers that are added.

After a network is trained with an L1 penalty on its batch-norm scales $\gamma$, many
are near zero. A layer keeps the channels with $|\gamma| > \theta$. Layers whose outputs
are added must agree: with K of them, $P_v$ the channels that at least v would remove
and m the fewest any one would remove, the group removes

$$ P_{v^*}, \qquad v^* = \max \{ v : |P_v| \ge m \}. $$

Jiang et al., "Pruning-aware Sparse Regularization for Network Pruning", Machine
Intelligence Research 2023 (arXiv 2201.06776); the threshold from the energy of the
scales is Ye et al.'s optimal thresholding, as the authors' code computes it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jprune._errors import value_error
from jprune._groups import Group, member_leaves
from jprune._typing import Params
from jprune.masks._count import is_traced


def keep_by_scale(
    params: Params,
    groups: Sequence[Group],
    threshold: float | jax.Array | Literal["optimal"] = 0.01,
    *,
    min_keep: int = 1,
) -> dict[str, jax.Array]:
    """Keeps the coordinates whose norm scales exceed a threshold; members vote.

    Args:
      params: the parameters, trained with a penalty on their scales.
      groups: what `surgery.groups(fn)(params, x)` returns, or a list of some of its
        groups. One without a scale is kept whole.
      threshold: of the magnitude, exceeded strictly; "optimal" for
        the one below which 1e-4 of the squared scales of a leaf lie.
      min_keep: the fewest coordinates a member, and the group, keeps: the largest
        scales, the first among equals. (The authors' code keeps channel 0 when none is
        above the threshold, and nothing where a vote removes all.)

    Returns:
      By group id a bool vector, True = keep: what `masks.from_groups` takes.

    Raises:
      ValueError: another `threshold`, or a negative one; no group has a member with the
        role "scale" in `params`.
    """
    _require_threshold(threshold)
    found, any_scale = {}, False
    for group, members in member_leaves(params, groups):
        scales = [
            ref.collect(
                jnp.max(jnp.abs(leaf), ref.others(leaf.ndim)), group.size, "max"
            )
            for ref, _, leaf in members
            if ref.role == "scale"
        ]
        if not scales:
            found[group.id] = jnp.ones(group.size, bool)
            continue
        any_scale = True
        keeps = []
        for scale in scales:
            by_name = isinstance(threshold, str)
            at = energy_threshold(scale) if by_name else threshold
            keeps.append(_at_least(scale > at, scale, min_keep))
        agreed = vote(keeps)
        mean = jnp.mean(jnp.stack(scales), 0)
        found[group.id] = _at_least(agreed, mean, min_keep)
    if not any_scale:
        raise value_error(
            "No group has a norm scale among the leaves of `params`: there is nothing "
            "to threshold. Groups get the role 'scale' from `surgery.groups`; a norm "
            "built without a scale has none."
        )
    return found


def _require_threshold(threshold: Any) -> None:
    if is_traced(threshold):
        return
    named = isinstance(threshold, str)
    if not (threshold == "optimal" if named else float(threshold) >= 0):
        raise value_error(
            "`threshold` must be a number of at least 0, or 'optimal'; got "
            f"{threshold!r}."
        )


def vote(keeps: Sequence[jax.Array]) -> jax.Array:
    """One keep vector for members that each want their own: the conservative vote.

    Args:
      keeps: what each member wants to keep, `[size]` bool.

    Returns:
      What all of them keep. [size] bool

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune.masks._voting import vote
      >>> a, b = jnp.array([False, False, True]), jnp.array([False, True, True])
      >>> vote([a, b])
      Array([False,  True,  True], dtype=bool)
    """
    remove = ~jnp.stack(keeps)  # [K, size]
    votes, fewest = jnp.sum(remove, 0), jnp.min(jnp.sum(remove, 1))
    levels = jnp.arange(1, len(keeps) + 1)
    sizes = jnp.sum(votes[None] >= levels[:, None], 1)  # [K]
    return votes < jnp.max(jnp.where(sizes >= fewest, levels, 0))


def energy_threshold(scale: jax.Array, delta: float = 1e-4) -> jax.Array:
    r"""The threshold below which lies a fraction `delta` of the squared scales.

    Of the sorted magnitudes the first whose cumulative energy exceeds `delta` is kept;
    the threshold lies midway between it and the one before (0 if it is the first). A
    leaf with no magnitude above 1e-3 counts as dead: its threshold is 1.

    Args:
      scale: norm scales. [size]
      delta: fraction of the energy that may go; 1e-4 in the authors' code.

    Returns:
      A 0-d float array.
    """
    ordered = jnp.sort(jnp.abs(scale))
    energy = jnp.cumsum(ordered**2)
    i = jnp.argmax(energy > delta * energy[-1])
    middle = (ordered[jnp.maximum(i - 1, 0)] + ordered[i]) / 2
    alive = jnp.where(i == 0, jnp.zeros_like(middle), middle)
    return jnp.where(ordered[-1] < 1e-3, jnp.ones_like(middle), alive)


def _at_least(keep: jax.Array, score: jax.Array, n: int) -> jax.Array:
    """`keep`, filled up to `n` with the highest scores, the first among equals."""
    rank = jnp.argsort(jnp.lexsort((-score, ~keep)))
    return keep | (rank < n)
