"""What follows of a program's results from what is known of its inputs.

A round of a scan may go when it hands its carry on unchanged. That is a *fact* about
the body: with zeros for the round's parameters, whatever the carry, each carry that
comes out is the one that went in. It is derived here from the jaxpr, equation by
equation; nothing is run and nothing is compared. A fact is

* an **array**: the value is that array (broadcastable), on any input;
* `Same(i, dtype)`: the value is input `i`, untouched, or cast to a wider type;
* None: nothing is known.

A product with a known zero is zero, a sum with it is the other summand; what only moves
or repeats equal numbers leaves them; what is known altogether is folded by the rule of
its primitive. As everywhere in surgery, 0 * y is 0: the reference is finite there.

Both kinds of fact say as much of the derivative: neither an array nor `Same` moves with
anything but the input that it is. So no fact passes a derivative rule of the user's own
unless all that enters it is known.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jprune._jaxpr import _compat, _walk
from jprune._jaxpr._compat import ClosedJaxpr, Equation, Jaxpr
from jprune.surgery import _cells as ce
from jprune.surgery._registry import RULES

_HANDED_ON = frozenset(
    "copy copy_p device_put name optimization_barrier pcast pvary reshard "
    "sharding_constraint".split()
)
"""Each result is the operand of its place."""
_MOVES = frozenset(
    "broadcast_in_dim copy copy_p dynamic_slice expand_dims reshape rev slice split "
    "squeeze tile transpose unstack".split()
)
"""Results hold nothing but numbers of the first operand."""
_JOINS = frozenset("concatenate dynamic_update_slice pad stack".split())
"""Results hold nothing but numbers of the operands that are not positions."""
_LINEAR = frozenset(
    "all_gather all_to_all cumsum fft psum psum2 psum_invariant reduce_sum "
    "reduce_scatter reduce_window_sum".split()
)
"""Zero for a first operand of zeros."""
_KEEPS = frozenset("reduce_max reduce_min cummax cummin".split())
"""The number of a first operand of equal numbers."""
_PRODUCTS = frozenset(
    "mul and dot_general ragged_dot ragged_dot_general conv_general_dilated".split()
)
"""Zero where either of the first two operands is."""
POSITIONWISE = (
    _HANDED_ON
    | _MOVES
    | _JOINS
    | frozenset("abs add add_any convert_element_type div mul neg select_n sub".split())
)
"""Primitives that sum over nothing: what is kept is made of what is kept."""
_SCATTERS = frozenset(("scatter", "scatter-add", "scatter_add"))


class Same(NamedTuple):
    """The value is the input of this number and type, untouched or in a wider type."""

    index: int
    dtype: Any


Fact = np.ndarray | Same | None


def facts(jaxpr: Jaxpr | ClosedJaxpr, ins: Sequence[Fact]) -> list[Fact]:
    """What is known of the results of a jaxpr, from what is known of its inputs."""
    return _walk.run(jaxpr, ins, lambda _, eqn, given: equation(eqn, given), _constant)


def _constant(array: Any, var: Any) -> Fact:
    literal = isinstance(var, _compat.Literal)
    return of_constant(_compat.literal_value(var) if literal else array)


def of_constant(const: Any) -> Fact:
    """What is known of a constant: its numbers, if they can be looked at."""
    dtype = const.dtype if hasattr(const, "dtype") else np.asarray(const).dtype
    if _compat.is_tracer(const) or _compat.numpy_dtype(dtype) is None:
        return None
    return None if np.size(const) > ce.FOLD_LIMIT else _array(np.asarray(const))


def _array(array: np.ndarray, rank: int | None = None) -> np.ndarray:
    """An array of equal numbers as one element, of a given rank."""
    if array.size > 1 and (array == array.flat[0]).all():
        array = array[(slice(0, 1),) * array.ndim]
    if rank is not None and array.size == 1:
        return array.reshape((1,) * rank)
    return array


def zero(fact: Fact) -> bool:
    """Whether a value is known to be 0 everywhere."""
    return isinstance(fact, np.ndarray) and not np.any(fact)


def single(fact: Fact) -> bool:
    return isinstance(fact, np.ndarray) and fact.size == 1


def agree(a: Fact, b: Fact) -> bool:
    """Whether two facts are one and the same."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    return isinstance(a, Same) and isinstance(b, Same) and a == b


def _join(a: Fact, b: Fact) -> Fact:
    return a if agree(a, b) else None


def equation(eqn: Equation, ins: list[Fact]) -> list[Fact]:
    """What is known of the results of one equation."""
    name, n = eqn.primitive.name, len(eqn.outvars)
    inner = _inside(eqn, ins)
    if inner is not None:
        return inner
    if name in _HANDED_ON and n == len(ins):
        return list(ins)
    known = _untouched(eqn, ins)
    if known is None:
        known = _known(eqn, ins)
    if isinstance(known, np.ndarray):
        dtypes = [_compat.numpy_dtype(v.aval.dtype) for v in eqn.outvars]
        return [
            None if d is None else _array(known.astype(d), len(v.aval.shape))
            for v, d in zip(eqn.outvars, dtypes, strict=True)
        ]
    return [known] * n


# -- a value that is an input ----------------------------------------------------------


