r"""Learned gates: layers find their widths, the network finds its depth.

Every channel and every residual branch has a hard-concrete gate (`_hard_concrete`).
A channel's gate multiplies the scale and the bias of the norm behind it, or where there
is none the rows of the kernels that read it; a branch's gate multiplies what the branch
adds to its stream,

$$ y = \mathrm{act}\big( x + z_b\, F(x; z_c) \big). $$

The gates are folded into those parameters, so that any network is gated as it stands.
Weights and gates are trained together, and an open gate has its price,

$$ L + \lambda\, E[C] / C_0, \qquad E[C] = C_\emptyset + \sum_b q_b\,
   \big( C_b(n) - C_\emptyset \big), \qquad n_g = \sum_{c \in g} q_c, $$

the expected FLOPs (or parameters) relative to the dense network's. No proportion is
asked for: how many channels of each layer go and which branches go are outcomes of
$\lambda$. Or a budget is given, and $\lambda$ is learned by dual ascent.

    deps = surgery.groups(apply)(variables, x)
    r = reparam.learned_gates(deps, branches, price=0.5, cost=deps.flops)
    loss = reparam.wrap(loss_fn, r)              # pass `reparam_key`: fresh noise
    ... train theta = r.init(params); project as the last transform ...
    params, mask = r.export(theta)
    plan = surgery.plan_from_masks(deps, mask, allow_empty=True)

In evaluation closed gates zero everything that lives on their channel or in their
branch, which changes nothing, so that `shrink` is exact. **Statistics of batch norm are
those of noisy gates**: measure them anew (`compress.recalibrate`) before a result. No
weight decay on gates, and no stochastic depth beside them. A layer norm over gated
channels still sees the closed ones while gates are drawn, and zeros in their place
afterwards.

The paper, of which the abstract alone could be had: Zhang et al., "Layer Pruning for
Accelerating Very Deep Neural Networks", 2019. What is here is not its algorithm but
ours in its spirit [inferred], from the gates of Louizos et al., arXiv 1712.01312.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import masks
from jprune._axes import whole_along
from jprune._errors import value_error
from jprune._groups import Group
from jprune._typing import Mask, Params, PyTree, Schedule
from jprune.reparam._gated import (
    Branch,
    all_groups,
    closed_mask,
    multiplied,
    parameter_cost,
    require_gates,
)
from jprune.reparam._hard_concrete import (
    Cost,
    dual_ascent,
    expected_cost,
    hard_concrete,
    open_probability,
)
from jprune.reparam._named import copied, scalar
from jprune.reparam._reparam import Reparam

FLOOR = 0.0
"""Least log alpha of the best gate of a group (z = 1/2): no layer loses everything."""


class GateTheta(NamedTuple):
    r"""Theta of `learned_gates`.

    Attributes:
      weights: the parameters, not multiplied.
      channels: log alpha of the channel gates, a dict by group id. [group.size]
      branches: log alpha of the branch gates, a dict by name, 0-d.
      price: $\lambda$, 0-d; moved by `project` alone.
    """

    weights: Params
    channels: PyTree
    branches: PyTree
    price: PyTree


def learned_gates(
    groups: Sequence[Group],
    branches: Mapping[str, Branch] | None = None,
    *,
    price: float | Schedule | None = None,
    target: float | None = None,
    rate: float = 0.01,
    branch_price: float = 0.0,
    cost: Cost | None = None,
    start: float = 0.9,
) -> Reparam:
    r"""Hard-concrete gates on channels and residual branches.

    Args:
      groups: channels to gate: what `surgery.groups(fn)(params, x)` returns, or a list
        of some of its groups. A stream's channels share their gates: all its norms are
        in one group. Where a channel passes two norms one after the other (around a
        depthwise convolution) the gate acts in both, as its square.
      branches: branches to gate, by a name of your choice.
      price: $\lambda$, constant or a schedule of the step; with a target only where it
        begins (0 by default).
      target: the expected cost wanted, relative to the dense one, in (0, 1); $\lambda$
        then follows $\max(0, \lambda + \rho(E/C_0 - \text{target}))$.
      rate: $\rho$.
      branch_price: extra price of the mean of $q_b$.
      cost: from kept counts by group id to the cost, traceable: `deps.flops`. None
        counts the parameters that are trained.
      start: $\sigma(a)$ of all gates at first; from 11/12 on evaluation starts with
        gates of exactly 1.

    Returns:
      A `Reparam` whose theta is a `GateTheta`. `apply` with a key draws gates, without
      one it evaluates them. `project` moves the price and keeps the best channel of
      each group open at least half (log alpha 0); branches may close altogether.

    Raises:
      ValueError: arguments out of range, neither `price` nor `target`; from `init`,
        groups or branches without a parameter to multiply, a group named twice, a
        branch that is free (no `inner`, no `branch_price`).

    Examples:
      A block that the data have no use for goes, from groups to the compact function:

      >>> import jax, jax.numpy as jnp, optax
      >>> from jprune import reparam, surgery
      >>> def fn(p, x):
      ...     h = jax.nn.relu(x @ p["stem"])
      ...     return (h + jax.nn.relu(h @ p["in"]) @ p["out"]) @ p["head"]
      >>> keys = jax.random.split(jax.random.key(0), 6)
      >>> x = jax.random.normal(keys[0], (64, 4))
      >>> shapes = {"stem": (4, 8), "in": (8, 8), "out": (8, 8), "head": (8, 1)}
      >>> params = {n: jax.random.normal(k, shapes[n]) / 2
      ...           for n, k in zip(shapes, keys[1:])}
      >>> deps = surgery.groups(fn)(params, x)
      >>> block = reparam.Branch(leaves=("out",), inner=(deps["in:1"],))
      >>> r = reparam.learned_gates(deps, {"block": block}, price=1.0, cost=deps.flops)
      >>> mse = lambda p, x: jnp.mean((fn(p, x) - jax.nn.relu(x[:, :1])) ** 2)
      >>> loss = reparam.wrap(mse, r)
      >>> tx = optax.chain(optax.adam(0.05), reparam.projection(r))
      >>> @jax.jit
      ... def step(theta, state, key):
      ...     grads = jax.grad(loss)(theta, x, reparam_key=key)  # noise of its own
      ...     updates, state = tx.update(grads, state, theta)
      ...     return optax.apply_updates(theta, updates), state
      >>> theta, state = r.init(params), tx.init(r.init(params))
      >>> for key in jax.random.split(keys[5], 300):
      ...     theta, state = step(theta, state, key)
      >>> params, mask = r.export(theta)
      >>> plan = surgery.plan_from_masks(deps, mask, allow_empty=True)
      >>> small, compact = surgery.shrink(fn, plan), plan.pack(params)
      >>> compact["in"].shape[1], bool(mse(params, x) < 0.01)
      (0, True)
      >>> bool(jnp.allclose(small(compact, x), fn(params, x), atol=1e-5))
      True

    References:
      Louizos et al., arXiv 1712.01312, for the gates; the rest is ours.
    """
    if not 0 < start < 1:
        raise value_error(f"`start` must be in (0, 1), got {start}.")
    if price is None and target is None:
        raise value_error("Without a `price` or a `target` no gate would ever close.")
    if target is not None and (not 0 < target < 1 or rate <= 0 or callable(price)):
        raise value_error(
            "A budget needs `target` in (0, 1), `rate` > 0 and a number as `price`, "
            f"got target={target}, rate={rate}, price={price}."
        )
    if (not callable(price) and (price or 0) < 0) or branch_price < 0:
        raise value_error(
            f"`price` and `branch_price` must not be negative, got {price} and "
            f"{branch_price}."
        )
    gates = _Gates(
        tuple(groups),
        dict(branches or {}),
        price or 0.0,
        target,
        rate,
        branch_price,
        cost,
        start,
    )
    return Reparam(
        partial(_init, gates),
        partial(_apply, gates),
        partial(_export, gates),
        partial(_penalty, gates),
        partial(_project, gates),
    )


class _Gates(NamedTuple):
    """The arguments of `learned_gates`."""

    groups: tuple[Group, ...]
    branches: dict[str, Branch]
    price: float | Schedule
    target: float | None
    rate: float
    branch_price: float
    cost: Cost | None
    start: float

    def relative_cost(self, theta: GateTheta) -> jax.Array:
        """$E[C] / C_0$."""
        every = all_groups(self.groups, self.branches)
        cost = self.cost or parameter_cost(theta.weights, every)
        sizes = {g.id: g.size for g in every}
        gated = {n: jnp.sum(open_probability(a)) for n, a in theta.channels.items()}
        counts = {n: gated.get(n, scalar(size)) for n, size in sizes.items()}
        opens = {n: open_probability(a) for n, a in theta.branches.items()}
        inner = {n: [g.id for g in b.inner] for n, b in self.branches.items()}
        with jax.ensure_compile_time_eval():
            dense = float(cost(sizes))
        return expected_cost(counts, opens, inner, cost) / dense


def _init(gates: _Gates, params: Params) -> GateTheta:
    require_gates(params, gates.groups, gates.branches, gates.branch_price)
    first, kind = math.log(gates.start / (1 - gates.start)), jnp.result_type(float)
    price = gates.price(0) if callable(gates.price) else gates.price
    return GateTheta(
        copied(params),
        {g.id: jnp.full(g.size, first, kind) for g in gates.groups},
        {name: scalar(first) for name in gates.branches},
        jnp.array(price, kind),
    )


def _apply(gates: _Gates, theta: GateTheta, key: Any = None) -> Params:
    logits = {"c": theta.channels, "b": theta.branches}
    if key is None:
        values = jax.tree.map(hard_concrete, logits)
        return masks.apply(_mask(gates, theta), _multiplied(gates, theta, values))
    leaves, treedef = jax.tree.flatten(logits)
    keys = jax.random.split(key, len(leaves))
    drawn = [hard_concrete(a, _noise(k, a)) for a, k in zip(leaves, keys, strict=True)]
    return _multiplied(gates, theta, jax.tree.unflatten(treedef, drawn))


def _noise(key: Any, like: jax.Array) -> jax.Array:
    """Uniform in (0, 1), never 0."""
    tiny = jnp.finfo(like.dtype).tiny
    return jax.random.uniform(key, like.shape, like.dtype, minval=tiny)


def _penalty(gates: _Gates, theta: GateTheta) -> jax.Array:
    price = jax.lax.stop_gradient(theta.price) * gates.relative_cost(theta)
    if not (gates.branch_price and theta.branches):
        return price
    opens = [open_probability(a) for a in theta.branches.values()]
    return price + gates.branch_price * jnp.mean(jnp.stack(opens))


def _project(
    gates: _Gates, new: GateTheta, old: GateTheta, step: jax.Array
) -> GateTheta:
    price = old.price
    if gates.target is not None:
        now = gates.relative_cost(old)
        price = dual_ascent(price, now, target=gates.target, rate=gates.rate)
    elif callable(gates.price):
        price = jnp.asarray(gates.price(step + 1), price.dtype)
    channels = {name: _floored(a) for name, a in new.channels.items()}
    return GateTheta(new.weights, channels, new.branches, price)


def _floored(log_alpha: jax.Array) -> jax.Array:
    best = jnp.arange(log_alpha.size) == jnp.argmax(log_alpha)
    return jnp.where(best, jnp.maximum(log_alpha, FLOOR), log_alpha)


def _export(gates: _Gates, theta: GateTheta) -> tuple[Params, Mask]:
    return copied(_apply(gates, theta)), _mask(gates, theta)


def _multiplied(gates: _Gates, theta: GateTheta, values: PyTree) -> Params:
    """The parameters times their gates."""
    return multiplied(
        theta.weights, gates.groups, gates.branches, values["c"], values["b"]
    )


def _mask(gates: _Gates, theta: GateTheta) -> Mask:
    """False on all members of closed channels, and in closed branches."""
    return closed_mask(theta.weights, gates.groups, gates.branches, *open_gates(theta))


def open_gates(
    theta: GateTheta,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Which gates are open in evaluation.

    Args:
      theta: of `learned_gates`.

    Returns:
      For the channels, by group id, bools [group.size]; for the branches, by name, 0-d
      bools.
    """
    channels = {n: whole_along(a, (0,)) for n, a in theta.channels.items()}
    return jax.tree.map(lambda a: hard_concrete(a) > 0, (channels, theta.branches))
