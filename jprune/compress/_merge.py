r"""Units that compute the same thing are merged into one, and nothing is lost.

If the coordinates of a group fall into clusters whose members are equal (filters, their
biases, their norm parameters and statistics), they output equal maps, and a consumer
that reads them computes

    sum_j K[j] y_j = (sum_j K[j]) y ,     j over one cluster.

So one representative, the member of smallest index, stays with its own producing
slices; the consumers' slices are summed into its place; the other members are removed.
Plain deletion would lose the other terms of the sum. A residual stream is one group,
however many layers write and read it, and each of its members is treated once.

Training brings clusters together but not to equality; `deviation` reports how far they
are, and `snap` replaces every member by its cluster's mean, which is what the merge is
exact for.

References:
  Ding et al., Centripetal SGD for Pruning Very Deep Convolutional Networks with
  Complicated Structure, CVPR 2019, section 3.3.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jprune import surgery
from jprune._dtypes import owned
from jprune._errors import listing, value_error
from jprune._groups import AxisRef, Group
from jprune._jaxpr._trace import jitted_call
from jprune._tree import KeyTuple, keys_text, path_keys
from jprune._typing import PyTree
from jprune.compress._difference import relative_difference, require_shown

Assignment = Mapping[str, ArrayLike | Sequence[int]]
"""Cluster numbers of a group's coordinates, by group id or by path of a producing leaf.

