"""One file for a compact model: packed arrays in safetensors, the plan as its metadata.

Any reader of safetensors reads the arrays, by their paths joined with "/"; the plan
lies in the header under the key "jprune_plan".
"""

import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from jprune._archive import read_safetensors, write_safetensors
from jprune._errors import listing, value_error
from jprune._tree import KeyTuple, path_keys
from jprune._typing import PyTree
from jprune.surgery._plan import Plan

_KEY = "jprune_plan"


def save_packed(path: str | pathlib.Path, plan: Plan, packed: PyTree) -> None:
    """Writes packed parameters and their plan into one safetensors file.

    Args:
      path: the file.
      plan: the plan.
      packed: `plan.pack(params)`, or what training made of it. Random keys are written
        as their numbers; leaves that are no arrays are left out.

    Raises:
      ValueError: if a leaf has not the compact shape of the plan, or one is missing.

    Examples:
      ::

        surgery.save_packed("small.safetensors", plan, packed)
        plan, packed = surgery.load_packed("small.safetensors")
    """
    leaves = _leaves(packed)
    _check(plan, leaves, "`packed`")
    names = _names(plan)
    arrays = {names[p]: jax.device_get(_numbers(x)) for p, x in leaves.items()}
    write_safetensors(pathlib.Path(path), arrays, {_KEY: plan.to_json()})


def load_packed(
    path: str | pathlib.Path, like: PyTree | None = None
) -> tuple[Plan, PyTree]:
    """Reads what `save_packed` wrote.

    Args:
      path: the file.
      like: a tree of the packed parameters' structure (shapes are enough), which gives
        the result its containers; without it they are nested dicts.

    Returns:
      The plan and the packed parameters.

    Raises:
      ValueError: if the file is no such file, or does not fit `like`.
    """
    file = pathlib.Path(path)
    try:
        arrays = read_safetensors(file)
        plan = Plan.from_json(_metadata(file)[_KEY])
        found = {p: jnp.asarray(arrays[name]) for p, name in _names(plan).items()}
    except (KeyError, OSError, struct.error, ValueError) as error:
        raise value_error(
            f"`{path}` is not a file written by `surgery.save_packed`: {error!r}."
        ) from error
    if like is None:
        return plan, _nested(found)
    _check(plan, _leaves(like), "`like`")

    def leaf(path: Any, x: Any) -> Any:
        if not hasattr(x, "shape"):
            return x
        value = found[path_keys(path)]
        return jax.random.wrap_key_data(value) if _is_key(x) else value

    return plan, jtu.tree_map_with_path(leaf, like)


def _metadata(file: pathlib.Path) -> Mapping[str, str]:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        return json.loads(opened.read(length)).get("__metadata__", {})


def _leaves(tree: PyTree) -> dict[KeyTuple, Any]:
    pairs = jtu.tree_leaves_with_path(tree)
    return {path_keys(path): x for path, x in pairs if hasattr(x, "shape")}


def _names(plan: Plan) -> dict[KeyTuple, str]:
    names = {path: "/".join(map(str, path)) for path in plan.keep}
    if len(set(names.values())) < len(names):
        raise value_error("two leaves of the plan have one path text: rename a key.")
    return names


def _check(plan: Plan, leaves: Mapping[KeyTuple, Any], what: str) -> None:
    shapes = plan.compact_shapes
    text = {path: "/".join(map(str, path)) for path in {*shapes, *leaves}}
    wrong = [f"missing: {text[p]}" for p in shapes if p not in leaves]
    wrong += [f"not in the plan: {text[p]}" for p in leaves if p not in shapes]
    wrong += [
        f"{text[p]}: expected {shapes[p]}, got {tuple(x.shape)}"
        for p, x in leaves.items()
        if p in shapes and tuple(x.shape) != shapes[p]
    ]
    if wrong:
        raise value_error(
            f"{what} must have the compact shapes of the plan.{listing(wrong)}"
        )


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _numbers(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _nested(leaves: Mapping[KeyTuple, Any]) -> Any:
    out: dict[Any, Any] = {}
    for path, leaf in leaves.items():
        if not path:
            return leaf
        node = out
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return out
