"""Learning rates and strengths over a run of known length, as Optax schedules."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

Rate = float | Mapping[str, Any]
"""A setting `lr`: a number for a cosine, or what `in_steps` gives."""


def learning_rate(lr: Rate, steps: int, times: float = 1.0) -> optax.Schedule:
    """The rate that a setting `lr` of a configuration stands for.

    Args:
      lr: a number, where a `warmup_cosine` starts; or the dict of `in_steps`, a
        constant that falls in steps, as most papers have it.
      steps: length of the run.
      times: a factor of all of it.
    """
    if not isinstance(lr, Mapping):
        return warmup_cosine(times * lr, steps)
    fall = drops(times * lr["peak"], steps, lr["drops_at"], lr["factor"])
    rise = max(lr["rise"] * steps, 1)
    if not lr["rise"]:
        return fall
    return lambda step: fall(step) * jnp.minimum(step / rise, 1.0)


def in_steps(
    peak: float,
    epochs: int,
    drops: Sequence[int] = (),
    *,
    warmup: int = 0,
    factor: float = 0.1,
) -> dict[str, Any]:
    """The setting `lr` of a run whose rate is constant and falls in steps.

    It holds shares of the run, not epochs, so that a shorter run has it whole.

    Args:
      peak: the rate after the warm-up.
      epochs: length of the run.
      drops: epochs after which the rate is multiplied by `factor`.
      warmup: epochs in which it rises in proportion from 0.
      factor: of each drop.

    Example:
      >>> in_steps(0.1, 400, (200, 300))["drops_at"]
      (0.5, 0.75)
    """
    return {
        "peak": peak,
        "rise": warmup / epochs,
        "drops_at": tuple(epoch / epochs for epoch in drops),
        "factor": factor,
    }


def warmup_cosine(peak: float, steps: int, warmup: float = 0.05) -> optax.Schedule:
    """A cosine to 0 over the whole run, times a linear rise over its first part.

    Args:
      peak: what the cosine starts from.
      steps: length of the run.
      warmup: share of the run over which the factor rises from 0 to 1.
    """
    cosine = optax.cosine_decay_schedule(peak, steps)
    rise = max(warmup * steps, 1)
    return lambda step: cosine(step) * jnp.minimum(step / rise, 1.0)


def drops(
    rate: float, steps: int, at: tuple[float, ...], factor: float = 0.1
) -> optax.Schedule:
    """A constant, multiplied by `factor` at each of these shares of the run."""
    moments: dict[int, float] = {}
    for share in at:  # in a short run two of them may fall on one step
        moments[round(share * steps)] = moments.get(round(share * steps), 1.0) * factor
    return optax.piecewise_constant_schedule(rate, moments)
