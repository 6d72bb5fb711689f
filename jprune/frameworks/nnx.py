"""Flax NNX: a compact module with the attributes of the dense one.

Five lines from a trained model to a smaller one that trains on:

>>> import jax, jax.numpy as jnp, optax
>>> from flax import nnx
>>> from jprune import surgery
>>> from jprune.frameworks import nnx as jnnx
>>> rngs = nnx.Rngs(0)
>>> layers = nnx.Linear(8, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 4, rngs=rngs)
>>> model = nnx.Sequential(*layers)
>>> x = jnp.ones((2, 8))
>>> deps = jnnx.groups(model, x)
>>> plan = surgery.select(deps, deps.scores(nnx.state(model)), sparsity=0.5)
>>> small = jnnx.shrink(model, plan)
>>> small.layers[0].kernel.shape, small(x).shape
((8, 16), (2, 4))
>>> optimizer = nnx.Optimizer(small, optax.adam(1e-3), wrt=nnx.Param)
>>> _ = optimizer.update(small, nnx.grad(lambda m: m(x).sum())(small))

The object is a copy of the model, of a sub-class of its class, whose arrays are packed.
Its public methods are the dense class's, shrunk: `small(x)`, `small.encode(x)`, with
any arguments; a method that returns a width from inside returns what is left of it,
one that takes such a width is refused.
`small.train()`, `small.eval()`, `nnx.view`, `nnx.split`, `nnx.jit`, `nnx.Optimizer` and
Orbax work on it as on any module. Its sub-modules hold the packed arrays and the modes;
they cannot be called by themselves, since a norm would divide by the wrong width.

Save and reload in another process::

    plan.save("plan.json")
    checkpointer.save(folder, nnx.state(small))
    ...
    small = jnnx.load(Net(nnx.Rngs(0)), "plan.json")
    nnx.update(small, checkpointer.restore(folder, nnx.state(small)))
"""

import copyreg
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from jprune._errors import type_error, value_error
from jprune._public import settled
from jprune._tree import KeyTuple, keyed_leaves
from jprune.frameworks._state import (
    Mean,
    Recalibration,
    Setting,
    copied,
    found,
    joined,
    nested,
    of_batch,
    plan_at,
    require_paths,
    require_statistics,
    shrunk,
    told,
)
from jprune.surgery import Groups, Plan
from jprune.surgery._callable import looked_at

__all__ = ("groups", "load", "shrink")

M = TypeVar("M", bound=nnx.Module)

_REMEMBERED = 64
"""How many compiled calls a compact module keeps, one a method, mode and signature."""

_INHERITED = frozenset(dir(nnx.Module)) | {"set_view"}


def groups(
    model: nnx.Module,
    *args: Any,
    method: str = "__call__",
    free_outputs: Callable[[KeyTuple], bool] | Sequence[KeyTuple] = (),
    lookups: Sequence[str | Sequence[str]] = (),
    **kwargs: Any,
) -> Groups:
    """What may be removed from a module, found on one call of it.

    Args:
      model: the module, dense or compact; it is not changed.
      *args: example arguments of the call; shapes are enough.
      method: the method to look at, the one that uses all parameters.
      free_outputs: as in `surgery.groups`.
      lookups: as in `surgery.groups`.
      **kwargs: its keyword arguments.

    Returns:
      The groups, over the paths of `nnx.state(model)`.
    """
    fn, *given = as_function(model, args, {"method": method, **kwargs})
    with looked_at("nnx"):
        return found(fn, free_outputs, (0,), lookups)(*given)


def shrink(model: M, plan: Plan, *, mean: Mean = "dense", rng: Mean = "dense") -> M:
    """The compact module of a module and a plan.

    Args:
      model: the module, with the weights to keep; it is not changed. A compact one is
        cut once more, with the weights that it has (`first_plan.then(plan)` is then the
        plan from the dense module, for `load`).
      plan: a plan over the paths of `nnx.state(model)`, as `groups` finds them.
      mean: as in `surgery.shrink`.
      rng: as in `surgery.shrink`.

    Returns:
      A module that computes the dense one with the removed parts zeroed.

    Raises:
      TypeError: if `model` is no module.
      ValueError: if the plan is for other leaves than the model's, or `mean` or `rng`
        is not what it was at the first cut.

    Examples:
      ::

        small = jnnx.shrink(model, plan)
        small.eval()
        y = nnx.jit(lambda m, x: m(x))(small, x)
    """
    if not isinstance(model, nnx.Module):
        raise type_error(f"`model` must be an nnx.Module, got {type(model).__name__}.")
    graphdef, state = nnx.split(model)
    require_paths(
        plan,
        dict(keyed_leaves(state)),
        "Find the groups with `jprune.frameworks.nnx.groups(model, *inputs)`, or on "
        "the whole of `nnx.split(model)[1]`.",
    )
    first = _setting(model)
    whole = plan if first is None else joined(first, plan, mean, rng)
    small = nnx.merge(graphdef, copied(plan.pack(state)))
    for path, module in _modules(small):
        if type(module) in (nnx.List, nnx.Dict):  # they compute nothing
            continue
        dense = _dense_class(type(module))
        object.__setattr__(module, "__class__", _compact_class(dense, not path))
    setattr(small, "_jprune", _Setting(whole, mean, rng))  # noqa: B010  a static one
    return small


