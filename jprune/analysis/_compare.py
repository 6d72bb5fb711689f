"""A dense model against its compact form: five measures side by side.

Speed-up claims go wrong when one measure stands for another: a mask of 90 % zeros
changes no tensor, half the operations is not half the time, and a sparse file needs
positions as well as values. So a comparison always shows all of them: the fraction of
zeros, the bytes a file needs, the number of parameters, the operations, and the
measured time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import type_error
from jprune._jaxpr._trace import is_array, trace
from jprune._tree import keyed_leaves
from jprune._weights import named_as_statistic, parameters
from jprune.analysis._flops import flops
from jprune.analysis._latency import Latency, latency
from jprune.analysis._report import report
from jprune.analysis._table import byte_size, text_table
from jprune.surgery._callable import as_function, model_kind, with_variables
from jprune.surgery._trained import weights_named_otherwise


class Measures(NamedTuple):
    """What one model weighs.

    Attributes:
      parameters: number of scalars that are trained.
      sparsity: fraction of them that is exactly zero.
      stored_bytes: least bytes of a file with the non-zero values and one bit an entry,
        or with the arrays as they are, leaf by leaf.
      flops: operations of one call, 2 per multiply-add.
      latency: seconds of one call.
      statistics: number of the other scalars: running statistics, counters.
    """

    parameters: int
    sparsity: float
    stored_bytes: int
    flops: int
    latency: Latency
    statistics: int = 0


class Comparison(NamedTuple):
    """The measures of both models; `str()` is a table with the ratios, and a line where
    smaller is not faster.

    Attributes:
      dense: of the dense model.
      compact: of its compact form.
    """

    dense: Measures
    compact: Measures

    def __str__(self) -> str:
        a, b = self.dense, self.compact
        rows = [
            _row("parameters", a.parameters, b.parameters, "{:,}".format),
            ("zeros among them", f"{a.sparsity:.1%}", f"{b.sparsity:.1%}", "-"),
            *self._others(),
            _row("stored", a.stored_bytes, b.stored_bytes, byte_size),
            _row("FLOPs (2 per MAC)", a.flops, b.flops, "{:.4g}".format),
            _row("latency (ms)", 1e3 * a.latency.median, 1e3 * b.latency.median, _ms),
        ]
        table = text_table(("", "dense", "compact", "dense/compact"), [rows])
        return "\n".join(filter(None, (table, self.warning)))

    def _others(self) -> list[tuple]:
        a, b = self.dense.statistics, self.compact.statistics
        return [_row("statistics", a, b, "{:,}".format)] if a or b else []

    @property
    def warning(self) -> str:
        """What the smaller model does not save; empty if it is the faster one.

        The interquartile ranges decide: times that overlap tell nothing.
        """
        a, b = self.dense, self.compact
        fewer = b.parameters < a.parameters or b.stored_bytes < a.stored_bytes
        if not (fewer or b.sparsity > a.sparsity) or b.latency.high < a.latency.low:
            return ""
        ratio = b.latency.median / a.latency.median
        if b.latency.low > a.latency.high:
            return (
                f"The compact form is {ratio:.2g} times SLOWER here: it saves storage, "
                "not time (see docs/sparse.md)."
            )
        return "No speed-up can be told from these times: what is saved is storage."


def _row(title: str, dense: float, compact: float, show: Callable) -> tuple:
    ratio = f"{dense / compact:.2f}x" if compact else "-"
    return title, show(dense), show(compact), ratio


def _ms(value: float) -> str:
    return f"{value:.3g}"


def compare(
    dense: Any,
    compact: Any,
    *args: Any,
    rounds: int = 20,
    **kwargs: Any,
) -> Comparison:
    """Measures a dense model and its compact form on the same arguments.

    Args:
      dense: `(apply, variables)`; called as `apply(variables, *args)`. Or a model
        object that holds its variables (NNX, Equinox, Keras), called as
        `model(*args)`. Or a pair of one and what it does not hold: `(model, variables)`
        in Linen, `(model, params)` or `(model, (params, state))` in Haiku, `(model,
        state)` in Equinox.
      compact: the same of the compact form: `(small, packed)`, or `small`.
      *args: the other arguments, equal for both.
      rounds: timed calls of each; the two take turns.
      **kwargs: keyword arguments, equal for both (`train=False`).

    Returns:
      A `Comparison`: `.dense`, `.compact`, and a table when printed. Parameters, zeros
      and bytes are counted over all arrays of the variables given, random keys aside.

    Raises:
      TypeError: if `dense` or `compact` is not a pair of a function and variables, and
        no model object that holds its own.

    Examples:
      >>> import jax.numpy as jnp
      >>> mlp = lambda p, x: x @ p["w"]
      >>> wide, narrow = {"w": jnp.ones((8, 4))}, {"w": jnp.ones((8, 2))}
      >>> both = compare((mlp, wide), (mlp, narrow), jnp.ones((1, 8)), rounds=3)
      >>> both.dense.flops, both.compact.flops, both.compact.parameters
      (64, 32, 16)
    """
    calls = {
        name: _call(name, given, args, kwargs)
        for name, given in (("dense", dense), ("compact", compact))
    }
    times = latency(calls, rounds=rounds)
    return Comparison(*(_measure(*call, time=times[n]) for n, call in calls.items()))


def _call(name: str, given: Any, args: tuple, kwargs: dict[str, Any]) -> tuple:
    """`(fn, variables, *args)` from what stands for a model."""
    if model_kind(given) not in (None, "linen", "haiku"):
        fn, args, _ = as_function(given, args, kwargs)
        return fn, *args
    pair = isinstance(given, tuple) and len(given) == 2 and model_kind(given) is None
    if not pair or not (callable(given[0]) or model_kind(given[0])):
        raise type_error(
            f"`{name}` must be a pair `(apply, variables)`, or a model object that "
            f"holds its variables, got {type(given).__name__}. A module of Linen or "
            "Haiku goes with its variables: `(model, variables)`."
        )
    fn, args, rest = as_function(*with_variables(given, args), kwargs)
    return functools.partial(fn, **rest) if rest else fn, *args


def _counts(x: Any) -> bool:
    """Whether a leaf is numbers; functions, flags and random keys are none."""
    return is_array(x) and not jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _measure(fn: Callable, variables: Any, *args: Any, time: Latency) -> Measures:
    values = jax.device_get(
        jax.tree.map(lambda x: x if _counts(x) else None, variables)
    )
    total = report(values, jax.tree.map(lambda x: x != 0, values)).total
    trained = jax.tree.leaves(parameters(_without_state(values)))
    trained += _misnamed(fn, variables, values, *args)
    size = sum(x.size for x in trained)
    zeros = size - sum(map(np.count_nonzero, trained))
    return Measures(
        parameters=size,
        sparsity=zeros / size if size else 0.0,
        stored_bytes=total.bytes_stored or 0,
        flops=flops(fn)(variables, *args),
        latency=time,
        statistics=total.size - size,
    )


def _misnamed(fn: Callable, variables: Any, values: Any, *args: Any) -> list[Any]:
    """Weights that are called as statistics are (`mean`): the program reads them."""
    named = {
        path: leaf
        for path, leaf in keyed_leaves(values)
        if named_as_statistic(path) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    if not named:
        return []
    read = weights_named_otherwise(trace(fn)(variables, *args))
    return [leaf for path, leaf in named.items() if path in read]


def _without_state(variables: Any) -> Any:
    """A module, or parameters, of the pair of it and its state."""
    pair = isinstance(variables, tuple) and len(variables) == 2
    return variables[0] if pair and model_kind(variables[0]) else variables
