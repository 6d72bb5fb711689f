"""Groups of a function's parameters: what must shrink together, found not declared.

`groups(fn)(params, *args)` traces `fn`, relates the axes of all its values (see
`_analysis`) and returns the free atoms on the parameters' axes as `Group`s, with the
reason for every coordinate that may not go.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, overload

import jax
import jax.tree_util as jtu
import numpy as np

from jprune._errors import nearest, type_error, value_error
from jprune._groups import AxisRef, Group, Kind, Role
from jprune._jaxpr._trace import all_kept, trace
from jprune._stacks import stacked_axes
from jprune._tree import KeyTuple, keys_text, path_keys, prefix_of, require_tree
from jprune._typing import PyTree
from jprune.scores import over_groups
from jprune.scores._groups import Reduce
from jprune.surgery import _certificate, _numbering
from jprune.surgery._axes import (
    Atom,
    Sum,
    Term,
    is_frozen,
    leaves,
    resolve,
    why_frozen,
)
from jprune.surgery._callable import Finder, require_function, statistics_of
from jprune.surgery._carried import State, roots_of
from jprune.surgery._cost import Contraction, Cost, total
from jprune.surgery._layout import every_label, structure
from jprune.surgery._program import Program, StateOutputs, analyze, paths_read
from jprune.surgery._trained import roles_of, trained_axes

_PRODUCES: tuple[Role, ...] = ("out", "table")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Positions of a parameter axis that may not go.

    Attributes:
      path: key tuple of the parameter.
      axis: the axis.
      start: first position, counted from 0.
      stop: one past the last.
      why: the reason.
      primitive: the operation that asks for it, or "".
    """

    path: KeyTuple
    axis: int
    start: int
    stop: int
    why: str
    primitive: str