def load(model: M, plan: Any, *, mean: Mean = "dense", rng: Mean = "dense") -> M:
    """The compact module in a fresh process: the class is built, the plan is read.

    Args:
      model: the dense module, built as it was (its weights do not matter, and it may be
        abstract: `nnx.eval_shape(lambda: Net(nnx.Rngs(0)))`).
      plan: the file that `Plan.save` wrote.
      mean: as it was given to `shrink`.
      rng: as it was given to `shrink`.

    Returns:
      The compact module, ready for `nnx.update(small, restored)`.
    """
    return shrink(model, plan_at(plan), mean=mean, rng=rng)


def as_function(model: nnx.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """One call of a module as a function of its state, and the arguments of that."""
    rest = dict(kwargs)
    method = rest.pop("method", "__call__")
    graphdef, state = nnx.split(model)
    inputs, arrays = nnx.split((args, rest))
    fn: Any = functools.partial(_dense, graphdef, inputs, method)
    if (first := _setting(model)) is not None:
        fn = shrunk(fn, first.plan, first.mean, first.rng)
    return told(fn, _called(model, method), args, rest), state, arrays


def _called(model: nnx.Module, method: str) -> Any:
    """A method of the dense class, bound for its signature."""
    fn = getattr(_dense_class(type(model)), method, None)
    return None if fn is None else functools.partial(fn, model)


def recalibration(model: nnx.Module, **kwargs: Any) -> Recalibration:
    """How the batch statistics of a module are measured; it is changed in place."""
    graphdef, stats, rest = nnx.split(model, nnx.BatchStat, ...)
    require_statistics(stats, "`nnx.BatchStat`")

    def update(stats: Any, batch: Any) -> Any:
        module = nnx.merge(graphdef, stats, rest, copy=True)  # its modes are its own
        module.train()
        with of_batch(_called(model, "__call__"), batch, kwargs) as args:
            module(*args, **kwargs)
        return nnx.state(module, nnx.BatchStat)

    def put(new: Any) -> Any:
        nnx.update(model, new)
        return model

    return Recalibration(update, stats, put, _momenta(model))


def _momenta(model: nnx.Module) -> frozenset[float]:
    """Of the modules that hold batch statistics; NaN for one that does not say."""
    return frozenset(
        float(getattr(module, "momentum", float("nan")))
        for _, module in _modules(model)
        if any(isinstance(v, nnx.BatchStat) for v in vars(module).values())
    )


class _Setting(Setting):
    """How a compact module was made, held by it as a static attribute."""

    def __init__(self, plan: Plan, mean: Mean, rng: Mean) -> None:
        super().__init__(plan, mean, rng)
        self._calls: dict[Any, Any] = {}

    def __reduce__(self) -> Any:
        """Its compiled calls stay in this process."""
        return _Setting, (self.plan, self.mean, self.rng)

    def call(self, graphdef: Any, inputs: Any, method: str) -> Callable[..., Any]:
        """The compact call of one method at one structure, compiled once a shape."""
        key = (graphdef, inputs, method)
        try:
            hash(key)
        except TypeError:  # an attribute or argument that cannot be hashed: no memory
            return self._shrunk(*key)
        if key not in self._calls:
            if len(self._calls) >= _REMEMBERED:
                self._calls.clear()
            self._calls[key] = jax.jit(self._shrunk(*key))
        return self._calls[key]

    def _shrunk(self, graphdef: Any, inputs: Any, method: str) -> Callable[..., Any]:
        dense = functools.partial(_dense, graphdef, inputs, method)
        part = "" if method == "__call__" else method
        small = shrunk(
            dense, self.plan, self.mean, self.rng, () if part else None, part
        )

        def run(state: Any, arrays: Any) -> Any:
            (out, used), new = small(state, arrays)
            return out, nested(new), used

        return run


def _dense(graphdef: Any, inputs: Any, method: str, state: Any, arrays: Any) -> Any:
    """One call of the dense module: ((result, changes of arguments), own changes)."""
    model = nnx.merge(graphdef, state, copy=True)
    for _, module in _modules(model):
        object.__setattr__(module, "__class__", _dense_class(type(module)))
    args, kwargs = nnx.merge(inputs, arrays, copy=True)
    out = getattr(model, method)(*args, **kwargs)
    used = _changes(arrays, nnx.state((args, kwargs), nnx.Variable))
    return (out, nested(used)), _changes(state, nnx.state(model))


def _changes(before: Any, after: Any) -> dict[KeyTuple, Any]:
    """The leaves that a call set: one it did not touch is the very array it was."""
    old = dict(keyed_leaves(before))
    return {p: x for p, x in keyed_leaves(after) if p not in old or x is not old[p]}


def _update(node: Any, new: Any) -> None:
    """Writes changed values into the variables they belong to."""
    flat: Any = dict(nnx.to_flat_state(nnx.state(node, nnx.Variable))) if new else {}
    changed: Any = {
        path[:-1]: flat[path[:-1]].replace(value) for path, value in keyed_leaves(new)
    }
    if changed:
        nnx.update(node, nnx.from_flat_state(changed))


def _modules(model: nnx.Module) -> list[tuple[Any, nnx.Module]]:
    """The modules in a module, itself among them, with their paths.

    As `nnx.iter_modules`, which the oldest Flax has not.
    """
    return [(p, x) for p, x in nnx.iter_graph(model) if isinstance(x, nnx.Module)]


def _setting(model: Any) -> _Setting | None:
    """How a compact module was made; None for a dense one."""
    return getattr(model, "_jprune", None)


def _dense_class(cls: type) -> type:
    return vars(cls).get("_jprune_dense", cls)


@functools.cache
def _compact_class(cls: type, root: bool) -> type:
    """The sub-class whose methods are the shrunk ones, or refuse in a sub-module."""
    make = _shrunk_method if root else _refusing_method
    body: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    body |= {"__annotations__": {}, "_jprune_dense": cls, "_jprune_root": root}
    body |= {name: make(cls, name, fn) for name, fn in _methods(cls).items()}
    kind = {"metaclass": _pickled_kind(type(cls))}
    return types.new_class(
        f"Compact{cls.__name__}", (cls,), kind, lambda ns: ns.update(body)
    )


@functools.cache
def _pickled_kind(kind: type) -> type:
    """The class of compact classes, which pickle as what they are made from."""
    made = type(f"Compact{kind.__name__}", (kind,), {})
    copyreg.pickle(made, _pickled)  # pyright: ignore[reportArgumentType]
    return made


def _pickled(cls: Any) -> tuple[Any, tuple[type, bool]]:
    return _compact_class, (cls._jprune_dense, cls._jprune_root)


def _methods(cls: type) -> dict[str, Any]:
    """The public methods that a class adds to those of a module, and `__call__`."""
    out: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            own = not name.startswith("_") and name not in _INHERITED
            if not (own or name == "__call__"):
                continue
            binds = hasattr(value, "__get__") and callable(value)
            if binds and not isinstance(value, staticmethod | classmethod | type):
                out[name] = value
            else:
                out.pop(name, None)
    return {name: fn for name, fn in out.items() if name not in _fields(cls)}


def _fields(cls: type) -> Sequence[str]:
    """Names of fields of a dataclass: a default that is a function is no method."""
    return tuple(getattr(cls, "__dataclass_fields__", ()))


def _shrunk_method(cls: type, name: str, fn: Any) -> Any:
    del cls

    @functools.wraps(fn, updated=())
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        graphdef, state = nnx.split(self)
        inputs, arrays = nnx.split((args, kwargs))
        out, new, used = self._jprune.call(graphdef, inputs, name)(state, arrays)
        _update(self, new)
        _update((args, kwargs), used)
        return out

    return method


def _refusing_method(cls: type, name: str, fn: Any) -> Any:
    @functools.wraps(fn, updated=())
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        del self, args, kwargs
        raise value_error(
            f"`{cls.__name__}.{name}` belongs to a part of a compact model, which "
            "cannot be run by itself: its arrays are packed, its widths are the dense "
            "ones. Call a method of the whole model."
        )

    return method


__dir__ = settled(globals())
