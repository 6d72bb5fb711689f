"""Plans: which coordinates of each parameter axis stay.

A plan is plain data, one bool vector per parameter axis, and knows nothing of the
function it was made for. It packs, unpacks and zeroes any tree that has the parameters'
paths and shapes; it is kept as JSON of original indices.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from jprune._dtypes import in_host_memory
from jprune._errors import listing, type_error, value_error
from jprune._tree import KeyTuple, keys_text, path_keys, prefix_of
from jprune._typing import PyTree
from jprune.surgery import _budget, _carried, _numbering, _saved
from jprune.surgery._cells import take
from jprune.surgery._split import is_split, take_split


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which coordinates of each parameter axis stay.

    Attributes:
      keep: for each parameter path, one bool vector per axis.
      ties: outputs of the function that are updated parameters, as (output path,
        parameter path).
      free: output paths that may come back shortened.
      declared: whether `ties` are exactly the updated parameters because the caller of
        `groups` said so (`state_outputs=`). Otherwise they are looked for in whatever
        function the plan is used on, as `groups` does.
      groups: by group id how many coordinates stay, and of how many; for `table` only,
        neither saved nor combined.
      state: arguments that shrink, as (path of the argument, path of the output that it
        comes back as or None).
      inputs: for each leaf of that state, one bool vector for each axis that loses
        coordinates, None for the others, whose size is free.
      lookups: axes that the function looks up by number, as (path, axis), those that
        are one axis together.
      measured: the latency over that of the dense network, measured again after the
        plan was accepted; its quartiles. For `table` only, as `groups`.
    """

    keep: Mapping[KeyTuple, tuple[np.ndarray, ...]]
    ties: tuple[tuple[KeyTuple, KeyTuple], ...] = ()
    free: tuple[KeyTuple, ...] = ()
    declared: bool = False
    groups: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    state: _carried.Roots = ()
    inputs: Mapping[KeyTuple, _carried.Kept] = dataclasses.field(default_factory=dict)
    lookups: _numbering.Lookups = ()
    measured: _budget.Measured | None = None

    def __repr__(self) -> str:
        shapes = self.dense_shapes, self.compact_shapes
        before, after = (sum(map(math.prod, s.values())) for s in shapes)
        return f"<Plan: {before:,} -> {after:,} scalars: print(plan.table())>"

    @property
    def dense_shapes(self) -> dict[KeyTuple, tuple[int, ...]]:
        """The shape of each parameter before removal."""
        return {p: tuple(m.size for m in masks) for p, masks in self.keep.items()}

    @property
    def compact_shapes(self) -> dict[KeyTuple, tuple[int, ...]]:
        """The shape of each parameter after removal."""
        return {p: tuple(int(m.sum()) for m in masks) for p, masks in self.keep.items()}

    @property
    def removed(self) -> dict[KeyTuple, dict[int, list[int]]]:
        """The original indices that go, by path and axis; whole axes are absent."""
        return {
            path: {
                axis: np.flatnonzero(~m).tolist()
                for axis, m in enumerate(masks)
                if not m.all()
            }
            for path, masks in self.keep.items()
            if not all(m.all() for m in masks)
        }

    def pack(self, tree: PyTree, at: Any = None, argument: Any = None) -> PyTree:
        """The compact tree: kept coordinates only, every leaf with a buffer of its own.

        Args:
          tree: a tree with the parameters' paths and dense shapes (parameters,
            gradients, scores, masks with full-size leaves). It may lack leaves (a part
            of an NNX state, gradients without the statistics of batch norm). Leaves
            that are not arrays pass.
          at: where `tree` lies inside the parameters, when it is a sub-tree: a key, or
            a tuple of keys ("params").
          argument: when `tree` is not the parameters but state that was declared in
            `groups(..., state=)`: the number or keyword of that argument. Axes that
            lose nothing (batch, time) have any size.

        Raises:
          ValueError: for a path that the plan does not have, or another shape.
        """
        taken = self._map(tree, at, _taken, argument)
        pairs = (jax.tree.leaves(tree), jax.tree.leaves(taken))
        return jax.tree.unflatten(jax.tree.structure(taken), _placed(*pairs))

    def unpack(self, tree: PyTree, at: Any = None, argument: Any = None) -> PyTree:
        """The dense tree, zeros at removed coordinates, in buffers of its own."""
        return self._map(tree, at, _unpack, argument, compact=True)

    def zero(self, tree: PyTree, at: Any = None, argument: Any = None) -> PyTree:
        """The reference model: removed coordinates are 0, every buffer its own."""
        return self._map(tree, at, zero_leaf, argument)

    def masks(self, tree: PyTree, at: Any = None) -> PyTree:
        """The mask tree of the plan: False where an entry is removed.

        Args:
          tree: as in `pack`; leaves without an axis that shrinks get a 0-d True.
          at: as in `pack`.
        """

        def leaf(x: Any, masks: tuple[np.ndarray, ...]) -> Any:
            whole = all(m.all() for m in masks)
            return jnp.asarray(True) if whole else jnp.asarray(_outer(masks))

        return self._map(tree, at, leaf)

    def then(self, other: "Plan") -> "Plan":
        """This plan followed by a plan for its compact parameters, as one plan.

        What either was declared with (`state=`, `lookups=`, outputs that shorten) holds
        for both.

        Raises:
          TypeError: if `other` is no plan.
          ValueError: if `other` is not a plan for the shapes this one leaves.
        """
        require_plan(other, "other")
        if other.dense_shapes != self.compact_shapes:
            raise value_error(
                "`other` must be a plan for the compact parameters of this plan: its "
                "paths or shapes differ. Make it from `groups(shrink(fn, plan))`."
            )
        return dataclasses.replace(
            self,
            keep={
                path: tuple(map(_compose, masks, other.keep[path]))
                for path, masks in self.keep.items()
            },
            ties=_union(self.ties, other.ties),
            free=_union(self.free, other.free),
            declared=self.declared or other.declared,
            groups={},
            measured=None,
            state=_union(self.state, other.state),
            inputs=_carried.joined(self.inputs, other.inputs),
            lookups=_union(self.lookups, other.lookups),
        )

    def pack_state(
        self,
        opt_state: PyTree,
        params: PyTree,
        at: Any = None,
        rule: Callable[[KeyTuple, Any, Any], Any] | None = None,
        tx: Any = None,
    ) -> PyTree:
        """The compact optimizer state: every copy of the parameters' tree is packed.

        Every leaf has a buffer of its own, counters and masks too.

        Args:
          opt_state: an Optax state made for the dense `params`.
          params: the dense parameters it was made for (shapes are enough).
          at: where `params` lies inside the parameters of the plan, as in `pack`.
          rule: for leaves that are no copy of a parameter (the factored moments of
            Adafactor, vectors over the whole tree): `rule(path, leaf, masks)` is asked
            before anything else is tried; it gets the leaf's path in the state and
            which coordinates its parameter keeps, a bool vector per axis (None where no
            parameter has the leaf's path), and returns the compact leaf, or None for a
            leaf it does not know.
          tx: the optimizer. A leaf that `tx.init` of the compact parameters has in the
            same place and shape stays as it is (constants of Muon, Mechanize's vector).

        Raises:
          ValueError: for a state leaf that has a size but belongs to no copy of the
            parameters (factored states), unless `rule` or `tx` settles it.
        """
        from jprune.surgery._state import pack_state

        return pack_state(self, opt_state, params, at, rule, tx)

    def numbering(self, axis: str | None = None) -> _numbering.Numbering:
        """Old and new numbers along an axis: of tokens, of experts.

        Args:
          axis: a leaf's path and an axis, "embedding:0"; None: the one axis of the plan
            that was declared in `groups(..., lookups=)`.

        Returns:
          `numbers.new[old]`, -1 for what is removed, and `numbers.old[new]`.

        Raises:
          ValueError: for an axis that the plan does not have, or a choice of several.
        """
        return _numbering.numbering_of(self, axis)

    def table(self) -> str:
        """Shapes before and after, and what each group lost, for people.

        Repeated blocks are one line: `blocks/*/mlp/kernel x 32`.
        """
        from jprune.surgery._table import plan_table

        return plan_table(self)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the plan as JSON: kept original indices by path and axis.

        The file is replaced at once: a reader finds the old plan or the new one.
        """
        _saved.write(path, self.to_json())

    def to_json(self) -> str:
        """The plan as JSON text, what `save` writes; it may be metadata of a file."""
        return _saved.text(self)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan that `to_json` wrote.

        Raises:
          ValueError: if the text is not a plan, or its indices do not fit its shapes.
        """
        return cls(**_saved.read(text, "text"))

    def _root(self, tree: PyTree) -> Any:
        """The key under which a sub-tree fits, or "params" as an example."""
        leaves = jtu.tree_leaves_with_path(tree)
        paths = [path_keys(path) for path, x in leaves if hasattr(x, "shape")]
        keys = dict.fromkeys(path[0] for path in self.keep if path)
        fit = (k for k in keys if all((k, *path) in self.keep for path in paths))
        return next(fit, "params") if paths else "params"

    def _map(
        self,
        tree: PyTree,
        at: Any,
        fn: Any,
        argument: Any = None,
        compact: bool = False,
    ) -> Any:
        if jtu.all_leaves([tree]) and not hasattr(tree, "shape"):
            raise type_error(
                f"`tree` must be a tree of arrays, got {type(tree).__name__}: under "
                "Keras `jprune.frameworks.keras.named(model)`."
            )
        keep = self.keep if argument is None else self.inputs
        prefix = (*prefix_of(argument), *prefix_of(at))
        sizes = _carried.compact if compact else _carried.dense
        wrong: list[str] = []

        def leaf(path: Any, x: Any) -> Any:
            if not hasattr(x, "shape"):
                return x
            key = (*prefix, *path_keys(path))
            name, got = keys_text(key), tuple(x.shape)
            if key not in keep:
                wrong.append(f"{name}: not in the plan")
                return x
            rank = len(keep[key])
            want = sizes(keep[key], got if len(got) == rank else (-1,) * rank)
            if got != want:
                wrong.append(f"{name}: expected {want}, got {got}")
                return x
            return fn(x, _carried.filled(keep[key], _carried.dense(keep[key], got)))

        out = jtu.tree_map_with_path(leaf, tree)
        if wrong and argument is not None:
            names = listing([keys_text(path) for path in self.inputs])
            raise value_error(
                f"`tree` must be the argument {argument!r}, declared in `groups(..., "
                f"state=)`.{listing(wrong)}\nThe plan's state:{names}"
            )
        if wrong:
            raise value_error(
                "`tree` must have the paths and shapes that the plan was made for (a "
                f"sub-tree is given as `at={self._root(tree)!r}`).{listing(wrong)}"
            )
        return out