class Groups(Sequence[Group]):
    """The groups of a function's parameters.

    A sequence of `Group`s in the order of the parameters, with look-up by id. Made by
    `surgery.groups`.
    """

    def __init__(
        self, program: Program, shapes: dict[KeyTuple, tuple[int, ...]], like: PyTree
    ) -> None:
        self.program = program
        self.shapes = shapes
        pairs, self.tree = jtu.tree_flatten_with_path(like)
        self.paths = [path_keys(path) for path, _ in pairs]
        known = dict(zip(self.paths, (leaf for _, leaf in pairs), strict=True))
        self._trained = trained_axes(program, known)
        self.atoms: dict[str, Atom] = {}
        self._groups: dict[str, Group] = {}
        for group, atom in _collect(program):
            self._groups[group.id] = group
            self.atoms[group.id] = atom

    def __repr__(self) -> str:
        coupled = sum(group.kind == "coupled" for group in self)
        return f"<{len(self)} groups, {coupled} coupled: print(deps.table())>"

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, group_id: str | int) -> Group: ...

    @overload
    def __getitem__(self, group_id: slice) -> list[Group]: ...

    def __getitem__(self, group_id: str | int | slice) -> Group | list[Group]:
        if isinstance(group_id, int | slice):
            return list(self._groups.values())[group_id]
        if group_id not in self._groups:
            near = nearest(re.escape(str(group_id)), list(self._groups), 3)
            hint = f" Near it: {', '.join(map(repr, near))}." if near else ""
            raise value_error(
                f"there is no group {group_id!r}: see `deps.table()` for the ids.{hint}"
            )
        return self._groups[group_id]

    def __contains__(self, group_id: object) -> bool:
        return group_id in self._groups

    @functools.cached_property
    def writers(self) -> dict[str, int]:
        """For each group how many kernels and tables write it; at least 1.

        A residual stream has many. In a leaf that stacks layers each layer is one. A
        depthwise kernel writes nothing: it scales what another wrote.
        """
        shapes = {path: np.broadcast_to(0, s) for path, s in self.shapes.items()}
        tree = [shapes.get(path, np.zeros(())) for path in self.paths]
        axes = stacked_axes(jax.tree.unflatten(self.tree, tree))
        stacks = dict(zip(self.paths, axes, strict=True))

        places = {path: index for index, path in enumerate(self.params)}

        def layers(ref: AxisRef) -> int:
            own = (places[ref.path], ref.axis) in self.program.ctx.channelwise
            if ref.role not in _PRODUCES or own:
                return 0
            others = [a for a in stacks[ref.path] if a != ref.axis]
            return math.prod(self.shapes[ref.path][a] for a in others)

        return {g.id: max(sum(map(layers, g.members)), 1) for g in self}

    def find(self, pattern: str) -> list[Group]:
        """The groups whose id, or a member of which, a pattern matches.

        Args:
          pattern: a regular expression, searched in the id and in the members'
            `path:axis` texts (`mlp/.*kernel:1`).

        Returns:
          The groups found, in order; none is no error.
        """
        seen = re.compile(pattern)

        def hit(group: Group) -> bool:
            texts = (f"{keys_text(m.path)}:{m.axis}" for m in group.members)
            return bool(seen.search(group.id)) or any(map(seen.search, texts))

        return [group for group in self if hit(group)]

    @property
    def params(self) -> dict[KeyTuple, tuple[Term, ...]]:
        """The axes of each parameter, for what builds on the algebra."""
        return self.program.params

    @functools.cached_property
    def exactness(self) -> dict[str, _certificate.Exactness]:
        """For each group whether its removal equals zeroing, and by what means."""
        return _certificate.certify(self.program, self.atoms)

    def frozen(self) -> list[Frozen]:
        """Every run of positions of an axis that may not go, with the reason."""
        found = []
        for path, axes in self.program.params.items():
            for axis, term in enumerate(axes):
                found += _frozen_runs(path, axis, term)
        return found

    def scores(
        self,
        tree: PyTree,
        *,
        norm: Literal["l1", "l2"] = "l2",
        reduce: Reduce | None = None,
        roles: Sequence[Role] | None = None,
        raw: bool = False,
        signed: bool = False,
        at: Any = None,
        stacked: Any = None,
    ) -> dict[str, Any]:
        """`scores.over_groups(tree, self, ...)`: one score for each coordinate.

        Running statistics have the role "stat" and do not count: leaves that the
        function subtracts, takes the root of or returns updated, and leaves in whose
        path stands a collection such as `batch_stats` or `mean_ema`, or that are named
        `mean` or `var`.

        Args:
          tree: the parameters, gradients x parameters, a Fisher estimate, ...
          norm: see `scores.over_groups`, also for what follows.
          reduce: of the members of a group; "sum" for what adds up, as saliencies do.
          roles: only members of these roles, e.g. `("scale",)` for norm scales.
          raw: not divided by the mean of the group.
          signed: added up with their signs.
          at: where `tree` lies inside the parameters ("params"); None finds it.
          stacked: which leaves are stacks of layers.

        Returns:
          `{group.id: [size]}`, of the groups that have members in `tree`.

        Raises:
          ValueError: a leaf of another shape, no group has a member, or `tree` holds
            some members of a group and lacks others.
          TypeError: a single object that is no array, such as a Keras model.
        """
        require_tree("tree", tree)
        return over_groups(
            tree,
            self,
            norm=norm,
            reduce=reduce,
            roles=roles,
            raw=raw,
            signed=signed,
            at=at,
            stacked=stacked,
        )

    def flops(self, kept: dict[str, int] | None = None) -> int:
        """Floating point operations with `kept` coordinates of each group.

        Args:
          kept: kept counts by group id; a group that is absent keeps all.
        """
        return total(self.program.ctx.costs, self._counts(kept))

    def parameters(self, kept: dict[str, int] | None = None) -> int:
        """Parameters with `kept` coordinates of each group.

        What is trained counts: floating leaves, running statistics (the role "stat")
        and random keys aside.
        """
        return total(self.parameter_costs, self._counts(kept))

    @functools.cached_property
    def parameter_costs(self) -> list[Cost]:
        """The size of each leaf that is trained as a product over its axes."""
        return [Contraction(1, axes) for axes in self._trained]

    def table(self, *, fold: bool = True) -> str:
        """The groups for people, then what is frozen and why, then what is tied.

        The column "axis" says where a group lies on the axis that names it, as the
        factors of a reshape: heads `[4] x 8`, their dimensions `4 x [8]`.

        Args:
          fold: whether groups that differ only in numbers of their paths are one row
            (`layers/*/up:1 x 12`). False shows every id.
        """
        from jprune.surgery._table import table

        return table(self, folded=fold)

    def _counts(self, kept: dict[str, int] | None) -> dict[Atom, int]:
        return {self.atoms[self[i].id]: n for i, n in (kept or {}).items()}