Equal numbers mean one cluster; the numbers themselves carry no meaning.
"""


class Merged(NamedTuple):
    """The result of `merge`.

    Attributes:
      plan: keeps the representatives; `surgery.shrink(apply, plan)` is the function.
      variables: the compact variables, consumers summed.
      deviation: what `snap` had to close, by group.
    """

    plan: Any
    variables: PyTree
    deviation: dict[str, float]


def deviation(
    deps: surgery.Groups, variables: PyTree, assignment: Assignment
) -> dict[str, float]:
    """How far the members of the clusters are from being equal.

    Args:
      deps: the groups of the network, from `surgery.groups`.
      variables: the variables, all collections that belong to the units (parameters and
        batch statistics).
      assignment: see `merge`.

    Returns:
      For each group of the assignment the largest distance of a producing entry from
      its cluster's mean, relative to the largest entry of that leaf.
    """
    found = {}
    leaves = _leaves(variables)
    for group, clusters in _resolve(deps, assignment):
        worst = 0.0
        for member in _producers(group):
            leaf = np.asarray(leaves[member.path], np.float64)
            mean = _cluster_mean(leaf, member, group, clusters)
            top = np.abs(leaf).max(initial=0)
            gap = np.abs(leaf - np.asarray(mean)).max(initial=0)
            worst = max(worst, float(gap / top) if top else 0.0)
        found[group.id] = worst
    return found


def snap(deps: surgery.Groups, variables: PyTree, assignment: Assignment) -> PyTree:
    """Replaces what every member of a cluster produces by the cluster's mean.

    Kernels' output slices, biases, norm scales and shifts, running statistics and
    tables are averaged; consumers are left alone.

    Args:
      deps: the groups of the network, from `surgery.groups`.
      variables: the variables, dense.
      assignment: see `merge`.

    Returns:
      The variables with equal members, same structure, shapes and dtypes.
    """
    return owned(_snapped(deps, variables, assignment, _cluster_mean), variables)


def _snapped(
    deps: surgery.Groups,
    variables: PyTree,
    assignment: Assignment,
    one: Callable[[Any, AxisRef, Group, np.ndarray], jax.Array],
) -> PyTree:
    """`variables` with what each cluster produces replaced by `one` for all."""
    changed = dict(_leaves(variables))
    for group, clusters in _resolve(deps, assignment):
        for member in _producers(group):
            leaf = changed[member.path]
            changed[member.path] = one(leaf, member, group, clusters)
    return _rebuilt(variables, changed)


def merge(
    apply: Callable[..., Any],
    deps: surgery.Groups,
    variables: PyTree,
    assignment: Assignment,
    *args: Any,
    tolerance: float = 1e-4,
    keep: Literal["mean", "first"] = "mean",
) -> Merged:
    """Merges clusters of units: one member stays, its consumers' slices are summed.

    Args:
      apply: `apply(variables, *args)`, in eval mode.
      deps: the groups of the network, from `surgery.groups`.
      variables: the dense variables. Every member of a cluster is first set to the
        cluster's mean.
      assignment: cluster numbers, one for each coordinate of a group, keyed by group id
        or by the path of a leaf that produces it (`params/Conv_0/kernel`). Groups that
        are not named stay as they are.
      *args: arguments to check the result on: a few real examples.
      tolerance: largest deviation of the members from equality, and largest difference
        of the outputs, both relative.
      keep: what stands for a cluster: the "mean" of its members, or the "first" of them
        as it is, as the authors' code does.

    Returns:
      A `Merged`: the plan, the compact variables, the deviation found.

    Raises:
      ValueError: if an assignment fits no group, has a wrong length, or two of them
        give one group different clusters (layers that are added must share clusters);
        if members are further apart than `tolerance`; if the merged network differs,
        naming the groups whose coordinates are not only summed by weights (normalized
        or multiplied with each other across coordinates); if the outputs on `args`
        are NaN, 0 or none, which shows nothing.

    Examples:
      >>> import jax
      >>> def net(p, x):
      ...     return jax.nn.relu(x @ p["a"]) @ p["b"]
      >>> a = jnp.array([[1.0, 1.0, 2.0], [0.5, 0.5, -1.0]])
      >>> b = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]])
      >>> params, x = {"a": a, "b": b}, jnp.array([[1.0, -1.0], [2.0, 1.0]])
      >>> deps = surgery.groups(net)(params, x)
      >>> merged = merge(net, deps, params, {"a": [0, 0, 1]}, x)
      >>> merged.variables["b"].tolist()
      [[4.0, 1.0], [0.5, 4.0]]
    """
    apart = deviation(deps, variables, assignment)
    _require_close(apart, tolerance)
    if keep not in ("mean", "first"):
        raise value_error(f"`keep` must be 'mean' or 'first', got {keep!r}.")
    one = _cluster_mean if keep == "mean" else _cluster_first
    snapped = _snapped(deps, variables, assignment, one)
    plan, packed = _summed(deps, snapped, assignment)
    expected = jitted_call(apply, snapped, args)
    require_shown("merge", expected)
    found = jitted_call(surgery.shrink(apply, plan), packed, args)
    error = relative_difference(found, expected)
    if not error <= tolerance:
        guilty = _guilty(apply, deps, snapped, assignment, args, tolerance)
        raise value_error(
            f"The merged network differs from the snapped one by {error:.1e} "
            f"(`tolerance` {tolerance:.1e}). Merging is exact only where coordinates "
            "are read by weights alone; those of these groups are also summed, "
            "normalized or multiplied with each other, or a leaf both produces and "
            f"reads them:{listing(guilty)}"
        )
    return Merged(plan, packed, apart)


def _require_close(apart: dict[str, float], tolerance: float) -> None:
    wide = [f"{name}: {gap:.1e}" for name, gap in apart.items() if not gap <= tolerance]
    if wide:
        raise value_error(
            "Members of a cluster are further apart than `tolerance` "
            f"{tolerance:.1e} (relative to the largest entry of the leaf). Train until "
            f"they collapse, or raise it and accept the change:{listing(wide)}"
        )


def _summed(
    deps: surgery.Groups, variables: PyTree, assignment: Assignment
) -> tuple[Any, PyTree]:
    """The plan that keeps representatives, and the packed variables."""
    changed = dict(_leaves(variables))
    keep = {}
    for group, clusters in _resolve(deps, assignment):
        keep[group.id] = _representatives(clusters) == np.arange(group.size)
        for member in group.members:
            if member.role == "in":
                leaf = changed[member.path]
                changed[member.path] = _sum_into(leaf, member, group, clusters)
    plan = surgery.plan_from_keep(deps, keep)
    return plan, plan.pack(_rebuilt(variables, changed))


def _guilty(
    apply: Callable,
    deps: surgery.Groups,
    variables: PyTree,
    assignment: Assignment,
    args: tuple,
    tolerance: float,
) -> list[str]:
    """The groups that differ when merged alone; all of them if none does."""
    expected = jitted_call(apply, variables, args)
    wrong = []
    for group, clusters in _resolve(deps, assignment):
        plan, packed = _summed(deps, variables, {group.id: clusters})
        found = jitted_call(surgery.shrink(apply, plan), packed, args)
        error = relative_difference(found, expected)
        if not error <= tolerance:
            wrong.append(f"{group.id}: {error:.1e}")
    return wrong or [group.id for group, _ in _resolve(deps, assignment)]


# Assignments


def _resolve(
    deps: surgery.Groups, assignment: Assignment
) -> list[tuple[Group, np.ndarray]]:
    """The groups named, each with its clusters; keys that disagree are an error."""
    chosen: dict[str, tuple[str, Group, np.ndarray]] = {}
    for key, given in assignment.items():
        group, clusters = _find(deps, key), np.asarray(given)
        if clusters.shape != (group.size,) or clusters.dtype.kind not in "iu":
            raise value_error(
                f"`assignment[{key!r}]` must be {group.size} integers, one for each "
                f"coordinate of group {group.id!r}; got {clusters.dtype} of shape "
                f"{clusters.shape}."
            )
        first, _, known = chosen.setdefault(group.id, (key, group, clusters))
        if not np.array_equal(_representatives(known), _representatives(clusters)):
            raise value_error(
                f"`assignment` gives {first!r} and {key!r} different clusters, but "
                f"both belong to group {group.id!r}: what they produce is combined "
                "coordinate by coordinate. Give both the same clusters."
            )
    return [(group, clusters) for _, group, clusters in chosen.values()]


def _find(deps: surgery.Groups, key: str) -> Group:
    units = [group for group in deps if group.kind != "depth"]  # rounds are no units
    for group in units:
        if group.id == key:
            return group
    found = [
        group
        for group in units
        if any(keys_text(m.path) == key for m in _producers(group))
    ]
    if len(found) == 1:
        return found[0]
    what = "several groups" if found else "no group"
    ids = [group.id for group in (found or units)]
    raise value_error(
        f"`assignment[{key!r}]` names {what}: a key is a group id, or the path of a "
        f"leaf that produces one group's coordinates. Ids:{listing(ids)}"
    )


def _representatives(clusters: np.ndarray) -> np.ndarray:
    """For each coordinate the smallest member of its cluster. [size]"""
    _, first, number = np.unique(clusters, return_index=True, return_inverse=True)
    return first[number]


def _producers(group: Group) -> list[AxisRef]:
    return [member for member in group.members if member.role != "in"]


# Leaves


def _leaves(variables: PyTree) -> dict[KeyTuple, Any]:
    pairs = jax.tree_util.tree_leaves_with_path(variables)
    return {path_keys(path): leaf for path, leaf in pairs}


def _rebuilt(variables: PyTree, leaves: Mapping[KeyTuple, Any]) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[path_keys(path)], variables
    )


def _targets(member: AxisRef, group: Group, clusters: np.ndarray) -> np.ndarray:
    """For each position of the axis, the position of its representative.

    The n-th position of a coordinate goes with the n-th position of its representative:
    on a flattened (height, width, channel) axis these are the rows of one pixel.
    """
    labels = member.coordinates(group.size)
    target = np.arange(labels.size)
    representative = _representatives(clusters)
    for coordinate in np.flatnonzero(representative != np.arange(group.size)):
        own = np.flatnonzero(labels == coordinate)
        target[own] = np.flatnonzero(labels == representative[coordinate])
    return target


def _sum_into(
    leaf: Any, member: AxisRef, group: Group, clusters: np.ndarray
) -> jax.Array:
    """Slices summed into their representatives' places; zeros elsewhere."""
    target = _targets(member, group, clusters)
    slices = jnp.moveaxis(jnp.asarray(leaf), member.axis, 0)
    return jnp.moveaxis(jnp.zeros_like(slices).at[target].add(slices), 0, member.axis)


def _cluster_first(
    leaf: Any, member: AxisRef, group: Group, clusters: np.ndarray
) -> jax.Array:
    """Every slice replaced by that of the first of its cluster."""
    target = _targets(member, group, clusters)
    return jnp.take(jnp.asarray(leaf), target, axis=member.axis)


def _cluster_mean(
    leaf: Any, member: AxisRef, group: Group, clusters: np.ndarray
) -> jax.Array:
    """Every slice replaced by the mean over its cluster."""
    target = _targets(member, group, clusters)
    slices = jnp.moveaxis(jnp.asarray(leaf), member.axis, 0)
    count = np.bincount(target, minlength=target.size).astype(slices.dtype)
    sums = jnp.zeros_like(slices).at[target].add(slices)
    shape = (-1,) + (1,) * (slices.ndim - 1)
    mean = sums[target] / count[target].reshape(shape)
    return jnp.moveaxis(mean, 0, member.axis)
