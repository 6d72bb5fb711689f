"""Batch statistics measured again after the weights have changed.

Batch norm in eval mode divides by statistics that were averaged while the *old* weights
ran. After pruning, merging or any other change of values they are stale, and much of
the accuracy that seems lost is lost to them alone. Measuring them again takes a few
forward passes in train mode, no gradient and no labels.

The layers keep an exponential average `s <- m s + (1 - m) b` of the batch values `b`.
Started from zero, one pass gives `(1 - m) b`, so with `m` known every batch value is
recovered and the plain mean over the batches is taken, with no trace of the old
statistics: this is what the average tends to when training goes on with the weights
held still.

References:
  Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization,
  UAI 2018, section 3.2 (statistics recomputed for averaged weights).
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jprune._errors import value_error
from jprune._tree import require_same_structure
from jprune._typing import PyTree


def recalibrate(
    update: Callable[[PyTree, Any], PyTree],
    stats: PyTree,
    batches: Iterable[Any],
    *,
    momentum: float | None = None,
) -> PyTree:
    """Statistics of the batches, in place of stale ones.

    Args:
      update: `update(stats, batch)` runs the model in train mode on a batch and returns
        the updated statistics. In Flax Linen, with `params` and `model` at hand:
        `lambda s, x: model.apply({"params": params, "batch_stats": s}, x, train=True,
        mutable=["batch_stats"])[1]["batch_stats"]`. It is jitted here.
      stats: the present statistics. Their values matter only without `momentum`;
        integer leaves (counters) are always kept.
      batches: the data, all batches of one shape if it is to compile once.
      momentum: the `m` of every running average in the model, in [0, 1). The result is
        then the exact mean over the batches. None: `update` is applied once per batch,
        starting from `stats`, whatever the layers do with it; of the old values a share
        `m ** number of batches` stays.

    Returns:
      The new statistics, with the structure, shapes and dtypes of `stats`.

    Raises:
      ValueError: if `batches` is empty, `momentum` is out of range, or `update` returns
        another structure.

    Examples:
      >>> m = 0.9
      >>> update = lambda s, batch: {"mean": m * s["mean"] + (1 - m) * batch.mean()}
      >>> old = {"mean": jnp.float32(7.0)}
      >>> new = recalibrate(update, old, [jnp.ones(4), 3 * jnp.ones(4)], momentum=m)
      >>> round(float(new["mean"]), 5)
      2.0
    """
    if momentum is not None and not 0 <= momentum < 1:
        raise value_error(f"`momentum` must be in [0, 1) or None, got {momentum}.")
    step = jax.jit(update)
    if momentum is None:
        return _run(step, stats, batches)
    blank = jax.tree.map(lambda s: jnp.zeros_like(s) if _floating(s) else s, stats)
    total, count = blank, 0
    for batch in batches:
        total = jax.tree.map(jnp.add, total, _checked(step(blank, batch), stats))
        count += 1
    _require_batches(count)
    share = count * (1 - momentum)
    return jax.tree.map(
        lambda sums, old: (sums / share).astype(sums.dtype) if _floating(old) else old,
        total,
        stats,
    )


def _run(step: Callable, stats: PyTree, batches: Iterable[Any]) -> PyTree:
    count = 0
    for batch in batches:
        stats = _checked(step(stats, batch), stats)
        count += 1
    _require_batches(count)
    return stats


def _floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _checked(new: PyTree, stats: PyTree) -> PyTree:
    require_same_structure("update(stats, batch)", new, stats)
    return new


def _require_batches(count: int) -> None:
    if count == 0:
        raise value_error("`batches` is empty: there is nothing to measure.")
