"""What a plan costs, as a fraction of the dense network: for `surgery.select(cost=)`.

`relative_cost` makes a measure `plan -> fraction` of one network at one input. The
dense network measures 1.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from jprune._errors import value_error
from jprune._jaxpr._compat import one_position
from jprune._jaxpr._trace import arrays_apart, is_array
from jprune._typing import PyTree
from jprune.analysis._latency import (
    in_turns,
    of_arrays,
    prepared,
    seconds_in_turns,
)
from jprune.surgery import Groups, Plan, plan_from_keep, shrink
from jprune.surgery._budget import Measured
from jprune.surgery._callable import as_function, require_function, state_outputs_of

Measure = Callable[[Plan], float]


def relative_cost(
    of: Literal["latency", "flops", "memory", "bytes"],
    fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    rounds: int = 20,
    **kwargs: Any,
) -> Measure:
    """A measure of plans: the compact network's cost over that of the dense one.

    Args:
      of: "latency": the median time on this device; the two networks take turns, so
        that a drift of the machine's speed leaves the fraction (exactly 1 where nothing
        is removed). "flops": operations
        that XLA counts in the compiled network, element-wise ones too (unlike
        `select(flops=)`, which counts contractions alone). "memory": the peak of one
        call, arguments, results and temporaries. "bytes": those of the parameters.
      fn: `fn(params, *args)`, the dense function. Or a model object, with what `groups`
        of its framework takes after it: `relative_cost("latency", model, x)`.
      params: the dense parameters. Shapes are enough, but for "latency".
      *args: the input at which it counts (batch size, length); shapes as for `params`.
      rounds: timed calls of each network, at least 1; for "latency".
      **kwargs: keyword arguments of the call (`train=False`).

    Returns:
      `plan -> fraction`, for `surgery.select(cost=)`. Each call compiles the compact
      network, but for "bytes". Of "latency" it has `again(plan)`, which measures anew
      and tells the spread: `select` asks it about the plan that it accepts.

    Raises:
      TypeError: `fn` is no function and no model object.
      ValueError: another `of`.

    Examples:
      ::

        cost = analysis.relative_cost("latency", apply, params, x)
        plan = surgery.select(deps, scores, cost=cost, at_most=0.5, round_to=8)
    """
    fn, (params, *rest), named = as_function(fn, (params, *args), kwargs)
    args = tuple(rest)
    require_function(fn, "groups")
    fn = functools.partial(fn, **named) if named else fn
    if of == "latency":
        return _RelativeLatency(fn, params, args, rounds)
    if of == "bytes":
        dense = _bytes(params)
        return lambda plan: _bytes(plan.pack(_shapes(params))) / dense
    counts = {"flops": _compiled_flops, "memory": _peak_bytes}
    if of not in counts:
        raise value_error(
            f'`of` must be "latency", "flops", "memory" or "bytes", got {of!r}.'
        )
    return _relative(counts[of], fn, params, args)


def savings(deps: Groups, cost: str | Measure = "flops") -> dict[str, float]:
    """What one coordinate of each group saves, so that importance has a price.

    `surgery.select` removes the lowest scores first, whatever they cost. Scores divided
    by these, with `ranking="global"`, remove first what is worth least for what it
    costs.

    Args:
      deps: the groups.
      cost: "flops" or "params", counted on the dense network less one coordinate; or a
        measure `plan -> number` (latency, bytes), asked once for the whole network and
        once for each coupled group with half of it removed.

    Returns:
      `{group.id: saving}` of the coupled groups, in the unit of the cost. What saves
      nothing, or less by an error of the measure, has the smallest saving found.

    Raises:
      ValueError: another `cost`; nothing saves anything.

    Examples:
      ::

        price = analysis.savings(deps, "flops")
        per_cost = {name: s / price[name] for name, s in scores.items()}
        plan = surgery.select(deps, per_cost, ranking="global", flops=0.5, most=0.9)
    """
    count = {"flops": deps.flops, "params": deps.parameters}
    sizes = {group.id: group.size for group in deps if group.kind == "coupled"}
    if callable(cost):
        whole = cost(_halved(deps, None))
        found = {
            i: (whole - cost(_halved(deps, i))) / (n // 2) for i, n in sizes.items()
        }
    elif cost in count:
        whole, price = count[cost](), count[cost]
        found = {i: float(whole - price({i: n - 1})) for i, n in sizes.items()}
    else:
        raise value_error(
            f'`cost` must be "flops", "params" or a measure of a plan, got {cost!r}.'
        )
    least = min((s for s in found.values() if s > 0), default=None)
    if least is None:
        raise value_error("no coupled group saves any `cost`: there is no price.")
    return {i: max(s, least) for i, s in found.items()}


def _halved(deps: Groups, name: str | None) -> Plan:
    """The plan that removes the second half of one group, or nothing."""
    keep = {
        g.id: np.arange(g.size) < g.size - g.size // 2 for g in deps if g.id == name
    }
    return plan_from_keep(deps, keep)


def _shrunk(fn: Callable[..., Any], plan: Plan) -> Callable[..., Any]:
    return shrink(fn, plan, state_outputs=state_outputs_of(fn))


class _RelativeLatency:
    """The time of a plan's compact network over that of the dense one, in turns."""

    def __init__(
        self, fn: Callable[..., Any], params: PyTree, args: Any, rounds: int
    ) -> None:
        self.fn, self.params, self.args, self.rounds = fn, params, args, rounds
        self.dense = functools.cache(lambda: prepared((fn, params, *args)))

    def __call__(self, plan: Plan) -> float:
        if not plan.removed:  # by definition; a small network's noise would be read
            return 1.0
        found = in_turns(self._calls(plan), self.rounds, _WARMUP)
        return found["compact"].median / found["dense"].median

    def again(self, plan: Plan) -> Measured:
        """A second measurement, with the quartiles of the rounds' own fractions."""
        times = seconds_in_turns(self._calls(plan), self.rounds, _WARMUP)
        ratios = np.divide(times["compact"], times["dense"])
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        return Measured(float(median), float(low), float(high))

    def _calls(self, plan: Plan) -> dict[str, Callable[[], Any]]:
        small = _shrunk(self.fn, plan), plan.pack(self.params)
        return {"dense": self.dense(), "compact": prepared((*small, *self.args))}


_WARMUP = 2
"""Calls that are not counted; the first compiles."""


def _relative(
    count: Callable[[Any], float], fn: Callable[..., Any], params: PyTree, args: Any
) -> Measure:
    @functools.cache
    def dense() -> float:
        return count(_compiled(fn, params, args))

    def measure(plan: Plan) -> float:
        compact = plan.pack(_shapes(params))
        return count(_compiled(_shrunk(fn, plan), compact, args)) / dense()

    return measure


def _compiled(fn: Callable[..., Any], params: PyTree, args: Any) -> Any:
    call, arrays = arrays_apart(fn, (params, *args))
    return jax.jit(one_position(of_arrays(call))).lower(arrays).compile()


def _shapes(tree: PyTree) -> PyTree:
    """Arrays as shapes; what is no array stays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if is_array(x) else x, tree
    )


def _compiled_flops(compiled: Any) -> float:
    analysis = compiled.cost_analysis()
    return float((analysis[0] if isinstance(analysis, list) else analysis)["flops"])


def _peak_bytes(compiled: Any) -> float:
    found = compiled.memory_analysis()
    return float(
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
    )


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if is_array(x))
