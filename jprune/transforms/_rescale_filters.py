r"""Weight rescaling: scale-invariant filters are put back on a sphere.

The length of a filter in front of a norm is free, and SGD only ever lengthens it, which
slows its turning. Instead of decay, which keeps it short by the way,

    w_c <- r w_c / |w_c|

after every step, with whatever has to scale along (a bias before a layer norm), so that
the function is the same and the effective learning rate eta / r^2.

Liu et al., "Weight Rescaling: Effective and Robust Regularization for Deep Neural
Networks with Batch Normalization", arXiv 2102.03497 (the abstract was read; period,
radius and what happens to momentum, nothing, are ours).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._errors import no_params, require_static, value_error
from jprune._scale_groups import (
    ScaleGroup,
    find_leaf,
    flat_norms,
    group_leaves,
    rescaled,
    turn,
)
from jprune._tree import leaf_numbers
from jprune._typing import Params, PyTree
from jprune.transforms._build import next_step, transformation


class RescaleFiltersState(NamedTuple):
    """State of `rescale_filters`.

    Attributes:
      count: steps taken, int32.
    """

    count: jax.Array


class LogFiltersState(NamedTuple):
    """State of `log_filters`; by path of each group, [filters].

    Attributes:
      norm: length after the step.
      angle: by how much the step turned the filter, in radians.
      radial: its length after the step over that before, minus 1.
    """

    norm: dict[str, jax.Array]
    angle: dict[str, jax.Array]
    radial: dict[str, jax.Array]


def rescale_filters(
    groups: Sequence[ScaleGroup], *, radius: float = 1.0, every: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Keeps scale-invariant filters at one length (a projection: place it last).

    Args:
      groups: filters, from `analysis.scale_invariance(...).groups`.
      radius: their length. Filters of zeros stay.
      every: steps between two projections.

    Returns:
      A `GradientTransformationExtraArgs`. Use no weight decay on these kernels.

    Raises:
      ValueError: `radius` not positive, `every` below 1; from `init`, groups of another
        network; from `update`, no `params`.

    References:
      Liu et al., arXiv 2102.03497.
    """
    require_static(every=every)
    if every < 1 or (not isinstance(radius, jax.Array) and radius <= 0):
        raise value_error(
            f"`radius` must be positive and `every` at least 1, got {radius} and "
            f"{every}."
        )

    def init(params: Params) -> RescaleFiltersState:
        if jax.tree.leaves(params):
            group_leaves(params, groups)
        return RescaleFiltersState(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree,
        state: RescaleFiltersState,
        params: Params | None = None,
        **_: Any,
    ) -> tuple[PyTree, RescaleFiltersState]:
        if params is None:
            raise no_params("rescale_filters")
        count = next_step(state.count)
        if not jax.tree.leaves(params):
            return updates, RescaleFiltersState(count)
        moved = jax.tree.map(lambda p, u: p + u, params, updates)
        found = group_leaves(moved, groups)
        factors = [_factor(w, g, radius) for g, _, w in found]
        landed = rescaled(moved, [g for g, _, _ in found], factors)
        touched = _members(params, [g for g, _, _ in found])
        now = count % every == 0

        def leaf(i: int, u: jax.Array, p: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(now, (new - p).astype(u.dtype), u) if i in touched else u

        leaves, tree = jax.tree.flatten(updates)
        rows = zip(
            leaves, jax.tree.leaves(params), jax.tree.leaves(landed), strict=True
        )
        out = [leaf(i, *row) for i, row in enumerate(rows)]
        return jax.tree.unflatten(tree, out), RescaleFiltersState(count)

    return transformation(init, update)


def log_filters(
    groups: Sequence[ScaleGroup],
) -> optax.GradientTransformationExtraArgs:
    """Changes nothing; its state says how scale-invariant filters move.

    Place it last, so that it sees the final update. `analysis.equilibrium` says where
    the angles settle under SGD with decay.

    Args:
      groups: filters, from `analysis.scale_invariance(...).groups`.

    Returns:
      A `GradientTransformationExtraArgs` whose state is a `LogFiltersState`.

    Raises:
      ValueError: from `init`, groups of another network; from `update`, no `params`.
    """

    def measure(params: Params, updates: PyTree) -> LogFiltersState:
        zeros = {group.name: jnp.zeros(()) for group in groups}  # of what is not there
        norm, angle, radial = dict(zeros), dict(zeros), dict(zeros)
        if not jax.tree.leaves(params):
            return LogFiltersState(norm, angle, radial)
        moved = jax.tree.map(lambda p, u: p + u, params, updates)
        pairs = zip(
            group_leaves(params, groups), group_leaves(moved, groups), strict=True
        )
        for (group, _, w), (_, _, new) in pairs:
            axis = group.kernel.axis
            before, after = flat_norms(w, axis), flat_norms(new, axis)
            norm[group.name] = after
            angle[group.name] = turn(w, new, axis).astype(after.dtype)
            radial[group.name] = after / jnp.where(before > 0, before, 1) - 1
        return LogFiltersState(norm, angle, radial)

    def init(params: Params) -> LogFiltersState:
        return measure(params, jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: PyTree, state: LogFiltersState, params: Params | None = None, **_: Any
    ) -> tuple[PyTree, LogFiltersState]:
        if params is None:
            raise no_params("log_filters")
        return updates, measure(params, updates)

    return transformation(init, update)


def _factor(w: jax.Array, group: ScaleGroup, radius: float) -> jax.Array:
    size = flat_norms(w, group.kernel.axis)
    return jnp.where(size > 0, radius / jnp.where(size > 0, size, 1), 1)


def _members(params: Params, groups: Sequence[ScaleGroup]) -> set[int]:
    """The numbers of the leaves that are scaled."""
    number = leaf_numbers(params)
    found = {
        find_leaf(number, one.path) for g in groups for one in (g.kernel, *g.others)
    }
    return {i for i in found if i is not None}
