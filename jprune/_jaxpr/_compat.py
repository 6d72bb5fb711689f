"""The one file that touches JAX beyond its public modules.

Everything that could move with a JAX release is named here and nowhere else: the jaxpr
data types (`jax.extend.core`), how an equation is bound again, what is traced. A test
relies on each name, so that a release which moves one of them fails in one place. Only
this file knows of versions.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.core
import jax.extend.core as _core
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr as _dce_jaxpr

Jaxpr = _core.Jaxpr
ClosedJaxpr = _core.ClosedJaxpr
Literal = _core.Literal
Primitive = _core.Primitive

if TYPE_CHECKING:

    class Equation(Protocol):
        """What is read of an equation; JAX's own type says less of its variables."""

        primitive: Any
        params: dict[str, Any]
        invars: list[Any]
        outvars: list[Any]
        effects: Any
        ctx: Any

else:
    Equation = _core.JaxprEqn

InconclusiveSize: type[Exception] = (
    jax.errors.InconclusiveDimensionOperation
    if hasattr(jax.errors, "InconclusiveDimensionOperation")
    else jax.core.InconclusiveDimensionOperation
)
"""What comparing symbolic dimensions raises."""


def closed(jaxpr: Jaxpr, consts: Sequence[Any] = ()) -> ClosedJaxpr:
    """A jaxpr with its constants."""
    return ClosedJaxpr(jaxpr, list(consts))


def bind(eqn: Equation, params: dict[str, Any], args: Sequence[Any]) -> list[Any]:
    """Binds the equation's primitive with other parameters; always a list of results.

    The context of the equation (its name scope, `compute_on`, a default precision) is
    entered again.
    """
    if any(_names(v.aval) for v in eqn.invars):
        args = [_varied(a, v.aval) for a, v in zip(args, eqn.invars, strict=True)]
    bind_params = eqn.primitive.get_bind_params(params)
    if isinstance(bind_params, tuple):  # before JAX 0.9: functions to bind first
        first, bind_params = bind_params
        args = (*first, *args)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*args, **bind_params)
    return list(out) if eqn.primitive.multiple_results else [out]


def sub_jaxprs(params: dict[str, Any]) -> list[Jaxpr]:
    """Every jaxpr among the parameters of an equation, without its constants."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def make_jaxpr(fn: Callable[..., Any], *avals: Any) -> ClosedJaxpr:
    """`jax.make_jaxpr`, outside of the `shard_map` or `vmap` that names the axes, too.

    An axis name that is not bound is taken to have one position: which axes of the
    parameters are coupled does not depend on its size.
    """
    named: list[tuple[str, int]] = []
    while True:
        try:
            return jax.make_jaxpr(fn, axis_env=named or None)(*avals)
        except NameError as error:
            named.append((_unbound(error, [name for name, _ in named]), 1))


def one_position(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays that also runs outside of the `vmap` that names its axes.

    An axis name that is not bound is given one position, as by `make_jaxpr`: a batch
    norm then sees a batch of one example.
    """
    names: list[str] = []

    def run(*args: Any) -> Any:
        while True:
            try:
                return _mapped(fn, names)(*args)
            except NameError as error:
                names.append(_unbound(error, names))

    return run


def _mapped(fn: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """The function inside of `vmap`s over axes of one position with these names."""
    if not names:
        return fn
    inner = _mapped(fn, names[1:])

    def run(*args: Any) -> Any:
        mapped = jax.vmap(lambda _: inner(*args), axis_name=names[0])
        return jax.tree.map(lambda x: x[0], mapped(np.zeros(1, np.float32)))

    return run


def _unbound(error: NameError, known: Sequence[str]) -> str:
    """The axis name that is not bound; any other error, or one known, is raised."""
    found = re.search(r"unbound axis name: (\w+)", str(error))
    if found is None or found.group(1) in known:
        raise error
    return found.group(1)


def _names(aval: Any) -> frozenset[str]:
    """The axes of a `shard_map` that a value differs over."""
    new = getattr(aval, "manual_axis_type", None)  # vma: before JAX 0.10.2
    return new.varying if new is not None else getattr(aval, "vma", frozenset())


def _varied(x: Any, aval: Any) -> Any:
    """A value (a constant was put in its place) typed to differ as `aval` says."""
    missing = tuple(_names(aval) - _names(jax.typeof(x)))
    if not missing:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, missing, to="varying")
    return getattr(jax.lax, "pvary")(x, missing)  # noqa: B009  before pcast


