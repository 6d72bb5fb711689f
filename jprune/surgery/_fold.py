"""Evaluating element-wise primitives on known values, in NumPy.

Known values are tiny (a padding literal, a mean of zeros, a mask of positions), and are
looked at while the compact program is being built, so they are computed without tracing
or compiling anything. A primitive that is not listed simply leaves its result dynamic.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation

_UNARY: dict[str, Callable[[np.ndarray], Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "conj": np.conj,
    "copy": np.array,
    "copy_p": np.array,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": np.vectorize(math.erf, otypes=[float]),
    "erfc": np.vectorize(math.erfc, otypes=[float]),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "imag": np.imag,
    "is_finite": np.isfinite,
    "lgamma": np.vectorize(math.lgamma, otypes=[float]),
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "name": np.array,
    "neg": np.negative,
    "not": lambda x: np.logical_not(x) if x.dtype == bool else np.invert(x),
    "real": np.real,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": np.array,
    "tan": np.tan,
    "tanh": np.tanh,
}


def _complex(real: np.ndarray, imag: np.ndarray) -> np.ndarray:
    out = np.empty(np.broadcast_shapes(real.shape, imag.shape), np.complex128)
    out.real, out.imag = real, imag
    return out


_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "atan2": np.arctan2,
    "complex": _complex,
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "or": np.bitwise_or,
    "pow": np.power,
    "rem": np.fmod,
    "sub": np.subtract,
    "xor": np.bitwise_xor,
}


def _div(a: np.ndarray, b: np.ndarray) -> Any:
    if np.issubdtype(a.dtype, np.integer):
        return np.trunc(np.true_divide(a, b)) if np.all(b) else None
    return np.true_divide(a, b)


def _round(x: np.ndarray, method: Any) -> Any:
    """To even, or half away from zero."""
    if method == lax.RoundingMethod.TO_NEAREST_EVEN:
        return np.rint(x)
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole)


def _cast(x: np.ndarray, dtype: Any) -> np.ndarray:
    """As XLA casts: no float leaves the range of the integers, and nan is 0."""
    if np.iscomplexobj(x) and jnp.issubdtype(dtype, jnp.floating):
        return np.real(x)
    if not (
        jnp.issubdtype(x.dtype, jnp.inexact) and jnp.issubdtype(dtype, jnp.integer)
    ):
        return x
    low, high = jnp.iinfo(dtype).min, jnp.iinfo(dtype).max
    x = np.real(x).astype(np.float64)
    inside = np.where((x > low) & (x < high), x, 0).astype(dtype)
    ends = [np.asarray(low, dtype), np.asarray(high, dtype)]
    return np.select([x <= low, x >= high], ends, inside)


def _select(which: np.ndarray, *cases: np.ndarray) -> Any:
    return np.choose(which.astype(np.intp), cases)


def evaluate(eqn: Equation, args: Sequence[np.ndarray]) -> np.ndarray | None:
    """The result of an element-wise equation on known operands, or None.

    Args:
      eqn: an equation with one result.
      args: the operands, broadcastable against each other.
    """
    dtype = _compat.numpy_dtype(eqn.outvars[0].aval.dtype)
    if dtype is None:
        return None
    name = eqn.primitive.name
    with np.errstate(all="ignore"):
        try:
            out = _apply(name, eqn.params, args)
        except (TypeError, ValueError, OverflowError, ZeroDivisionError):
            return None
        return None if out is None else np.asarray(out).astype(dtype)


def _apply(name: str, params: dict[str, Any], args: Sequence[np.ndarray]) -> Any:
    if name in _UNARY:
        return _UNARY[name](args[0])
    if name in _BINARY:
        return _BINARY[name](*args)
    if name == "div":
        return _div(*args)
    if name == "integer_pow":
        y = params["y"]
        return np.power(args[0], y) if y >= 0 else 1 / np.power(args[0], -y)
    if name == "convert_element_type":
        return _cast(args[0], params["new_dtype"])
    if name == "round":
        return _round(args[0], params["rounding_method"])
    if name == "select_n":
        return _select(*args)
    if name == "clamp":
        low, x, high = args
        return np.minimum(np.maximum(x, low), high)
    return None