def require_plan(plan: Any, name: str = "plan") -> None:
    """Raises unless `plan` is a plan.

    Args:
      plan: what was given; groups, often.
      name: of the argument.

    Raises:
      TypeError: anything else.
    """
    if not isinstance(plan, Plan):
        raise type_error(
            f"`{name}` must be a `surgery.Plan`, got {type(plan).__name__}: "
            "`surgery.select(deps, deps.scores(params), ...)` makes one."
        )


def pack_leaf(x: Any, masks: tuple[np.ndarray, ...]) -> Any:
    """The kept coordinates of one leaf; a copy, so that either may be donated."""
    return _placed([x], [_taken(x, masks)])[0]


def _taken(x: Any, masks: tuple[np.ndarray, ...]) -> Any:
    """The kept coordinates of one leaf, as NumPy's if it lies in host memory."""
    axes = {a: np.flatnonzero(m) for a, m in enumerate(masks) if not m.all()}
    given = x
    if in_host_memory(x):  # nothing to compile
        x = np.asarray(x)
        for axis, positions in list(axes.items())[:-1]:
            x = take(x, positions, axis)
        if not axes:
            out = _room(x.shape, x.dtype)
            out[...] = x
            return out
        axis, positions = axes.popitem()
        out = _room((*x.shape[:axis], positions.size, *x.shape[axis + 1 :]), x.dtype)
        return np.take(x, positions, axis, out, mode="clip")  # "raise" copies twice
    for axis, positions in axes.items():
        x = _take(x, positions, axis)
    traced = isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array)
    return x if traced or x is not given else x.copy()


