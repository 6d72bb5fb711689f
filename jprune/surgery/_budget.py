"""Budgets in any unit: where the order of removal is cut by a cost that is measured.

Seconds, bytes or compiled operations are no polynomials of the kept counts: a plan has
to be made and measured. A measurement is dear, noisy, and falls only roughly as more is
removed. So few plans are tried: FLOPs, which are free to count, say how far along the
order to go, and the target is bracketed in them by false position.
"""

import decimal
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jprune._errors import value_error

MOST_CALLS = 12
"""How many plans are measured at the most."""

CLOSE = 0.02
"""A plan this close below the budget ends the search, as a fraction of the budget."""


class Measured(NamedTuple):
    """A measure of an accepted plan, taken a second time; the dense network is 1.

    Attributes:
      median: over the rounds.
      low: first quartile.
      high: third quartile.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"

    def doubt(self, at_most: float) -> str:
        """Why the budget may not be met, a sentence; empty if it surely is."""
        if self.high <= at_most:
            return ""
        if self.high - self.low >= abs(1 - at_most):
            return (
                f"Half of the rounds differ by {self.high - self.low:.2g} or more, as "
                f"much as the saving that is asked for, {1 - at_most:.2g}: this says "
                "nothing. Measure on a quieter machine, with more `rounds`, or on a "
                "larger input."
            )
        if self.low > at_most:
            return (
                f"That is over the budget of {at_most:.3g}: the first measurement was "
                "lucky. Ask for less time, or measure with more `rounds`."
            )
        return ""


def cut_by_measure(
    measure: Callable[[int], float],
    at_most: float,
    share: Callable[[int], float],
    head: Callable[[float], int],
    last: int,
    excluded: str = "",
) -> int:
    """The number of steps to take so that the measured cost is at most the budget.

    Args:
      measure: the cost with the first k steps taken.
      at_most: the budget, in the unit of the cost.
      share: the fraction of the dense FLOPs left with the first k steps taken.
      head: the fewest steps that leave at most this fraction.
      last: the number of all steps.
      excluded: a sentence for the error, on what was kept out.

    Returns:
      k, of those tried the smallest within the budget.

    Raises:
      ValueError: if nothing has to be removed, all steps together are not enough, or
        a cost is no finite number.
    """
    seen: dict[int, float] = {}

    def cost(k: int) -> float:
        if k not in seen:
            seen[k] = _number(measure(k))
        return seen[k]

    if cost(0) <= at_most:
        raise value_error(
            f"`at_most` {at_most:.6g} is met already: the dense network's `cost` is "
            f"{cost(0):.6g}. Nothing would be removed."
        )
    over, within = 0, last  # bounds of k: over the budget, and (not measured) within
    least = share(last)
    guess = head(max(least, at_most / cost(0)))
    while within - over > 1 and len(seen) < MOST_CALLS:
        k = min(max(guess, over + 1), within - 1)
        if cost(k) > at_most:
            over = k
        else:
            within = k
            if cost(k) >= (1 - CLOSE) * at_most:
                break
        guess = head(_false_position(share, cost, over, within, at_most, seen))
    if cost(within) > at_most:
        least = upwards(cost(within))
        say = f": `at_most={least}` is the least" if least < cost(0) else ""
        raise value_error(
            f"`at_most` {at_most:.6g} cannot be met: with every candidate group at its "
            f"minimum the `cost` is {cost(within):.6g}, of the dense network "
            f"{cost(0):.6g}{say}. Lower `min_keep` or `round_to`, raise `most`, or ask "
            "for less: the time of a small network hardly falls with its widths, and "
            f"under load its measure is noise.{excluded}"
        )
    return within


def upwards(cost: float) -> float:
    """The next number of four digits that is not below a cost: a budget that it meets.

    Args:
      cost: positive, or 0.
    """
    text = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING)
    return float(text.create_decimal(decimal.Decimal(cost)))


def _number(cost: Any) -> float:
    """A measured cost; NaN compares as false with every budget."""
    try:
        number = float(cost)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise value_error(
            f"`cost` must return a finite number for every plan, got {cost!r}."
        )
    return number


def _false_position(
    share: Callable[[int], float],
    cost: Callable[[int], float],
    over: int,
    within: int,
    at_most: float,
    seen: dict[int, Any],
) -> float:
    """The share of FLOPs at which the line through both ends meets the budget.

    Kept off the ends by a tenth, so that noise at one end cannot stop the search.
    """
    high, low = share(over), share(within)
    aim = at_most * (1 - CLOSE / 2)
    if within in seen and seen[within] < cost(over):
        part = (aim - seen[within]) / (cost(over) - seen[within])
    else:
        part = aim / cost(over) if low < high else 0.5
        part = (high * part - low) / (high - low)
    return low + min(max(part, 0.1), 0.9) * (high - low)
