r"""Clusters of filters: which ones C-SGD should make equal.

A group of r coordinates (filters, hidden units, heads) is partitioned once, before
training, into n clusters; n is the width that remains. Three ways to do it: *k-means*
on the filters as vectors, *even* runs of neighbors, and *imbalanced*, one large cluster
beside singletons. The paper finds the first two equally good and the third worse.

Layers whose outputs are added must share their clusters. That needs no bookkeeping
here: they are members of one group, and a group has one partition.

Ding et al., "Centripetal SGD for Pruning Very Deep Convolutional Networks with
Complicated Structure", CVPR 2019 (arXiv 1904.03837), section 3.1 and 3.4.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._errors import listing, require_regex, value_error
from jprune._finite import require_finite
from jprune._groups import Group, member_leaves
from jprune._tree import keys_text
from jprune._typing import Params
from jprune.masks._count import require_sparsity

How = Literal["kmeans", "even", "imbalanced"]


def find_clusters(
    params: Params,
    groups: Sequence[Group],
    *,
    sparsity: float | None = None,
    keep: Mapping[str, int] | None = None,
    how: How = "kmeans",
    pacesetter: str | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A partition of each group's coordinates: what `csgd` and `merge` take.

    Runs on the host, once. Save the result with the run: k-means on other weights finds
    other clusters.

    Args:
      params: the parameters, or the variables, before training.
      groups: what `surgery.groups(fn)(params, x)` returns, or a list of some of
        its groups.
      sparsity: fraction of the coordinates to remove from every group that parameters
        both produce and read; a group of r is left with
        `masks.kept_count(r, sparsity)` clusters, at least one.
      keep: the number of clusters by group id, instead; other groups stay whole.
      how: "kmeans", "even" or "imbalanced".
      pacesetter: regular expression on leaf paths. K-means sees only the producing
        kernels it matches (of a group where it matches none, all of them). The paper
        lets one layer of a residual stage lead and the others follow; by default all
        producers of a group are seen together, which is the same for a group of one.
      seed: of the k-means starts.

    Returns:
      For each group concerned, cluster numbers `[group.size]` from 0.

    Raises:
      ValueError: both or neither of `sparsity` and `keep`; an unknown group; more
        clusters than coordinates; no group to cluster; for k-means a group without a
        producing kernel in `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import compress, surgery
      >>> fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
      >>> w = jnp.array([[0.0, 5.0, 0.1], [0.0, 5.0, 0.0]])
      >>> params = {"v": jnp.ones((3, 1)), "w": w}
      >>> deps = surgery.groups(fn)(params, jnp.ones((1, 2)))
      >>> compress.find_clusters(params, deps, keep={"w:1": 2})
      {'w:1': array([0, 1, 0])}
    """
    if how not in ("kmeans", "even", "imbalanced"):
        raise value_error(
            f"`how` must be 'kmeans', 'even' or 'imbalanced', got {how!r}."
        )
    if pacesetter is not None:
        require_regex("pacesetter", pacesetter)
    found = {}
    for group, n in _widths(groups, sparsity, keep):
        if how == "kmeans":
            columns = _columns(params, group, pacesetter)
            found[group.id] = kmeans_clusters(columns, n, seed=seed)
        else:
            make = even_clusters if how == "even" else imbalanced_clusters
            found[group.id] = make(group.size, n)
    return found


