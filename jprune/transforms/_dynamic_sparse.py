"""RigL, SET and static sparse training: `drop_and_grow` with each paper's settings.

All three are SGD with momentum and coupled decay on a network that is sparse from the
first step to the last; they differ in whether and where removed weights grow again.
Another optimizer: `drop_and_grow` around it.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import optax

from jprune import masks
from jprune._errors import require_functions, require_static
from jprune._typing import Mask, Params, ScalarOrSchedule
from jprune.masks._count import is_traced
from jprune.transforms._build import (
    decay,
    end_within,
    require_rate,
)
from jprune.transforms._drop_and_grow import Allocation, drop_and_grow, require_fraction

_WRAP = "wrap it: `drop_and_grow(optimizer, sparsity, ...)`"


def rigl(
    learning_rate: ScalarOrSchedule,
    *,
    sparsity: Any = None,
    total_steps: int | None = None,
    mask: Mask | Callable[[Params], Mask] | None = None,
    drop_fraction: float = 0.3,
    every: int | None = None,
    begin: int = 1,
    end: int | None = None,
    allocation: Allocation | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule = 1e-4,
    scope: Any = None,
    min_keep: int = 1,
    stacked: Any = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""RigL: the smallest weights go, those with the largest gradients come.

    The fraction that moves falls along
    $f_t = \frac{\alpha}{2} (1 + \cos \frac{\pi t}{T_{end}})$. A step that moves the
    mask is no step of the optimizer.

    Read the mask from `state.mask`: after `init` the parameters are still dense, and
    right after a move the grown weights are 0, so that `analysis.report(params)` reads
    too sparse a network and `masks.from_zeros` would drop them.

    Args:
      learning_rate: a number or a schedule.
      sparsity: of the whole scope; see `drop_and_grow`.
      total_steps: length of the run.
      mask: the first mask in place of `sparsity`, or a function of the parameters.
      drop_fraction: $\alpha$, the fraction at step 0.
      every: $\Delta T$, steps between two moves; 100 as in the paper, or in a run too
        short for one a quarter of `end`.
      begin: see `drop_and_grow`.
      end: $T_{end}$, the step from which the mask stands still; by default three
        quarters of `total_steps`, as in the paper.
      allocation: see `drop_and_grow`.
      momentum: its coefficient.
      nesterov: Nesterov's form of momentum.
      weight_decay: of the scope.
      scope: which leaves are sparse; see `masks.unstructured`. With `masks.uniform` the
        paper leaves the first layer out.
      min_keep: the fewest weights any leaf keeps.
      stacked: see `drop_and_grow`.
      key: a PRNG key or a seed, for the first mask.

    Returns:
      A `GradientTransformationExtraArgs`.

    Raises:
      ValueError: neither `total_steps` nor `end`, an `end` outside the run, or an
        `every` with which no mask ever moves; as `drop_and_grow` and the allocation.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks, transforms
      >>> params = {"kernel": jnp.ones((20, 30)), "bias": jnp.zeros(30)}
      >>> tx = transforms.rigl(0.1, sparsity=0.9, total_steps=100, every=5)
      >>> int(masks.count(tx.init(params).mask))
      60

    References:
      Evci et al., arXiv 1911.11134, algorithm 1 and section 3; settings of the authors'
      ImageNet script.
    """
    require_rate(learning_rate, "rigl", _WRAP)
    require_static(
        total_steps=total_steps, end=end, every=every, begin=begin, min_keep=min_keep
    )
    require_fraction(drop_fraction)  # before the schedule hides it
    end = end_within(total_steps, end, Fraction(3, 4))
    every = _period(every, begin, end)
    falling: Any = 0.0  # holds the first mask
    if is_traced(drop_fraction) or drop_fraction != 0:
        falling = optax.cosine_decay_schedule(drop_fraction, end)
    return drop_and_grow(
        _sgd(learning_rate, momentum, nesterov, weight_decay, scope),
        sparsity,
        mask=mask,
        allocation=allocation,
        drop_fraction=falling,
        every=every,
        begin=begin,
        end=end,
        scope=scope,
        min_keep=min_keep,
        stacked=stacked,
        key=key,
    )