def _room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that JAX takes over: it copies what is not aligned to 64 bytes."""
    room = np.empty(math.prod(shape) * dtype.itemsize + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : room.size - 64 + start].view(dtype).reshape(shape)


def _placed(given: Sequence[Any], taken: Sequence[Any]) -> list[Any]:
    """Arrays of NumPy's put where those of JAX lie that they were taken from.

    In one call for all: a call takes as long as a small leaf.
    """
    out = list(taken)
    for on_purpose in (False, True):
        places = [
            i
            for i, (x, new) in enumerate(zip(given, taken, strict=True))
            if isinstance(new, np.ndarray)
            and not isinstance(x, np.ndarray)
            and getattr(x, "committed", True) == on_purpose
        ]
        where = [given[i].sharding for i in places] if on_purpose else None
        arrays = jax.device_put([out[i] for i in places], where)
        for i, array in zip(places, arrays, strict=True):
            out[i] = array
    return out


def _take(x: Any, positions: np.ndarray, axis: int) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        shape = (*x.shape[:axis], positions.size, *x.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, x.dtype)
    if is_split(x, axis):
        return take_split(x, positions, axis)
    return take(x, positions, axis)


def _unpack(x: Any, masks: tuple[np.ndarray, ...]) -> Any:
    if all(m.all() for m in masks):
        return pack_leaf(x, masks)  # a copy
    xp = np if isinstance(x, np.ndarray) else jnp
    if 0 in x.shape:
        return xp.zeros([m.size for m in masks], x.dtype)
    for axis, mask in enumerate(masks):
        if not mask.all():
            x = _take(x, np.maximum(np.cumsum(mask) - 1, 0), axis)
    return zero_leaf(x, masks)


def zero_leaf(x: Any, masks: tuple[np.ndarray, ...]) -> Any:
    """One leaf with zeros at removed coordinates, in a buffer of its own."""
    if all(m.all() for m in masks):
        return pack_leaf(x, masks)  # a copy
    xp = np if isinstance(x, np.ndarray) else jnp
    return xp.where(_outer(masks), x, xp.zeros((), x.dtype))


def _outer(masks: tuple[np.ndarray, ...]) -> np.ndarray:
    out = np.ones((), bool)
    for mask in masks:
        out = np.logical_and.outer(out, mask)
    return out


def _union(first: tuple, second: tuple) -> tuple:
    """What either has, in order, once."""
    return tuple(dict.fromkeys((*first, *second)))


def _compose(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    out = np.zeros_like(first)
    out[np.flatnonzero(first)[second]] = True
    return out


def load_plan(path: str | pathlib.Path) -> Plan:
    """Reads a plan written by `Plan.save`.

    Args:
      path: the file.

    Returns:
      The plan, ready to pack trees of the same paths and shapes.

    Raises:
      FileNotFoundError: naming the file, if there is none, and the plans beside it.
      ValueError: naming the file, if it is anything but what `Plan.save` writes:
        other types, a leaf twice, indices outside their axis or repeated, an axis above
        2^31 - 1.
    """
    return Plan(**_saved.read(_saved.content(path), path))
