"""Haiku: a pair `init`, `apply` over packed parameters, as `hk.transform` returns.

Five lines from trained parameters to a smaller model that trains on:

>>> import haiku as hk, jax, jax.numpy as jnp
>>> from jprune import surgery
>>> from jprune.frameworks import haiku as jhk
>>> model = hk.transform(lambda x: hk.nets.MLP([32, 4])(x))
>>> x = jnp.ones((2, 8))
>>> params = model.init(jax.random.key(0), x)
>>> deps = jhk.groups(model, params, None, x)
>>> plan = surgery.select(deps, deps.scores(params), sparsity=0.5)
>>> small, packed = jhk.shrink(model, plan), plan.pack(params)
>>> packed["mlp/~/linear_0"]["w"].shape, small.apply(packed, None, x).shape
((8, 16), (2, 4))
>>> grads = jax.jit(jax.grad(lambda p: small.apply(p, None, x).sum()))(packed)

With `hk.transform_with_state` the plan is over the pair, and the groups are found on
the training call, since evaluation does not read all averages::

    deps = jhk.groups(model, params, state, rng, x, is_training=True)
    plan = surgery.select(deps, deps.scores((params, state)), sparsity=0.5)
    small = jhk.shrink(model, plan)
    packed, packed_state = plan.pack((params, state))
    y, packed_state = small.apply(packed, packed_state, rng, x, is_training=True)

Without `jax.jit` each call is traced anew. Save `packed` as any dict of arrays; in
another process `jhk.load(model, "plan.json")` gives the pair again, and `small.init`
the tree to restore into.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import haiku as hk
import jax

from jprune._errors import short, type_error, value_error
from jprune._public import settled
from jprune._tree import KeyTuple, keyed_leaves
from jprune.frameworks._state import (
    Mean,
    Recalibration,
    found,
    nested,
    of_batch,
    plan_at,
    positional,
    require_statistics,
    shrunk,
    told,
)
from jprune.surgery import Groups, Plan
from jprune.surgery._callable import looked_at
from jprune.surgery._plan import require_plan

__all__ = ("groups", "load", "shrink")

T = TypeVar(
    "T",
    hk.Transformed,
    hk.TransformedWithState,
    hk.MultiTransformed,
    hk.MultiTransformedWithState,
)

_STATEFUL = (hk.TransformedWithState, hk.MultiTransformedWithState)
_KINDS = (hk.Transformed, hk.MultiTransformed, *_STATEFUL)


def groups(
    model: Any,
    params: Any,
    *args: Any,
    free_outputs: Callable[[KeyTuple], bool] | Sequence[KeyTuple] = (),
    lookups: Sequence[str | Sequence[str]] = (),
    **kwargs: Any,
) -> Groups:
    """What may be removed from a transformed function, found on one `apply` of it.

    Args:
      model: what `hk.transform` or `hk.transform_with_state` returned.
      params: its parameters; shapes are enough.
      *args: the other arguments of `apply`: the state if there is one, the key, the
        inputs.
      free_outputs: as in `surgery.groups`.
      lookups: as in `surgery.groups`.
      **kwargs: its keyword arguments.

    Returns:
      The groups, over the paths of `params`, or of `(params, state)`.

    Raises:
      TypeError: if `model` is not a single transformed function.
    """
    if not isinstance(model, hk.Transformed | hk.TransformedWithState):
        raise type_error(
            "`model` must be what `hk.transform` or `hk.transform_with_state` returns, "
            f"got {type(model).__name__}."
        )
    fn, *given = as_function(model, (params, *args), kwargs)
    with looked_at("haiku"):
        return found(fn, free_outputs, (), lookups)(*given)


def shrink(model: T, plan: Plan, *, mean: Mean = "dense", rng: Mean = "dense") -> T:
    """The compact pair `init`, `apply` of a transformed function and a plan.

    Args:
      model: what `hk.transform`, `hk.transform_with_state`, `hk.multi_transform` or
        `hk.multi_transform_with_state` returned, also after `hk.without_apply_rng`.
      plan: a plan over `params`, or over `(params, state)`.
      mean: as in `surgery.shrink`.
      rng: as in `surgery.shrink`.

    Returns:
      The same kind of pair: `init` gives packed parameters (and state), `apply` takes
      them.

    Raises:
      TypeError: if `model` or `plan` is something else.
      ValueError: if the plan is not over a pair and the model has state.

    Examples:
      ::

        small, packed = jhk.shrink(model, plan), plan.pack(params)
        y = jax.jit(small.apply)(packed, key, x)
    """
    if not isinstance(model, _KINDS):
        raise type_error(
            f"`model` must be what `hk.transform` returns, got {type(model).__name__}."
        )
    require_plan(plan)
    stateful = isinstance(model, _STATEFUL)
    if stateful and not {path[0] for path in plan.keep} <= {0, 1}:
        raise value_error(
            "`plan` must be over the pair `(params, state)` for a model with state: "
            "find the groups with `jprune.frameworks.haiku.groups(model, params, "
            "state, key, *inputs)`."
        )
    make = _compact_stateful if stateful else _compact_stateless
    several = isinstance(model, hk.MultiTransformed | hk.MultiTransformedWithState)
    part = ((), "apply") if several else ()

    def init(*args: Any, **kwargs: Any) -> Any:
        return plan.pack(model.init(*args, **kwargs))

    apply = jax.tree.map(lambda fn: make(fn, plan, mean, rng, *part), model.apply)
    for fn in (init, *jax.tree.leaves(apply)):
        fn._original_fn = _no_original  # Haiku's tables run it: at the dense widths
    return type(model)(init, apply)


def _no_original(*_: Any, **__: Any) -> Any:
    raise value_error(
        "a compact pair is no Haiku function any more, so that tables cannot list its "
        "modules: print `plan.table()`, and call `small.apply(packed, ...)`."
    )


def load(model: T, plan: Any, *, mean: Mean = "dense", rng: Mean = "dense") -> T:
    """The compact pair in a fresh process: the model is built, the plan is read.

    Args:
      model: the transformed function, built as it was.
      plan: the file that `Plan.save` wrote.
      mean: as it was given to `shrink`.
      rng: as it was given to `shrink`.

    Returns:
      What `shrink` returns.
    """
    return shrink(model, plan_at(plan), mean=mean, rng=rng)


def as_function(model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One `apply` as a function of parameters (and state), and the arguments of it."""
    if not isinstance(model, _STATEFUL):
        params, *rest = args
        fn = told(_stateless(model.apply), model.apply, args, kwargs)
        return fn, params, rest, kwargs
    if len(args) < 2:
        raise type_error(
            "a function of Haiku with state is followed by its `params`, its `state` "
            f"and the inputs, got {', '.join(map(short, args)) or 'nothing'}."
        )
    params, state, *rest = args
    fn = told(_stateful(model.apply), model.apply, args, kwargs)
    return fn, (params, state), rest, kwargs