def sparse_evolutionary(
    learning_rate: ScalarOrSchedule,
    *,
    every: int,
    sparsity: Any = None,
    total_steps: int | None = None,
    mask: Mask | Callable[[Params], Mask] | None = None,
    drop_fraction: ScalarOrSchedule = 0.3,
    begin: int = 1,
    end: int | None = None,
    allocation: Allocation | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    scope: Any = None,
    min_keep: int = 1,
    stacked: Any = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""SET, sparse evolutionary training: the smallest weights go, any others come.

    Which come is drawn at random. The mask moves after a step of the optimizer, by the
    weights that step leaves.

    Read the mask from `state.mask`: after `init` the parameters are still dense, and
    right after a move the grown weights are 0, so that `analysis.report(params)` reads
    too sparse a network and `masks.from_zeros` would drop them.

    Args:
      learning_rate: a number or a schedule.
      every: steps between two moves; an epoch in the paper.
      sparsity: of the whole scope; see `drop_and_grow`.
      total_steps: length of the run.
      mask: the first mask in place of `sparsity`, or a function of the parameters.
      drop_fraction: $\zeta$, the share of the kept weights that moves.
      begin: see `drop_and_grow`.
      end: no mask moves from this step on; by default `total_steps`, or never.
      allocation: see `drop_and_grow`; None for the paper's `masks.erdos_renyi`.
      momentum: its coefficient.
      nesterov: Nesterov's form of momentum.
      weight_decay: of the scope.
      scope: which leaves are sparse; see `masks.unstructured`.
      min_keep: the fewest weights any leaf keeps.
      stacked: see `drop_and_grow`.
      key: a PRNG key or a seed.

    Returns:
      A `GradientTransformationExtraArgs`.

    Raises:
      ValueError: as `drop_and_grow` and the allocation.

    References:
      Mocanu et al., Nature Communications 2018 (arXiv 1707.04780), figure 1 and eq.
      (3). They drop the share $\zeta$ of the positive and of the negative weights each;
      here of the magnitudes, as Evci et al. do.
    """
    require_rate(
        learning_rate,
        "sparse_evolutionary",
        _WRAP,
    )
    require_functions(allocation=allocation)
    if total_steps is not None:
        end = end_within(total_steps, end, Fraction(1))
    return drop_and_grow(
        _sgd(learning_rate, momentum, nesterov, weight_decay, scope),
        sparsity,
        mask=mask,
        allocation=allocation or masks.erdos_renyi,
        drop_fraction=drop_fraction,
        grow="random",
        also_step=True,
        every=every,
        begin=begin,
        end=end,
        scope=scope,
        min_keep=min_keep,
        stacked=stacked,
        key=key,
    )


def static_sparse(
    learning_rate: ScalarOrSchedule,
    *,
    sparsity: Any = None,
    mask: Mask | Callable[[Params], Mask] | None = None,
    allocation: Allocation | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule = 1e-4,
    scope: Any = None,
    min_keep: int = 1,
    stacked: Any = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    """A random mask, drawn once and held: what RigL and SET must beat.

    Args:
      learning_rate: a number or a schedule.
      sparsity: of the whole scope; see `drop_and_grow`.
      mask: the mask in place of `sparsity`, or a function of the parameters.
      allocation: see `drop_and_grow`.
      momentum: its coefficient.
      nesterov: Nesterov's form of momentum.
      weight_decay: of the scope.
      scope: which leaves are sparse; see `masks.unstructured`.
      min_keep: the fewest weights any leaf keeps.
      stacked: see `drop_and_grow`.
      key: a PRNG key or a seed, for the mask.

    Returns:
      A `GradientTransformationExtraArgs`.

    Raises:
      ValueError: as `drop_and_grow` and the allocation.

    References:
      "Static" of Evci et al., arXiv 1911.11134, section 4.
    """
    require_rate(
        learning_rate,
        "static_sparse",
        _WRAP,
    )
    return drop_and_grow(
        _sgd(learning_rate, momentum, nesterov, weight_decay, scope),
        sparsity,
        mask=mask,
        allocation=allocation,
        drop_fraction=0.0,
        scope=scope,
        min_keep=min_keep,
        stacked=stacked,
        key=key,
    )


def _period(every: int | None, begin: int, end: int) -> int:
    """Steps between two moves: as given, the paper's, or a quarter of a short run."""
    if every is not None:
        return every
    return 100 if -(-begin // 100) * 100 < end else max(end // 4, 1)


def _sgd(
    learning_rate: ScalarOrSchedule,
    momentum: float,
    nesterov: bool,
    weight_decay: ScalarOrSchedule,
    scope: Any,
) -> optax.GradientTransformation:
    return optax.chain(
        decay(weight_decay, scope),
        optax.sgd(learning_rate, momentum, nesterov),
    )
