"""From `(init, update)` to the type Optax knows, and its step counter."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def transformation(
    init: Callable[..., Any], update: Callable[..., Any]
) -> optax.GradientTransformationExtraArgs:
    """The pair as a `GradientTransformationExtraArgs`.

    The type checker cannot see that a state class of ours is a state: this is the one
    place that says so.
    """
    return optax.GradientTransformationExtraArgs(init, update)


def next_step(count: jax.Array) -> jax.Array:
    """`count + 1`, stopping at the largest int32."""
    return jnp.asarray(optax.safe_increment(count))
