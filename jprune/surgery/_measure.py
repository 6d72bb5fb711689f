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
      leaves: by path, the largest difference relative to the largest entry of the leaf.
        Of integers and bools, which must be equal, 1 or more where they are not.
      compared: number of entries compared.
      left_out: number of entries whose reference is not finite.
      largest: of the references compared, by magnitude.
    """

    leaves: Mapping[KeyTuple, float] = dataclasses.field(default_factory=dict)
    compared: int = 0
    left_out: int = 0
    largest: float = 0.0

    @property
    def error(self) -> float:
        """Of the leaf that is furthest off."""
        return max(self.leaves.values(), default=0.0)

    @property
    def nonfinite(self) -> float:
        """Fraction of the entries that was left out."""
        return self.left_out / max(self.compared + self.left_out, 1)


def gap(
    pairs: Mapping[KeyTuple, tuple[Any, Any]],
    tolerance: float = 0.0,
    again: Callable[[], Mapping[KeyTuple, Any]] = dict,
) -> Gap:
    """The gap between (reference, result) pairs.

    A leaf that would be 0 but for rounding (the gradient of a bias in front of a norm)
    has no scale of its own. So where a leaf beside a thousand times larger one is off,
    its noise is measured: how far the reference moves when all inputs do by two units
    in the last place. Differences up to 16 times that are within the tolerance.

    Args:
      pairs: by path; what is neither a number nor a bool is skipped.
      tolerance: what an error is held to; with 0 no noise is granted.
      again: gives the reference by path, for inputs moved like that.
    """
    off: dict[KeyTuple, float] = {}
    scales: dict[KeyTuple, float] = {}
    lost, count = 0, 0
    for path, (want, got) in pairs.items():
        a, b = _wide(want), _wide(got)
        if a is None or b is None:
            continue
        finite = np.isfinite(a)
        lost, count = lost + int((~finite).sum()), count + a.size
        if finite.any():
            off[path] = _furthest(a[finite], b[finite])
            scales[path] = float(np.abs(a[finite]).max())
    largest = max(scales.values(), default=0.0)
    each = {p: _error(off[p], scales[p], pairs[p][0]) for p in off}
    small = [p for p in each if each[p] > tolerance and scales[p] < 1e-3 * largest]
    moved = again() if small and tolerance else {}
    for path in small:
        want, other = pairs[path][0], moved.get(path)
        if other is None or not _inexact(want):
            continue
        a, b = _wide(want), _wide(other)
        finite = np.isfinite(a) & np.isfinite(b)
        noise = 16 * _furthest(a[finite], b[finite]) / tolerance
        floor = min(noise, 1e-3 * largest)
        each[path] = _error(off[path], max(scales[path], floor), want)
    return Gap(each, count - lost, lost, largest)


def run_moved(run: Callable[..., Result], given: tuple) -> Result:
    """The result with each entry of a floating array two units of rounding away."""
    rng = np.random.default_rng(0)

    def leaf(x: Any) -> Any:
        if not is_float(x):
            return x
        signs = np.asarray(rng.choice([-2.0, 2.0], np.shape(x)), np.float32)
        return x * (1 + signs.astype(x.dtype) * jnp.finfo(x.dtype).eps)

    return run(*jax.tree.map(leaf, given))


def _error(off: float, scale: float, want: Any) -> float:
    if off == 0 or _inexact(want):
        return off / max(scale, 1e-30)
    return max(off / max(scale, 1.0), 1.0)


def _inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _wide(x: Any) -> Any:
    """A leaf in double precision; None for what is no number and no bool."""
    kind = jnp.result_type(x)
    if not (jnp.issubdtype(kind, jnp.number) or jnp.issubdtype(kind, jnp.bool_)):
        return None
    return np.asarray(x, np.complex128 if jnp.iscomplexobj(x) else np.float64)


def _furthest(a: np.ndarray, b: np.ndarray) -> float:
    off = np.abs(a - b)
    return float(np.where(np.isnan(off), np.inf, off).max(initial=0.0))


def matched(
    want: Mapping[KeyTuple, Any], got: Mapping[KeyTuple, Any]
) -> dict[KeyTuple, tuple[Any, Any]]:
    """Leaves of one path and shape; outputs that come back shortened have no twin."""
    return {
        p: (x, got[p])
        for p, x in want.items()
        if p in got and _shape(x) == _shape(got[p])
    }


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(np.shape(x))
