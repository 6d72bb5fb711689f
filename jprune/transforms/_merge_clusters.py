r"""C-SGD: filters of a cluster are trained to become equal, then all but one is spare.

Let H(j) be the cluster of filter j and $g_k = \partial L / \partial F_k$ the gradient
of the data loss. The direction fed to momentum is (eq. 4 to 6, and the matrices
$\Gamma$, $\Lambda$ of section 3.2)

$$ \frac{1}{|H(j)|} \sum_{k \in H(j)} g_k + \eta F_j
   + \epsilon \Big( F_j - \frac{1}{|H(j)|} \sum_{k \in H(j)} F_k \Big). $$

With P the orthogonal projection onto the weights that are equal within every cluster,
this is $P g + \eta w + \epsilon (w - P w)$. So P w follows ordinary SGD with weight
decay, and w - P w follows no data at all: it shrinks by $1 - \tau(\eta + \epsilon)$ a
step (faster with momentum), whatever the loss says. What is left of it at the end is
known before training starts: `collapse_factor`.

When the members of a cluster are equal they compute the same map. `compress.merge` then
keeps one of them and sums what the next layers read into its place, which loses
nothing; there is no fine-tuning.

Ding et al., "Centripetal SGD for Pruning Very Deep Convolutional Networks with
Complicated Structure", CVPR 2019 (arXiv 1904.03837).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._errors import listing, require_static, value_error, warn
from jprune._groups import AxisRef, Group, member_leaves
from jprune._tree import keys_text, leaf_name, named_leaves
from jprune._typing import Params, PyTree, Scalar, ScalarOrSchedule, Scope
from jprune.masks._count import is_traced
from jprune.masks._scope import resolve_scope
from jprune.transforms._build import (
    by_group,
    decayed,
    require_rate,
    require_strengths,
    transformation,
)

Clusters = Mapping[str, Sequence[int] | np.ndarray | jax.Array]
"""Cluster numbers of a group's coordinates, by group id or by path."""

_COLLAPSED = 1e-4
"""Relative spread that `compress.merge` accepts by default."""


class MergeClustersState(NamedTuple):
    """State of `merge_clusters`: there is none; the clusters never change."""


class _Clustered(NamedTuple):
    """How one leaf is clustered: axes with the cluster of each position."""

    vector: bool
    axes: list[tuple[int, np.ndarray]]


