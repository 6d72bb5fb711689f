"""Flax Linen: a module whose `init` and `apply` work on packed variables.

Five lines from trained variables to a smaller model that trains on:

>>> import jax, jax.numpy as jnp, optax
>>> from flax import linen as nn
>>> from flax.training.train_state import TrainState
>>> from jprune import surgery
>>> from jprune.frameworks import linen as jlinen
>>> model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(4)])
>>> x = jnp.ones((2, 8))
>>> variables = model.init(jax.random.key(0), x)
>>> deps = jlinen.groups(model, variables, x)
>>> plan = surgery.select(deps, deps.scores(variables), sparsity=0.5)
>>> small, packed = jlinen.shrink(model, plan), plan.pack(variables)
>>> packed["params"]["layers_0"]["kernel"].shape, small.apply(packed, x).shape
((8, 16), (2, 4))
>>> state = TrainState.create(
...     apply_fn=small.apply, params=packed["params"], tx=optax.adam(1e-3)
... )

`small.apply` takes what the dense `apply` takes: `rngs=`, `mutable=`, `method=` and the
arguments of the call. Without `jax.jit` each call is traced anew.

Save and reload in another process::

    plan.save("plan.json")
    Path("packed.msgpack").write_bytes(flax.serialization.to_bytes(packed))
    ...
    small = jlinen.load(Net(), "plan.json")
    like = jax.eval_shape(small.init, jax.random.key(0), x)
    packed = flax.serialization.from_bytes(like, Path("packed.msgpack").read_bytes())
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import errors
from flax import linen as nn
from flax.core import unfreeze

from jprune._errors import PREFIX, short, type_error, value_error
from jprune._public import settled
from jprune._tree import KeyTuple, keyed_leaves
from jprune.frameworks._state import (
    Mean,
    Recalibration,
    Setting,
    found,
    joined,
    nested,
    of_batch,
    plan_at,
    require_statistics,
    shrunk,
    told,
)
from jprune.surgery import Groups, Plan
from jprune.surgery._callable import looked_at
from jprune.surgery._plan import require_plan
from jprune.surgery._table import changed

__all__ = ("groups", "load", "shrink")


def groups(
    model: nn.Module,
    variables: Mapping[str, Any],
    *args: Any,
    rngs: Any = None,
    method: Any = None,
    mutable: Any = False,
    free_outputs: Callable[[KeyTuple], bool] | Sequence[KeyTuple] = (),
    lookups: Sequence[str | Sequence[str]] = (),
    **kwargs: Any,
) -> Groups:
    """What may be removed from a module, found on one `apply` of it.

    Args:
      model: the module.
      variables: all its variables: `{"params": ..., "batch_stats": ...}`; shapes are
        enough.
      *args: example arguments of the call.
      rngs: as in `apply`.
      method: as in `apply`.
      mutable: as in `apply`: collections that the call updates.
      free_outputs: as in `surgery.groups`.
      lookups: as in `surgery.groups`.
      **kwargs: its keyword arguments.

    Returns:
      The groups, over the paths of `variables`.
    """
    how = {"rngs": rngs, "method": method, "mutable": mutable}
    fn, *given = as_function(model, (variables, *args), {**kwargs, **how})
    with looked_at("linen"):
        return found(fn, free_outputs, (0,), lookups)(*given)


def shrink(
    model: nn.Module, plan: Plan, *, mean: Mean = "dense", rng: Mean = "dense"
) -> "CompactModule":
    """The compact module of a module and a plan.

    Args:
      model: the module, not bound. A compact one is cut once more; its plan is over its
        packed variables (`first_plan.then(plan)` is the one from the dense module).
      plan: a plan over its variables, or over its parameters if it has no others.
      mean: as in `surgery.shrink`.
      rng: as in `surgery.shrink`.

    Returns:
      A module for `plan.pack(variables)` that computes the dense one on
      `plan.zero(variables)`.

    Raises:
      TypeError: if `model` is no Linen module, or `plan` is no plan.

    Examples:
      ::

        small, packed = jlinen.shrink(model, plan), plan.pack(variables)
        logits, updates = small.apply(packed, x, train=True, mutable=["batch_stats"])
    """
    if not isinstance(model, nn.Module):
        raise type_error(f"`model` must be a linen.Module, got {type(model).__name__}.")
    require_plan(plan)
    if not any(path[0] == "params" for path in plan.keep):
        keep = {("params", *path): masks for path, masks in plan.keep.items()}
        plan = dataclasses.replace(plan, keep=keep, ties=(), free=())
    if isinstance(model, CompactModule):
        first = model.setting
        model, plan = first.model, joined(first, plan, mean, rng)
    return CompactModule(_Setting(plan, mean, rng, model))


def load(
    model: nn.Module, plan: Any, *, mean: Mean = "dense", rng: Mean = "dense"
) -> "CompactModule":
    """The compact module in a fresh process: the class is built, the plan is read.

    Args:
      model: the dense module, built as it was.
      plan: the file that `Plan.save` wrote.
      mean: as it was given to `shrink`.
      rng: as it was given to `shrink`.

    Returns:
      The compact module; `small.init` gives packed variables to restore into.
    """
    return shrink(model, plan_at(plan), mean=mean, rng=rng)


def as_function(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """One `apply` as a function of the variables, and the arguments of that."""
    variables, *rest = args
    if not isinstance(variables, Mapping):
        raise type_error(
            "a module of Linen is followed by its `variables`, a dict of collections, "
            f"got {type(variables).__name__}."
        )
    how = dict(kwargs)
    rngs, method = how.pop("rngs", None), how.pop("method", None)
    call = _Call(model, method, how.pop("mutable", False), frozenset(variables))
    says = told(call, _called(model, method), (*rest,), how)
    return says, _plain(variables), rngs, (*rest,), how


def recalibration(
    model: nn.Module, variables: Any, mutable: Any = ("batch_stats",), **kwargs: Any
) -> Recalibration:
    """How the batch statistics among variables are measured."""
    given = _plain(variables)
    if "params" not in given:
        raise _by_collection(given)
    names = [mutable] if isinstance(mutable, str) else list(mutable)
    stats = {name: given[name] for name in names if name in given}
    require_statistics(stats, f"collection {' or '.join(names)}")

    how = {k: x for k, x in kwargs.items() if k not in ("rngs", "method")}
    call = _called(model, kwargs.get("method"))

    def update(stats: Any, batch: Any) -> Any:
        with of_batch(call, batch, how) as args:
            return _plain(
                model.apply({**given, **stats}, *args, mutable=names, **kwargs)[1]
            )

    return Recalibration(update, stats, lambda new: {**given, **new})


def _called(model: nn.Module, method: Any) -> Any:
    """The method of the dense module that an `apply` calls, bound for its signature."""
    dense = model.setting.model if isinstance(model, CompactModule) else model
    name = _renamed({"method": method}).get("jprune_method") or "__call__"
    method = name if callable(name) else getattr(type(dense), name, None)
    method = getattr(method, "__func__", method)
    return functools.partial(method, dense) if method is not None else None


class _Setting(Setting):
    """A model and its plan. No tree: Linen must not adopt the model as a child."""

    def __repr__(self) -> str:
        """The class, and the leaves that are smaller; alike ones share a line."""
        head = f"{type(self.model).__name__}, mean={self.mean!r}"
        return "\n".join([head, *changed(self.plan)])


class CompactModule(nn.Module):
    """A dense module and a plan, as a module over the packed variables.

    Attributes:
      setting: the dense module, the plan and what removal means.
    """

    setting: _Setting

    @nn.nowrap
    def __getattr__(self, name: str) -> Any:
        """The dense module's public methods, shrunk, and its fields as they are."""
        setting = vars(self).get("setting")
        dense = None if setting is None else setting.model
        if dense is not None and not name.startswith("_"):
            if name in getattr(dense, "__dataclass_fields__", ()):
                return getattr(dense, name)
            if callable(getattr(type(dense), name, None)):
                return functools.partial(self.__call__, jprune_method=name)
        return super().__getattr__(name)

    @nn.nowrap
    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """As the dense module's `apply`, on packed variables."""
        return super().apply(variables, *args, **_renamed(kwargs))

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """The dense module's `init`, packed."""
        return super().init(rngs, *args, **_renamed(kwargs))

    @nn.compact
    def __call__(self, *args: Any, jprune_method: Any = None, **kwargs: Any) -> Any:
        """As the dense module's call, or its `method` given to `apply`."""
        setting, scope = self.setting, self.scope
        assert scope is not None  # a module that is called is bound
        rngs = {
            name: self.make_rng(name) if self.path else _key(lazy)
            for name, lazy in scope.rngs.items()
        }
        first = self.is_initializing()
        if first:
            made = setting.model.init(rngs, *args, method=jprune_method, **kwargs)
            self._store(setting.plan.pack(_plain(made)), missing=True)
        variables = _plain(self.variables)
        known = frozenset(variables)
        mutable = [*known] if first else scope.mutable  # in `init` all may be written
        dense = _Call(setting.model, jprune_method, mutable, known)
        plan = _over(setting.plan, variables)
        inner = (1,) if jprune_method is None else ()  # what it sows
        part = getattr(jprune_method, "__name__", jprune_method) or ""
        small = shrunk(dense, plan, setting.mean, setting.rng, inner, part)
        (out, made), new = small(variables, rngs or None, args, kwargs)
        if not first:  # what `init` makes is no step on
            self._store(made)
            self._store(_replaced(variables, new))
        return out

    def _store(self, tree: Mapping[str, Any], missing: bool = False) -> None:
        for collection, entries in tree.items():
            for name, value in entries.items():
                if not (missing and self.has_variable(collection, name)):
                    self.put_variable(collection, name, value)