def groups(
    fn: Callable[..., Any],
    *misplaced: Any,
    reduce_max: Literal["known", "drop", "freeze"] = "known",
    state_outputs: StateOutputs = None,
    free_outputs: Callable[[KeyTuple], bool] | Sequence[KeyTuple] = (),
    state: State | None = None,
    lookups: Sequence[str | Sequence[str]] = (),
) -> Callable[..., Groups]:
    """Finds which coordinates of the parameters of `fn` must be removed together.

    Args:
      fn: `fn(params, *args, **kwargs)`: any apply function over any pytree.
      *misplaced: nothing; parameters and inputs go to what is returned.
      reduce_max: what to do with an axis that a maximum (or minimum, product, and/or)
        runs over. "known": it may shrink where the removed coordinates hold a constant
        there; "freeze": never; "drop": always, the maximum then takes the removed
        coordinates' value into account at run time.
      state_outputs: which outputs are updated parameters and come back compact. None:
        whole sub-trees that equal a sub-tree of the parameters in path, structure,
        shapes and dtypes; False: none; else a predicate on output key paths, or paths.
      free_outputs: outputs that may come back shortened (features for distillation), as
        a predicate on output key paths, or paths.
      state: other arguments that shrink with the parameters (caches, recurrent states),
        and the outputs that they come back as: `{2: 1}` if argument 2 (the parameters
        are 0) comes back as output 1, `{"cache": ("state", "cache")}` by keyword and
        key path, None for an argument that is only read.
      lookups: axes of parameters that the function looks up by number and that may
        shrink all the same: the rows of an embedding ("embedding:0", a leaf's path and
        an axis), the experts that a router ranks. Several that are one axis, as a
        vocabulary that an untied head writes, are given together: `[("embedding:0",
        "head:1")]`. Regular expressions find one axis for each value of their groups:
        `("(.*)/router:1", "(.*)/up:0", "(.*)/down:0")`. The compact function
        takes and makes the dense numbers (see `Plan.numbering`); outputs along such an
        axis (logits) come back shortened.

    Returns:
      `deps(params, *args, **kwargs) -> Groups`. Arrays may be abstract
      (`jax.ShapeDtypeStruct`).

    Raises:
      TypeError: `fn` is no function, or came with its arguments.
      ValueError: another `reduce_max`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import surgery
      >>> def mlp(p, x):
      ...     return jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> [g.id for g in surgery.groups(mlp)(p, jnp.ones((1, 4)))]
      ['w1:1']
    """
    if misplaced:
        raise type_error(
            "`groups` takes the function alone: call `groups(fn)(params, *args)`."
        )
    require_function(fn, "groups")
    if reduce_max not in ("known", "drop", "freeze"):
        raise value_error(
            f'`reduce_max` must be "known", "drop" or "freeze", got {reduce_max!r}.'
        )
    if isinstance(lookups, str):
        raise value_error(f"`lookups` must be a list, got a text: [{lookups!r}].")

    roots = roots_of(state)

    def deps(params: PyTree, *args: Any, **kwargs: Any) -> Groups:
        with all_kept():
            traced = trace(fn)(params, *args, **kwargs)
            avals = zip(traced.params, traced.input_avals, strict=False)
            shapes = {path: tuple(aval.shape) for path, aval in avals}
            ranks = {path: len(shape) for path, shape in shapes.items()}
            program = analyze(
                traced,
                reduce_max="allow" if reduce_max == "drop" else reduce_max,
                state_outputs=state_outputs,
                free_outputs=free_outputs,
                state=roots,
                lookups=_numbering.lookups_of(lookups, ranks),
            )
            _certificate.settle_rounds(program)
            _certificate.settle_reductions(program)
            still = statistics_of(fn, program.params)
            return Groups(dataclasses.replace(program, still=still), shapes, params)

    return Finder(deps, fn)


