r"""Hard-concrete gates: random switches that are exactly 0, exactly 1, or between.

A gate has one parameter $a$ (log alpha). With $u \sim U(0, 1)$,

$$ s = \sigma\big( (\log u - \log(1 - u) + a) / \tau \big), \qquad
   z = \operatorname{clip}(s\,(r - l) + l,\ 0,\ 1), $$

a stretched sigmoid whose ends are folded onto 0 and 1. It is open with probability

$$ q = P(z \ne 0) = \sigma\big( a - \tau \log(-l / r) \big), $$

which is differentiable, so that what an open gate costs has a gradient, too. Evaluation
drops the noise: $z = \operatorname{clip}(\sigma(a)(r - l) + l, 0, 1)$, which is 0 for
$a \le -2.397895$. A gate with $a = -3$ is closed there, though q is still 0.198: what a
network costs in the end is counted from closed gates, not from q.

Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization",
ICLR 2018 (arXiv 1712.01312), eqs. 10 to 13.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jprune._errors import value_error
from jprune.reparam._named import clip

TAU, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Temperature and ends of the stretched sigmoid, as in the paper's experiments."""

Cost = Callable[[Mapping[str, Any]], Any]
"""From kept counts by group id to a price, a polynomial of them: `deps.flops`."""


def hard_concrete(log_alpha: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """The value of gates.

    Args:
      log_alpha: a, any shape.
      noise: u in (0, 1), of the same shape; None for evaluation.

    Returns:
      z in [0, 1]. The derivative at the two kinks is that from within; a gate at
      exactly 0 or 1 beyond them gets none.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune.reparam._hard_concrete import hard_concrete
      >>> hard_concrete(jnp.array([-3.0, 0.0, 3.0]))
      Array([0. , 0.5, 1. ], dtype=float32)
    """
    logit = log_alpha
    if noise is not None:
        logit = (jnp.log(noise) - jnp.log1p(-noise) + log_alpha) / TAU
    return clip(jax.nn.sigmoid(logit) * (HIGH - LOW) + LOW, 0, 1)


def open_probability(log_alpha: jax.Array) -> jax.Array:
    """The probability that gates are not 0.

    Args:
      log_alpha: a, any shape.

    Returns:
      q in (0, 1).
    """
    return jax.nn.sigmoid(log_alpha - TAU * math.log(-LOW / HIGH))


def expected_cost(
    counts: Mapping[str, jax.Array],
    branches: Mapping[str, jax.Array],
    inner: Mapping[str, Sequence[str]],
    cost: Cost,
) -> jax.Array:
    r"""What a gated network costs on average.

    A block that is open with probability $q_b$ costs $q_b$ times what its open channels
    cost: with C the cost of the network without any block, and $C_b$ that with block b
    alone, $E = C + \sum_b q_b (C_b - C)$.

    Args:
      counts: expected number of open channels, the sum of q, by group id.
      branches: $q_b$ by name.
      inner: the groups inside each branch, by its name. No layer lies in two branches.
      cost: from counts by group id to the cost, traceable; a group that is absent is
        whole. Where a count enters squared (a layer that reads and writes one stream)
        the square of the mean stands for the mean of the square.

    Returns:
      A 0-d array, differentiable in counts and branches.

    Raises:
      ValueError: a group inside two branches.

    Examples:
      A block of two 1 x 1 convolutions 2 -> 2 -> 2 that is open half of the time:

      >>> import jax.numpy as jnp
      >>> from jprune.reparam._hard_concrete import expected_cost
      >>> n, q = {"mid": jnp.array(1.5)}, {"block": jnp.array(0.5)}
      >>> cost = lambda kept: 2 * kept["mid"] + kept["mid"] * 2
      >>> expected_cost(n, q, {"block": ["mid"]}, cost)
      Array(3., dtype=float32)
    """
    row = {}
    for place, name in enumerate(branches, start=1):
        for group in inner[name]:
            if group in row:
                raise value_error(f"Group {group!r} is inside two `branches`.")
            row[group] = place
    # One evaluation for all: row 0 has every branch closed, row b only branch b open.
    rows = 1 + len(branches)

    def laid(group: str, count: jax.Array) -> jax.Array:
        here = [float(group not in row or i == row[group]) for i in range(rows)]
        return count * jnp.asarray(here, jnp.result_type(count))

    laid_out = {group: laid(group, n) for group, n in counts.items()}
    each = jax.vmap(cost, axis_size=rows)(laid_out)
    if not branches:
        return each[0]
    return each[0] + jnp.stack([*branches.values()]) @ (each[1:] - each[0])


def dual_ascent(price: Any, cost: Any, *, target: float, rate: float) -> jax.Array:
    r"""The next price of a budget: $\max(0, \lambda + \rho\,(E - \text{target}))$.

    Args:
      price: $\lambda$.
      cost: E, relative to the dense cost.
      target: the relative cost wanted.
      rate: $\rho$.

    Returns:
      A 0-d array: it rises while the cost is above the target, and falls below it.
    """
    return jnp.maximum(price + rate * (cost - target), 0)
