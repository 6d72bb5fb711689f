"""Equinox: a module that holds the packed arrays and computes the dense model.

Five lines from a trained model to a smaller one that trains on:

>>> import equinox as eqx, jax, jax.numpy as jnp, optax
>>> from jprune import surgery
>>> from jprune.frameworks import equinox as jeqx
>>> model = eqx.nn.MLP(8, 4, 32, 1, key=jax.random.key(0))
>>> x = jnp.ones(8)
>>> deps = jeqx.groups(model, x)
>>> plan = surgery.select(deps, deps.scores(model), sparsity=0.5)
>>> small = jeqx.shrink(model, plan)
>>> small.packed.layers[0].weight.shape, jax.vmap(small)(jnp.ones((2, 8))).shape
((16, 8), (2, 4))
>>> tx = optax.adam(1e-3)
>>> state = tx.init(eqx.filter(small, eqx.is_inexact_array))
>>> grads = eqx.filter_jit(eqx.filter_grad(lambda m: m(x).sum()))(small)

A model with state (batch norm) is a pair, and so is its compact form::

    deps = jeqx.groups(eqx.nn.inference_mode(model), x, state)
    ...
    small, packed = jeqx.shrink(model, plan, state)
    y, packed = small(x, packed)

Methods of the dense class are methods of the compact one (`small.encode(x)`);
`eqx.nn.inference_mode`, `filter_jit`, `filter_grad` and `tree_serialise_leaves` work on
it. `small.packed` is a tree of arrays under the dense model's names; it is not to be
called, since a norm would divide by the wrong width. Without `jit` each call is traced
anew.

Save and reload in another process::

    plan.save("plan.json")
    eqx.tree_serialise_leaves("small.eqx", small)
    ...
    small = jeqx.load(Net(key), "plan.json")
    small = eqx.tree_deserialise_leaves("small.eqx", small)
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from jprune._errors import PREFIX, short, type_error, value_error
from jprune._jaxpr._trace import is_array
from jprune._public import settled
from jprune._tree import KeyTuple, keyed_leaves, path_keys
from jprune.frameworks._state import (
    Mean,
    Recalibration,
    Setting,
    copied,
    found,
    joined,
    of_batch,
    plan_at,
    positional,
    require_paths,
    require_statistics,
    shrunk,
    told,
)
from jprune.surgery import Groups, Plan
from jprune.surgery._callable import looked_at

__all__ = ("groups", "load", "shrink")


def groups(
    model: Any,
    *args: Any,
    method: str = "__call__",
    free_outputs: Callable[[KeyTuple], bool] | Sequence[KeyTuple] = (),
    lookups: Sequence[str | Sequence[str]] = (),
    **kwargs: Any,
) -> Groups:
    """What may be removed from a model, found on one call of it.

    Args:
      model: the module.
      *args: example arguments of the call, as the model takes them (one example, if it
        is written for one), an `eqx.nn.State` among them if it has one. A batch norm
        outside of `vmap` is looked at in inference mode:
        `jeqx.groups(eqx.nn.inference_mode(model), x, state)`.
      method: the method to look at, the one that uses all parameters.
      free_outputs: as in `surgery.groups`.
      lookups: as in `surgery.groups`.
      **kwargs: its keyword arguments.

    Returns:
      The groups, over the paths of `model`, or of `(model, state)`.

    Raises:
      TypeError: if `model` holds no arrays.
    """
    if not any(map(is_array, jax.tree.leaves(model))):
        raise type_error(
            "`model` must be a module with arrays, and the inputs those of its own "
            f"call, mostly one example; got {short(model)}, which holds none. Of a "
            "model under `jax.vmap` give the model."
        )
    fn, *given = as_function(model, args, {"method": method, **kwargs})
    with looked_at("equinox"):
        return found(fn, free_outputs, lookups=lookups)(*given)


def shrink(
    model: Any,
    plan: Plan,
    state: Any = None,
    *,
    mean: Mean = "dense",
    rng: Mean = "dense",
) -> Any:
    """The compact module of a module and a plan.

    Args:
      model: the module, with the weights to keep. A compact one is cut once more, with
        the weights that it has (`first_plan.then(plan)`: see `load`).
      plan: a plan over the paths of `model`, or of `(model, state)`.
      state: its `eqx.nn.State`, if it has one.
      mean: as in `surgery.shrink`.
      rng: as in `surgery.shrink`.

    Returns:
      A `CompactModule`; with `state`, the pair of it and the packed state.

    Raises:
      TypeError: if `model` is no Equinox module, or `plan` is no plan.
      ValueError: if the plan is for other leaves than the model's.

    Examples:
      ::

        small = jeqx.shrink(model, plan)
        small, packed = jeqx.shrink(model, plan, state)  # with batch norm
    """
    if not isinstance(model, eqx.Module):
        raise type_error(f"`model` must be an eqx.Module, got {type(model).__name__}.")
    params = model if state is None else (model, state)
    arrays = {p: x for p, x in keyed_leaves(params) if is_array(x)}
    require_paths(
        plan,
        arrays,
        "Find the groups with `jprune.frameworks.equinox.groups(model, *inputs)`; a "
        "model with state needs `shrink(model, plan, state)`.",
    )
    packed = copied(plan.pack(params))
    small, after = (packed, None) if state is None else packed
    if isinstance(model, CompactModule):
        whole = joined(model.setting, _of_packed(plan), mean, rng)
        small = CompactModule(small.packed, Setting(whole, mean, rng))
    else:
        small = CompactModule(small, Setting(plan, mean, rng))
    return small if state is None else (small, after)


def _of_packed(plan: Plan) -> Plan:
    """A plan over a compact module as one over the arrays in it."""
    keep = {
        path[1:]
        if path[:1] == ("packed",)
        else (path[0], *path[2:])
        if path[:2] == (0, "packed")
        else path: masks
        for path, masks in plan.keep.items()
    }
    return dataclasses.replace(plan, keep=keep)


def load(
    model: Any,
    plan: Any,
    state: Any = None,
    *,
    mean: Mean = "dense",
    rng: Mean = "dense",
) -> Any:
    """The compact module in a fresh process: the class is built, the plan is read.

    Args:
      model: the dense module, built as it was; its weights do not matter.
      plan: the file that `Plan.save` wrote.
      state: its `eqx.nn.State`, if it has one.
      mean: as it was given to `shrink`.
      rng: as it was given to `shrink`.

    Returns:
      What `shrink` returns, ready for `eqx.tree_deserialise_leaves`.
    """
    return shrink(model, plan_at(plan), state, mean=mean, rng=rng)


def as_function(model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One call of a module as a function of it, and the arguments of that."""
    rest = dict(kwargs)
    method = rest.pop("method", "__call__")
    call, state, *given = _split(method, args, rest)
    says = told(call, getattr(_dense(model), method, None), args, rest)
    return says, model if state is None else (model, state), *given


