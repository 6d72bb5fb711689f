r"""MaskSparsity: an L1 penalty on the norm scales that will go, and on no other.

*Network slimming* puts $s \sum |\gamma|$ over every batch-norm scale into the loss and
then removes the channels whose scale came out small. The penalty also shrinks the
channels that stay. *MaskSparsity* takes from that run only the decision, a mask p (1 =
to be removed), goes back to the weights before it, and trains with

$$ L = L_{data} + s \sum_l \sum_c p_{l,c}\, |\gamma_{l,c}| , \qquad
   g_\gamma \leftarrow g_\gamma + s\, p \odot \mathrm{sign}(\gamma) . $$

Three stages: (1) `network_slimming` from the dense weights; (2) `keeps =
masks.keep_by_scale(slimmed, groups, 0.01)`, members of a residual stream voting; (3)
`masksparsity(..., groups, keeps)` from the *dense* weights again, which ends with the
removal. Fine-tune the smaller network at the first learning rate of stage 3 over 200.

A channel whose scale is 0 still outputs its norm's shift: `compress.fold_constants`
moves that into the next layer. The authors drop it and let fine-tuning repair.

Which weights stage 3 starts from is written both ways in the authors' scripts; the
dense ones are what the argument of the paper needs [inferred].

Jiang et al., "Pruning-aware Sparse Regularization for Network Pruning", Machine
Intelligence Research 2023 (arXiv 2201.06776); Liu et al., "Learning Efficient
Convolutional Networks through Network Slimming", ICCV 2017 (arXiv 1708.06519).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks
from jprune._errors import listing, require_static, value_error
from jprune._groups import Group, chosen
from jprune._tree import leaf_name, map_named, named_leaves
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule, Scope
from jprune.masks._count import is_traced
from jprune.masks._scope import resolve_scope
from jprune.transforms._build import (
    added,
    decay_all,
    keeps_of,
    next_step,
    require_rate,
    require_strengths,
    transformation,
    value_at,
)
from jprune.transforms._finish import prune_once
from jprune.transforms._keep_masked import keep_masked

Kind = Literal["l1", "l2", "smooth_l1"]


class AddMaskedL1State(NamedTuple):
    """State of `add_masked_l1`.

    Attributes:
      count: steps taken, 0-d int32.
      mask: True = keep, not penalized; a 0-d True for leaves out of scope.
    """

    count: jax.Array
    mask: Mask


def add_masked_l1(
    strength: ScalarOrSchedule,
    mask: Mask | Callable[[Params], Mask],
    *,
    kind: Kind = "l1",
    learning_rate: ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds $s\, \mathrm{sign}(w)$ to the updates of what a mask removes (a penalty).

    Place it before momentum, on the raw mean gradient; kept entries pass bit for bit.
    Under a plain step a penalized entry moves by $\tau s$ towards 0 and then chatters
    around it with that amplitude: it is small, not zero.

    Args:
      strength: s, a number or a schedule; 5e-4 in the paper's ImageNet runs.
      mask: the **keep** mask, or a function of the parameters called once by `init`.
        Its complement is penalized.
      kind: "l1"; "l2", which adds $s w$; "smooth_l1", which adds $s\, \mathrm{sign}(w)$
        where $|w| \ge \tau s$ and $s w$ below, and so does not chatter.
      learning_rate: $\tau$ of the chain, for "smooth_l1" only.

    Returns:
      A `GradientTransformationExtraArgs`. With strength 0 it is the identity.

    Raises:
      ValueError: an unknown `kind`, or "smooth_l1" without a learning rate; from
        `init`, a mask of another structure, or one of 0-d True only; from `update`, no
        `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import transforms
      >>> params = {"scale": jnp.array([0.5, -0.2, -0.003, 0.0])}
      >>> keep = {"scale": jnp.array([True, True, False, False])}
      >>> tx = transforms.add_masked_l1(5e-4, keep)
      >>> zero = {"scale": jnp.zeros(4)}
      >>> updates, _ = tx.update(zero, tx.init(params), params)
      >>> updates["scale"]
      Array([ 0.    ,  0.    , -0.0005,  0.    ], dtype=float32)

    References:
      Jiang et al., arXiv 2201.06776; the kinds are those of the authors' code.
    """
    require_strengths(strength=strength)
    if kind not in ("l1", "l2", "smooth_l1"):
        raise value_error(f"`kind` must be l1, l2 or smooth_l1, got {kind!r}.")
    if kind == "smooth_l1" and learning_rate is None:
        raise value_error("`kind` smooth_l1 needs `learning_rate`, got None.")
    held = keep_masked(mask)

    def init(params: Params) -> AddMaskedL1State:
        state: Any = held.init(params)
        keep = state.mask
        leaves = jax.tree.leaves(keep)
        if leaves and all(_is_true(m) for m in leaves):
            raise value_error(
                "`mask` holds a 0-d True for every leaf: nothing would be penalized."
            )
        return AddMaskedL1State(jnp.int32(0), keep)

    def update(
        updates: PyTree, state: AddMaskedL1State, params: Params
    ) -> tuple[PyTree, AddMaskedL1State]:
        s = value_at(strength, state.count)
        tau = value_at(learning_rate, state.count)

        def leaf(u: jax.Array, w: jax.Array, keep: jax.Array) -> jax.Array:
            force = jnp.asarray(s, w.dtype) * _slope(w, s, tau)
            return jnp.where(keep, u, added(u, force))

        def _slope(w: jax.Array, s: Any, tau: Any) -> jax.Array:
            if kind == "l2":
                return w
            if kind == "l1":
                return jnp.sign(w)
            far = jnp.abs(w) >= jnp.asarray(tau * s, w.dtype)
            return jnp.where(far, jnp.sign(w), w)

        moved = jax.tree.map(leaf, updates, params, state.mask)
        return moved, state._replace(count=next_step(state.count))

    return transformation(init, update, "add_masked_l1")


