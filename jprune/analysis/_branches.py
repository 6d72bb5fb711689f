"""Residual branches of any function, found from its program.

Where two values that depend on the data are added, one of them is a branch if the other
(or a summand of it) went into it: x + F(x). Where the shortcut is a projection, it is
the one of more contractions. The branch can be closed by parameters that its whole
output is a multiple of: going back from the sum through biases, scales, ReLU and
whatever is linear, the first ones met.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jprune import surgery
from jprune._errors import value_error
from jprune._groups import Group
from jprune._jaxpr import _compat
from jprune._jaxpr._chain import data_dependent
from jprune._jaxpr._flat import CONTRACTIONS, Flat, flatten
from jprune._tree import KeyTuple
from jprune._typing import PyTree
from jprune.reparam import Branch
from jprune.surgery._callable import traced

_LINEAR = {
    *("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "neg"),
    *("convert_element_type", "copy", "reduce_sum", "slice", "rev", "cumsum"),
    *(
        "stop_gradient",
        "reduce_window_sum",
        "reduce_window_max",
        "reduce_max",
        "copy_p",
    ),
    *("sharding_constraint", "optimization_barrier", "gather", "dynamic_slice", "name"),
}


class ResidualBranches(NamedTuple):
    """The result of `residual_branches`.

    Attributes:
      branches: by name, in the order of the program, for `reparam.learned_gates`. A
        name is the path of the first of the parameters that close the branch.
      entries: by name, the paths of the kernels that read the stream (for
        `compress.reconstruct` and `sample_inputs`).
    """

    branches: dict[str, Branch]
    entries: dict[str, tuple[str, ...]]


def residual_branches(
    fn: Callable[..., Any],
    deps: surgery.Groups,
    variables: PyTree,
    *args: Any,
    at: str | Sequence[Any] | None = None,
) -> ResidualBranches:
    """Finds the residual branches of a network.

    Args:
      fn: `fn(variables, *args)`, in eval mode.
      deps: its groups.
      variables: its variables; shapes are enough.
      *args: the other arguments.
      at: where the parameters lie in `variables` ("params"): paths are given from there
        on, as the gates on these parameters want them.

    Returns:
      A `ResidualBranches`. `inner` of a branch are the groups all of whose parameters
      are read in it alone; nested branches keep those of their own.

    Raises:
      ValueError: there is no residual branch.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import analysis, surgery
      >>> def net(p, x):
      ...     h = x @ p["stem"]
      ...     return (h + jax.nn.relu(h @ p["in"]) @ p["out"]) @ p["head"]
      >>> shapes = {"stem": (4, 8), "in": (8, 5), "out": (5, 8), "head": (8, 1)}
      >>> p, x = {n: jnp.ones(s) for n, s in shapes.items()}, jnp.ones((2, 4))
      >>> found = analysis.residual_branches(net, surgery.groups(net)(p, x), p, x)
      >>> found.branches["out"].leaves, [g.id for g in found.branches["out"].inner]
      (('out',), ['in:1'])
      >>> found.entries
      {'out': ('in',)}
    """
    prefix = () if at is None else ((at,) if isinstance(at, str) else tuple(at))
    look = _Look(flatten(traced(fn, variables, args)))
    found = [(leaves, inside) for leaves, inside, _ in look.branches()]
    if not found:
        raise value_error(
            "`fn` has no residual branch that some of its parameters could close."
        )
    inner = _inner(deps, look, [inside for _, inside in found])
    branches, entries = {}, {}
    for (leaves, inside), groups in zip(found, inner, strict=True):
        texts = tuple(_text(path, prefix) for path in leaves)
        branches[texts[0]] = Branch(texts, tuple(groups))
        entries[texts[0]] = tuple(_text(p, prefix) for p in look.entries(inside))
    return ResidualBranches(branches, entries)


def branch_ends(flat: Flat, prefix: tuple, apart: set[KeyTuple]) -> dict[str, tuple]:
    """By the name of each branch, the stream before it and the sum behind it.

    Args:
      flat: the program.
      prefix: where names start.
      apart: branches that these parameters close are left out.
    """
    return {
        _text(leaves[0], prefix): ends
        for leaves, _, ends in _Look(flat).branches()
        if not apart & set(leaves)
    }


class _Look:
    """A flat program with what comes before what."""

    def __init__(self, flat: Flat) -> None:
        self.flat, self.data = flat, data_dependent(flat)
        self.maker = {v: i for i, e in enumerate(flat.eqns) for v in e.outvars}
        self.before: list[set[int]] = []
        self.depth: list[int] = []
        for eqn in flat.eqns:
            makers = {self.maker[v] for v in self._reads(eqn) if v in self.maker}
            self.before.append(makers.union(*(self.before[i] for i in makers)))
            most = max((self.depth[i] for i in makers), default=0)
            own = eqn.primitive.name in CONTRACTIONS and eqn.outvars[0] in self.data
            self.depth.append(most + own)

    def branches(self) -> list[tuple[tuple[KeyTuple, ...], set[int], tuple[Any, Any]]]:
        """Each branch that parameters can close: these, its equations, its two ends."""
        found: list[tuple[tuple[KeyTuple, ...], set[int], tuple[Any, Any]]] = []
        for eqn in self.flat.eqns:
            if eqn.primitive.name not in ("add", "add_any"):
                continue
            pair = self.branch(*eqn.invars)
            leaves = self.closing(pair[1]) if pair else None
            if pair and leaves and all(set(leaves) != set(k) for k, _, _ in found):
                ends = (pair[0], eqn.outvars[0])
                found.append((tuple(dict.fromkeys(leaves)), self.between(*pair), ends))
        return found

    def branch(self, a: Any, b: Any) -> tuple[Any, Any] | None:
        """Of two summands the stream and the branch, if they are these."""
        if any(isinstance(v, _compat.Literal) or v not in self.data for v in (a, b)):
            return None
        if a.aval.shape != b.aval.shape:
            return None
        for stream, other in ((a, b), (b, a)):
            if other in self.maker and any(
                self._went_into(part, other) for part in self._summands(stream)
            ):
                return stream, other
        if a not in self.maker or b not in self.maker:
            return None
        first, second = self.maker[a], self.maker[b]
        if not self._data_read(first) & self._data_read(second):
            return None
        if self.depth[first] == self.depth[second]:
            return None
        stream, other = (a, b) if self.depth[first] < self.depth[second] else (b, a)
        return (stream, other) if self.closing(stream) else None  # a projection

    def between(self, stream: Any, branch: Any) -> set[int]:
        """The equations of the branch that the stream does not need."""
        inside = {self.maker[branch], *self.before[self.maker[branch]]}
        if stream in self.maker:
            inside -= {self.maker[stream], *self.before[self.maker[stream]]}
        return inside

    def closing(self, var: Any) -> list[KeyTuple] | None:
        """Parameters that a value is a multiple of, taken together; None if none."""
        if isinstance(var, _compat.Literal) or var not in self.maker:
            return None
        eqn = self.flat.eqns[self.maker[var]]
        name, ins = eqn.primitive.name, list(eqn.invars)
        if name in ("add", "sub", "add_any"):
            parts = [self._parameter(v) or self.closing(v) for v in ins]
            return (
                None if None in parts else [p for part in parts if part for p in part]
            )
        if name in (*CONTRACTIONS, "mul"):
            for v in ins:
                found = self._factor(v)
                if found:
                    return found
            for v in ins:
                if not isinstance(v, _compat.Literal) and v in self.data:
                    found = self.closing(v)
                    if found:
                        return found
            return None
        if name == "div":
            return self.closing(ins[0])
        if name in ("max", "min"):
            zero = [v for v in ins if isinstance(v, _compat.Literal) and not v.val]
            rest = [v for v in ins if not isinstance(v, _compat.Literal)]
            return self.closing(rest[0]) if zero and len(rest) == 1 else None
        if name in _LINEAR and ins:
            return self.closing(ins[0])
        return None

    def entries(self, inside: set[int]) -> list[KeyTuple]:
        """The kernels inside that no other kernel inside comes before."""
        sites = {s.eqn: s.origin.path for s in self.flat.sites if s.eqn in inside}
        return [p for i, p in sites.items() if not self.before[i] & set(sites)]

    def read_in(self, path: KeyTuple) -> set[int]:
        """The equations that read a parameter, moves left out."""
        origins = self.flat.origins
        return {
            i
            for i, eqn in enumerate(self.flat.eqns)
            if not any(v in origins for v in eqn.outvars)
            for v in self._reads(eqn)
            if v in origins and origins[v].path == path
        }

    def _factor(self, var: Any) -> list[KeyTuple] | None:
        """A parameter that a factor made of parameters is a multiple of."""
        if isinstance(var, _compat.Literal) or var in self.data:
            return None
        own = self._parameter(var)
        if own or var not in self.maker:
            return own
        eqn = self.flat.eqns[self.maker[var]]
        if eqn.primitive.name not in ("mul", "div", *_LINEAR):
            return None
        last = 1 if eqn.primitive.name == "div" else len(eqn.invars)
        for v in eqn.invars[:last]:
            found = self._factor(v)
            if found:
                return found
        return None

    def _parameter(self, var: Any) -> list[KeyTuple] | None:
        if isinstance(var, _compat.Literal):
            return None
        origin = self.flat.origins.get(var)
        return [origin.path] if origin is not None and not origin.at else None

    def _went_into(self, stream: Any, other: Any) -> bool:
        before = self.before[self.maker[other]]
        if stream in self.maker:
            return self.maker[stream] in before
        return any(stream in self._reads(self.flat.eqns[i]) for i in before)

    def _data_read(self, number: int) -> set[Any]:
        """What depends on the data and is read by an equation and those before it."""
        return {
            v
            for i in (number, *self.before[number])
            for v in self._reads(self.flat.eqns[i])
            if v in self.data
        }

    def _summands(self, var: Any) -> list[Any]:
        """A value and, if it is a sum, what is summed."""
        found = [var]
        if var in self.maker:
            eqn = self.flat.eqns[self.maker[var]]
            if eqn.primitive.name in ("add", "add_any"):
                for v in eqn.invars:
                    if not isinstance(v, _compat.Literal) and v in self.data:
                        found += self._summands(v)
        return found

    @staticmethod
    def _reads(eqn: Any) -> list[Any]:
        return [v for v in eqn.invars if not isinstance(v, _compat.Literal)]


def _inner(
    deps: surgery.Groups, look: _Look, insides: list[set[int]]
) -> list[list[Group]]:
    """The groups inside each branch; of nested ones the smallest takes them."""
    found: list[list[Group]] = [[] for _ in insides]
    order = sorted(range(len(insides)), key=lambda i: len(insides[i]))
    for group in deps:
        reads = set[int]().union(*(look.read_in(r.path) for r in group.members))
        if not reads or group.kind != "coupled":
            continue
        place = next((i for i in order if reads <= insides[i]), None)
        if place is not None:
            found[place].append(group)
    return found


def _text(path: KeyTuple, prefix: tuple) -> str:
    if path[: len(prefix)] == prefix:
        path = path[len(prefix) :]
    return "/".join(map(str, path))