def _untouched(eqn: Equation, ins: list[Fact]) -> Same | None:
    """The input that the only result is, if it is one."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval

    def whole(place: int) -> Same | None:
        fact = ins[place]
        same_shape = eqn.invars[place].aval.shape == out.shape
        return fact if isinstance(fact, Same) and same_shape else None

    if name in ("add", "add_any") and zero(ins[0]):
        return whole(1)
    if name in ("add", "add_any", "sub") and zero(ins[1]):
        return whole(0)
    if name == "mul" and _one(ins[0]):
        return whole(1)
    if name in ("mul", "div") and _one(ins[1]):
        return whole(0)
    if name in ("reshape", "broadcast_in_dim", "slice", "squeeze", "expand_dims"):
        return whole(0)  # of its own shape
    if name == "convert_element_type":
        return whole(0) if _wide_enough(ins[0], out.dtype) else None
    if name == "select_n":
        case = _chosen(ins)
        return case if isinstance(case, Same) else None
    return None


def _one(fact: Fact) -> bool:
    return isinstance(fact, np.ndarray) and bool((fact == 1).all())


def _wide_enough(fact: Fact, dtype: Any) -> bool:
    """Whether a type holds every number of the input's own, so a cast back gives it."""
    if not isinstance(fact, Same):
        return False
    floats = all(jnp.issubdtype(d, jnp.floating) for d in (fact.dtype, dtype))
    return fact.dtype == dtype or (
        floats and jnp.promote_types(fact.dtype, dtype) == dtype
    )


def _chosen(ins: Sequence[Fact]) -> Fact:
    """The case of a `select_n` that counts, or that all cases are."""
    which, *cases = ins
    if single(which):
        return cases[int(which.item())]  # type: ignore[union-attr]
    return functools.reduce(_join, cases)


# -- a value that is known -------------------------------------------------------------


def _known(eqn: Equation, ins: list[Fact]) -> np.ndarray | None:
    """The numbers of the results, if they are known."""
    name = eqn.primitive.name
    arrays = [f for f in ins if isinstance(f, np.ndarray)]
    if len(arrays) == len(ins):
        folded = _folded(eqn, arrays)
        if folded is not None:
            return folded
    if not ins:
        return None
    first = ins[0] if isinstance(ins[0], np.ndarray) else None
    if name in _PRODUCTS:
        return _nothing(eqn) if _product(ins[:2]) else None
    if name == "div":
        return _nothing(eqn) if zero(first) and not zero(ins[1]) else None
    if name == "select_n":
        case = _chosen(ins)
        return case if isinstance(case, np.ndarray) else None
    if name in _MOVES or name in _KEEPS:
        return first if single(first) else None
    if name in _LINEAR:
        return _nothing(eqn) if zero(first) else None
    if name in _JOINS:
        parts = ins[:2] if name == "dynamic_update_slice" else ins
        one = functools.reduce(_join, _ranked(parts))
        return one if isinstance(one, np.ndarray) else None
    if name in _SCATTERS:
        return _nothing(eqn) if zero(first) and zero(ins[2]) else None
    if name == "gather" and single(first):
        mode = str(eqn.params.get("mode", ""))
        return first if "CLIP" in mode.upper() or "PROMISE" in mode.upper() else None
    return None


def _ranked(parts: Sequence[Fact]) -> list[Fact]:
    """Single numbers without a rank, so that they can be compared; None else."""
    return [f.reshape(()) if single(f) else None for f in parts]  # type: ignore[union-attr]


def _folded(eqn: Equation, arrays: list[np.ndarray]) -> np.ndarray | None:
    rule = RULES.get(eqn.primitive.name)
    if rule is None or rule.fold is None or len(eqn.outvars) != 1:
        return None
    try:
        out = rule.fold(eqn, arrays)
    except Exception:  # noqa: BLE001  sizes that cannot be listed, forms unforeseen
        return None
    return None if out is None or out.size > ce.FOLD_LIMIT else np.asarray(out)


def _product(pair: Sequence[Fact]) -> bool:
    """Whether a product is zero: a factor is, and none is known not to be finite."""
    if not any(map(zero, pair)):
        return False
    arrays = [f for f in pair if isinstance(f, np.ndarray)]
    return all(
        np.isfinite(f).all() for f in arrays if np.issubdtype(f.dtype, np.inexact)
    )


def _nothing(eqn: Equation) -> np.ndarray | None:
    aval = eqn.outvars[0].aval
    dtype = _compat.numpy_dtype(aval.dtype)
    return None if dtype is None else np.zeros((1,) * len(aval.shape), dtype)


# -- programs inside -------------------------------------------------------------------


def _inside(eqn: Equation, ins: list[Fact]) -> list[Fact] | None:
    """What holds after a call, a branch, every round of a loop; None: no program.

    Of a call with a derivative rule nothing is known unless all that moves is.
    """
    if eqn.primitive.name in _walk.CUSTOM:
        pairs = zip(eqn.invars, ins, strict=True)
        moving = [f for v, f in pairs if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
        if not all(isinstance(fact, np.ndarray) for fact in moving):
            return [None for _ in eqn.outvars]
    if eqn.primitive.name == "cond" and single(ins[0]):
        at, branches = int(ins[0].item()), eqn.params["branches"]  # type: ignore[union-attr]
        return facts(branches[min(max(at, 0), len(branches) - 1)], ins[1:])
    return _walk.inside(
        eqn, ins, lambda _, jaxpr, given: facts(jaxpr, given), _join, _row, _stacked
    )


def _row(fact: Fact) -> Fact:
    return fact.reshape((1,) * (fact.ndim - 1)) if single(fact) else None  # type: ignore[union-attr]


def _stacked(fact: Fact) -> Fact:
    return fact.reshape((1,) * (fact.ndim + 1)) if single(fact) else None  # type: ignore[union-attr]