def merge_clusters(
    groups: Sequence[Group],
    clusters: Clusters,
    *,
    strength: Scalar,
    weight_decay: Scalar,
    vector_multiplier: Scalar = 0.1,
    vector_weight_decay: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages gradients within clusters and pulls members together (a gradient map).

    Place it first, on the raw mean gradient, before momentum: `chain(merge_clusters(
    ...), sgd(lr, 0.9, nesterov=True))`. The weight decay of the leaves it touches is
    inside; nothing else in the chain may decay them. Leaves that no clustered group
    produces pass unchanged.

    A kernel that is produced along two clustered axes (attention's heads and their
    inner size) is averaged along both: P is the product of the two projections, which
    commute. [inferred: the paper clusters convolution filters only.]

    Keep the parameters in float32: bfloat16 cannot hold a spread below about 1e-3 of
    the value. Use SGD: a preconditioner with its own statistics for each member drives
    members apart again. In a grouped convolution clusters must not cross its groups.

    Args:
      groups: what `surgery.groups(fn)(params, x)` returns, or a list of some of
        its groups.
      clusters: cluster numbers `[group.size]` by group id, or by the path of a leaf
        that produces the coordinates; see `compress.find_clusters`. By id, the same
        mapping goes to `compress.merge`.
      strength: $\epsilon$, the pull to the cluster's mean; 3e-3 (CIFAR-10) and 0.05
        (ImageNet) in the authors' runs.
      weight_decay: $\eta$ of the clustered kernels.
      vector_multiplier: on biases and norm scales the pull is this times `strength`;
        0.1 in the authors' code.
      vector_weight_decay: their weight decay; 0 in the authors' code.

    Returns:
      A `GradientTransformationExtraArgs` without state. With singleton clusters and no
      decay it is the identity.

    Raises:
      ValueError: cluster numbers that fit no group, a schedule; from `init`, parameters
        that no clustered group lives in; from `update`, no `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import surgery, transforms
      >>> fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
      >>> params = {"v": jnp.ones((3, 1)), "w": jnp.array([[1.0, 3.0, 5.0]])}
      >>> deps = surgery.groups(fn)(params, jnp.ones((1, 1)))
      >>> tx = transforms.merge_clusters(
      ...     deps, {"w:1": [0, 0, 1]}, strength=0.5, weight_decay=0.1)
      >>> grads = {"v": jnp.ones((3, 1)), "w": jnp.array([[0.2, 0.4, 1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> [round(float(u), 4) for u in updates["w"][0]]
      [-0.1, 1.1, 1.5]

    References:
      Ding et al., arXiv 1904.03837, section 3.2. The multipliers of the vectors are
      those of the authors' present code; an older version of it gave biases the full
      strength and decay.
    """
    chosen = _validated(groups, clusters)
    _require_constant(strength=strength, weight_decay=weight_decay)

    def init(params: Params) -> MergeClustersState:
        _clustered(params, chosen)
        return MergeClustersState()

    def leaf(u: jax.Array, w: jax.Array, how: _Clustered) -> jax.Array:
        eta = vector_weight_decay if how.vector else weight_decay
        pull = vector_multiplier * strength if how.vector else strength
        dtype = jnp.promote_types(jnp.result_type(w), jnp.float32)
        g, w = jnp.asarray(u, dtype), jnp.asarray(w, dtype)
        direction = _project(g, how) + jnp.asarray(eta, dtype) * w
        direction += jnp.asarray(pull, dtype) * (w - _project(w, how))
        return direction.astype(jnp.result_type(u))

    def update(
        updates: PyTree, state: MergeClustersState, params: Params
    ) -> tuple[PyTree, MergeClustersState]:
        gradients, treedef = jax.tree.flatten(updates)
        weights = jax.tree.leaves(params)
        for i, how in _clustered(params, chosen).items():
            gradients[i] = leaf(gradients[i], weights[i], how)
        return jax.tree.unflatten(treedef, gradients), state

    return transformation(init, update, "merge_clusters")


def csgd(
    learning_rate: ScalarOrSchedule,
    groups: Sequence[Group],
    clusters: Clusters,
    *,
    strength: Scalar,
    weight_decay: Scalar,
    momentum: float = 0.9,
    nesterov: bool = True,
    vector_multiplier: Scalar = 0.1,
    vector_weight_decay: Scalar = 0.0,
    bias_rate: float = 1.0,
    scope: Any = None,
    total_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Centripetal SGD: the paper's recipe, from a trained network to a mergeable one.

    Clustered leaves as `merge_clusters` says; weight decay on the other leaves of the
    scope; Nesterov momentum. It removes nothing: finish with `compress.merge`.

    Args:
      learning_rate: $\tau$, a number or a schedule.
      groups: see `merge_clusters`.
      clusters: see `merge_clusters`.
      strength: $\epsilon$.
      weight_decay: $\eta$, also of the leaves of `scope` that are not clustered.
      momentum: its coefficient.
      nesterov: Nesterov's form of momentum.
      vector_multiplier: see `merge_clusters`.
      vector_weight_decay: see `merge_clusters`.
      bias_rate: times the learning rate for biases, those of the groups and those named
        bias or b (2 in the authors' code, which is needed to follow their
        trajectories).
      scope: leaves that decay when not clustered; see `masks.unstructured`.
      total_steps: length of the run. With it the collapse is checked beforehand.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: as `merge_clusters`; from `init`, a `bias_rate` without any bias.

    Warns:
      UserWarning: given `total_steps`, when the spread within clusters will not shrink
        to 1e-4 of what it was, which `compress.merge` would refuse.

    References:
      Ding et al., arXiv 1904.03837; defaults of the authors' code.
    """
    require_strengths(weight_decay=weight_decay)
    require_rate(learning_rate, "csgd", "chain `merge_clusters` and it")
    chosen = _validated(groups, clusters)
    _require_constant(strength=strength, weight_decay=weight_decay)
    require_static(total_steps=total_steps)
    if total_steps is not None:
        rates = {"kernels": weight_decay + strength}
        if any(m.role in ("bias", "scale") for g, _ in chosen for m in g.members):
            rates["vectors"] = vector_weight_decay + vector_multiplier * strength
        _warn_if_not_collapsed(learning_rate, rates, total_steps, momentum, nesterov)

    def others(params: Params) -> Scope:
        merged = _clustered(params, chosen)
        leaves, treedef = jax.tree.flatten(resolve_scope(scope, params))
        return jax.tree.unflatten(
            treedef, [taken and i not in merged for i, taken in enumerate(leaves)]
        )

    return optax.chain(
        decayed(weight_decay, others),
        merge_clusters(
            groups,
            clusters,
            strength=strength,
            weight_decay=weight_decay,
            vector_multiplier=vector_multiplier,
            vector_weight_decay=vector_weight_decay,
        ),
        optax.sgd(learning_rate, momentum, nesterov),
        *(
            []
            if bias_rate == 1
            else [optax.masked(optax.scale(bias_rate), partial(_biases, groups=groups))]
        ),
    )


def _biases(params: Params, groups: Sequence[Group]) -> Scope:
    """The leaves that shift: by their role in a group, or by their name."""
    leaves = named_leaves(params)
    found = member_leaves(params, groups) if leaves else []
    shifting = {i for _, at in found for ref, i, _ in at if ref.role == "bias"}
    taken = [
        i in shifting or "bias" in leaf_name(path) or leaf_name(path) == "b"
        for i, (path, _) in enumerate(leaves)
    ]
    if leaves and not any(taken):
        raise value_error(
            "`bias_rate` must be 1 where there is no bias: no group has one, no leaf "
            f"is called so. The leaves are:{listing([path for path, _ in leaves])}"
        )
    return jax.tree.unflatten(jax.tree.structure(params), taken)


def collapse_factor(
    learning_rate: ScalarOrSchedule,
    rate: float,
    steps: int,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
) -> float:
    r"""What is left of the spread within clusters after a run: the pre-flight check.

    The difference d of two members obeys $z \leftarrow \mu z + r d$, $d \leftarrow d -
    \tau_t z$ (Nesterov: $d - \tau_t (r d + \mu z)$) without any data term, so the run
    can be had beforehand, in float64. About $e^{-\sum_t \tau_t r / (1 - \mu)}$.

    Args:
      learning_rate: $\tau$, a number or a schedule.
      rate: r, $\eta + \epsilon$ of the kernels, or of the vectors.
      steps: length of the run.
      momentum: $\mu$.
      nesterov: Nesterov's form of momentum.

    Returns:
      The final spread relative to the first.

    Examples:
      >>> round(collapse_factor(0.03, 3.1e-3, 782), 3)
      0.484
    """
    require_static(steps=steps)
    tau = _rates(learning_rate, steps)
    d, z = 1.0, 0.0
    for step_size in tau:
        g = rate * d
        z = momentum * z + g
        d -= step_size * (g + momentum * z if nesterov else z)
    return abs(d)


def _rates(learning_rate: ScalarOrSchedule, steps: int) -> list[float]:
    if not callable(learning_rate):
        return [float(learning_rate)] * steps
    with jax.ensure_compile_time_eval():
        values = jax.vmap(learning_rate)(jnp.arange(steps))
        return np.broadcast_to(np.asarray(values, np.float64), (steps,)).tolist()


def _warn_if_not_collapsed(
    learning_rate: ScalarOrSchedule,
    rates: Mapping[str, Any],
    steps: int,
    momentum: float,
    nesterov: bool,
) -> None:
    values = (learning_rate, momentum, *rates.values())
    if any(is_traced(x) for x in values):
        return
    left = {
        kind: collapse_factor(
            learning_rate, float(rate), steps, momentum=momentum, nesterov=nesterov
        )
        for kind, rate in rates.items()
    }
    wide = [f"{kind}: {x:.1e}" for kind, x in left.items() if not x <= _COLLAPSED]
    if wide:
        warn(
            f"C-SGD will not bring clusters together in {steps} steps. Spread left at "
            f"the end, relative to the start, {_COLLAPSED:.0e} at most wanted: "
            f"{', '.join(wide)}. Raise `strength` (for vectors also "
            "`vector_multiplier`), the learning rate, or the number of steps.",
        )


def _require_constant(**rates: Any) -> None:
    for name, rate in rates.items():
        if callable(rate):
            raise value_error(
                f"`{name}` must be a number, got the function {rate!r}: there is no "
                "step count. For a schedule use `optax.inject_hyperparams("
                "merge_clusters)(...)`."
            )
    require_strengths(**rates)


def _validated(
    groups: Sequence[Group], clusters: Clusters
) -> list[tuple[Group, np.ndarray]]:
    by_id = {group.id: group for group in groups}
    chosen = []
    for name, given in by_group("clusters", clusters, groups).items():
        numbers, group = np.asarray(given), by_id[name]
        if numbers.shape != (group.size,) or numbers.dtype.kind not in "iu":
            raise value_error(
                f"`clusters[{name!r}]` must be {group.size} integers, one for each "
                f"coordinate; got {numbers.dtype} of shape {numbers.shape}."
            )
        chosen.append((group, numbers))
    if not chosen:
        raise value_error("`clusters` is empty; nothing would be merged.")
    return chosen


def _clustered(
    params: Params, chosen: Sequence[tuple[Group, np.ndarray]]
) -> dict[int, _Clustered]:
    """By leaf number, how each leaf that a clustered group produces is clustered."""
    found: dict[int, _Clustered] = {}
    for (_, members), (group, numbers) in zip(
        member_leaves(params, [group for group, _ in chosen]), chosen, strict=True
    ):
        for ref, i, _ in members:
            if ref.role in ("in", "stat"):
                continue
            vector = ref.role in ("bias", "scale")
            how = found.setdefault(i, _Clustered(vector, []))
            how.axes.append((ref.axis, _positions(ref, group.size, numbers)))
    if jax.tree.leaves(params) and not found:
        raise value_error(
            "No clustered group produces any leaf of the parameters; nothing would be "
            "merged. The groups live in:"
            + listing([keys_text(r.path) for g, _ in chosen for r in g.members])
        )
    return found


def _positions(ref: AxisRef, size: int, numbers: np.ndarray) -> np.ndarray:
    """The cluster of each position of an axis, from 0. [axis length]

    The n-th position of a coordinate goes with the n-th of every other member: on a
    flattened (height, width, channel) axis a channel is averaged pixel by pixel.
    Positions that belong to something else are alone.
    """
    labels = ref.coordinates(size)
    rank = np.array([np.sum(labels[:i] == c) for i, c in enumerate(labels)])
    alone = labels < 0
    cluster = np.where(alone, numbers.min() - 1, numbers[labels])
    keys = np.stack([cluster, np.where(alone, np.arange(labels.size), rank)])
    return np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)


def _project(x: jax.Array, how: _Clustered) -> jax.Array:
    """P x: the mean over each cluster, along each clustered axis."""
    for axis, ids in how.axes:
        if np.unique(ids).size < ids.size:
            x = _cluster_mean(x, axis, ids)
    return x


def _cluster_mean(x: jax.Array, axis: int, ids: np.ndarray) -> jax.Array:
    # A product with a 0/1 matrix, at full precision (the default on accelerators would
    # round): deterministic everywhere, which a scatter is not.
    member = jax.nn.one_hot(ids, ids.max() + 1, dtype=x.dtype)  # [r, n]
    high = jax.lax.Precision.HIGHEST
    sums = jnp.tensordot(x, member, (axis, 0), precision=high)  # [..., n]
    count = np.bincount(ids).reshape((1,) * (x.ndim - 1) + (-1,))
    means = sums / jnp.asarray(count, x.dtype)
    return jnp.moveaxis(jnp.take(means, ids, axis=-1), -1, axis)
