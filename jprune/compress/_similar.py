"""Channels that say nearly the same as another one go, without data or training.

Distances follow from batch norm parameters (`_distances`); channels are clustered; of
each cluster the one of largest second moment stays. What reads the others is given to
it (merge), to it and to a bias (affine), or their mean to a bias (remove).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import surgery
from jprune._dtypes import owned
from jprune._errors import value_error
from jprune._groups import AxisRef, Group
from jprune._jaxpr._chain import data_dependent, find_chain
from jprune._jaxpr._flat import flatten
from jprune._jaxpr._matrix import matrix_form
from jprune._jaxpr._trace import trace
from jprune._tree import KeyTuple, keyed_leaves, path_keys
from jprune._typing import PyTree
from jprune.compress._capture import capture, require_varied
from jprune.compress._distances import (
    Linkage,
    channel_distances,
    cluster_by_distance,
    filter_correlation,
    relu_moments,
)
from jprune.surgery._budget import upwards

Kind = Literal["weights", "independent", "comonotone"]


class Similar(NamedTuple):
    """Clusters of similar channels.

    Attributes:
      clusters: by group id, cluster numbers [size] (what `compress.merge` takes, too).
      keep: by group id, bool: one of each cluster.
      distances: by group id, [size, size], divided by the mean second moment.
      height: at which all groups were cut; None for a count.
    """

    clusters: dict[str, np.ndarray]
    keep: dict[str, np.ndarray]
    distances: dict[str, np.ndarray]
    height: float | None


class _Norm(NamedTuple):
    scale: np.ndarray
    bias: np.ndarray


def similar_channels(
    deps: surgery.Groups,
    variables: PyTree,
    *,
    height: float | None = None,
    sparsity: float | None = None,
    flops: float | None = None,
    correlation: Kind = "weights",
    relu: bool = True,
    linkage: Linkage = "average",
    groups: Sequence[str] | None = None,
    distances: Mapping[str, np.ndarray] | None = None,
) -> Similar:
    """Clusters of the channels of each group, by their batch norms.

    Args:
      deps: the groups of the network.
      variables: its variables.
      height: clusters merge up to this normalized distance, one for all groups; or
      sparsity: the share of every group's channels to remove; or
      flops: the share of the FLOPs to keep: the least height that meets it.
      correlation: of the normalized channels: "weights", the cosine of the filters;
        "independent", the nearest to the paper's idea: not 0 for equal parameters;
        "comonotone": 0 for equal parameters, however unlike the channels are.
      relu: compare what is read behind a ReLU.
      linkage: the distance of two clusters: the mean over pairs of members, the
        largest, or the smallest.
      groups: ids; by default every group that one kernel and one norm produce. Of a
        residual stream the distances of all its norms are added.
      distances: by group id, in place of those from norms (`data_distances`).

    Returns:
      A `Similar`, for `remove_similar`.

    Raises:
      ValueError: not exactly one target, a group without a norm, FLOPs that cannot be
        met.
    """
    if sum(x is not None for x in (height, sparsity, flops)) != 1:
        raise value_error("Give exactly one of `height`, `sparsity` and `flops`.")
    leaves = dict(keyed_leaves(variables))
    chosen = [deps[i] for i in groups] if groups is not None else _single(deps)
    if not chosen:
        raise value_error("No group has one kernel and one norm: give `groups`.")
    found = {
        g.id: np.asarray(distances[g.id])
        if distances is not None and g.id in distances
        else _distances(g, leaves, correlation, relu)
        for g in chosen
    }

    def cut(at: float) -> dict[str, np.ndarray]:
        return {
            i: cluster_by_distance(d, height=at, linkage=linkage)
            for i, d in found.items()
        }

    if sparsity is not None:
        clusters = {
            i: cluster_by_distance(
                d, clusters=math.ceil((1 - sparsity) * len(d) - 1e-9), linkage=linkage
            )
            for i, d in found.items()
        }
    else:
        if flops is not None:
            height = _height(deps, found, cut, flops)
        assert height is not None
        clusters = cut(height)
    keep = {
        g.id: _representatives(clusters[g.id], _strength(g, leaves)) for g in chosen
    }
    return Similar(clusters, keep, found, height)


def data_distances(
    fn: Callable[..., Any],
    deps: surgery.Groups,
    variables: PyTree,
    batches: Iterable[Any],
    groups: Sequence[str],
    *,
    samples: int | None = None,
) -> dict[str, np.ndarray]:
    """The same distances measured: of the channels as their readers see them.

    Args:
      fn: `fn(variables, *args)`, in eval mode.
      deps: its groups.
      variables: its variables.
      batches: data, see `capture`.
      groups: ids.
      samples: positions of a convolution, see `capture`.

    Returns:
      By group id [size, size], the mean squared difference over rows (and taps, and
      readers), divided by the mean second moment.
    """
    readers = {i: [r for r in deps[i].members if r.role == "in"] for i in groups}
    paths = {r.path for refs in readers.values() for r in refs}
    scope = _scope(variables, paths)
    captured = capture(fn, variables, batches, scope=scope, samples=samples)
    found = {}
    for i, refs in readers.items():
        size, total, moment = deps[i].size, 0.0, 0.0
        for reader, one in captured.items():
            ref = next((r for r in refs if r.path == one.path), None)
            at = one.form.coordinates(ref.axis) if ref is not None else None
            if ref is None or at is None:
                continue
            where = ref.coordinates(size)[at]
            require_varied(reader, one.input_sum, one.input_squares, one.rows)
            assert one.gram is not None
            more = _paired(one.gram.sum(0), where, size)
            second = np.diag(more)
            total = total + second[:, None] + second[None] - 2 * more
            moment = moment + second.mean()
        if not 0 < moment < np.inf:
            raise value_error(
                f"`batches` must show the channels of {i!r}: expected values that are "
                f"finite and not all 0, got a mean square of {moment} in what reads "
                "them. Give other examples."
            )
        found[i] = np.maximum(total, 0) / moment
        np.fill_diagonal(found[i], 0.0)
    return found


def remove_similar(
    fn: Callable[..., Any],
    deps: surgery.Groups,
    variables: PyTree,
    similar: Similar,
    *args: Any,
    how: Literal["merge", "affine", "remove"] = "merge",
    relu: bool = True,
    compensate: bool = True,
) -> tuple[surgery.Plan, PyTree]:
    r"""Removes all but one channel of each cluster.

    Args:
      fn: `fn(variables, *args)`, in eval mode.
      deps: its groups.
      variables: the dense variables.
      similar: the clusters.
      *args: an example of the arguments.
      how: "merge": readers' slices of removed channels are added to those of the one
        that stays, exact if they are equal. "affine": channel b is read as $s a + t$
        with $s = \rho \gamma_b / \gamma_a$, $t = \beta_b - s \beta_a$, best for a
        linear reader directly behind the norm. "remove": b is read as its mean.
      relu: the readers see max(Y, 0), for "remove".
      compensate: put the constant t (the mean) into the reader's bias or running mean.
        Exact away from zero padding.

    Returns:
      The plan, and the dense variables whose readers have changed:
      `surgery.shrink(fn, plan)` is the function of `plan.pack(variables)`.

    Raises:
      ValueError: an unknown `how`; a reader without a bias that could take a constant.
    """
    if how not in ("merge", "affine", "remove"):
        raise value_error(f'`how` must be "merge", "affine" or "remove", got {how!r}.')
    leaves = dict(keyed_leaves(variables))
    changed = dict(leaves)
    constants: dict[str, np.ndarray] = {}
    for name, clusters in similar.clusters.items():
        group = deps[name]
        keep = similar.keep[name]
        target = np.array([np.flatnonzero(keep & (clusters == c))[0] for c in clusters])
        factor, constant = _replacement(group, leaves, target, keep, how, relu)
        constants[name] = constant
        for ref in group.members:
            if ref.role == "in":
                leaf = changed[ref.path]
                changed[ref.path] = _moved(leaf, ref, group.size, target, factor, keep)
    if compensate:
        _compensate(fn, deps, variables, constants, args, changed)
    plan = surgery.plan_from_keep(deps, similar.keep)
    return plan, owned(_rebuilt(variables, changed), variables)


def _single(deps: surgery.Groups) -> list[Group]:
    return [
        g
        for g in deps
        if g.kind == "coupled"
        and sum(r.role == "out" for r in g.members) == 1
        and len(_norms(g)) == 1
    ]


def _norms(group: Group) -> list[tuple[AxisRef, AxisRef]]:
    """Scale and bias of each norm over a group, paired by where they lie."""
    at = {r.path[:-1]: r for r in group.members if r.role == "bias"}
    return [
        (r, at[r.path[:-1]])
        for r in group.members
        if r.role == "scale" and r.path[:-1] in at
    ]


def _values(group: Group, leaves: Mapping[KeyTuple, Any]) -> list[_Norm]:
    norms = _norms(group)
    if not norms:
        raise value_error(
            f"Group {group.id!r} has no norm with scale and bias: give `distances`."
        )

    def spread(ref: AxisRef) -> np.ndarray:
        where, values = ref.coordinates(group.size), np.asarray(leaves[ref.path])
        out = np.zeros(group.size)
        out[where[where >= 0]] = values.reshape(-1)[where >= 0]
        return out

    return [_Norm(spread(scale), spread(bias)) for scale, bias in norms]


def _distances(
    group: Group, leaves: Mapping[KeyTuple, Any], kind: str, relu: bool
) -> np.ndarray:
    rho: Any = kind
    if kind == "weights":
        outs = [r for r in group.members if r.role == "out"]
        if not outs or any(r.labels is not None for r in outs):
            raise value_error(
                f"Group {group.id!r} has no kernel of its own: give `correlation`."
            )
        rho = filter_correlation(*[(leaves[r.path], r.axis) for r in outs])
    total, moment = 0.0, 0.0
    for norm in _values(group, leaves):
        total = total + channel_distances(norm.scale, norm.bias, rho, relu=relu)
        second = norm.bias**2 + norm.scale**2
        if relu:
            second = relu_moments(norm.scale, norm.bias)[1]
        moment += float(second.mean())
    return np.asarray(total) / max(moment, 1e-30)


def _strength(group: Group, leaves: Mapping[KeyTuple, Any]) -> np.ndarray:
    """The second moment of each channel."""
    if not _norms(group):
        return np.zeros(group.size)
    return np.sum([n.bias**2 + n.scale**2 for n in _values(group, leaves)], axis=0)


def _representatives(clusters: np.ndarray, strength: np.ndarray) -> np.ndarray:
    keep = np.zeros(len(clusters), bool)
    for number in np.unique(clusters):
        members = np.flatnonzero(clusters == number)
        keep[members[np.argmax(strength[members])]] = True
    return keep


def _height(
    deps: surgery.Groups, found: Mapping[str, np.ndarray], cut: Callable, flops: float
) -> float:
    """The least height at which at most this share of the FLOPs is left."""

    def left(at: float) -> float:
        counts = {i: int(c.max()) + 1 for i, c in cut(at).items()}
        return deps.flops(counts) / deps.flops()

    low, high = 0.0, float(max(d.max() for d in found.values())) + 1e-9
    if left(high) > flops:
        raise value_error(
            f"`flops`={flops} cannot be met: with one channel of each group "
            f"`flops={upwards(left(high))}` is the least. Add `groups`."
        )
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= flops else (middle, high)
    return high


def _replacement(
    group: Group,
    leaves: Mapping[KeyTuple, Any],
    target: np.ndarray,
    keep: np.ndarray,
    how: str,
    relu: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Channel b as factor x its representative + constant. [size] each"""
    size = group.size
    if how == "merge":
        return np.ones(size), np.zeros(size)
    norms = _values(group, leaves)
    if len(norms) > 1:
        raise value_error(
            f"Group {group.id!r} is a stream of {len(norms)} norms: only "
            '`how="merge"` knows what to do with it.'
        )
    scale, bias = norms[0]
    if how == "remove":
        mean = relu_moments(scale, bias)[0] if relu else bias
        return np.zeros(size), np.where(keep, 0.0, mean)
    outs = [(leaves[r.path], r.axis) for r in group.members if r.role == "out"]
    rho = filter_correlation(*outs)[np.arange(size), target]
    base = scale[target]
    factor = rho * np.divide(scale, base, out=np.zeros(size), where=base != 0)
    return factor, np.where(keep, 0.0, bias - factor * bias[target])


