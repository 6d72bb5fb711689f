r"""TPP: filters are made independent of those that stay, before they are cut.

Cutting filters out of a trained network breaks how well it can still be trained: the
singular values of its input-output Jacobian fall apart. What breaks is the dependence
between filters that go and filters that stay. Let F hold a layer's r filters as
columns, m in {0, 1} be 1 where one stays, $Q = 1 - m m^T$. Trainability preserving
pruning adds

$$ \frac{c \lambda}{r^2} \lVert F^T F \odot Q \rVert_F^2
   + \frac{\lambda}{2} \sum_{j: m_j = 0} \big( \gamma_j^2 + \beta_j^2
   + \lVert F_j \rVert^2 \big) $$

to the loss: every entry of the Gram matrix that involves a doomed filter is driven to
zero, and so are the doomed norm scales $\gamma$ and shifts $\beta$. Entries between
filters that stay are free. With $A = F^T F$ the first term has the gradient
$(4 c \lambda / r^2)\, F (A \odot Q)$, which also turns the filters that stay. $\lambda$
grows linearly from 0; at its ceiling it is held, and the layers are set to zero one
after the other. Then they can be removed exactly, and the network fine-tuned.

The normalization by $r^2$, $c = 1000$ and the growing decay of the doomed kernels are
those of the authors' code; the paper writes the plain squared norm and has no decay of
the kernels [inferred].

Wang and Fu, "Trainability Preserving Neural Pruning", ICLR 2023 (arXiv 2207.12534).
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import masks, scores
from jprune._axes import whole_along
from jprune._errors import require_static, value_error
from jprune._finite import require_finite
from jprune._groups import Group, Role, chosen, member_leaves, no_member
from jprune._typing import Params, PyTree, ScalarOrSchedule, Schedule
from jprune.masks._count import exact, require_sparsity
from jprune.transforms._build import (
    added,
    by_group,
    decay_all,
    end_within,
    keeps_of,
    next_step,
    require_rate,
    require_strengths,
    transformation,
    value_at,
)
from jprune.transforms._projection import project

_PRODUCING: tuple[Role, ...] = ("out", "bias", "scale")


class AddDecorrelationState(NamedTuple):
    """State of `add_decorrelation`.

    Attributes:
      count: steps taken, 0-d int32.
    """

    count: jax.Array


class PruneInTurnState(NamedTuple):
    """State of `prune_in_turn`.

    Attributes:
      count: steps taken, 0-d int32.
    """

    count: jax.Array

    def probe(self) -> tuple["PruneInTurnState", None]:
        """The state in which every group's turn has come; see `check`."""
        return PruneInTurnState(jnp.full_like(self.count, 2**30)), None


class _Doomed(NamedTuple):
    """One axis of a leaf: which of its positions stay. [axis length] bool"""

    role: Role
    stays: jax.Array


