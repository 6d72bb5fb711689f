"""Packing an optimizer state with the plan of its parameters.

An Optax state is a tree in which some sub-trees are copies of the parameters' tree
(moments, averages), possibly with holes (`optax.MaskedNode`) where a wrapper left
leaves to another optimizer. Such a copy is recognized by its leaves: the paths from
some node of the state down are paths of the parameters. Scalars pass, and so do whole
numbers that lie at no parameter's path: counters, PRNG keys, where a search for a
threshold begins.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from jprune._dtypes import owned
from jprune._errors import listing, value_error
from jprune._tree import KeyTuple, keys_text, path_keys, prefix_of
from jprune._typing import PyTree
from jprune.surgery._plan import Plan, pack_leaf


def pack_state(
    plan: Plan, opt_state: PyTree, params: PyTree, at: Any, rule: Any, tx: Any = None
) -> PyTree:
    """See `Plan.pack_state`."""
    prefix = prefix_of(at)
    shapes = {
        path_keys(path): tuple(leaf.shape)
        for path, leaf in jtu.tree_leaves_with_path(params)
        if hasattr(leaf, "shape")
    }
    strange = [path for path in shapes if (*prefix, *path) not in plan.keep]
    if strange:
        raise value_error(
            "`params` has leaves that the plan does not know; if it is a sub-tree of "
            "what the groups were found on, say where with `at` (`at='params'`):"
            + listing([keys_text(path) for path in strange])
        )
    fresh = _fresh_shapes(plan, params, at, tx)
    wrong: list[str] = []

    def other(keys: KeyTuple, x: Any, masks: Any, why: str) -> Any:
        """A leaf that is no copy of a parameter."""
        packed = rule(keys, x, masks) if rule else None
        if packed is not None:
            return packed
        known = fresh.get(keys) == tuple(x.shape)
        if not known and (masks is not None or jnp.issubdtype(x.dtype, jnp.inexact)):
            wrong.append(f"{keys_text(keys)} {tuple(x.shape)}: {why}")
        return owned(x)

    def leaf(path: Any, x: Any) -> Any:
        keys = path_keys(path)
        shape = tuple(getattr(x, "shape", ()))
        if shape == ():
            return owned(x)
        fits = [p for p in shapes if p == keys[len(keys) - len(p) :]]
        if not fits:
            return other(keys, x, None, "belongs to no parameter")
        found: KeyTuple = max(fits, key=len)
        masks = plan.keep[(*prefix, *found)]
        if shapes[found] != shape:
            return other(keys, x, masks, f"the parameter has {shapes[found]}")
        if tuple(m.size for m in masks) != shape:
            wrong.append(
                f"{keys_text(keys)} {shape}: the plan has {[m.size for m in masks]}"
            )
            return x
        return pack_leaf(x, masks)

    out = jtu.tree_map_with_path(leaf, opt_state)
    if wrong:
        advice = _another(opt_state, shapes) or f"{_NO_COPIES}{listing(wrong)}"
        raise value_error(advice)
    return jtu.tree_map(
        lambda x: x.repacked() if _counts_itself(x) else x, out, is_leaf=_counts_itself
    )


_NO_COPIES = (
    "`opt_state` has leaves that are not copies of parameters, such as the factored "
    "moments of Adafactor; they cannot be sliced. Give a `rule` for these leaves, "
    "`tx=` if they do not depend on the widths, or start afresh with "
    "`tx.init(plan.pack(params))`."
)


def _another(opt_state: PyTree, shapes: dict[KeyTuple, Any]) -> str:
    """What to give, where a state of all training or of a part of `params` came."""
    if hasattr(opt_state, "opt_state"):
        return (
            "`opt_state` must be the state of an optimizer, got "
            f"{type(opt_state).__name__}: give its `.opt_state`."
        )
    leaves = [path_keys(p) for p, _ in jtu.tree_leaves_with_path(opt_state)]
    ends = {key[i:] for key in leaves for i in range(len(key))}
    for part in dict.fromkeys(path[0] for path in shapes if len(path) > 1):
        own = [path for path in shapes if path[0] == part]
        if ends.isdisjoint(shapes) and all(path[1:] in ends for path in own):
            return (
                "`params` must be those that the optimizer trains, got a tree of which "
                f"it trains {part!r} alone: give that part, with `at={part!r}`."
            )
    return ""


def _fresh_shapes(plan: Plan, params: PyTree, at: Any, tx: Any) -> dict[KeyTuple, Any]:
    """The shapes of a state that is made for the compact parameters, by path."""
    if tx is None:
        return {}
    state = jax.eval_shape(lambda p: tx.init(plan.pack(p, at)), params)
    return {path_keys(p): tuple(x.shape) for p, x in jtu.tree_leaves_with_path(state)}


def _counts_itself(x: Any) -> bool:
    """Whether a state holds figures of its own masks, which `repacked` takes anew."""
    return hasattr(x, "repacked")