def contraction_axes(deps: Groups, at: Any = ()) -> PyTree:
    """The axis of each parameter that a product sums over, for `masks.n_of_m`.

    Args:
      deps: the groups of a function.
      at: the part of what the groups were found on that is wanted, a key or a tuple of
        keys: "params" of Flax variables, 0 of a pair (params, state).

    Returns:
      A tree with the structure of the parameters, or of that part: an axis, counted
      from 0, or None for a leaf that no product sums over. Of several (attention output
      kernels sum over heads and head dimension) the last.

    Raises:
      ValueError: nothing lies at `at`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import surgery
      >>> fn = lambda p, x: jnp.tanh(x @ p["w"].T) @ p["v"]
      >>> params = {"v": jnp.ones((3, 1)), "w": jnp.ones((3, 2))}
      >>> deps = surgery.groups(fn)(params, jnp.ones((1, 2)))
      >>> surgery.contraction_axes(deps)
      {'v': 0, 'w': 1}
    """
    axes = {}
    for index, (path, terms) in enumerate(deps.params.items()):
        found = [
            axis
            for axis in range(len(terms))
            if deps.program.ctx.roles.get((index, axis)) == "in"
        ]
        axes[path] = found[-1] if found else None
    leaves_in_order = [axes.get(path) for path in deps.paths]
    return _part(jax.tree.unflatten(deps.tree, leaves_in_order), prefix_of(at))


def _part(tree: PyTree, at: KeyTuple) -> PyTree:
    """The sub-tree under some keys."""
    for i, key in enumerate(at):
        is_part = functools.partial(lambda whole, x: x is not whole, tree)
        pairs, _ = jtu.tree_flatten_with_path(tree, is_leaf=is_part)
        parts = {path_keys(path): part for path, part in pairs}
        if (key,) not in parts:
            raise value_error(
                f"`at` {at[: i + 1]} is not there: {sorted(map(str, parts))} are."
            )
        tree = parts[(key,)]
    return tree


def _collect(program: Program) -> list[tuple[Group, Atom]]:
    """The free atoms on parameter axes with their members, in order of appearance."""
    members: dict[Atom, list[AxisRef]] = {}
    memo: dict[Any, dict[Atom, Any]] = {}  # axes that share a structure
    roles = roles_of(program)
    for index, (path, axes) in enumerate(program.params.items()):
        for axis, term in enumerate(map(resolve, axes)):
            role = roles.get((index, axis), "other")
            if isinstance(term, Atom):
                if not term.frozen:
                    members.setdefault(term, []).append(AxisRef(path, axis, role))
                continue
            key = structure(term)
            if key not in memo:
                memo[key] = every_label(term)
            for atom, where in memo[key].items():
                members.setdefault(atom, []).append(AxisRef(path, axis, role, where))
    used = paths_read(program.traced)
    pads = {a for t in program.ctx.pads for a in leaves(t)}
    summed = {a for t in program.ctx.summed for a in leaves(t)}
    looked = {a for t in program.ctx.lookups for a in leaves(t)}
    rounds = set(_certificate.rounds(program))
    out, seen = [], {}
    for atom, refs in members.items():
        first = next((r for r in refs if r.role == "out"), refs[0])
        base = f"{keys_text(first.path) or 'params'}:{first.axis}"
        number = seen[base] = seen.get(base, -1) + 1
        name = base if number == 0 else f"{base}#{number}"
        kind = _kind(refs, used, atom in summed, atom in pads)
        if atom in looked and kind != "unused":
            kind = "coupled"  # asked for by name
        kind = "depth" if atom in rounds and kind != "unused" else kind
        out.append((Group(name, atom.size, tuple(refs), kind), atom))
    return out


def _kind(
    refs: Sequence[AxisRef], used: set[KeyTuple], summed: bool, pad: bool
) -> Kind:
    """What the group is to the function; queries and keys read each other."""
    live = [r for r in refs if r.path in used]
    if not live:
        return "unused"
    consumes = summed or any(r.role == "in" for r in live)
    produces = any(r.role != "in" for r in live)
    if pad and not any(r.role in _PRODUCES for r in live):
        return "pad"
    if consumes and produces:
        return "coupled"
    return "consumer" if consumes else "producer"


def _frozen_runs(path: KeyTuple, axis: int, term: Term) -> list[Frozen]:
    """Runs of frozen positions of one axis; trivial axes (size 1) are left out."""
    out: list[Frozen] = []
    start = 0
    for part in _parts(term):
        stop = start + part.size
        if is_frozen(part) and part.size not in (0, 1):
            why = why_frozen(part)
            last = out[-1] if out else None
            if (
                last
                and last.stop == start
                and (last.why, last.primitive)
                == (
                    why.text,
                    why.primitive,
                )
            ):
                out[-1] = dataclasses.replace(last, stop=stop)
            else:
                out.append(Frozen(path, axis, start, stop, why.text, why.primitive))
        start = stop
    return out


def _parts(term: Term) -> Sequence[Term]:
    term = resolve(term)
    return term.parts if isinstance(term, Sum) else (term,)
