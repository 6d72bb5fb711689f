"""Learning rates and strengths over a run of known length, as Optax schedules."""

import jax.numpy as jnp
import optax


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
    moments = {round(share * steps): factor for share in at}
    return optax.piecewise_constant_schedule(rate, moments)
