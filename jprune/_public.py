"""What every public function does for its caller: arguments of another kind are named.

A package ends with `__dir__ = settled(globals())`. Where a call of its functions fails
with an error that is not ours, or succeeds with a text, None or NaN where the signature
says a number, or with a number out of the range that its name has everywhere, the
argument at fault is named. A function's own checks come first: they know more.
"""

import functools
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune._errors import PREFIX, is_integer, short, type_error, value_error
from jprune._typing import kinds_of, text_of

_TREES = ("PyTree", "Params", "Mask", "Scores")
_NUMBERS = {int, float, jax.Array}
_CLOSED = {Callable, Literal, Sequence, Iterable, Mapping, str, bool, type(None)}
_PLAIN = {type(None), str, bytes, bool, int, float, complex, list, dict}
_NO_NUMBERS = (str, bytes, float, type(None))


_RANGES = {
    **dict.fromkeys(("momentum", "b1", "b2"), (0, 1)),
    "total_steps": (1, math.inf),
    **dict.fromkeys(
        "learning_rate weight_decay bias_rate vector_multiplier "
        "vector_weight_decay".split(),
        (0, math.inf),
    ),
}
"""What numbers of these names mean is the same everywhere, and so are their ranges."""


def settled(package: dict[str, Any]) -> Callable[[], list[str]]:
    """Gives the public functions of a package their checks, and the package its names.

    Args:
      package: its namespace.

    Returns:
      Its `__dir__`: the public names, for tab completion.
    """
    for key in _names(package):
        if isinstance(package[key], types.FunctionType):
            package[key] = _checked(package[key], package["__name__"])
    return lambda: _names(package)


def _names(package: dict[str, Any]) -> list[str]:
    """The public names: those of `__all__`, or all without an underscore."""
    if "__all__" in package:
        return sorted(package["__all__"])
    return sorted(
        key
        for key, value in package.items()
        if not key.startswith("_") and value is not settled
    )


def _checked(fn: types.FunctionType, package: str) -> Callable[..., Any]:
    """The function, which names an argument of another kind."""
    signature = inspect.signature(fn)
    kinds = {
        name: kinds_of(p.annotation)
        for name, p in signature.parameters.items()
        if p.annotation is not p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    numbers = {name: k for name, k in kinds.items() if _is_scalar(k)}
    scalars = [name for name, k in kinds.items() if _may_be_scalar(k)]
    transforms = "GradientTransformation" in text_of(signature.return_annotation)
    closed = {n: k for n, k in kinds.items() if n not in numbers and _is_closed(k)}

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return fn(*args, **kwargs)  # Python says what is missing
        given = bound.arguments
        given.update({n: _on_host(n, given[n]) for n in scalars if n in given})
        if transforms:
            _require_no_optimizer(fn.__name__, given, signature)
        try:
            result = fn(*bound.args, **bound.kwargs)
        except Exception as error:
            if PREFIX not in str(error):
                _require_numbers(given, numbers, error)
                _blame(given, kinds, signature, error)
            raise
        _require_numbers(given, numbers)
        _require_ranges(given)
        _blame(given, closed, signature, None)
        return result

    call.__module__ = package
    readable = [
        p if p.annotation is p.empty else p.replace(annotation=_Text(p.annotation))
        for p in signature.parameters.values()
    ]
    returned = signature.return_annotation
    if returned not in (None, signature.empty):
        returned = _Text(returned)
    # A function has none by itself, as the type checker says.
    vars(call)["__signature__"] = signature.replace(
        parameters=readable, return_annotation=returned
    )
    return call


class _Text:
    """An annotation that `help` prints without the modules of its names."""

    def __init__(self, annotation: Any) -> None:
        self._text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text_of(annotation))

    def __repr__(self) -> str:
        return self._text


def _is_scalar(kinds: tuple[Any, ...]) -> bool:
    """Whether an argument is one number, or a switch, or a schedule of numbers.

    An integer or an array is a seed or a key, and has a check of its own.
    """
    plain = {k for k in kinds if get_origin(k) is not Callable}
    if not plain <= {int, float, bool, jax.Array, type(None)}:
        return False
    return bool(plain & {float, bool}) or (int in plain and jax.Array not in plain)


def _may_be_scalar(kinds: tuple[Any, ...]) -> bool:
    """Whether an argument may be a number that JAX holds, and is no tree."""
    return bool({float, jax.Array} & set(kinds)) and not set(_TREES) & set(kinds)


