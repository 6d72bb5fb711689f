"""What a plan costs, as a fraction of the dense network: for `surgery.select(cost=)`.

Each function here makes a measure `plan -> fraction` of one network at one input. The
dense network measures 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jprune._typing import PyTree
from jprune.analysis._latency import latencies
from jprune.surgery import Plan, shrink

Measure = Callable[[Plan], float]


def relative_latency(
    fn: Callable[..., Any], params: PyTree, *args: Any, rounds: int = 20
) -> Measure:
    """Median time of the compact network over that of the dense one, on this device.

    The two take turns, so that a drift of the machine's speed leaves the fraction.

    Args:
      fn: `fn(params, *args)`, the dense function; it is jitted.
      params: the dense parameters.
      *args: the input at which time counts (batch size, length).
      rounds: timed calls of each network.

    Returns:
      `plan -> fraction`; each call compiles the compact network.

    Examples:
      ::

        cost = analysis.relative_latency(apply, params, x)
        plan = surgery.select(deps, scores, cost=cost, at_most=0.5, round_to=8)
    """

    def measure(plan: Plan) -> float:
        compact = (shrink(fn, plan), plan.pack(params), *args)
        found = latencies(
            {"dense": (fn, params, *args), "compact": compact}, rounds=rounds
        )
        return found["compact"].median / found["dense"].median

    return measure


def relative_flops(fn: Callable[..., Any], params: PyTree, *args: Any) -> Measure:
    """Operations that XLA counts in the compiled compact network over the dense one's.

    Unlike `select(flops=)`, which counts contractions alone, this counts what is left
    after compilation, element-wise operations too.

    Args:
      fn: `fn(params, *args)`, the dense function.
      params: the dense parameters; shapes are enough.
      *args: its other arguments; shapes are enough.

    Returns:
      `plan -> fraction`; each call compiles the compact network.
    """
    return _relative(_compiled_flops, fn, params, args)


def relative_memory(fn: Callable[..., Any], params: PyTree, *args: Any) -> Measure:
    """Peak memory of one call over the dense one's: arguments, results, temporaries.

    Args:
      fn: `fn(params, *args)`, the dense function.
      params: the dense parameters; shapes are enough.
      *args: its other arguments; shapes are enough.

    Returns:
      `plan -> fraction`; each call compiles the compact network.
    """
    return _relative(_peak_bytes, fn, params, args)


def relative_bytes(params: PyTree) -> Measure:
    """Bytes of the compact parameters over those of the dense ones.

    Args:
      params: the dense parameters; shapes and dtypes are enough.

    Returns:
      `plan -> fraction`; nothing is compiled.
    """
    dense = _bytes(params)

    def measure(plan: Plan) -> float:
        return _bytes(jax.eval_shape(plan.pack, params)) / dense

    return measure


def _relative(
    count: Callable[[Any], float], fn: Callable[..., Any], params: PyTree, args: Any
) -> Measure:
    @functools.cache
    def dense() -> float:
        return count(jax.jit(fn).lower(params, *args).compile())

    def measure(plan: Plan) -> float:
        compact = jax.eval_shape(plan.pack, params)
        return (
            count(jax.jit(shrink(fn, plan)).lower(compact, *args).compile()) / dense()
        )

    return measure


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
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
