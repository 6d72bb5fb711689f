"""A dense model against its compact form: five measures side by side.

Speed-up claims go wrong when one measure stands for another: a mask of 90 % zeros
changes no tensor, half the operations is not half the time, and a sparse file needs
positions as well as values. So a comparison always shows all of them: the fraction of
zeros, the bytes a file needs, the number of parameters, the operations, and the
measured time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._errors import type_error
from jprune._jaxpr._trace import is_array
from jprune.analysis._flops import flops
from jprune.analysis._latency import Latency, latency
from jprune.analysis._report import report
from jprune.analysis._table import byte_size, text_table


class Measures(NamedTuple):
    """What one model weighs.

    Attributes:
      parameters: number of scalars in its variables.
      sparsity: fraction of them that is exactly zero.
      stored_bytes: least bytes of a file with the non-zero values and one bit an entry,
        or with the arrays as they are, leaf by leaf.
      flops: operations of one call, 2 per multiply-add.
      latency: seconds of one call.
    """

    parameters: int
    sparsity: float
    stored_bytes: int
    flops: int
    latency: Latency


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
            _row("stored", a.stored_bytes, b.stored_bytes, byte_size),
            _row("FLOPs (2 per MAC)", a.flops, b.flops, "{:.4g}".format),
            _row("latency (ms)", 1e3 * a.latency.median, 1e3 * b.latency.median, _ms),
        ]
        table = text_table(("", "dense", "compact", "dense/compact"), [rows])
        return "\n".join(filter(None, (table, self.warning)))

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
    dense: tuple[Callable[..., Any], Any],
    compact: tuple[Callable[..., Any], Any],
    *args: Any,
    rounds: int = 20,
) -> Comparison:
    """Measures a dense model and its compact form on the same arguments.

    Args:
      dense: `(apply, variables)`; called as `apply(variables, *args)`.
      compact: `(small, packed)`, the compact function and its variables.
      *args: the other arguments, equal for both.
      rounds: timed calls of each; the two take turns.

    Returns:
      A `Comparison`: `.dense`, `.compact`, and a table when printed. Parameters, zeros
      and bytes are counted over all arrays of the variables given, random keys aside.

    Raises:
      TypeError: if `dense` or `compact` is not a pair of a function and variables.

    Examples:
      >>> import jax.numpy as jnp
      >>> mlp = lambda p, x: x @ p["w"]
      >>> wide, narrow = {"w": jnp.ones((8, 4))}, {"w": jnp.ones((8, 2))}
      >>> both = compare((mlp, wide), (mlp, narrow), jnp.ones((1, 8)), rounds=3)
      >>> both.dense.flops, both.compact.flops, both.compact.parameters
      (64, 32, 16)
    """
    for name, pair in (("dense", dense), ("compact", compact)):
        if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[0])):
            raise type_error(
                f"`{name}` must be a pair `(apply, variables)`, got "
                f"{type(pair).__name__}. For a model object that is itself a pytree "
                "(Equinox, Flax NNX) the pair is `(lambda m, *args: m(*args), model)`."
            )
    calls = {"dense": (*dense, *args), "compact": (*compact, *args)}
    times = latency(calls, rounds=rounds)
    return Comparison(
        *(
            _measure(fn, variables, args, times[name])
            for name, (fn, variables) in (("dense", dense), ("compact", compact))
        )
    )


def _counts(x: Any) -> bool:
    """Whether a leaf is numbers; functions, flags and random keys are none."""
    return is_array(x) and not jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _measure(fn: Callable, variables: Any, args: tuple, time: Latency) -> Measures:
    values = jax.device_get(
        jax.tree.map(lambda x: x if _counts(x) else None, variables)
    )
    total = report(values, jax.tree.map(lambda x: x != 0, values)).total
    return Measures(
        parameters=total.size,
        sparsity=total.sparsity,
        stored_bytes=total.bytes_stored or 0,
        flops=flops(fn)(variables, *args),
        latency=time,
    )
