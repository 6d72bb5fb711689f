"""Wall-clock time of functions, measured so that they can be compared.

A machine's speed drifts: clocks change, caches warm, other work comes and goes. Timing
one function after the other mixes that drift into their ratio. Here the functions take
turns, one call each per round, and the *median* over the rounds is reported with the
quartiles beside it, so a reader sees how noisy the figure is. Each function is jitted,
its arguments are put on the device, and the calls that compile are not counted.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from jprune._errors import type_error, value_error
from jprune._jaxpr._compat import one_position
from jprune._jaxpr._trace import arrays_apart, is_array
from jprune.surgery._callable import as_function, model_kind


class Latency(NamedTuple):
    """Seconds per call; `str()` gives the median and the quartiles in milliseconds.

    Attributes:
      median: of the calls, seconds.
      low: first quartile, seconds.
      high: third quartile, seconds.
      rounds: how many calls were timed.
    """

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        low, high = 1e3 * self.low, 1e3 * self.high
        return f"{1e3 * self.median:.3g} ms ({low:.3g} to {high:.3g})"


@overload
def latency(
    fn: Callable[..., Any],
    *args: Any,
    rounds: int = 20,
    warmup: int = 2,
    **kwargs: Any,
) -> Latency: ...


@overload
def latency(
    fn: Mapping[str, tuple], *, rounds: int = 20, warmup: int = 2
) -> dict[str, Latency]: ...


def latency(
    fn: Callable[..., Any] | Mapping[str, tuple],
    *args: Any,
    rounds: int = 20,
    warmup: int = 2,
    **kwargs: Any,
) -> Latency | dict[str, Latency]:
    """Median time of `fn(*args)`, jitted and waited for; or of several that take turns.

    Args:
      fn: a function of arrays or pytrees of arrays; other leaves pass as they are. Or a
        model object, with what `groups` of its framework takes after it. Or several,
        name to `(fn, *args)`: one call each per round, so that their ratios can be
        compared (those of two separate runs less so). An axis name that no `vmap` binds
        (a batch norm of Equinox in training) has one position.
      *args: its arguments; their arrays are put on the default device once.
      rounds: timed calls of each.
      warmup: calls of each before them that are not counted; the first one compiles.
      **kwargs: its keyword arguments (`train=False`).

    Returns:
      The `Latency`; of several, name to `Latency` in their order.

    Raises:
      TypeError: one of several is not a tuple that starts with a function, or `args`
        beside several.
      ValueError: if `rounds` or `warmup` is less than 1, or there is no function.

    Examples:
      >>> import jax.numpy as jnp
      >>> latency(lambda x: x @ x, jnp.ones((8, 8)), rounds=5).rounds
      5
      >>> x = jnp.ones((8, 8))
      >>> list(latency({"dense": (jnp.dot, x, x), "compact": (jnp.dot, x, x[:, :4])}))
      ['dense', 'compact']
    """
    several = isinstance(fn, Mapping)
    if several and (args or kwargs):
        raise type_error("`args` of several functions stand in their tuples.")
    calls = dict(fn) if isinstance(fn, Mapping) else {"fn": (fn, *args)}
    _check(calls, rounds, warmup)
    ready = {name: prepared(call, kwargs) for name, call in calls.items()}
    found = in_turns(ready, rounds, warmup)
    return found if several else found["fn"]


def prepared(call: tuple, kwargs: dict[str, Any] | None = None) -> Callable[[], Any]:
    """A call, jitted, its arrays on the device: it returns when it is done."""
    fn, args, kwargs = as_function(call[0], tuple(call[1:]), kwargs or {})
    rest, arrays = arrays_apart(fn, args, kwargs)
    run, given = jax.jit(one_position(of_arrays(rest))), jax.device_put(arrays)
    return lambda: jax.block_until_ready(run(given))


def in_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warmup: int
) -> dict[str, Latency]:
    """Median times of prepared calls, one each per round."""
    times = seconds_in_turns(calls, rounds, warmup)
    return {name: _summary(seconds) for name, seconds in times.items()}


def seconds_in_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warmup: int
) -> dict[str, list[float]]:
    """The seconds of each call in each round; those of the warm-up are left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            took = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(took)
    return seconds


def of_arrays(call: Callable[[list[Any]], Any]) -> Callable[[list[Any]], list[Any]]:
    """The call with its array results alone, which is what can be waited for."""
    return lambda arrays: [x for x in jax.tree.leaves(call(arrays)) if is_array(x)]


def _summary(times: list[float]) -> Latency:
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    return Latency(float(median), float(low), float(high), len(times))


def _check(calls: Mapping[str, tuple], rounds: int, warmup: int) -> None:
    if not calls:
        raise value_error("`fn` is empty: pass name to `(fn, *args)`.")
    for name, call in calls.items():
        calls_something = isinstance(call, tuple) and call
        if not calls_something or not (callable(call[0]) or model_kind(call[0])):
            raise type_error(
                f"`fn[{name!r}]` must be a tuple `(fn, *args)`, got {type(call)}."
            )
    for name, value in (("rounds", rounds), ("warmup", warmup)):
        if value < 1:
            raise value_error(f"`{name}` must be at least 1, got {value}.")
