r"""Rounds of scoring and pruning, with no training in between.

Each round scores what is left and removes a little more. After round k of n the kept
share is $\rho^{k/n}$, with $\rho$ the share kept at the end ("exponential"), or
$1 - (1 - \rho)\, k/n$ ("linear"). A score that looks at the pruned network, as SynFlow
does, can so take back the budget it would have given to a path that is gone.
"""

from collections.abc import Callable
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks
from jprune._errors import value_error
from jprune._stacks import Axes, layer_shape, stack_shape, stacked_axes
from jprune._typing import Mask, Params, Scores
from jprune.masks._count import is_traced
from jprune.masks._scope import in_scope, in_scope_list, resolve_scope
from jprune.masks._target import keep_counts

Schedule = Literal["exponential", "linear"]


def iterate(
    score_fn: Callable[[Params], Scores],
    params: Params,
    sparsity: Any = None,
    *,
    keep: int | None = None,
    rounds: int = 100,
    schedule: Schedule = "exponential",
    scope: Any = None,
    min_keep: int = 0,
    signed: bool = False,
    stacked: Any = None,
) -> Mask:
    """Prunes in `rounds` rounds by a score of what is left; nothing comes back.

    One compiled loop, whatever the number of rounds.

    Args:
      score_fn: `score_fn(params)` -> scores; it is given the parameters with the
        removed weights at 0.
      params: the parameters, as initialized.
      sparsity: fraction of zeros at the end, over the scope; a concrete number.
      keep: number kept at the end instead.
      rounds: n; 1 is one-shot.
      schedule: "exponential" or "linear".
      scope: see `masks.unstructured`.
      min_keep: the fewest weights any leaf keeps in each round. 0: the score alone
        decides, and may empty a layer (`emptied`).
      signed: rank scores by value, see `masks.unstructured`.
      stacked: see `masks.unstructured`; each layer of a stack keeps `min_keep`.

    Returns:
      A mask with exactly the asked count.

    Raises:
      ValueError: nothing or less than `min_keep` a leaf to be kept, `rounds` below 1, a
        traced target; as `masks.unstructured`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import scores
      >>> from jprune.at_init._iterate import iterate
      >>> w = jnp.array([[3.0, -1.0], [0.5, 2.0]])
      >>> iterate(scores.magnitude, w, 0.5, rounds=2)
      Array([[ True, False],
             [False,  True]], dtype=bool)

    References:
      Tanaka et al., arXiv 2006.05467, algorithm 1.
    """
    scope = resolve_scope(scope, params)
    stacks = in_scope_list(stacked_axes(params, stacked), scope)
    leaves = zip(in_scope(params, scope), stacks, strict=True)
    last, _ = keep_counts(params, sparsity, keep, scope=scope)
    least = max(1, sum(_floor(x.shape, axes, min_keep) for x, axes in leaves))
    if is_traced(last) or last < least:
        raise value_error(
            f"The target of `iterate` must be concrete and keep at least {least} "
            f"weights; got {last}."
        )
    counts = jnp.asarray(_counts(masks.size(params, scope), last, rounds, schedule))

    def one_round(k: jax.Array, mask: Mask) -> Mask:
        return masks.unstructured(
            score_fn(masks.apply(mask, params)),
            keep=counts[k],
            within=mask,
            scope=scope,
            min_keep=min_keep,
            signed=signed,
            stacked=stacked,
        )

    whole = jax.tree.map(
        lambda p, t: jnp.ones_like(p, bool) if t else jnp.array(True), params, scope
    )
    return jax.lax.fori_loop(0, rounds, one_round, whole)


def _floor(shape: tuple[int, ...], axes: Axes, min_keep: int) -> int:
    """How many weights the layers of a leaf keep at least."""
    return prod(stack_shape(shape, axes)) * min(
        min_keep, prod(layer_shape(shape, axes))
    )


def _counts(size: int, last: int, rounds: int, schedule: Schedule) -> np.ndarray:
    """How many are kept after each round. [rounds] int32"""
    if not isinstance(rounds, int | np.integer) or rounds < 1:
        raise value_error(f"`rounds` must be a positive integer, got {rounds!r}.")
    if schedule not in ("exponential", "linear"):
        raise value_error(
            f"`schedule` must be 'exponential' or 'linear', got {schedule!r}."
        )
    done, rho = np.arange(1, rounds + 1) / rounds, last / size
    share = rho**done if schedule == "exponential" else 1 - (1 - rho) * done
    counts = np.floor(share * size + 0.5).astype(np.int32)
    counts[-1] = last  # the powers round, the asked count does not
    return counts