def recalibration(
    model: Any, pair: Any, rng: Any = None, **kwargs: Any
) -> Recalibration:
    """How the state beside parameters is measured: the averages of the norms."""
    if not isinstance(model, hk.TransformedWithState) or not isinstance(pair, tuple):
        raise type_error(
            "`recalibrate` takes a model with state and the pair of its trees, "
            f"`recalibrate(model, (params, state), batches)`; got "
            f"{type(model).__name__} and {type(pair).__name__}."
        )
    params, state = pair
    require_statistics(state, "state")
    key = (rng,) if "rng" in inspect.signature(model.apply).parameters else ()

    def update(state: Any, batch: Any) -> Any:
        given = (params, state, *key, *positional(batch))
        with of_batch(model.apply, given, kwargs):
            return model.apply(*given, **kwargs)[1]

    return Recalibration(update, state, lambda new: (params, new))


def _stateless(apply: Any) -> Any:
    """An `apply` without state as a function that returns no new leaves."""
    return lambda params, args, kwargs: (apply(params, *args, **kwargs), {})


def _stateful(apply: Any) -> Any:
    """An `apply` with state as a function that returns the leaves it changed."""

    def call(pair: Any, args: Any, kwargs: Any) -> Any:
        params, state = pair
        out, after = apply(params, state, *args, **kwargs)
        old = dict(keyed_leaves(state))
        new = {(1, *p): x for p, x in keyed_leaves(after) if x is not old.get(p)}
        return out, new

    return call


def _compact_stateless(apply: Any, *how: Any) -> Any:
    small = shrunk(_stateless(apply), *how)

    @functools.wraps(apply)
    def compact(params: Any, *args: Any, **kwargs: Any) -> Any:
        return small(params, args, kwargs)[0]

    return compact


def _compact_stateful(apply: Any, *how: Any) -> Any:
    small = shrunk(_stateful(apply), *how)

    @functools.wraps(apply)
    def compact(params: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        out, new = small((params, state), args, kwargs)
        leaves = {p: new.get((1, *p), x) for p, x in keyed_leaves(state)}
        return out, nested(leaves)

    return compact


__dir__ = settled(globals())