def _over(plan: Plan, variables: Any) -> Plan:
    """The plan for a call without some variables.

    A full forward has no cache, and a part of a model may be made for one method alone.
    """
    there = {path for path, _ in keyed_leaves(variables)}
    keep = {path: masks for path, masks in plan.keep.items() if path in there}
    return dataclasses.replace(plan, keep=keep) if len(keep) < len(plan.keep) else plan


def _plain(variables: Any) -> dict[str, Any]:
    """Variables as plain nested dicts."""
    return unfreeze(variables)


def _key(lazy: Any) -> Any:
    """The key that a scope was given, before any use."""
    return lazy.as_jax_rng()


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The method goes to our own call, which hands it to the dense module."""
    if (method := kwargs.pop("method", None)) is not None:
        own = getattr(method, "keywords", {})  # `small.encode`: see `__getattr__`
        kwargs["jprune_method"] = own.get("jprune_method", method)
    return kwargs


_OTHER_VARIABLES = (
    errors.ApplyScopeInvalidVariablesTypeError,
    errors.ScopeCollectionNotFound,
    errors.ScopeParamNotFoundError,
)
"""What Linen says of variables that are not by collection."""

_TRAINING = (
    f"{PREFIX}the module was called in training mode. Pass what its call takes for "
    'evaluation, such as `train=False`, or `mutable=["batch_stats"]`.'
)


@dataclasses.dataclass(frozen=True)
class _Call:
    """One `apply` as a function: ((result, collections it made), changed leaves)."""

    model: nn.Module
    method: Any
    mutable: Any
    known: frozenset[str]

    def __call__(self, variables: Any, rngs: Any, args: Any, kwargs: Any) -> Any:
        how = {"rngs": rngs, "method": self.method, "mutable": self.mutable or False}
        try:
            out = self.model.apply(variables, *args, **how, **kwargs)
        except _OTHER_VARIABLES as error:
            why = str(error).partition(" (http")[0]
            if "params" not in variables:
                raise _by_collection(variables) from error
            if isinstance(error, errors.ScopeCollectionNotFound):
                raise value_error(
                    "`variables` must be all variables of the module, by collection, "
                    f"as its `init` gave them; got {short(variables)}: {why}"
                ) from error
            raise
        except errors.ModifyScopeVariableError as error:
            error.add_note(_TRAINING)
            raise
        if not self.mutable:
            return (out, {}), {}
        out, updates = out
        updates = _plain(updates)
        made = {c: tree for c, tree in updates.items() if c not in self.known}
        old = dict(keyed_leaves(variables))
        own = {c: tree for c, tree in updates.items() if c in self.known}
        new = {p: x for p, x in keyed_leaves(own) if p not in old or x is not old[p]}
        return (out, made), new


def _by_collection(variables: Any) -> ValueError:
    """The error of variables that are no collections."""
    return value_error(
        "`variables` must be all variables of the module, by collection, "
        f'{{"params": ...}}; got {short(variables)}. If these are its '
        'parameters, give `{"params": params}`, and its other collections beside them.'
    )


def _replaced(variables: Any, new: Mapping[KeyTuple, Any]) -> dict[str, Any]:
    """The top-level entries of the collections in which a leaf is new."""
    touched = {path[:2] for path in new}
    leaves = {
        path: new.get(path, x)
        for path, x in keyed_leaves(variables)
        if path[:2] in touched
    }
    return nested(leaves)


__dir__ = settled(globals())