def _on_host(name: str, value: Any) -> Any:
    """A known number as one of the host, which can be compared inside of `jit`.

    What goes to Optax, and what is weakly typed, as one of Python: in a float of NumPy
    the moments of bfloat16 parameters would become float32 at the first step.
    """
    known = isinstance(value, np.generic | np.ndarray | jax.Array)
    if not known or isinstance(value, Tracer) or np.ndim(value) or _is_key(value):
        return value
    if name in _RANGES or getattr(value, "weak_type", False):
        return value.item()
    return np.asarray(value)


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _require_number(name: str, value: Any, kinds: tuple[Any, ...]) -> None:
    """Raises unless a value is a number of the kind that a signature says.

    Arrays of no axis pass: whether they may be traced, the function knows.
    """
    if value is None and type(None) in kinds:
        return
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        if shape := np.shape(value):
            raise value_error(f"`{name}` must be one number, got shape {shape}.")
        return
    scheduled = any(get_origin(k) is Callable for k in kinds)
    if callable(value) and not scheduled:
        raise type_error(
            f"`{name}` must be a number, got a function. A schedule of it is made by "
            "`optax.inject_hyperparams`."
        )
    if callable(value):
        return
    whole = float not in kinds
    if bool in kinds and isinstance(value, bool):
        return
    if bool in kinds and not _NUMBERS & set(kinds):
        raise type_error(f"`{name}` must be True or False, got {value!r}.")
    if is_integer(value) if whole else isinstance(value, Real):
        if value != value:
            raise value_error(f"`{name}` must be a number, got NaN.")
        return
    what = "a whole number" if whole else "a number"
    if scheduled:
        what += " or a schedule"
    if isinstance(value, float):
        raise value_error(f"`{name}` must be {what}, got {value!r}: use round(...).")
    kind = f", a {type(value).__name__}" if isinstance(value, str | bytes) else ""
    raise type_error(f"`{name}` must be {what}, got {short(value)}{kind}.")


def _require_numbers(
    given: Mapping[str, Any],
    kinds: Mapping[str, tuple[Any, ...]],
    cause: Exception | None = None,
) -> None:
    """Raises for the first number that is none."""
    for name in filter(kinds.__contains__, given):
        x = given[name]
        if cause is None and not isinstance(x, _NO_NUMBERS) and not callable(x):
            continue  # it was understood: a tree of shares, say
        try:
            _require_number(name, given[name], kinds[name])
        except (TypeError, ValueError) as error:
            raise error from cause


def _require_no_optimizer(
    call: str, given: Mapping[str, Any], signature: inspect.Signature
) -> None:
    """Raises for an optimizer where a transformation takes none.

    A recipe says itself what to do with an optimizer in place of its learning rate.
    """
    for name, value in given.items():
        if not (hasattr(value, "init") and hasattr(value, "update")):
            continue
        kind = str(_Text(signature.parameters[name].annotation))
        if name != "learning_rate" and "GradientTransformation" not in kind:
            what = "something else" if kind == "Any" else kind
            raise type_error(
                f"`{name}` must be {what}, got an optimizer. `{call}` "
                "takes none: it stands beside the optimizer in a chain, last if it "
                f"moves weights to zero: `optax.chain(optimizer, {call}(...))`."
            )


def _require_ranges(given: Mapping[str, Any]) -> None:
    """Raises for a known number out of the range of its name."""
    for name in filter(_RANGES.__contains__, given):
        (low, high), x = _RANGES[name], given[name]
        if isinstance(x, int | float) and not low <= x <= high:
            most = "" if high == math.inf else f" and at most {high}"
            raise value_error(f"`{name}` must be at least {low}{most}, got {x}.")


def _is_closed(kinds: tuple[Any, ...]) -> bool:
    """Whether an argument is a function, a choice or a collection, and nothing else.

    A text where paths are asked for would be read letter by letter, a choice that is
    none as another one, and a number would be called by and by.
    """
    return {get_origin(kind) or kind for kind in kinds} <= _CLOSED


def _blame(
    given: Mapping[str, Any],
    kinds: Mapping[str, tuple[Any, ...]],
    signature: inspect.Signature,
    error: Exception | None,
) -> None:
    """Raises for the first argument that is of no kind that the signature says."""
    for name in filter(kinds.__contains__, given):
        if error is None and type(given[name]) not in _PLAIN:
            continue  # it was understood: a model object for a function, say
        if not any(_fits(given[name], kind) for kind in kinds[name]):
            expected = _expected(signature.parameters[name].annotation)
            raise type_error(
                f"`{name}` must be {expected}, got {short(given[name])}."
            ) from error


def _expected(annotation: Any) -> str:
    """An annotation in words."""
    text = re.sub(r"Callable\[.*\]", "a function", repr(_Text(annotation)))
    text = re.sub(r"\b(PyTree|Params|Scores)\b", "a tree of arrays", text)
    return re.sub(r"\bMask\b", "a tree of bools", text)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value may be of a kind; what is not known here may be."""
    if kind is Any:  # a class in Python 3.11
        return True
    if kind in _TREES:
        if value is None:
            return False
        plain = isinstance(value, int | float | complex | np.generic)
        array = hasattr(value, "dtype") and hasattr(value, "shape")
        return plain or array or not jax.tree_util.all_leaves([value])
    origin = get_origin(kind) or kind
    if origin is Literal:
        return isinstance(value, str | int | None) and value in get_args(kind)
    if origin in (int, float):
        return isinstance(value, Real) or hasattr(value, "dtype")
    if origin is bool:
        return isinstance(value, int) or hasattr(value, "dtype")
    if origin is Callable:
        return callable(getattr(value, "apply", value))  # a pair of Haiku is none
    if isinstance(origin, type) and origin is not object:
        if issubclass(origin, Iterable) and not issubclass(origin, Mapping | str):
            return isinstance(value, Iterable) and not isinstance(value, str | bytes)
        return isinstance(value, origin)
    return True