def add_decorrelation(
    groups: Sequence[Group],
    keeps: Mapping[str, jax.Array],
    strength: ScalarOrSchedule,
    *,
    gram: ScalarOrSchedule = 1000.0,
    decay_kernels: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of TPP's penalty (a penalty: place it before momentum).

    Kernels with the role "out" get the Gram term and the decay of their doomed filters;
    biases and norm scales the decay of their doomed entries. The cost is two products
    of a kernel with an r x r matrix. On a mesh with explicit axes the kernel is
    gathered for them: a Gram matrix needs all filters.

    Leave depthwise kernels out of the groups (their filters read different inputs, so
    their products mean nothing) and, in a grouped convolution, be aware that pairs from
    different groups are penalized too [inferred].

    Args:
      groups: the groups to prune: what `surgery.groups(fn)(params, x)` returns, or a
        list of some of its groups. The authors prune only channels inside a residual
        block, never those of the stream.
      keeps: a bool vector for each group, by id or by the path of a leaf that
        produces its coordinates, True = stays; see `keep_large_filters`. A group that
        is not named stays whole.
      strength: $\lambda$, a number or a schedule; in the paper it grows with time, as
        in `tpp`.
      gram: c, the weight of the Gram term, a number or a schedule.
      decay_kernels: False leaves out the decay of the doomed kernels.

    Returns:
      A `GradientTransformationExtraArgs`. With strength 0, or where everything stays,
      it is the identity.

    Raises:
      ValueError: vectors that do not fit the groups; from `init`, a group that produces
        nothing in the parameters; from `update`, no `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import surgery, transforms
      >>> fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
      >>> params = {"v": jnp.ones((3, 1)), "w": jnp.diag(jnp.array([1.0, 2.0, 3.0]))}
      >>> deps = surgery.groups(fn)(params, jnp.ones((1, 3)))
      >>> keeps = {deps[0].id: jnp.array([True, True, False])}
      >>> tx = transforms.add_decorrelation(deps, keeps, 1.0, gram=9 / 4)
      >>> zero = {"v": jnp.zeros((3, 1)), "w": jnp.zeros((3, 3))}
      >>> updates, _ = tx.update(zero, tx.init(params), params)
      >>> updates["w"]  # 3 * 9 of the Gram term and 3 of the decay
      Array([[ 0.,  0.,  0.],
             [ 0.,  0.,  0.],
             [ 0.,  0., 30.]], dtype=float32)

    References:
      Wang and Fu, arXiv 2207.12534, section 3; weights of the authors' code, which
      finds the norm of a layer by its place in the model and fails where there is none;
      here it is a member of the group or absent.
    """
    keeps = keeps_of(keeps, groups)
    require_strengths(strength=strength, gram=gram)

    def init(params: Params) -> AddDecorrelationState:
        if jax.tree.leaves(params):
            masks.from_groups(params, groups, keeps, roles=_PRODUCING)
        return AddDecorrelationState(jnp.int32(0))

    def leaf(
        u: jax.Array, w: jax.Array, axis: int, at: _Doomed, lam: Any, c: Any
    ) -> jax.Array:
        dtype = jnp.promote_types(w.dtype, jnp.float32)
        w, lam = w.astype(dtype), jnp.asarray(lam, dtype)
        column = [1] * w.ndim
        column[axis] = -1
        force = jnp.zeros_like(w)
        if at.role != "out" or decay_kernels:
            force += lam * w * (~at.stays).reshape(column).astype(dtype)
        if at.role == "out" and w.ndim > 1:
            force += jnp.asarray(c, dtype) * lam * _gram_gradient(w, axis, at.stays)
        return added(u, force)

    def update(
        updates: PyTree, state: AddDecorrelationState, params: Params
    ) -> tuple[PyTree, AddDecorrelationState]:
        lam, c = value_at(strength, state.count), value_at(gram, state.count)
        gradients, treedef = jax.tree.flatten(updates)
        weights = jax.tree.leaves(params)
        for (i, axis), at in _doomed(params, groups, keeps).items():
            gradients[i] = leaf(gradients[i], weights[i], axis, at, lam, c)
        following = AddDecorrelationState(next_step(state.count))
        return jax.tree.unflatten(treedef, gradients), following

    return transformation(init, update, "add_decorrelation")


def prune_in_turn(
    groups: Sequence[Group],
    keeps: Mapping[str, jax.Array],
    *,
    begin: int,
    every: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Sets what is doomed to zero, one group after the other (a projection: last).

    After every step t with `t - begin >= (i + 1) * every` the doomed coordinates of
    group i are zero in every kernel, bias and norm that produces them, so that removing
    them changes nothing.

    Args:
      groups: as for `add_decorrelation`, in the order of their turns.
      keeps: as for `add_decorrelation`.
      begin: the 0-based step from which turns are counted.
      every: steps between two turns; 100 in the authors' code.

    Returns:
      A `GradientTransformationExtraArgs` whose state is one counter.

    Raises:
      ValueError: vectors that do not fit the groups, steps out of range; from `init`, a
        group that produces nothing in the parameters; from `update`, no `params`.

    References:
      Wang and Fu's code. It zeroes kernels and norms but not the biases of
      convolutions, and counts turns over all layers, pruned or not; here the biases are
      zeroed too and only the given groups have turns.
    """
    keeps = keeps_of(keeps, groups)
    turns = chosen(groups, keeps)
    require_static(begin=begin, every=every)
    if begin < 0 or every < 0:
        raise value_error(f"`begin`, `every` must not be negative: {begin}, {every}.")

    def init(params: Params) -> PruneInTurnState:
        if jax.tree.leaves(params):
            masks.from_groups(params, groups, keeps, roles=_PRODUCING)
        return PruneInTurnState(jnp.int32(0))

    def update(
        updates: PyTree, state: PruneInTurnState, params: Params
    ) -> tuple[PyTree, PruneInTurnState]:
        following = PruneInTurnState(next_step(state.count))
        now = {
            group.id: jnp.asarray(keep) | (state.count - begin < (i + 1) * every)
            for i, (group, keep) in enumerate(turns)
        }
        kept = masks.from_groups(params, groups, now, roles=_PRODUCING)
        return project(updates, params, kept), following

    return transformation(init, update, "prune_in_turn")


def growing_strength(grow: int, *, every: int = 10, ceiling: float = 1.0) -> Schedule:
    r"""$\lambda_t$: linear in stairs of `every` steps, from 0 to `ceiling`, then held.

    Args:
      grow: the step at which the ceiling is reached; 100,000 on CIFAR and 50,000 on
        ImageNet in the paper.
      every: length of a stair; 10 on CIFAR, 5 on ImageNet.
      ceiling: the last value; 1 in the paper.

    Returns:
      A schedule of the step.

    Raises:
      ValueError: steps that are not positive.

    Examples:
      >>> from jprune.transforms._decorrelation import growing_strength
      >>> strength = growing_strength(100, every=10)
      >>> float(strength(9)), float(strength(10)), float(strength(1000))
      (0.0, 0.10000000149011612, 1.0)
    """
    require_static(grow=grow, every=every)
    require_strengths(ceiling=ceiling)
    if grow < 1 or every < 1:
        raise value_error(f"`grow`, `every` must be at least 1: {grow}, {every}.")

    def schedule(step: Any) -> jax.Array:
        stair = jnp.asarray(step) // every * every
        # In float64 where that is on, as the schedules of Optax.
        reached = stair.astype(jnp.result_type(float)) / grow
        return ceiling * jnp.minimum(reached, 1)

    return schedule


def keep_large_filters(
    params: Params, groups: Sequence[Group], sparsity: float | Mapping[str, float]
) -> dict[str, jax.Array]:
    r"""The filters of largest L1 norm stay: TPP's choice, made once on the host.

    Of r coordinates $\min(\lceil s r \rceil, r - 1)$ go, the paper's rule. The norms of
    several producers of one group are averaged [inferred: the authors prune groups with
    one producer].

    Args:
      params: the parameters, trained.
      groups: what `surgery.groups(fn)(params, x)` returns, or a list of some of
        its groups.
      sparsity: s, for all groups, or by group id or path (groups not named stay whole).

    Returns:
      By group id a bool vector, True = stays.

    Raises:
      ValueError: a sparsity outside [0, 1), an unknown group id, a group without a
        producing kernel in `params`.
    """
    named = isinstance(sparsity, Mapping)
    by_id: dict[str, Any] = {g.id: 0.0 if named else sparsity for g in groups}
    if isinstance(sparsity, Mapping):
        by_id |= by_group("sparsity", sparsity, groups)
    norms = scores.over_groups(params, groups, norm="l1", roles=("out",))
    require_finite("`params`", norms.items(), "no order of norms is known.")
    keeps = {}
    for group in groups:
        if group.id not in norms:
            raise no_member(group, ("out",))
        norm = norms[group.id]
        require_sparsity(by_id[group.id])
        gone = min(ceil(exact(by_id[group.id]) * group.size), group.size - 1)
        keep = np.zeros(group.size, bool)
        keep[np.argsort(-np.asarray(norm), kind="stable")[: group.size - gone]] = True
        keeps[group.id] = jnp.asarray(keep)
    return keeps


def tpp(
    learning_rate: ScalarOrSchedule,
    groups: Sequence[Group],
    keeps: Mapping[str, jax.Array],
    *,
    weight_decay: ScalarOrSchedule,
    total_steps: int,
    end: int | None = None,
    every: int = 10,
    ceiling: float = 1.0,
    gram: ScalarOrSchedule = 1000.0,
    decay_kernels: bool = True,
    interval: int = 100,
    momentum: float = 0.9,
) -> optax.GradientTransformationExtraArgs:
    """Trainability preserving pruning: from a trained network to one ready to be cut.

    The penalty grows up to step `end` and is then held, while the groups are zeroed in
    turn; the chain ends pruned. Fine-tune what is left at ten times the learning rate.

    Args:
      learning_rate: 1e-3 in the paper.
      groups: see `add_decorrelation`.
      keeps: see `add_decorrelation`.
      weight_decay: of all leaves; 5e-4 on CIFAR.
      total_steps: length of the run; 110,000 on CIFAR.
      end: the step at which the strength reaches its ceiling; by default 10/11 of the
        run, as on CIFAR.
      every: the strength grows in stairs of so many steps; 10 on CIFAR, 5 on ImageNet.
      ceiling: the last strength; 1 in the paper.
      gram: see `add_decorrelation`.
      decay_kernels: see `add_decorrelation`.
      interval: steps between the turns of `prune_in_turn`.
      momentum: heavy-ball coefficient.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: too few steps after `end` for every group to have its turn.

    References:
      Wang and Fu, arXiv 2207.12534; settings of the authors' code.
    """
    require_rate(learning_rate, "tpp", "chain `add_decorrelation` and `prune_in_turn`")
    require_static(every=every, interval=interval)
    end = end_within(total_steps, end, Fraction(10, 11))
    if total_steps - end <= interval * len(keeps):
        raise value_error(
            f"`total_steps` - `end` = {total_steps} - {end} must exceed `interval` * "
            f"groups = {interval} * {len(keeps)}, or not every group would be zeroed."
        )
    strength = growing_strength(end, every=every, ceiling=ceiling)
    return optax.chain(
        add_decorrelation(
            groups, keeps, strength, gram=gram, decay_kernels=decay_kernels
        ),
        decay_all(weight_decay, None),
        optax.sgd(learning_rate, momentum),
        prune_in_turn(groups, keeps, begin=end, every=interval),
    )


def _doomed(
    params: Params, groups: Sequence[Group], keeps: Mapping[str, Any]
) -> dict[tuple[int, int], _Doomed]:
    """What stays, by leaf number and axis; groups that share an axis are combined."""
    found: dict[tuple[int, int], _Doomed] = {}
    for group, refs in member_leaves(params, groups):
        for ref, i, leaf in refs:
            if ref.role not in _PRODUCING or group.id not in keeps:
                continue
            keep = jnp.asarray(keeps[group.id])
            stays = ref.spread(keep, jnp.ndim(leaf), fill=True).reshape(-1)
            known = found.get((i, ref.axis))
            both = stays if known is None else stays & known.stays
            found[i, ref.axis] = _Doomed(ref.role, both)
    return found


def _gram_gradient(w: jax.Array, axis: int, stays: jax.Array) -> jax.Array:
    """The gradient of mean((F^T F * Q)^2) in the kernel's layout."""
    w = whole_along(w, range(w.ndim))
    others = [i for i in range(w.ndim) if i != axis]
    r, high = w.shape[axis], jax.lax.Precision.HIGHEST
    gram = jnp.tensordot(w, w, (others, others), precision=high)  # [r, r]
    both_stay = stays[:, None] & stays[None, :]
    masked = jnp.where(both_stay, 0, gram) * (4 / r**2)
    product = jnp.tensordot(w, masked, (axis, 0), precision=high)
    return jnp.moveaxis(product, -1, axis)
