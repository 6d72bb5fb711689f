r"""Dissipating gradients, K-starts, and both: rules for the first epochs.

Dissipating gradients removes the weights that stay within a fraction f of their initial
value over an epoch, $|w - w_0| \le f |w_0|$, whatever their magnitude; nothing regrows,
and the sparsity is an outcome. As a line of an Optax chain it is
`transforms.prune_unmoved`, where its cautions are told: use SGD, keep $\eta \lambda T$
well below f.

The combination drops what is still first and lets K-starts choose among the survivors,
or lets K-starts choose first and dissipates inside its choice.

Haroon, "What to Prune and What Not to Prune at Initialization", arXiv 2209.02201. The
abstract says that the combination beats both; the order and all numbers are
`[inferred]`.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

from jprune import masks, scores
from jprune._errors import value_error
from jprune._typing import Mask, Params, Scalar, Scores
from jprune.at_init._early import Early, Rule
from jprune.at_init._k_starts import k_starts
from jprune.at_init._random_mask import ELEMENT, Pattern
from jprune.masks._count import is_traced, require_sparsity
from jprune.masks._target import require_target

Unit = Callable[[Params], Scores]


def _fittest(key: jax.Array, sparsity: Any, **settings: Any) -> Rule:
    """The rule that ends a window with K-starts, inside what is kept so far."""

    def rule(early: Early) -> Mask:
        return k_starts(
            key, early.params, early.grads, sparsity, within=early.mask, **settings
        )

    return rule


def dissipating(
    fraction: Scalar | None = None,
    *,
    sparsity: Any = None,
    unit: Unit = scores.magnitude,
    pattern: Pattern = ELEMENT,
    scope: Any = None,
    min_keep: int | None = None,
    stacked: Any = None,
) -> Rule:
    """The rule that drops what stayed within a fraction of its initial value.

    Or, with `sparsity`, what moved least, down to exact counts (`[inferred]`).

    Args:
      fraction: f, at least 0; 0.1 by default. Use it with SGD: under Adam every weight
        moves equally far at first, and the largest initial values would go.
      sparsity: fraction of zeros in each leaf, or a tree of fractions, instead.
      unit: what is judged together; see `scores.relative_change`.
      pattern: with `sparsity`, what is removed together, to go with `unit`:
        `masks.channels` for `functools.partial(scores.channel_norm, order=1)`.
      scope: see `masks.unstructured`.
      min_keep: the fewest weights any leaf keeps, the ones that moved most; None for
        one for each output with `fraction`, for one in a leaf with `sparsity`.
      stacked: see `masks.unstructured`.

    Returns:
      A function from `Early` to a mask.

    Raises:
      ValueError: a target out of range, a negative `fraction`, both `fraction` and
        `sparsity`, a `pattern` without `sparsity`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import at_init
      >>> loss, tx = lambda p, x: jnp.sum(p["kernel"] * x), optax.sgd(1.0)
      >>> start = {"kernel": jnp.array([[1.0, -2.0, 0.5]])}
      >>> window = jnp.array([[[-0.05, 0.5, -0.04]]])  # one step: 1.05, -2.5, 0.54
      >>> rule = at_init.dissipating(0.1, min_keep=0)
      >>> early = at_init.train_early(loss, tx, start, [window], [rule])
      >>> early.mask["kernel"]
      Array([[False,  True, False]], dtype=bool)

    References:
      Haroon, arXiv 2209.02201, abstract.
    """
    if sparsity is not None and fraction is not None:
        raise value_error(
            "`dissipating` takes `fraction` or `sparsity`, not both: how far is near, "
            "or how much goes."
        )
    if sparsity is None and pattern is not ELEMENT:
        raise value_error(
            "`pattern` goes with `sparsity`; with `fraction`, `unit` says what is "
            "removed together."
        )
    least = 0.1 if fraction is None else fraction
    if not is_traced(least) and not 0 <= float(least) < float("inf"):
        raise value_error(f"`fraction` must be finite and >= 0, got {fraction}.")
    require_target(sparsity, min_keep=min_keep)
    floor = {} if sparsity is not None and min_keep is None else {"min_keep": min_keep}

    def rule(early: Early) -> Mask:
        moved = scores.relative_change(early.params, early.initial, unit)
        where = {"within": early.mask, "scope": scope, **floor}
        where |= {} if stacked is None else {"stacked": stacked}
        if sparsity is not None:
            return pattern(moved, sparsity=sparsity, **where)
        return masks.above(moved, least, **where)

    return rule


def dissipating_k_starts(
    key: jax.Array,
    sparsity: Any,
    *,
    epochs: int = 2,
    order: Literal["dissipating_first", "k_starts_first"] = "dissipating_first",
    fraction: Scalar = 0.1,
    first: float | None = None,
    unit: Unit = scores.magnitude,
    pattern: Pattern = ELEMENT,
    scope: Any = None,
    stacked: Any = None,
    **settings: Any,
) -> list[Rule]:
    r"""The rules of the combination, one for each window, `epochs + 1` of them.

    Args:
      key: a PRNG key.
      sparsity: of each leaf at the end; may be traced. With "dissipating_first" it is
        exceeded where dissipating gradients alone went beyond.
      epochs: windows that end with dissipating gradients.
      order: "dissipating_first" drops what is within `fraction` after each of `epochs`
        windows and chooses the fittest mask of the survivors after one more;
        "k_starts_first" chooses the fittest mask of sparsity `first` after one window
        and drops what moved least in it, in equal ratios, until `sparsity` is reached.
      fraction: f of `dissipating`.
      first: sparsity of the first choice of "k_starts_first", below `sparsity`; None
        for half way, $1 - \sqrt{1 - s}$.
      unit: what dissipating gradients judges together.
      pattern: what is removed together.
      scope: see `masks.unstructured`.
      stacked: see `masks.unstructured`.
      **settings: of `k_starts`: `k`, `balance`, `share`, `at_once`.

    Returns:
      A list of rules for `train_early`.

    Raises:
      ValueError: no epoch, another `order`, a `first` that is not below `sparsity`.
    """
    require_sparsity(sparsity)
    if epochs < 1:
        raise value_error(f"`epochs` must be at least 1, got {epochs}.")
    same = {"scope": scope, "stacked": stacked}
    choose = {"pattern": pattern, **same, **settings}
    if order == "dissipating_first":
        drop = dissipating(fraction, unit=unit, **same)
        return [drop] * epochs + [_fittest(key, sparsity, **choose)]
    if order != "k_starts_first":
        raise value_error(
            f"`order` must be 'dissipating_first' or 'k_starts_first', got {order!r}."
        )
    begin = 1 - (1 - sparsity) ** 0.5 if first is None else first
    if not (first is None or is_traced(sparsity) or 0 <= first < sparsity):
        raise value_error(
            f"`first` must be at least 0 and below `sparsity` {sparsity}, got {first}."
        )
    ratio = (1 - sparsity) / (1 - begin)
    steps = [1 - (1 - begin) * ratio ** (i / epochs) for i in range(1, epochs)]
    how = {"unit": unit, "pattern": pattern, **same}
    drops = [dissipating(sparsity=s, **how) for s in [*steps, sparsity]]
    return [_fittest(key, begin, **choose), *drops]
