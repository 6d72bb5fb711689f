"""Constants that removed channels leave behind go into the next bias.

A channel whose batch norm has scale 0 still outputs a constant, `relu(beta)` say, and
the next layer reads it: removing the channel changes the network by

    delta = sum over removed channels c of  K[..., c, :] * constant_c ,

the same vector at every position and for every example. Adding `delta` to the layer's
bias, or subtracting it from the running mean of the batch norm that follows, makes the
removal change nothing:

    BN(y + delta; mean) = BN(y; mean - delta)        (eval mode).

Where zero padding cuts a kernel off at the border, fewer taps see the constant there,
so `delta` depends on the position and no bias can stand for it. This is measured, not
assumed: `delta` is computed for the arguments given, and if it varies the removal is
refused with the reason. So is a channel that is not constant at all.

References:
  Ye et al., Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning,
  ICLR 2018, section 4 (constants of batch norm absorbed into the next layer).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import surgery
from jprune._dtypes import owned
from jprune._errors import listing, value_error
from jprune._jaxpr._trace import flatten_call, jitted_call
from jprune._tree import KeyTuple, keys_text, path_keys
from jprune._typing import PyTree
from jprune.compress._difference import (
    relative_difference,
    require_examples,
    require_shown,
)
from jprune.compress._sites import Origin, Reading, Sink, Walk
from jprune.surgery._callable import traced


def fold_constants(
    apply: Callable[..., Any],
    plan: Any,
    variables: PyTree,
    *args: Any,
    tolerance: float | None = None,
) -> PyTree:
    """Variables in which biases and running means hold what removed channels output.

    Args:
      apply: `apply(variables, *args)`, in eval mode.
      plan: what will be removed; the channels must be constant under `variables` (a
        batch norm scale of 0, or a kernel of zeros with a bias).
      variables: the dense variables.
      *args: arguments to measure the constants on: a few real examples, two or more
        that differ, since one cannot show what varies.
      tolerance: how far a constant may vary, and the outputs may differ, relative to
        the largest value beside it. Default: `64 * eps ** 0.75` of the output's dtype,
        4e-4 in float32.

    Returns:
      Dense variables `folded` for which `surgery.shrink(apply, plan)` on
      `plan.pack(folded)` gives what `apply(variables, *args)` gives. This is checked on
      the arguments.

    Raises:
      ValueError: if the examples show nothing (one, equal ones, outputs of NaN or 0),
        a removed channel varies with the input, a constant depends on the position
        (zero padding), no bias or running mean follows, or the result differs. Every
        layer concerned is named with its reason.

    Examples:
      >>> import jax.numpy as jnp
      >>> def net(p, x):
      ...     return jax.nn.relu(x @ p["a"] + p["b"][None]) @ p["c"] + p["d"][None]
      >>> params = {"a": jnp.array([[1.0, 0.0]]), "b": jnp.array([0.0, 2.0]),
      ...           "c": jnp.array([[1.0], [3.0]]), "d": jnp.array([0.5])}
      >>> x = jnp.array([[1.0], [2.0], [-1.0]])
      >>> deps = surgery.groups(net)(params, x)
      >>> plan = surgery.plan_from_keep(deps, {deps[0].id: [True, False]})
      >>> fold_constants(net, plan, params, x)["d"]
      Array([6.5], dtype=float32)
    """
    require_examples("fold_constants", args)
    expected = jitted_call(apply, variables, args)
    require_shown("fold_constants", expected)
    names, readings, sinks = _measure(apply, plan, variables, args)
    limit = _tolerance(readings, tolerance)
    changes = _changes(names, readings, sinks, limit)
    folded = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf + changes.get(path_keys(path), 0)
            if path_keys(path) in changes
            else leaf
        ),
        variables,
    )
    small = surgery.shrink(apply, plan)
    found = jitted_call(small, plan.pack(folded), args)
    error = relative_difference(found, expected)
    if not error <= limit:
        raise value_error(
            f"After folding, the outputs differ by {error:.1e} (`tolerance` "
            f"{limit:.1e}): removed channels reach them by a way that no bias can "
            "absorb (a sum over channels, a loop, a product of two activations). Keep "
            "those groups, or fine-tune after removal instead."
        )
    return owned(folded, variables)


def _measure(
    apply: Callable, plan: Any, variables: PyTree, args: tuple
) -> tuple[list[KeyTuple], list[Reading], dict[int, Sink]]:
    """Runs the program once and reads what the removed rows contribute."""
    program = traced(apply, variables, args)
    flat = flatten_call(variables, args, {})
    tags: list[Any] = [None] * len(flat.arrays)
    for index, path in enumerate(program.params):
        ndim = np.ndim(flat.arrays[index])
        tags[index] = Origin(path, tuple(range(ndim)), ndim)
    walks: list[Walk] = []

    def collect(arrays: list[Any]) -> list[Reading]:
        walk = Walk(lambda path, axis: _removed(plan, path, axis))
        walk.close(walk.run(program.jaxpr, list(zip(arrays, tags, strict=True))))
        walks.append(walk)
        return walk.readings

    readings = jax.device_get(jax.jit(collect)(flat.arrays))
    return walks[0].sites, readings, walks[0].sinks


def _removed(plan: Any, path: KeyTuple, axis: int) -> np.ndarray | None:
    keep = plan.keep.get(path)
    mask = None if keep is None else keep[axis]
    return None if mask is None else ~np.asarray(mask)


def _tolerance(readings: list[Reading], given: float | None) -> float:
    if given is not None:
        return given
    widest = max((r.constant.dtype for r in readings), default=jnp.dtype("float32"))
    return float(64 * jnp.finfo(widest).eps ** 0.75)


def _changes(
    names: list[KeyTuple], readings: list[Reading], sinks: dict[int, Sink], limit: float
) -> dict[KeyTuple, np.ndarray]:
    """What to add to each parameter; raises for the sites that cannot be folded."""
    changes: dict[KeyTuple, np.ndarray] = {}
    refused = []
    for site, (path, reading) in enumerate(zip(names, readings, strict=True)):
        bound = limit * max(float(reading.scale), 1e-30)
        silent = np.abs(reading.constant).max() <= bound and reading.spread <= bound
        if silent and reading.varies > bound:
            continue
        sink = sinks.get(site, Sink(None, why="no bias or running mean follows"))
        why = _reason(reading, sink, bound)
        if why:
            refused.append(f"{keys_text(path)}: {why}")
        elif sink.path is not None:
            delta = sink.sign * np.transpose(reading.constant, np.argsort(sink.dims))
            shape = [1] * sink.ndim
            for axis, size in zip(sorted(sink.dims), delta.shape, strict=True):
                shape[axis] = size
            changes[sink.path] = changes.get(sink.path, 0) + delta.reshape(shape)
    if refused:
        raise value_error(
            "The constants of removed channels cannot be folded where these layers "
            f"read them:{listing(refused)}\nKeep the channels, or accept the change "
            "and fine-tune."
        )
    return changes


def _reason(reading: Reading, sink: Sink, bound: float) -> str:
    if not float(reading.varies) > bound:
        return (
            "the examples are alike here: what the layer reads of the kept channels "
            "does not vary, which shows of no channel that it is constant. Pass other "
            "or more `args`"
        )
    if not float(reading.unsteady) <= bound:
        return "the removed channels vary with the input, they are not constant"
    if not float(reading.spread) <= bound:
        return (
            "their constant depends on the position (zero padding hides it from some "
            "taps at the border)"
        )
    return sink.why