def _dense(model: Any) -> Any:
    """A module of the dense class: the packed arrays, or the module itself."""
    return model.packed if isinstance(model, CompactModule) else model


def with_state(model: Any, args: tuple, state: Any) -> tuple:
    """The arguments of a call with the state where the call names it, else last."""
    names = list(inspect.signature(_dense(model).__call__).parameters)
    place = names.index("state") if "state" in names else len(args)
    return (*args[:place], state, *args[place:])


def recalibration(model: Any, state: Any, **kwargs: Any) -> Recalibration:
    """How the statistics of the norms in a state are measured: vmapped over a batch.

    The norms are in training mode, the rest is not: dropout is off and needs no key.
    """
    norms = [x for x in jax.tree.leaves(model, is_leaf=_is_norm) if _is_norm(x)]
    require_statistics(state if norms else None, "`eqx.nn.BatchNorm`")
    names = {x.axis_name for x in norms}
    if len(names) > 1:
        raise value_error(f"the norms must share one `axis_name`, got {names}.")
    quiet = eqx.nn.inference_mode(model)
    training = jax.tree.map(_training, quiet, is_leaf=_is_norm)
    running = [norm for norm in norms if norm.mode == "ema"]

    def update(state: Any, batch: Any) -> Any:
        begun = _begun(running, state, True)

        def one(*args: Any) -> Any:
            out = training(*with_state(training, args, begun), **kwargs)
            return next(filter(_is_state, jax.tree.leaves(out, is_leaf=_is_state)))

        every = jax.vmap(one, axis_name=names.copy().pop(), out_axes=None)
        given = with_state(training, positional(batch), begun)
        with of_batch(_dense(training).__call__, given, kwargs):
            return _averaged(running, state, every(*positional(batch)))

    return Recalibration(
        update,
        _begun(running, state, False),
        lambda new: _undebiased(norms, new),
        frozenset(float(x.momentum) for x in norms),
    )


def _begun(norms: list[Any], state: Any, first: bool) -> Any:
    """A copy of the state; a norm in "ema" mode divides by a batch's own values first.

    Later it divides by its running values, even in training: what the next norm sees
    would depend on statistics that are not known yet.
    """
    state = jax.tree.map(lambda x: x, state)  # a state that is set is used up
    for norm in norms:
        state = state.set(norm.ema_first_time_index, jnp.array(first))
    return state


def _averaged(norms: list[Any], old: Any, new: Any) -> Any:
    """The state with m s + (1 - m) b where a norm in "ema" mode has left b itself."""
    for norm in norms:
        m, index = norm.momentum, norm.ema_state_index
        pairs = zip(old.get(index), new.get(index), strict=True)
        new = new.set(index, tuple(m * s + (1 - m) * b for s, b in pairs))
        new = new.set(norm.ema_first_time_index, jnp.array(False))
    return new


