r"""Iterative magnitude pruning: train, remove, rewind, repeat.

The recipe that one-shot methods are compared with. After round k of n the density is
$d^{k/n}$ with d the final density, so each round removes the same share of what is
left. Before the next round either the weights go back to an early checkpoint (*weight
rewinding*, the lottery-ticket procedure) or they stay and only the schedule of the
learning rate starts again (*learning-rate rewinding*).

Han et al., NeurIPS 2015; Frankle et al., "Linear Mode Connectivity and the Lottery
Ticket Hypothesis", ICML 2020 (rewinding); Renda, Frankle and Carbin, "Comparing
Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jprune import masks
from jprune._errors import listing, value_error
from jprune._tree import named_leaves
from jprune._typing import Mask, Params
from jprune.masks._count import require_sparsity
from jprune.masks._rank import RankingName
from jprune.masks._target import require_target


def iterative_sparsities(sparsity: float, rounds: int) -> list[float]:
    r"""The sparsities after each round: $1 - (1-s)^{k/n}$, the last exactly s.

    Args:
      sparsity: final s in [0, 1).
      rounds: n >= 1.

    Returns:
      n floats, increasing.

    Raises:
      ValueError: a sparsity outside [0, 1) or no round.
    """
    require_sparsity(sparsity)
    if rounds < 1:
        raise value_error(f"`rounds` must be at least 1, got {rounds}.")
    density = 1 - sparsity
    early = [1 - density ** (k / rounds) for k in range(1, rounds)]
    return [*early, sparsity]


def prune_iteratively(
    train: Callable[[Params, Mask], Params],
    params: Params,
    sparsity: float | Sequence[float],
    *,
    rounds: int | None = None,
    rewind: Literal["weights", "learning_rate"] = "weights",
    early: Params | None = None,
    scope: Any = None,
    ranking: RankingName = "global",
    stacked: Any = None,
) -> tuple[Params, Mask]:
    """Magnitude pruning in rounds, with weight or learning-rate rewinding.

    Args:
      train: a whole training run: from parameters and a mask to trained parameters
        whose removed weights are zero (end its chain with `keep_masked(mask)`). Every
        call runs the schedule of the learning rate from its start.
      params: what the first round starts from, dense.
      sparsity: the last one, reached in `rounds` that each remove the same share of
        what is left; or the sparsity after each round, increasing.
      rounds: how many, with one number for `sparsity`.
      rewind: "weights" starts every round from `early`, "learning_rate" from the
        trained weights.
      early: the checkpoint to rewind to; `params` by default (the original lottery
        ticket). Only for "weights".
      scope: see `masks.unstructured`.
      ranking: see `masks.unstructured`.
      stacked: see `masks.unstructured`.

    Returns:
      The parameters of the last run, trained at the final sparsity, and its mask.

    Raises:
      ValueError: removed weights that are not zero after `train`; a number without
        `rounds` or numbers with them, sparsities out of
        range or that do not increase, or an unknown `rewind`.
    """
    if rewind not in ("weights", "learning_rate"):
        raise value_error(
            f"`rewind` must be 'weights' or 'learning_rate', got {rewind!r}."
        )
    if isinstance(sparsity, Sequence) == (rounds is not None):
        raise value_error(
            "Give `rounds` with one number for `sparsity`, and none with one for each "
            f"round; got sparsity={sparsity}, rounds={rounds}."
        )
    if isinstance(sparsity, Sequence):
        targets = list(sparsity)
    else:
        targets = iterative_sparsities(sparsity, rounds or 0)
    for target in targets:  # all of them, before a run is spent
        require_target(target, ranking=ranking)
    if sorted(targets) != targets:
        raise value_error(f"`sparsity` must increase, got {targets}.")
    start = params if early is None else early
    mask = masks.full(params)
    trained = train(params, mask)
    for target in targets:
        mask = masks.unstructured(
            trained,
            target,
            scope=scope,
            ranking=ranking,
            within=mask,
            stacked=stacked,
        )
        again = start if rewind == "weights" else trained
        trained = train(masks.apply(mask, again), mask)
        _require_held(trained, mask)
    return trained, mask


def _require_held(trained: Params, mask: Mask) -> None:
    """Raises unless what the mask removed came back from training as zero."""
    left = jax.tree.map(
        lambda m, p: int(jnp.sum(jnp.where(m, 0, p) != 0)) if m.ndim else 0,
        mask,
        trained,
    )
    lines = [f"{path}: {n} not zero" for path, n in named_leaves(left) if n]
    if lines:
        raise value_error(
            "`train` must hold the mask it is given: weights that it removes came back "
            "other than zero. End the chain in it with `transforms.keep_masked(mask)`, "
            f"or return `masks.apply(mask, params)`.{listing(lines)}"
        )
