r"""N:M sparsity in training: the decay of SR-STE, and hard N:M at once or in stages.

*SR-STE* trains dense weights w through their own N:M mask m, chosen anew at every step.
The gradient g of the pruned network reaches all of them, and those pruned now decay:

$$ w \leftarrow w - \eta \big( \nabla_{m \odot w} L + \lambda\, (1 - m) \odot w \big).
$$

The first half is the network, `reparam.straight_through` of `masks.n_of_m` under
`reparam.wrap`; the second is the chain, `add_pruned_decay(strength, n, m)` before decay
and momentum. They go together with the same n, m, axis and scope; `sr_ste` is the chain
ready-made:

    r = reparam.straight_through(lambda p: masks.n_of_m(p, 2, 4))
    tx = transforms.sr_ste(0.1, 2, 4)
    grads = jax.grad(reparam.wrap(loss, r))(params)    # params: dense, in tx and loss
    ...
    params, mask = r.export(params)

*Hard N:M* removes for good: `prune_to_n_of_m`, a projection.

Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
ICLR 2021 (arXiv 2102.04010).
"""

from bisect import bisect_left
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import masks
from jprune._errors import require_static, value_error
from jprune._typing import Mask, Params, PyTree, ScalarOrSchedule
from jprune.transforms._build import (
    added,
    decay_all,
    next_step,
    renewed,
    require_rate,
    require_strengths,
    transformation,
    value_at,
)
from jprune.transforms._finish import prune_once
from jprune.transforms._projection import checkerboard, project


class AddPrunedDecayState(NamedTuple):
    """State of `add_pruned_decay`.

    Attributes:
      count: steps taken, 0-d int32.
    """

    count: jax.Array


class PruneToNOfMState(NamedTuple):
    """State of `prune_to_n_of_m`.

    Attributes:
      count: steps taken, 0-d int32.
      mask: what is kept now; a 0-d True for leaves out of scope.
    """

    count: jax.Array
    mask: Mask

    def probe(self) -> tuple["PruneToNOfMState", Mask]:
        """A state past the end that drops half of what is kept; see `check`."""
        mask = checkerboard(self.mask)
        return PruneToNOfMState(jnp.full_like(self.count, 2**30), mask), mask