def _undebiased(norms: list[Any], state: Any) -> Any:
    """The means as a norm in "batch" mode stores them: times 1 - momentum^count."""
    for norm in norms:
        if norm.mode == "batch":
            count = state.get(norm.batch_counter)
            share = jnp.where(count == 0, 1, 1 - norm.momentum**count)
            stored = [x * share for x in state.get(norm.batch_state_index)]
            state = state.set(norm.batch_state_index, tuple(stored))
    return state


def _is_norm(x: Any) -> bool:
    return isinstance(x, eqx.nn.BatchNorm)


def _training(x: Any) -> Any:
    return eqx.nn.inference_mode(x, value=False) if _is_norm(x) else x


class CompactModule(eqx.Module):
    """The packed arrays of a dense module, called as it is.

    Attributes:
      packed: the arrays, under the names of the dense module; not to be called.
      setting: the plan and what removal means.
    """

    packed: Any
    setting: Setting = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the dense module's call."""
        return _call(self, "__call__", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("packed", "setting"):  # not set yet: while it is copied
            raise AttributeError(name)
        dense = type(self.packed)
        if name.startswith("_"):
            raise AttributeError(name)
        if not callable(getattr(dense, name, None)):
            return _plain(getattr(self.packed, name, None), dense, name)
        return eqx.Partial(_call, self, name)


def _plain(value: Any, dense: type, name: str) -> Any:
    """An attribute that computes nothing: a width, a configuration."""
    leaves = jax.tree.leaves(value, is_leaf=lambda x: isinstance(x, eqx.Module))
    if value is None or any(is_array(x) or callable(x) for x in leaves):
        raise AttributeError(
            f"a compact {dense.__name__} has no {name!r} of its own: its arrays are in "
            "`.packed`, of which only the whole may be called."
        )
    return value


def _call(small: CompactModule, method: str, *args: Any, **kwargs: Any) -> Any:
    """One call of the compact module."""
    call, state, args, kwargs = _split(method, args, kwargs)
    setting = small.setting
    params = small.packed if state is None else (small.packed, state)
    part = "" if method == "__call__" else method
    inner = () if part else None
    run = shrunk(call, setting.plan, setting.mean, setting.rng, inner, part)
    out, new = run(params, args, kwargs)
    if state is None:
        return out
    pairs, tree = jtu.tree_flatten_with_path(state)
    leaves = [new.get((1, *path_keys(path)), leaf) for path, leaf in pairs]
    return call.filled(out, jax.tree.unflatten(tree, leaves))


class _Place:
    """Where the state is in the arguments; a leaf that is no array."""


def _is_state(x: Any) -> bool:
    return isinstance(x, eqx.nn.State)


def _split(method: str, args: Any, kwargs: Any) -> tuple["_Call", Any, Any, Any]:
    """The call as a function, the state among the arguments, and the arguments."""
    leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=_is_state)
    states = [x for x in leaves if _is_state(x)]
    if len(states) > 1:
        raise value_error(
            f"a call takes one `eqx.nn.State`, got {len(states)}: pass that of the "
            "whole model."
        )
    leaves = [_Place() if _is_state(x) else x for x in leaves]
    args, kwargs = jax.tree.unflatten(tree, leaves)
    return _Call(method, bool(states)), states[0] if states else None, args, kwargs


_TRAINING = (
    f"{PREFIX}the module was called in training mode. Pass `key=`, or look at "
    "`eqx.nn.inference_mode(model)`."
)


class _Call:
    """One call as a function; a state in its result is taken out, its place kept."""

    def __init__(self, method: str, stateful: bool) -> None:
        self.method, self.stateful = method, stateful
        self.tree: Any = None
        self.places: list[bool] = []

    def __call__(self, params: Any, args: Any, kwargs: Any) -> Any:
        model, state = params if self.stateful else (params, None)
        old = dict(keyed_leaves(state))
        args, kwargs = jax.tree.map(
            lambda x: state if isinstance(x, _Place) else x, (args, kwargs)
        )
        try:
            out = getattr(model, self.method)(*args, **kwargs)
        except RuntimeError as error:
            if "requires a key" in str(error):
                error.add_note(_TRAINING)
            raise
        leaves, self.tree = jax.tree.flatten(out, is_leaf=_is_state)
        self.places = [_is_state(x) for x in leaves]
        new: dict[KeyTuple, Any] = {}
        for x in filter(_is_state, leaves):
            new |= {(1, *p): v for p, v in keyed_leaves(x) if v is not old[p]}
        rest = [None if _is_state(x) else x for x in leaves]
        return jax.tree.unflatten(self.tree, rest), new

    def statistics(self, path: KeyTuple) -> bool:
        """Whether a leaf lies in the state."""
        return self.stateful and path[0] == 1

    def filled(self, out: Any, state: Any) -> Any:
        """A result with a state where the last call had one."""
        rest = iter(jax.tree.leaves(out))
        leaves = [state if here else next(rest) for here in self.places]
        return jax.tree.unflatten(self.tree, leaves)


__dir__ = settled(globals())