def manual_axes(params: dict[str, Any]) -> set[str]:
    """The mesh axes over which an equation of `shard_map` maps."""
    name = "newly_manual_axes"  # manual_axes: in JAX 0.8
    return set(params[name] if name in params else params["manual_axes"])


def mapped_devices(params: dict[str, Any]) -> int:
    """On how many devices an equation of `shard_map` runs its program."""
    sizes = dict(params["mesh"].shape)
    return math.prod(sizes[name] for name in manual_axes(params))


def varying(aval: Any) -> dict[str, Any]:
    """Over which axes of a `shard_map` a value differs, as `ShapeDtypeStruct` takes it.

    Empty outside of one, and for a value that is the same everywhere.
    """
    new = getattr(aval, "manual_axis_type", None)
    if new is not None and not new.empty:
        return {"manual_axis_type": new, "sharding": aval.sharding}
    old = getattr(aval, "vma", None)  # before JAX 0.10.2
    return {"vma": old, "sharding": aval.sharding} if old else {}


def positionwise(jaxpr: Jaxpr, names: frozenset[str]) -> bool:
    """Whether each position of the results is computed from the same one of the inputs.

    Args:
      jaxpr: the program.
      names: position-wise primitives.

    Returns:
      True if every value is a scalar or has the shape of the first result, and only
      such primitives, repeats of scalars and calls of such programs occur.
    """
    ends: list[Any] = [*jaxpr.outvars, *jaxpr.invars]
    shape = ends[0].aval.shape
    equations: list[Any] = list(jaxpr.eqns)
    for eqn in equations:
        if any(v.aval.shape not in ((), shape) for v in (*eqn.invars, *eqn.outvars)):
            return False
        inner, name = sub_jaxprs(eqn.params), eqn.primitive.name
        if name == "broadcast_in_dim" and eqn.invars[0].aval.shape == ():
            continue
        if name in names or (name in _CALLS and inner):
            if all(positionwise(sub, names) for sub in inner):
                continue
        return False
    return all(v.aval.shape in ((), shape) for v in ends)


_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call")


def tangent_rule(eqn: Equation, moving: Sequence[int]) -> Jaxpr:
    """The tangents of a `custom_jvp_call` as a program of operands and tangents.

    JAX traces the rule once and keeps it with the equation.

    Args:
      eqn: the equation.
      moving: the operands that have a tangent.
    """
    still = [i not in moving for i in range(len(eqn.invars))]
    jaxpr, _, none = eqn.params["jvp_jaxpr_fun"].call_wrapped(*still)
    wanted = [False] * len(none) + [True] * (len(jaxpr.outvars) - len(none))
    return _dce_jaxpr(jaxpr, wanted, instantiate=True)[0]


def literal_value(literal: Any) -> np.ndarray:
    """The value of a literal as a NumPy array of the literal's dtype."""
    return np.asarray(literal.val, literal.aval.dtype)


def is_tracer(x: Any) -> bool:
    """Whether the value of `x` cannot be looked at."""
    return isinstance(x, jax.core.Tracer)


def numpy_dtype(dtype: Any) -> np.dtype | None:
    """The dtype as NumPy's, or None for a dtype NumPy has not (random keys)."""
    return dtype if isinstance(dtype, np.dtype) else None


def without_dead_code(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """The jaxpr without equations that no output needs, recursively; inputs stay.

    A slice taken only for its shape would otherwise cut an axis in two. Most programs
    have no dead code, which one look at them tells; they are returned as they are.
    """
    if _all_needed(jaxpr.jaxpr, set()):
        return jaxpr
    every = [True] * len(jaxpr.jaxpr.outvars)
    live, _ = _dce_jaxpr(jaxpr.jaxpr, every, instantiate=True)
    return closed(live, jaxpr.consts)


def _all_needed(jaxpr: Jaxpr, seen: set[int]) -> bool:
    """Whether every result is read; inside an equation every input, too.

    `seen` holds the ids of jaxprs that were looked at: call sites share them.
    """
    needed = {id(v) for v in jaxpr.outvars}
    for eqn in reversed(jaxpr.eqns):
        inner = sub_jaxprs(eqn.params)
        used = sum(id(v) in needed for v in eqn.outvars)
        if used < len(eqn.outvars) and (inner or not (used or eqn.effects)):
            return False
        needed.update(map(id, eqn.invars))
        for sub in inner:
            if id(sub) not in seen:
                seen.add(id(sub))
                if not (_all_needed(sub, seen) and _all_read(sub)):
                    return False
    return True


def _all_read(jaxpr: Jaxpr) -> bool:
    """Whether every input is read."""
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
    read.update(map(id, jaxpr.outvars))
    return all(id(v) in read for v in jaxpr.invars)