def _is_true(m: jax.Array) -> bool:
    """Whether a leaf of a mask is a 0-d True; one that is traced is not known."""
    return m.ndim == 0 and not is_traced(m) and bool(m)


def network_slimming(
    learning_rate: ScalarOrSchedule,
    *,
    strength: ScalarOrSchedule,
    scope: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    decay_scope: Any = None,
    momentum: float = 0.9,
    nesterov: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """SGD with an L1 penalty on every norm scale: the stage that finds the mask.

    Args:
      learning_rate: a number or a schedule.
      strength: of the penalty; 5e-4 in MaskSparsity, 1e-4 or 1e-5 in network slimming.
      scope: the scales; see `masks.unstructured`, but None is the leaves named scale
        or gamma.
      weight_decay: of all leaves, norm scales included, as the authors have it.
      decay_scope: restricts the decay to a scope.
      momentum: its coefficient.
      nesterov: Nesterov's form of momentum.

    Returns:
      An Optax transformation. It removes nothing: threshold with
      `masks.keep_by_scale`.

    References:
      Liu et al., arXiv 1708.06519, eq. (1); settings of Jiang et al., arXiv 2201.06776.
    """
    require_rate(learning_rate, "network_slimming", "chain `add_masked_l1` and it")

    def none_kept(params: Params) -> Mask:
        return jax.tree.map(
            lambda p, taken: (
                jnp.zeros(jnp.shape(p), bool) if taken else jnp.array(True)
            ),
            params,
            resolve_scope(_scales if scope is None else scope, params),
        )

    return optax.chain(
        add_masked_l1(strength, none_kept),
        decay_all(weight_decay, decay_scope),
        optax.sgd(learning_rate, momentum, nesterov),
    )


def _scales(params: Params) -> Scope:
    found = map_named(lambda path, _: leaf_name(path) in ("scale", "gamma"), params)
    if not any(jax.tree.leaves(found)):
        names = [path for path, _ in named_leaves(params)]
        raise value_error(
            "No leaf is named scale or gamma: pass `scope`. The leaves are:"
            + listing(names)
        )
    return found


def masksparsity(
    learning_rate: ScalarOrSchedule,
    groups: Sequence[Group],
    keeps: Mapping[str, jax.Array],
    *,
    strength: ScalarOrSchedule = 5e-4,
    kind: Kind = "l1",
    threshold: float | None = 0.01,
    total_steps: int | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    decay_scope: Any = None,
    momentum: float = 0.9,
    nesterov: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """SGD with an L1 penalty on the scales of the channels that will go.

    Args:
      learning_rate: a number or a schedule.
      groups: what `surgery.groups(fn)(params, x)` returns, or a list of some of
        its groups.
      keeps: a bool vector for each group, by id or by the path of a leaf that
        produces its coordinates, True = keep; see `masks.keep_by_scale`. A group that
        is not named stays whole.
      strength: of the penalty.
      kind: see `add_masked_l1`.
      threshold: at the end the scales are thresholded again, as in the paper, so that a
        doomed channel that held out stays; None removes exactly what `keeps` drops.
      total_steps: when given, the chain ends with `prune_once` at step `total_steps -
        1`: a removed channel is zeroed in every parameter it lives in.
      weight_decay: see `network_slimming`.
      decay_scope: see `network_slimming`.
      momentum: its coefficient.
      nesterov: Nesterov's form of momentum.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: `keeps` names no group with a scale, or does not fit the groups.

    References:
      Jiang et al., arXiv 2201.06776; settings of the authors' ImageNet runs.
    """
    require_rate(learning_rate, "masksparsity", "chain `add_masked_l1` and it")
    require_static(total_steps=total_steps)
    keeps = keeps_of(keeps, groups)
    named = [group for group, _ in chosen(groups, keeps)]
    scaled = [g for g in named if "scale" in {r.role for r in g.members}]
    if not scaled:
        raise value_error("No group of `keeps` has a member with the role 'scale'.")

    def doomed(params: Params) -> Mask:
        those = {g.id: keeps[g.id] for g in scaled}
        return masks.from_groups(params, groups, those, roles=("scale",))

    def final(params: Params) -> Mask:
        kept = keeps
        if threshold is not None:
            kept = masks.keep_by_scale(params, named, threshold)
        return masks.from_groups(params, named, kept)

    steps = [
        add_masked_l1(strength, doomed, kind=kind, learning_rate=learning_rate),
        decay_all(weight_decay, decay_scope),
        optax.sgd(learning_rate, momentum, nesterov),
    ]
    if total_steps is not None:
        steps.append(prune_once(final, step=total_steps - 1))
    return optax.chain(*steps)