def _moved(
    leaf: Any,
    ref: AxisRef,
    size: int,
    target: np.ndarray,
    factor: np.ndarray,
    keep: np.ndarray,
) -> jnp.ndarray:
    """A reader's slices of removed channels added to those of their targets."""
    labels = ref.coordinates(size)
    slices = jnp.moveaxis(jnp.asarray(leaf), ref.axis, 0)
    out = slices
    for b in np.flatnonzero(~keep):
        own, to = np.flatnonzero(labels == b), np.flatnonzero(labels == target[b])
        out = out.at[to].add(float(factor[b]) * slices[own]).at[own].set(0)
    return jnp.moveaxis(out, 0, ref.axis)


def _compensate(
    fn: Callable[..., Any],
    deps: surgery.Groups,
    variables: PyTree,
    constants: Mapping[str, np.ndarray],
    args: tuple,
    changed: dict[KeyTuple, Any],
) -> None:
    """Adds the readers' response to the constants to what takes it behind them."""
    if not any(c.any() for c in constants.values()):
        return
    flat = flatten(trace(fn)(variables, *args))
    leaves, data = dict(keyed_leaves(variables)), data_dependent(flat)
    for site in flat.sites:
        for name, constant in constants.items():
            ref = next(
                (
                    r
                    for r in deps[name].members
                    if r.role == "in" and r.path == site.origin.path
                ),
                None,
            )
            if ref is None or not constant.any():
                continue
            form = matrix_form(flat, site)
            at = form.coordinates(ref.axis)
            if at is None or site.origin.at:
                continue
            where = ref.coordinates(deps[name].size)[at]
            level = np.where(where >= 0, constant[np.maximum(where, 0)], 0.0)
            w = np.asarray(form.weights(form.as_operand(jnp.asarray(leaves[ref.path]))))
            sink = find_chain(flat, form, data).sink
            if sink is None:
                raise value_error(
                    f"Nothing behind {'/'.join(map(str, ref.path))} can take the "
                    "constant of removed channels: pass `compensate=False`."
                )
            shift = form.result(np.einsum("k,gkm->gm", level, w))
            old = changed[sink.path]
            changed[sink.path] = jnp.asarray(old) + sink.change(shift, old).astype(
                np.asarray(old).dtype
            )


def _paired(gram: np.ndarray, where: np.ndarray, size: int) -> np.ndarray:
    """Products of channels, tap by tap: the n-th place of one with that of another."""
    total = np.zeros((size, size))
    places = [np.flatnonzero(where == c) for c in range(size)]
    for tap in range(len(places[0])):
        at = np.array([p[tap] for p in places])
        total += gram[np.ix_(at, at)]
    return total


def _scope(variables: PyTree, paths: set[KeyTuple]) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_keys(path) in paths, variables
    )


def _rebuilt(variables: PyTree, leaves: Mapping[KeyTuple, Any]) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[path_keys(path)], variables
    )
