r"""Trainability: the singular values of the input-output Jacobian.

A network passes small changes of its input on well when the singular values of
$J = \partial f(x) / \partial x$ are neither tiny nor spread out; *dynamical isometry*
is the state in which all are near 1. Pruning lowers and spreads them, and how far says
how hard the pruned network will be to train.

Wang and Fu, "Trainability Preserving Neural Pruning", ICLR 2023 (arXiv 2207.12534),
who report the mean over all samples and directions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._errors import value_error
from jprune._jaxpr._trace import jitted_call


class Trainability(NamedTuple):
    """Jacobian singular values of a network at some inputs.

    Attributes:
      mean: of all singular values, 0-d.
      std: of all singular values, 0-d.
      condition: the largest over the smallest of a sample, averaged over samples; inf
        where a Jacobian has lost a direction. 0-d.
      isometry: mean of (s - 1)^2, 0 for an isometry. 0-d.
      values: the singular values, descending. [samples, min(outputs, inputs)]
    """

    mean: jax.Array
    std: jax.Array
    condition: jax.Array
    isometry: jax.Array
    values: jax.Array


def trainability(
    apply: Callable[..., jax.Array], variables: Any, x: jax.Array
) -> Trainability:
    """Singular values of the Jacobian of the outputs with respect to each input.

    Each sample is differentiated by itself: use eval mode, in which batch norm does not
    couple samples. The cost is one backward pass per output and sample, so a few dozen
    samples.

    Args:
      apply: `apply(variables, x)`, from a batch of inputs to outputs `[n, ...]`.
      variables: what it takes.
      x: inputs. [n, ...] floating

    Returns:
      A `Trainability`.

    Raises:
      ValueError: `x` without a sample, or not floating.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import analysis
      >>> w = jnp.diag(jnp.array([3.0, 2.0]))
      >>> found = analysis.trainability(lambda w, x: x @ w, w, jnp.ones((1, 2)))
      >>> float(found.mean), float(found.condition)
      (2.5, 1.5)

    References:
      Wang and Fu, arXiv 2207.12534, section 4.
    """
    if jnp.ndim(x) < 1 or len(x) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise value_error(
            f"`x` must be a batch of floating inputs, got {jnp.shape(x)} "
            f"{jnp.result_type(x)}."
        )
    values = jitted_call(partial(_singular_values, apply), variables, (x,))
    least = values[:, -1]
    ratios = jnp.where(
        least > 0, values[:, 0] / jnp.where(least > 0, least, 1), jnp.inf
    )
    return Trainability(
        jnp.mean(values),
        jnp.std(values),
        jnp.mean(ratios),
        jnp.mean((values - 1) ** 2),
        values,
    )


def _singular_values(apply: Callable, variables: Any, x: jax.Array) -> jax.Array:
    def flat(one: jax.Array) -> jax.Array:
        return apply(variables, one[None]).reshape(-1)

    jacobians = jax.vmap(jax.jacrev(flat))(x)  # [n, outputs, ...]
    matrices = jacobians.reshape(*jacobians.shape[:2], -1)
    return jnp.linalg.svd(matrices, compute_uv=False)
