"""Running two functions on the same arguments and measuring how far they differ.

Leaves that are not arrays (the functions of an Equinox module) are closed over, in
arguments and in results. Entries where the reference is not finite are left out and
counted.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from jprune._errors import value_error
from jprune._jaxpr._compat import one_position
from jprune._jaxpr._trace import flatten_call, is_array
from jprune._tree import KeyTuple, path_keys
from jprune._typing import PyTree


@dataclasses.dataclass(frozen=True)
class Result:
    """What one run gave.

    Attributes:
      outputs: output leaves by path.
      gradient: the gradient of a fixed projection of the first floating output, by path
        of the parameters; empty if it was not asked for.
    """

    outputs: dict[KeyTuple, Any]
    gradient: dict[KeyTuple, Any]


class Run:
    """A function with its arguments, compiled once for parameters of one shape.

    Args:
      fn: `fn(params, *args, **kwargs)`.
      projected: path of the output whose projection is differentiated; None: no
        gradient.
    """

    def __init__(
        self, fn: Callable[..., Any], projected: KeyTuple | None = None
    ) -> None:
        self.fn, self.projected = fn, projected
        self.paths: list[KeyTuple] = []
        self._compiled: Any = None

    def __call__(
        self,
        params: PyTree,
        args: tuple,
        kwargs: dict[str, Any],
        weights: Any = None,
    ) -> Result:
        """Runs it; `weights` are those of the projection, of the output's shape."""
        flat = flatten_call(params, args, kwargs)
        names = flat.params
        moving = [i for i in range(len(names)) if is_float(flat.arrays[i])]
        if self._compiled is None:
            self._compiled = jax.jit(one_position(self._function(flat, moving)))
        taken = set(moving if self.projected is not None else ())
        floats = [flat.arrays[i] for i in sorted(taken)]
        rest = [x for i, x in enumerate(flat.arrays) if i not in taken]
        outputs, slopes = self._compiled(floats, rest, weights)
        gradient = {names[i]: g for i, g in zip(sorted(taken), slopes, strict=True)}
        return Result(dict(zip(self.paths, outputs, strict=True)), gradient)

    def _function(self, flat: Any, moving: list[int]) -> Callable[..., Any]:
        projected = self.projected
        taken = set(moving if projected is not None else ())

        def call(floats: list[Any], rest: list[Any]) -> Any:
            a, b = iter(floats), iter(rest)
            n = len(flat.arrays)
            args, kwargs = flat.rebuild(
                [next(a if i in taken else b) for i in range(n)]
            )
            pairs, _ = jtu.tree_flatten_with_path(self.fn(*args, **kwargs))
            pairs = [(path_keys(p), x) for p, x in pairs if _is_value(x)]
            self.paths = [path for path, _ in pairs]
            return [x for _, x in pairs]

        if projected is None:
            return lambda floats, rest, weights: (call(floats, rest), [])

        def loss(floats: list[Any], rest: list[Any], weights: Any) -> Any:
            outputs = call(floats, rest)
            y = dict(zip(self.paths, outputs, strict=True))[projected]
            return jnp.sum(y * weights.astype(y.dtype)), outputs

        def both(floats: list[Any], rest: list[Any], weights: Any) -> Any:
            slopes, outputs = jax.grad(loss, has_aux=True)(floats, rest, weights)
            return outputs, slopes

        return both


def _is_value(x: Any) -> bool:
    return is_array(x) or isinstance(x, bool | int | float | complex)


def is_float(x: Any) -> bool:
    """Whether a leaf is an array of floating numbers."""
    return is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)


def projected_output(
    paths: Sequence[KeyTuple], avals: Sequence[Any], state: Collection[KeyTuple]
) -> tuple[KeyTuple, tuple[int, ...]]:
    """Path and shape of the first floating output that is no state.

    Raises:
      ValueError: if there is none.
    """
    for path, x in zip(paths, avals, strict=True):
        if path not in state and is_float(x):
            return path, tuple(x.shape)
    raise value_error(
        "`gradient=True` needs a floating output that is not updated state."
    )


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far results are from their references.

    Attributes:
      error: largest difference, each leaf relative to its own largest entry, or to a
        thousandth of the largest of all: a leaf that is zero but for rounding says
        nothing.
      compared: number of entries compared.
      left_out: number of entries whose reference is not finite.
      largest: of the references compared, by magnitude.
    """

    error: float = 0.0
    compared: int = 0
    left_out: int = 0
    largest: float = 0.0

    @property
    def nonfinite(self) -> float:
        """Fraction of the entries that was left out."""
        return self.left_out / max(self.compared + self.left_out, 1)


def gap(pairs: Sequence[tuple[Any, Any]]) -> Gap:
    """The gap between (reference, result) pairs; what is not a number is skipped."""
    gaps, scales, lost, count = [], [], 0, 0
    for want, got in pairs:
        if not jnp.issubdtype(jnp.result_type(want), jnp.number):
            continue
        wide = np.complex128 if jnp.iscomplexobj(want) else np.float64
        a, b = np.asarray(want, wide), np.asarray(got, wide)
        finite = np.isfinite(a)
        lost, count = lost + int((~finite).sum()), count + a.size
        if finite.any():
            off = np.abs(a[finite] - b[finite])
            gaps.append(float(np.where(np.isnan(off), np.inf, off).max()))
            scales.append(float(np.abs(a[finite]).max()))
    largest = max(scales, default=0.0)
    floor = max(1e-3 * largest, 1e-30)
    each = [g / max(scale, floor) for g, scale in zip(gaps, scales, strict=True)]
    return Gap(max(each, default=0.0), count - lost, lost, largest)


def matched(
    want: Mapping[KeyTuple, Any], got: Mapping[KeyTuple, Any]
) -> list[tuple[Any, Any]]:
    """Leaves of one path and shape; outputs that come back shortened have no twin."""
    return [
        (x, got[p]) for p, x in want.items() if p in got and _shape(x) == _shape(got[p])
    ]


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(np.shape(x))
