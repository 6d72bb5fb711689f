"""Names for the few kinds of pytree that every signature speaks of.

They are aliases, not classes: a parameter tree of any framework is accepted as it is.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.typing import ArrayLike

PyTree = Any
"""Any JAX pytree."""

Params = Any
"""A pytree of arrays: the parameters of a model."""

Mask = Any
"""A pytree of bool arrays with exactly the structure of the parameters; True = keep.

A leaf out of scope holds a 0-d True, never None, so that the two structures stay equal.
"""

Scores = Any
"""A pytree of float arrays with the structure and shapes of the parameters."""

Scope = Any
"""A pytree of Python bools, structured as the parameters: which leaves take part."""

Schedule = Callable[[ArrayLike], ArrayLike]
"""A function of the step count, as Optax's schedules are."""

ScalarOrSchedule = float | int | jax.Array | Schedule
"""A number (concrete or traced) or a schedule of the step."""
