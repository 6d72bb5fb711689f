"""What every framework shares: a model as a function that returns its new state.

A framework's model is written as `fn(params, *args) -> (out, new)`, where `new` maps
the paths of the leaves that the call changed (batch statistics, counters) to their new
values. `shrunk` and `found` turn such a function into surgery's terms: the new leaves
are outputs declared to be updated parameters, so they come back compact.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import jax

from jprune._errors import listing, short, type_error, value_error
from jprune._tree import KeyTuple, keyed_leaves, keys_text
from jprune.frameworks._inner import inner_width
from jprune.surgery import Groups, Plan, groups, load_plan, shrink
from jprune.surgery._arguments import explained
from jprune.surgery._callable import STATE_OUTPUTS, STATISTICS
from jprune.surgery._plan import require_plan

Stateful = Callable[..., tuple[Any, Mapping[KeyTuple, Any]]]
Mean = Literal["dense", "compact"]


def _is_state(path: KeyTuple) -> bool:
    return path[:1] == ("state",)


def tied(fn: Stateful) -> Callable[..., dict[str, Any]]:
    """The function with its state as a nested dict under the paths of the parameters.

    A path is the whole key tuple of its leaf, so that the longest match is itself.
    """

    def call(params: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        known = {path for path, _ in keyed_leaves(params)}
        out, new = fn(params, *args, **kwargs)
        strange = ["/".join(map(str, p)) for p in new if p not in known]
        if strange:
            raise value_error(
                "the call creates variables that the model did not have when its "
                "groups were found. Create them first (one call of the dense model), "
                f"or do not store them:{listing(strange)}"
            )
        return {"out": out, "state": nested(new)}

    setattr(call, STATE_OUTPUTS, _is_state)
    setattr(call, STATISTICS, getattr(fn, "statistics", None))
    return call


def nested(leaves: Mapping[KeyTuple, Any]) -> dict[Any, Any]:
    """The nested dict that has these leaves at these paths."""
    out: dict[Any, Any] = {}
    for path, leaf in leaves.items():
        node = out
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return out


def found(
    fn: Stateful,
    free_outputs: Any = (),
    within: KeyTuple = (),
    lookups: Sequence[str | Sequence[str]] = (),
) -> Callable[..., Groups]:
    """`surgery.groups` of a model.

    Args:
      fn: the model as a function.
      free_outputs: as the user of the model names them.
      within: where the user's result lies in the first result of `fn`.
      lookups: as in `surgery.groups`.
    """
    at = ("out", *within)

    def free(path: KeyTuple) -> bool:
        if callable(free_outputs):
            return path[: len(at)] == at and bool(free_outputs(path[len(at) :]))
        return any(path[: len(at) + len(p)] == (*at, *p) for p in free_outputs)

    analyzed = groups(
        tied(fn), state_outputs=_is_state, free_outputs=free, lookups=lookups
    )

    def deps(*args: Any) -> Groups:
        result = analyzed(*args)
        # The paths of the state are those of `tied`; a plan used on a function of the
        # user's own looks for them there.
        result.program = dataclasses.replace(result.program, declared=False)
        return result

    return deps


def shrunk(
    fn: Stateful,
    plan: Plan,
    mean: Mean,
    rng: Mean,
    inner: KeyTuple | None = None,
    method: str = "",
) -> Stateful:
    """`surgery.shrink` of a model: the same function at the compact shapes.

    Args:
      fn: the model as a function.
      plan: the plan.
      mean: as in `surgery.shrink`.
      rng: as in `surgery.shrink`.
      inner: where in the first result of `fn` widths from inside the model may come
        back, as many as are left; None: nowhere else than the plan says.
      method: the name of what is called, if it is a part of the model.
    """
    at = None if inner is None else ("out", *inner)

    def free(path: KeyTuple) -> bool:
        within = any(path[: len(p)] == p for p in plan.free)
        return within or (at is not None and path[: len(at)] == at)

    small = shrink(
        tied(fn),
        plan,
        mean=mean,
        rng=rng,
        state_outputs=_is_state,
        free_outputs=free,
    )

    shapes = plan.compact_shapes

    def compact(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        _require_shapes(shapes, params)
        try:
            result = small(params, *args, **kwargs)
        except Exception as error:
            given = (tied(fn), params, args, kwargs)
            if method and (why := inner_width(error, method, plan, *given)):
                raise why from error
            raise
        return result["out"], dict(keyed_leaves(result["state"]))

    return compact


def _require_shapes(shapes: Mapping[KeyTuple, Any], params: Any) -> None:
    """Raises where a leaf of a compact model is not what its plan leaves of it."""
    lines = [
        f"{keys_text(path)}: the plan leaves {shapes[path]}, got {tuple(x.shape)}"
        for path, x in keyed_leaves(params)
        if path in shapes and hasattr(x, "shape") and tuple(x.shape) != shapes[path]
    ]
    if lines:
        raise value_error(
            "a compact model computes with the shapes that its plan leaves: pass "
            "`plan.pack` of the dense arrays. To replace a layer, do it in the dense "
            "model before the cut, or put the new one on top of a method that returns "
            f"features.{listing(lines)}"
        )


class Recalibration(NamedTuple):
    """How the batch statistics of a model are measured, for `compress.recalibrate`.

    Attributes:
      update: `update(stats, batch)`, one call in training mode.
      stats: the present statistics.
      put: new statistics into what holds them, which it returns.
      momenta: those of the model's norm layers, where they can be read.
    """

    update: Callable[[Any, Any], Any]
    stats: Any
    put: Callable[[Any], Any]
    momenta: frozenset[float] = frozenset()


def told(
    fn: Stateful, call: Callable[..., Any] | None, args: Any, kwargs: dict[str, Any]
) -> Stateful:
    """A model as a function, whose errors say what its call takes and was given.

    Args:
      fn: the model as a function.
      call: what it calls, for the signature.
      args: the arguments as the caller wrote them.
      kwargs: the keyword arguments.
    """

    def says(*given: Any, **named: Any) -> Any:
        with explained(call, tuple(args), kwargs):
            return fn(*given, **named)

    setattr(says, "statistics", getattr(fn, "statistics", None))  # noqa: B010
    return says


def positional(batch: Any) -> tuple[Any, ...]:
    """The arguments of a call: a batch, or a tuple of them."""
    return batch if isinstance(batch, tuple) else (batch,)


@contextmanager
def of_batch(
    call: Callable[..., Any] | None, batch: Any, kwargs: dict[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """The arguments of a model's call on a batch; errors in the block say which.

    Args:
      call: what is called, for the signature.
      batch: as `positional` takes it.
      kwargs: the keyword arguments of the call.
    """
    args = positional(batch)
    with explained(call, args, kwargs, _OF_BATCH):
        yield args


_OF_BATCH = (
    "A batch is the argument of the model's call, or a tuple of its arguments: labels "
    "do not belong to it (`[x for x, y in batches]`)."
)


def require_statistics(stats: Any, where: str) -> None:
    """Raises if there are none.

    Args:
      stats: what was found.
      where: what was looked for, a noun.

    Raises:
      ValueError: without a leaf.
    """
    if not jax.tree.leaves(stats):
        raise value_error(f"the model has no batch statistics: no {where}.")


class Setting:
    """How a compact model was made. Two are equal when they were made alike.

    A model that was copied, unpickled or loaded has then the tree structure of the one
    that it came from, and is no new program to `jit`.

    Attributes:
      plan: the plan.
      mean: as in `surgery.shrink`.
      rng: as in `surgery.shrink`.
      model: the dense model, in frameworks whose models do not hold their parameters.
    """

    def __init__(self, plan: Plan, mean: Mean, rng: Mean, model: Any = None) -> None:
        self.plan, self.model = plan, model
        self.mean: Mean = mean
        self.rng: Mean = rng

    @functools.cached_property
    def _text(self) -> tuple[str, ...]:
        return self.plan.to_json(), self.mean, self.rng

    def __eq__(self, other: Any) -> bool:
        """Whether plan, meaning and dense model are the same."""
        if self is other or type(self) is not type(other):
            return self is other
        return self._text == other._text and self.model == other.model

    def __hash__(self) -> int:
        """Equal for equal ones."""
        return hash(self._text)


def joined(first: Setting, plan: Plan, mean: Mean, rng: Mean) -> Plan:
    """The plan from the dense model to what a second cut leaves.

    Args:
      first: how the compact model was made.
      plan: a plan over its packed leaves.
      mean: what the second cut was asked with.
      rng: the same.

    Raises:
      ValueError: if removal meant something else at the first cut.
    """
    for name, had, got in (("mean", first.mean, mean), ("rng", first.rng, rng)):
        if had != got:
            raise value_error(
                f"`{name}` must be {had!r}, as it was when `model` was first shrunk, "
                f"got {got!r}: all that is removed has one meaning."
            )
    return first.plan.then(plan)


def copied(tree: Any) -> Any:
    """The tree with arrays of its own: a step that donates one keeps the other."""
    return jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, tree)


def plan_at(path: Any) -> Plan:
    """The plan in a file; a plan itself passes."""
    if isinstance(path, Plan):
        return path
    if not isinstance(path, str | os.PathLike):
        raise type_error(
            "`plan` must be the file that `Plan.save` wrote, or a plan, got "
            f"{short(path)}: the model comes first, `load(model, plan)`."
        )
    return load_plan(pathlib.Path(path))


def require_paths(plan: Plan, paths: Mapping[KeyTuple, Any], advice: str) -> None:
    """Raises unless a plan is for the leaves of a model.

    Args:
      plan: the plan.
      paths: path to leaf of the model, dense.
      advice: what to do, a sentence.

    Raises:
      TypeError: if `plan` is not a plan.
      ValueError: naming the leaves that only one of the two has, or another shape.
    """
    require_plan(plan)
    shapes = plan.dense_shapes
    lines = [f"not in the plan: {_text(p)}" for p in paths if p not in shapes]
    lines += [f"not in the model: {_text(p)}" for p in shapes if p not in paths]
    lines += [
        f"{_text(p)}: the plan is for {shapes[p]}, got {tuple(x.shape)}"
        for p, x in paths.items()
        if p in shapes and tuple(x.shape) != shapes[p]
    ]
    if lines:
        raise value_error(
            f"`plan` was not made for this model. {advice}{listing(lines)}"
        )


def _text(path: KeyTuple) -> str:
    return "/".join(map(str, path))
