"""Evaluating element-wise primitives on known values, in NumPy.

Known values are tiny (a padding literal, a mean of zeros, a mask of positions), and are
looked at while the compact program is being built, so they are computed without tracing
or compiling anything. A primitive that is not listed simply leaves its result dynamic.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jprune._jaxpr import _compat

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

_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "atan2": np.arctan2,
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


def _select(which: np.ndarray, *cases: np.ndarray) -> Any:
    return np.choose(which.astype(np.intp), cases)


def evaluate(eqn: Any, args: Sequence[np.ndarray]) -> np.ndarray | None:
    """The result of an element-wise equation on known operands, or None.

    Args:
      eqn: an equation with one result.
      args: the operands, broadcastable against each other.
    """
    dtype = _compat.numpy_dtype(eqn.outvars[0].aval.dtype)
    if dtype is None:
        return None
    name = eqn.primitive.name
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
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
        return args[0]
    if name == "select_n":
        return _select(*args)
    if name == "clamp":
        low, x, high = args
        return np.minimum(np.maximum(x, low), high)
    return None