def add_pruned_decay(
    strength: ScalarOrSchedule,
    n: int,
    m: int,
    axis: int | PyTree | None = None,
    *,
    scope: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds $\lambda w$ to the updates of what an N:M mask would drop now (a penalty).

    The backward half of SR-STE. Place it first: the decay is part of the gradient and
    goes through momentum. (Adam would rescale it; for a decoupled one place it between
    `scale_by_adam` and the learning rate.) The mask is that of the parameters before
    the update and is not stored. For another pattern than N:M:
    `add_selective_decay(1.0, strength, select=...)` with the `select` of
    `reparam.straight_through`.

    Args:
      strength: $\lambda$, a number or a schedule; 2e-4 in the paper.
      n: kept of each m.
      m: group length; must divide the axis.
      axis: the contracted axis; see `masks.n_of_m`.
      scope: which leaves; see `masks.unstructured`.

    Returns:
      A `GradientTransformationExtraArgs`. With strength 0, or n = m, it is the
      identity.

    Raises:
      ValueError: not 1 <= n <= m; from `init`, an axis that m does not divide, or none
        known for a leaf; from `update`, no `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import transforms
      >>> tx = transforms.add_pruned_decay(0.5, 1, 2)
      >>> params = {"w": jnp.array([[2.0], [-1.0]])}
      >>> zero = {"w": jnp.zeros((2, 1))}
      >>> updates, _ = tx.update(zero, tx.init(params), params)
      >>> updates["w"].T
      Array([[ 0. , -0.5]], dtype=float32)

    References:
      Zhou et al., arXiv 2102.04010, section 4.
    """
    _require_n_m(n, m)
    require_strengths(strength=strength)

    def keep(params: Params) -> Mask:
        return masks.n_of_m(params, n, m, axis, scope=scope)

    def init(params: Params) -> AddPrunedDecayState:
        if jax.tree.leaves(params):
            jax.eval_shape(keep, params)  # bad axes and scopes fail here
        return AddPrunedDecayState(jnp.int32(0))

    def update(
        updates: PyTree, state: AddPrunedDecayState, params: Params
    ) -> tuple[PyTree, AddPrunedDecayState]:
        rate = value_at(strength, state.count)

        def leaf(u: jax.Array, p: jax.Array, kept: jax.Array) -> jax.Array:
            if kept.ndim == 0:
                return u
            return jnp.where(kept, u, added(u, jnp.asarray(rate, p.dtype) * p))

        moved = jax.tree.map(leaf, updates, params, keep(params))
        return moved, AddPrunedDecayState(next_step(state.count))

    return transformation(init, update, "add_pruned_decay")


def sr_ste(
    learning_rate: ScalarOrSchedule,
    n: int,
    m: int,
    axis: int | PyTree | None = None,
    *,
    strength: ScalarOrSchedule = 2e-4,
    weight_decay: ScalarOrSchedule = 5e-5,
    momentum: float = 0.9,
    scope: Any = None,
    total_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with the decay of SR-STE, for `reparam.straight_through` of `masks.n_of_m`.

    What it trains are the dense weights, the theta of that reparameterization; without
    it the network is dense and this is a decay of the smaller weights only.

    Args:
      learning_rate: a number or a schedule; a cosine from 0.1 to 0 in the paper.
      n: see `add_pruned_decay`.
      m: see `add_pruned_decay`.
      axis: see `add_pruned_decay`.
      strength: see `add_pruned_decay`.
      weight_decay: of all leaves, pruned or not, as the authors have it.
      momentum: of heavy ball.
      scope: see `add_pruned_decay`.
      total_steps: when given, the chain ends with `prune_once` at step `total_steps -
        1`, so that the dense weights themselves are N:M then; otherwise the
        reparameterization's `export` makes them so.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: as `add_pruned_decay`.

    References:
      Zhou et al., arXiv 2102.04010; settings of the authors' ResNet-50 on ImageNet.
    """
    require_rate(learning_rate, "sr_ste", "chain `add_pruned_decay` and it")
    require_static(n=n, m=m, total_steps=total_steps)
    steps = [
        add_pruned_decay(strength, n, m, axis, scope=scope),
        decay_all(weight_decay, None),
        optax.sgd(learning_rate, momentum),
    ]
    if total_steps is not None:
        steps.append(
            prune_once(
                lambda p: masks.n_of_m(p, n, m, axis, scope=scope), step=total_steps - 1
            )
        )
    return optax.chain(*steps)


def prune_to_n_of_m(
    n: int,
    m: int,
    axis: int | PyTree | None = None,
    *,
    end: int,
    begin: int | None = None,
    scope: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes weights until N:M holds, at once or in stages (a projection: last).

    Without `begin` the m - n smallest of each group go at step `end`, in one shot. With
    it they go one by one along the cubic of gradual pruning: at step t

    $$ \Big\lfloor (m - n) \Big( 1 - \Big( \frac{e - t}{e - b} \Big)^3 \Big) \Big\rfloor
    $$

    of each m are gone, the last of them at `end`. Weights are ranked before the update,
    among those still there, so that the masks nest; after `end` the mask stands still,
    and fine-tuning goes on in the same chain, or in another with `keep_masked`.

    Args:
      n: kept of each m in the end.
      m: group length; must divide the axis.
      axis: the contracted axis; see `masks.n_of_m`.
      end: the step of the last removal, 0-based.
      begin: where the cubic starts; None for one shot.
      scope: which leaves; see `masks.unstructured`.

    Returns:
      A `GradientTransformationExtraArgs`. With n = m it is the identity.

    Raises:
      ValueError: not 1 <= n <= m, steps out of order; from `init`, an axis that m does
        not divide, or none known for a leaf; from `update`, no `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import transforms
      >>> tx = transforms.prune_to_n_of_m(1, 3, begin=0, end=2)
      >>> params = {"w": jnp.array([[3.0], [1.0], [2.0]])}
      >>> zero = {"w": jnp.zeros((3, 1))}
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(zero, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["w"].T)
      [[3. 1. 2.]]
      [[3. 0. 2.]]
      [[3. 0. 0.]]

    References:
      The groups of Zhou et al., arXiv 2102.04010, section 2; the schedule of Zhu and
      Gupta, arXiv 1710.01878, eq. (1), rounded down to whole weights of a group.
    """
    _require_n_m(n, m)
    require_static(begin=begin, end=end)
    if end < 0 or (begin is not None and not 0 <= begin <= end):
        raise value_error(
            f"`begin`, `end` need 0 <= begin <= end; got begin={begin}, end={end}."
        )
    # The step of each of the m - n removals, on the host in whole numbers.
    moments = np.asarray(_removal_steps(m - n, begin, end), np.int32)

    def select(params: Params, kept: Any, within: Mask | None) -> Mask:
        return masks.n_of_m(params, kept, m, axis, scope=scope, within=within)

    def init(params: Params) -> PruneToNOfMState:
        mask = params
        if jax.tree.leaves(params):
            shapes = jax.eval_shape(lambda p: select(p, n, None), params)
            mask = jax.tree.map(lambda s: jnp.ones(s.shape, bool), shapes)
        return PruneToNOfMState(jnp.int32(0), mask)

    def update(
        updates: PyTree, state: PruneToNOfMState, params: Params
    ) -> tuple[PyTree, PruneToNOfMState]:
        t = state.count
        gone = jnp.sum(t >= moments, dtype=jnp.int32)
        mask = renewed(
            jnp.any(t == moments),
            lambda now: select(params, m - gone, now),
            state.mask,
        )
        following = PruneToNOfMState(next_step(t), mask)
        return project(updates, params, mask), following

    return transformation(init, update, "prune_to_n_of_m")


def _removal_steps(count: int, begin: int | None, end: int) -> list[int]:
    """The first step at which 1, 2, ..., `count` weights of a group are gone."""
    length = 0 if begin is None else end - begin
    if length == 0:
        return [end] * count
    cube = length**3

    def first(k: int) -> int:
        def gone(t: int) -> bool:
            return count * (cube - (length - t) ** 3) >= k * cube

        return bisect_left(range(length), True, key=gone)

    return [end - length + first(k) for k in range(1, count + 1)]


def _require_n_m(n: int, m: int) -> None:
    require_static(n=n, m=m)
    if not 1 <= n <= m:
        raise value_error(f"N:M needs 1 <= n <= m, got n={n}, m={m}.")