def even_clusters(size: int, n: int) -> np.ndarray:
    """Runs of neighbors; the first `size % n` clusters have one member more.

    Args:
      size: number of coordinates.
      n: number of clusters.

    Returns:
      Cluster numbers. [size] int

    Raises:
      ValueError: not `1 <= n <= size`.

    Examples:
      >>> even_clusters(5, 2)
      array([0, 0, 0, 1, 1])
    """
    _require_count(size, n)
    lengths = np.full(n, size // n) + (np.arange(n) < size % n)
    return np.repeat(np.arange(n), lengths)


def imbalanced_clusters(size: int, n: int) -> np.ndarray:
    """The first `size - n + 1` coordinates in one cluster, the others alone.

    Args:
      size: number of coordinates.
      n: number of clusters.

    Returns:
      Cluster numbers. [size] int

    Raises:
      ValueError: not `1 <= n <= size`.
    """
    _require_count(size, n)
    return np.maximum(np.arange(size) - (size - n), 0)


def kmeans_clusters(
    columns: np.ndarray, n: int, *, seed: int = 0, restarts: int = 10
) -> np.ndarray:
    """k-means in Euclidean distance: spread starts, the best of several, none empty.

    Every start draws centers by the k-means++ rule and runs Lloyd's iteration in
    float64; a cluster that loses its last member takes the worst-placed point.

    Args:
      columns: the points, one filter per column. [features, size]
      n: number of clusters; `n == size` gives singletons without a search.
      seed: of the starts.
      restarts: number of starts.

    Returns:
      Cluster numbers in the order of each cluster's first member. [size] int

    Raises:
      ValueError: not `1 <= n <= size`.
    """
    points = np.asarray(columns, np.float64).T  # [size, features]
    _require_count(len(points), n)
    if n == len(points):
        return np.arange(n)
    rng = np.random.default_rng(seed)
    best = min(
        (_lloyd(points, n, rng) for _ in range(restarts)), key=lambda run: run[0]
    )
    _, first, number = np.unique(best[1], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]


def _lloyd(
    points: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Total squared distance and cluster numbers of one run."""
    centers = _spread(points, n, rng)
    numbers = np.full(len(points), -1)
    for _ in range(300):
        square = _squares(points, centers)  # [size, n]
        new = _without_empty(square.argmin(1), square, n)
        if np.array_equal(new, numbers):
            break
        numbers = new
        members = numbers[:, None] == np.arange(n)
        centers = (members.T @ points) / members.sum(0)[:, None]
    return float(((points - centers[numbers]) ** 2).sum()), numbers


def _spread(points: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: each further center drawn by its squared distance to those taken."""
    taken = [int(rng.integers(len(points)))]
    while len(taken) < n:
        weight = _squares(points, points[taken]).min(1)
        weight[taken] = 0
        free = np.isin(np.arange(len(points)), taken, invert=True)
        weight = weight if weight.sum() > 0 else free.astype(float)
        taken.append(int(rng.choice(len(points), p=weight / weight.sum())))
    return points[taken]


def _squares(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Squared distances. [points, centers]"""
    cross = points @ centers.T
    norms = (points**2).sum(1)[:, None] + (centers**2).sum(1)
    return np.maximum(norms - 2 * cross, 0)


def _without_empty(numbers: np.ndarray, square: np.ndarray, n: int) -> np.ndarray:
    numbers = numbers.copy()
    for empty in np.flatnonzero(np.bincount(numbers, minlength=n) == 0):
        distance = square[np.arange(len(numbers)), numbers]
        shared = np.bincount(numbers, minlength=n)[numbers] > 1
        numbers[np.where(shared, distance, -1).argmax()] = empty
    return numbers


def _widths(
    groups: Sequence[Group], sparsity: float | None, keep: Mapping[str, int] | None
) -> list[tuple[Group, int]]:
    """The groups to cluster, each with its number of clusters."""
    if (sparsity is None) == (keep is None):
        raise value_error(
            "Give exactly one of `sparsity` (fraction removed of every group) and "
            f"`keep` (clusters by group id); got sparsity={sparsity}, keep={keep}."
        )
    if keep is None:
        require_sparsity(sparsity)
        coupled = [group for group in groups if group.kind == "coupled"]
        if not coupled:
            raise value_error(
                "`groups` holds no group that parameters both produce and read: there "
                "is nothing to merge."
            )
        return [(g, max(masks.kept_count(g.size, sparsity or 0), 1)) for g in coupled]
    by_id = {group.id: group for group in groups}
    unknown = sorted(set(keep) - set(by_id))
    if unknown or not keep:
        raise value_error(
            f"`keep` must name groups, got {unknown or 'none'}. Their ids:"
            + listing(sorted(by_id))
        )
    for name, n in keep.items():
        _require_count(by_id[name].size, n)
    return [(by_id[name], n) for name, n in keep.items()]


def _columns(params: Params, group: Group, pacesetter: str | None) -> np.ndarray:
    """The group's producing kernels, one column per coordinate. [features, size]"""
    [(_, members)] = member_leaves(params, [group])
    made = [(ref, leaf) for ref, _, leaf in members if ref.role in ("out", "table")]
    if not made:
        raise value_error(
            f"Group {group.id!r} has no producing kernel in `params`; k-means has "
            'nothing to compare. Use `how="even"` or leave the group out of `keep`.'
        )
    if pacesetter is not None:
        text = [re.search(pacesetter, keys_text(ref.path)) for ref, _ in made]
        made = [m for m, hit in zip(made, text, strict=True) if hit] or made
    require_finite(
        "`params`",
        [(keys_text(ref.path), jnp.asarray(leaf)) for ref, leaf in made],
        "no distance to NaN is known.",
    )
    rows = []
    for ref, leaf in made:
        labels = ref.coordinates(group.size)
        slices = np.moveaxis(np.asarray(leaf, np.float64), ref.axis, 0)
        where = [np.flatnonzero(labels == c) for c in range(group.size)]
        rows.append(np.stack([slices[at].ravel() for at in where], axis=1))
    return np.concatenate(rows)


def _require_count(size: int, n: int) -> None:
    if not 1 <= n <= size:
        raise value_error(
            f"`n` clusters of {size} coordinates: 1 <= n <= {size}, got {n}."
        )
