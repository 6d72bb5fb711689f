"""One-shot magnitude pruning of the dense network, nothing trained afterwards.

Batch statistics measured on the dense network do not fit the pruned one, and much of
what one-shot pruning loses is lost to that. So each sparsity has two rows: statistics
as they were, and measured anew on the training set.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods.removal import largest, row
from experiments.results import Row
from experiments.rules import percent
from jprune import compress, masks


def one_shot(
    lab: Lab, dense: Fit, *, sparsity: tuple[float, ...], stats_momentum: float | None
) -> Iterator[Row]:
    """Two rows for each sparsity: batch statistics stale, and recalibrated.

    Args:
      lab: the shared part.
      dense: the run whose result is cut.
      sparsity: fractions to remove.
      stats_momentum: of the network's running averages; None for a network without
        any, and no second row.
    """
    refresh = recalibration(lab, stats_momentum)
    make = partial(row, lab, method="one_shot", before=lab.logits(*dense[:2]))
    for share in sparsity:
        clock = time.perf_counter()
        kept = masks.kept_count(masks.size(dense.params), share)
        mask = largest(dense.params, lab.count(kept))
        params, run = masks.apply(mask, dense.params), f"one-shot {percent(share)}"
        stale = make(params, after=lab.logits(params, dense.stats), run=run, kept=kept)
        yield stale._replace(seconds=time.perf_counter() - clock)
        if stats_momentum is not None:
            fresh = lab.logits(params, refresh(params, dense.stats))
            found = make(params, after=fresh, run=f"{run}, recalibrated", kept=kept)
            yield found._replace(seconds=time.perf_counter() - clock)


def recalibration(lab: Lab, momentum: float | None) -> Callable[[Any, Any], Any]:
    """`(params, stats)` -> batch statistics of the training set, in one pass."""

    @jax.jit
    def measure(params: Any, stats: Any, inputs: Any, index: jax.Array) -> Any:
        key = jax.random.key(0)
        return lab.forward(params, stats, inputs, index, train=True, key=key)[1]

    def refresh(params: Any, stats: Any) -> Any:
        order = np.asarray(lab.order(0)).reshape(lab.per_epoch, lab.batch)
        return compress.recalibrate(
            lambda old, index: measure(params, old, lab.inputs, index),
            stats,
            [lab.replicated(index) for index in order],
            momentum=momentum,
        )

    return refresh
