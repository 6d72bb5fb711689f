"""From a function of pytrees to a jaxpr that knows which input is which parameter.

`trace(fn)(params, *args, **kwargs)` is `jax.make_jaxpr` with three additions: leaves
that are not arrays (flags, strings, functions of an Equinox module) stay Python values,
the inputs that come from the first argument carry their key paths, and dead code is
dropped.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.tree_util as jtu

from jprune._jaxpr import _compat
from jprune._jaxpr._writes import joined_writes
from jprune._tree import KeyTuple, path_keys
from jprune._typing import PyTree


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function as a jaxpr, with the key paths of its inputs and outputs.

    Attributes:
      jaxpr: the closed jaxpr, dead code removed. Its inputs are the array leaves of the
        first argument, then those of the others.
      params: key path of each array leaf of the first argument.
      outputs: key path of each output leaf.
      out_tree: the tree structure of the output.
      others: key path of each other array input, see `Flat`.
    """

    jaxpr: _compat.ClosedJaxpr
    params: tuple[KeyTuple, ...]
    outputs: tuple[KeyTuple, ...]
    out_tree: Any
    others: tuple[KeyTuple, ...] = ()

    @property
    def input_avals(self) -> list[Any]:
        """Shapes and dtypes of the inputs."""
        return list(self.jaxpr.in_avals)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is traced; anything else is passed through as it is."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def abstract(leaf: Any, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
    """The type of an array: shape (another, if given), dtype, weak type, layout.

    The layout is part of the type on a mesh with Explicit axes only, the axes that it
    varies over inside a `shard_map`.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct) and shape in (None, leaf.shape):
        return leaf
    weak = bool(getattr(getattr(leaf, "aval", leaf), "weak_type", False))
    shape = tuple(leaf.shape) if shape is None else shape
    sharding = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else None
    kind: dict[str, Any] = {"sharding": sharding}
    if isinstance(leaf, jax.Array):
        kind = layout(jax.typeof(leaf))
    return jax.ShapeDtypeStruct(shape, leaf.dtype, weak_type=weak, **kind)


def layout(aval: Any) -> dict[str, Any]:
    """How an array is laid out, as `jax.ShapeDtypeStruct` takes it."""
    return {"sharding": explicit(aval.sharding), **_compat.varying(aval)}


def explicit(sharding: Any) -> Any:
    """The layout, if it splits anything; None leaves the type without one."""
    return sharding if any(sharding.spec) else None


def arrays_apart(
    fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any] | None = None
) -> tuple[Callable[[list[Any]], Any], list[Any]]:
    """A call as a function of its arrays alone, and these; the rest is closed over."""
    leaves, tree = jax.tree.flatten((args, kwargs or {}))
    places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def call(arrays: list[Any]) -> Any:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        args, kwargs = jax.tree.unflatten(tree, filled)
        return fn(*args, **kwargs)

    return call, [leaves[i] for i in places]


@dataclasses.dataclass(frozen=True)
class Flat:
    """The arguments of a call, flattened, arrays apart from the rest.

    Attributes:
      arrays: of the first argument, then of the others.
      params: key path of each array of the first argument.
      rebuild: the arguments and keyword arguments from arrays.
      others: key path of each other array: the argument's number (the first is 0) or
        keyword, then the path inside it.
    """

    arrays: list[Any]
    params: tuple[KeyTuple, ...]
    rebuild: Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    others: tuple[KeyTuple, ...] = ()


def flatten_call(params: PyTree, args: tuple, kwargs: dict[str, Any]) -> Flat:
    """Flattens `(params, *args, **kwargs)`; `rebuild(arrays)` gives args and kwargs."""
    pairs, tree = jtu.tree_flatten_with_path(((params, *args), kwargs))
    leaves = [leaf for _, leaf in pairs]
    places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def rebuild(arrays: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return jax.tree.unflatten(tree, filled)

    names = [path_keys(pairs[i][0][1:]) for i in places]  # of which argument, inside
    count = sum(name[0] == 0 for name in names)
    own = tuple(name[1:] for name in names[:count])
    return Flat([leaves[i] for i in places], own, rebuild, tuple(names[count:]))


def jitted_call(fn: Callable[..., Any], params: PyTree, args: tuple) -> Any:
    """`fn(params, *args)`, compiled; leaves that are no arrays stay as they are."""
    flat = flatten_call(params, args, {})

    def run(arrays: list[Any]) -> Any:
        call, _ = flat.rebuild(arrays)
        return fn(*call)

    return jax.jit(run)(flat.arrays)


@contextlib.contextmanager
def all_kept() -> Iterator[None]:
    """Holds back Python's search for cyclic garbage while a program is read.

    Nearly all that is made then is kept, so there is little to find, and the search
    would take up to a third of the time at the size of a language model.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


def trace(
    fn: Callable[..., Any],
    shapes: dict[KeyTuple, tuple[int, ...]] | None = None,
    others: dict[KeyTuple, tuple[int, ...]] | None = None,
) -> Callable[..., Traced]:
    """A function that traces `fn` at given arguments.

    Args:
      fn: `fn(params, *args, **kwargs)`, any pytrees in and out.
      shapes: other shapes for some leaves of `params` than those given.
      others: the same for the other arguments.

    Returns:
      `traced(params, *args, **kwargs) -> Traced`. Arrays may be abstract.
    """
    shapes = shapes or {}

    def traced(params: PyTree, *args: Any, **kwargs: Any) -> Traced:
        flat = flatten_call(params, args, kwargs)
        paths: list[KeyTuple] = []
        trees: list[Any] = []

        def flat_fn(*arrays: Any) -> list[Any]:
            paths.clear()
            call_args, call_kwargs = flat.rebuild(list(arrays))
            out = fn(*call_args, **call_kwargs)
            pairs, tree = jtu.tree_flatten_with_path(out)
            paths.extend(path_keys(path) for path, _ in pairs)
            trees.append(tree)
            return [leaf for _, leaf in pairs]

        given = [shapes.get(name) for name in flat.params]
        given += [(others or {}).get(name) for name in flat.others]
        avals = list(map(abstract, flat.arrays, given))
        with all_kept():
            jaxpr = joined_writes(_compat.make_jaxpr(flat_fn, *avals))
            jaxpr = _compat.without_dead_code(jaxpr)
        return Traced(jaxpr, flat.params, tuple(paths), trees[-1], flat.others)

    return traced
