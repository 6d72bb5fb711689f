r"""Shrinking scales: gates without noise, which a proximal step brings to exact zero.

A channel's gate is its norm scale $\gamma$ itself; a branch's gate is a factor v, 1 at
first, of what the branch adds to its stream. After each update of the optimizer

$$ g \leftarrow \mathrm{sign}(g)\, \max(|g| - \eta\, \lambda\, c_g,\ 0), $$

where $c_g$ is the cost that the gate frees, divided by the mean over all gates: the
proximal step of $\lambda \sum_g c_g |g|$. How many gates end at 0, in which layer and
in which branch, is an outcome of $\lambda$.

A channel is closed while its scale is 0: all that lives on it, its shift above all,
then counts as 0, so that removing it changes nothing. Its scale gets no gradient there.

Ours, in the spirit of Zhang et al., "Layer Pruning for Accelerating Very Deep Neural
Networks", 2019, of which the abstract alone could be had [inferred]: the same outcome
as `learned_gates`, without noise and without an optimizer of its own.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._errors import listing, value_error
from jprune._groups import AxisRef, Group, member_leaves, no_member
from jprune._tree import named_leaves
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule
from jprune.reparam._gated import (
    Branch,
    all_groups,
    closed_mask,
    multiplied,
    parameter_cost,
    require_gates,
)
from jprune.reparam._hard_concrete import Cost
from jprune.reparam._named import copied, scalar
from jprune.reparam._reparam import Reparam


class ScaleTheta(NamedTuple):
    """Theta of `shrinking_scales`.

    Attributes:
      weights: the parameters; the scales among them are the channels' gates.
      branches: the factor of each branch, a dict by name, 0-d.
    """

    weights: Params
    branches: PyTree


def shrinking_scales(
    groups: Sequence[Group],
    branches: Mapping[str, Branch] | None = None,
    *,
    price: float,
    learning_rate: ScalarOrSchedule,
    cost: Cost | None = None,
) -> Reparam:
    r"""Norm scales and branch factors that a price shrinks to zero.

    Args:
      groups: channels to gate, each with a norm scale of float32 or wider: what
        `surgery.groups(fn)(params, x)` returns, or a list of some of its groups. Of
        several scales over one group (a stream) each shrinks by itself, and the
        channel closes with the last.
      branches: branches to gate, by a name of your choice.
      price: $\lambda$.
      learning_rate: $\eta$, a number or a schedule of the step: that of the optimizer.
      cost: from kept counts by group id to the cost: `deps.flops`. None counts the
        parameters that are trained.

    Returns:
      A `Reparam` whose theta is a `ScaleTheta` and whose `project` is the proximal
      step, which shrinks at every call: it is no projection into a set. The largest
      scale of a group is spared where it would be the last to go; branches may close
      altogether.

    Raises:
      ValueError: a negative `price`; from `init`, a group without a scale, a scale of
        half precision (a step below half a unit of its last place would not move it), a
        branch without `inner`, and what `learned_gates` refuses.

    References:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming,
      ICCV 2017, for scales as gates. The proximal step, the cost and the branches are
      ours.
    """
    if price < 0:
        raise value_error(f"`price` must not be negative, got {price}.")
    given = _Scales(tuple(groups), dict(branches or {}), price, learning_rate, cost)
    return Reparam(
        partial(_init, given),
        partial(_apply, given),
        lambda theta: (_apply(given, theta), _mask(given, theta)),
        project=partial(_project, given),
    )


class _Scales(NamedTuple):
    """The arguments of `shrinking_scales`."""

    groups: tuple[Group, ...]
    branches: dict[str, Branch]
    price: float
    learning_rate: ScalarOrSchedule
    cost: Cost | None


def _init(given: _Scales, params: Params) -> ScaleTheta:
    require_gates(params, given.groups, given.branches)
    paths, half = [name for name, _ in named_leaves(params)], {}
    for group, members in member_leaves(params, given.groups):
        if not _scales(members):
            raise no_member(group, ("scale",))
        found = {paths[i]: jnp.result_type(leaf) for _, i, leaf in _scales(members)}
        half |= {n: kind for n, kind in found.items() if jnp.finfo(kind).bits < 32}
    if half:
        lines = [f"{name}: {kind}" for name, kind in half.items()]
        raise value_error(
            "Scales of half precision stand still where a proximal step is below half "
            f"a unit of their last place; keep these in float32.{listing(lines)}"
        )
    return ScaleTheta(copied(params), {name: scalar(1.0) for name in given.branches})


def _apply(given: _Scales, theta: ScaleTheta, key: Any = None) -> Params:
    del key
    factors = multiplied(theta.weights, (), given.branches, {}, theta.branches)
    return masks.apply(_mask(given, theta), factors)


def _mask(given: _Scales, theta: ScaleTheta) -> Mask:
    opens = {}
    for group, members in member_leaves(theta.weights, given.groups):
        opens[group.id] = _strengths(group, _scales(members)) > 0
    branches = {name: v != 0 for name, v in theta.branches.items()}
    return closed_mask(theta.weights, given.groups, given.branches, opens, branches)


def _project(
    given: _Scales, new: ScaleTheta, old: ScaleTheta, step: jax.Array
) -> ScaleTheta:
    del old
    rate = given.learning_rate
    amount = given.price * (rate(step) if callable(rate) else rate)
    weights = freed_costs(new.weights, given.groups, given.branches, given.cost)
    leaves, treedef = jax.tree.flatten(new.weights)
    for group, members in member_leaves(new.weights, given.groups):
        scales = _scales(members)
        for _, i, leaf in scales:
            leaves[i] = soft_threshold(leaf, amount * weights[group.id])
        rest = _strengths(group, [(ref, i, leaves[i]) for ref, i, _ in scales])
        before = _strengths(group, scales)
        spared = (jnp.arange(group.size) == jnp.argmax(before)) & ~jnp.any(rest > 0)
        for ref, i, leaf in scales:
            back = ref.spread(spared, jnp.ndim(leaf), fill=False)
            leaves[i] = jnp.where(back, leaf, leaves[i])
    factors = {
        name: soft_threshold(v, amount * weights[name])
        for name, v in new.branches.items()
    }
    return ScaleTheta(jax.tree.unflatten(treedef, leaves), factors)


def soft_threshold(x: jax.Array, amount: Any) -> jax.Array:
    r"""$\mathrm{sign}(x) \max(|x| - \text{amount}, 0)$, the proximal step of $|x|$.

    Args:
      x: any shape.
      amount: non-negative.

    Returns:
      An array like `x`.
    """
    by = jnp.asarray(amount, x.dtype)
    return jnp.where(jnp.abs(x) > by, x - jnp.sign(x) * by, jnp.zeros_like(x))


def freed_costs(
    params: Params,
    groups: Sequence[Group],
    branches: Mapping[str, Branch],
    cost: Cost | None = None,
) -> dict[str, float]:
    """What closing a gate frees in the dense network, over the mean of all gates.

    Args:
      params: the parameters.
      groups: the gated channels; see `shrinking_scales`.
      branches: the gated branches.
      cost: see `shrinking_scales`.

    Returns:
      Numbers by group id (for each of its channels) and by branch name.
    """
    every = all_groups(groups, branches)
    price = cost or parameter_cost(params, every)
    sizes = {g.id: g.size for g in every}

    def freed(gone: Mapping[str, int]) -> float:
        left = {n: s - gone.get(n, 0) for n, s in sizes.items()}
        with jax.ensure_compile_time_eval():
            return float(price(sizes) - price(left))

    found = {g.id: freed({g.id: 1}) for g in groups}
    count = {g.id: g.size for g in groups} | dict.fromkeys(branches, 1)
    for name, branch in branches.items():
        found[name] = freed({g.id: g.size for g in branch.inner})
    mean = np.average([*found.values()], weights=[count[n] for n in found])
    if not mean > 0:
        raise value_error("Closing these gates frees nothing of the `cost` given.")
    return {name: value / float(mean) for name, value in found.items()}


def _scales(members: Sequence[tuple[AxisRef, int, Any]]) -> list:
    return [m for m in members if m[0].role == "scale"]


def _strengths(group: Group, scales: Sequence[tuple[AxisRef, int, Any]]) -> jax.Array:
    """The largest magnitude of any scale of each coordinate. [group.size]"""
    found = jnp.zeros(group.size, jnp.result_type(*[leaf for *_, leaf in scales]))
    for ref, _, leaf in scales:
        top = jnp.max(jnp.abs(leaf), axis=ref.others(jnp.ndim(leaf)))
        here = ref.collect(top, group.size, "max")
        found = jnp.maximum(found, here.astype(found.dtype))
    return found
