"""One file for a compact model: packed arrays in safetensors, the plan as its metadata.

Any reader of safetensors reads the arrays, by their paths joined with "/"; the plan
lies in the header under the key "jprune_plan".
"""

import collections
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from jprune._archive import SafeFile, write_safetensors
from jprune._errors import listing, value_error
from jprune._tree import KeyTuple, path_keys
from jprune._typing import PyTree
from jprune.surgery._plan import Plan, pack_leaf

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
    arrays = {names[p]: jax.device_get(numbers(x)) for p, x in leaves.items()}
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
        arrays = SafeFile(file)
        plan = Plan.from_json(arrays.metadata[_KEY])
        names = _names_in(arrays, plan)
        found = {p: jnp.asarray(arrays[name]) for p, name in names.items()}
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
        return key_like(value, x)

    return plan, jtu.tree_map_with_path(leaf, like)


def pack_file(
    plan: Plan,
    source: str | pathlib.Path | Sequence[str | pathlib.Path] | Mapping[str, Any],
    target: str | pathlib.Path,
) -> None:
    """Packs a checkpoint larger than memory, leaf by leaf, into one safetensors file.

    One leaf, and what is kept of it, are in memory at a time. The result holds the plan
    as `save_packed` writes it, so `load_packed` and any reader of safetensors read it.

    Args:
      plan: the plan. It may come from shapes alone (`jax.ShapeDtypeStruct`).
      source: a safetensors file, or several of one checkpoint, or a mapping from names
        to arrays that reads each when it is asked for (any other format). A leaf's name
        is the keys of its path joined with "/" or with "."; the result has the same
        names.
      target: the file to write; it is replaced when all is written.

    Raises:
      ValueError: if a leaf of the plan is missing or has another shape, or the source
        holds others.

    Examples:
      ::

        deps = surgery.groups(apply)(shapes, ids)  # nothing is allocated
        plan = surgery.select(deps, scores, params=0.5)
        surgery.pack_file(plan, "model.safetensors", "small.safetensors")
    """
    given = source if isinstance(source, Mapping) else _opened(source)
    names = {name: path for path, name in _names_in(given, plan).items()}
    other = [name for name in given if name not in names]
    if other:
        raise value_error(
            f"`source` holds arrays that the plan has not: pass a mapping without them."
            f"{listing(other)}"
        )
    text = {_KEY: plan.to_json()}
    write_safetensors(pathlib.Path(target), _Packed(plan, given, names), text)


class _Packed(Mapping[str, Any]):
    """The packed leaves of a mapping, each made when it is asked for."""

    def __init__(
        self, plan: Plan, source: Mapping[str, Any], names: Mapping[str, KeyTuple]
    ) -> None:
        self.plan, self.source, self.names = plan, source, names
        self.shapes = plan.dense_shapes

    def __getitem__(self, name: str) -> Any:
        path, leaf = self.names[name], self.source[name]
        if tuple(leaf.shape) != self.shapes[path]:
            raise value_error(
                f"`source` at {name} must have the shape {self.shapes[path]} that the "
                f"plan was made for, got {tuple(leaf.shape)}."
            )
        return pack_leaf(leaf, self.plan.keep[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _opened(source: Any) -> Mapping[str, Any]:
    """The arrays of one file or several."""
    files = [source] if isinstance(source, str | pathlib.Path) else source
    parts: list[Mapping[str, Any]] = []
    for file in files:
        try:
            parts.append(SafeFile(pathlib.Path(file)))
        except (OSError, struct.error, ValueError) as error:
            raise value_error(
                f"`source` {file} is not a safetensors file: {error!r}."
            ) from error
    return collections.ChainMap(*parts)  # type: ignore[arg-type]


def _names_in(arrays: Mapping[str, Any], plan: Plan) -> dict[KeyTuple, str]:
    """The name of each leaf of the plan in a file: its keys joined with "/" or "."."""
    names = _names(plan)
    dotted = {path: ".".join(map(str, path)) for path in plan.keep}
    if len(set(dotted.values())) == len(dotted) and set(dotted.values()) <= {*arrays}:
        return dotted
    missing = [name for name in names.values() if name not in arrays]
    if missing:
        raise value_error(f"leaves of the plan are missing.{listing(missing)}")
    return names


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


def numbers(x: Any) -> Any:
    """What a file holds of a leaf: of a random key its data."""
    if not _is_key(x):
        return x
    data = jax.random.key_data
    return data(x) if isinstance(x, jax.Array) else jax.eval_shape(data, x)


def key_like(value: Any, x: Any) -> Any:
    """The inverse of `numbers`, for a leaf `x` that had been there."""
    if not _is_key(x):
        return value
    impl = jax.random.key_impl(x) if isinstance(x, jax.Array) else None
    return jax.random.wrap_key_data(value, impl=impl)


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
