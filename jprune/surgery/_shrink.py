"""The compact function: the same signature, smaller parameters.

`shrink(fn, plan)` traces `fn` at the dense shapes and evaluates it at the compact ones.
The plan is solved again at every trace, against the axes found at that trace's argument
shapes, so a plan that does not fit raises instead of corrupting; and the shape of every
result is compared with the shape predicted from the axes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jprune._errors import value_error
from jprune._jaxpr import _compat
from jprune._jaxpr._trace import Traced, all_kept, flatten_call, trace
from jprune._tree import KeyTuple, keys_text
from jprune.surgery import _cells as ce
from jprune.surgery._axes import Atom, Term, leaves
from jprune.surgery._build import Builder, Log, Options
from jprune.surgery._callable import calling, require_function
from jprune.surgery._carried import Kept, Roots, State, dense_shapes, located
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._layout import Choice, Solver, Unsolvable
from jprune.surgery._plan import Plan, require_plan
from jprune.surgery._program import Program, StateOutputs, analyze


def shrink(
    fn: Callable[..., Any],
    plan: Plan,
    *,
    mean: Literal["dense", "compact"] = "dense",
    rng: Literal["dense", "compact"] = "dense",
    refine: bool = False,
    state_outputs: StateOutputs = None,
    free_outputs: Callable[[KeyTuple], bool] | Sequence[KeyTuple] | None = None,
    state: State | None = None,
) -> Callable[..., Any]:
    """The function at the compact shapes of a plan.

    It composes with `jit`, `grad`, `vmap` and `shrink`, takes other batch sizes, and
    returns updated state (batch statistics) at compact shapes.

    Args:
      fn: `fn(params, *args, **kwargs)`. Array leaves of the arguments are traced, all
        others (flags, strings, None) are passed on as they are.
      plan: which coordinates stay.
      mean: what the removed coordinates mean. "dense": they are zero; the result equals
        `fn(plan.zero(params), ...)`, and a mean over them still divides by the dense
        width. "compact": they were never there; the result equals the same
        architecture built at the smaller width, and a mean divides by the kept count.
        The two differ where a norm or a mean runs over removed coordinates.
      rng: "dense" draws random bits at the dense shapes, so that a dropout mask is the
        dense model's at the kept places; "compact" draws at the compact shapes, which
        is cheaper and another stream.
      refine: carry every removed coordinate by itself where they are not all equal (a
        positional table before a mean). Exact, at the price of dense-width element-wise
        work there.
      state_outputs: which outputs are updated parameters and come back compact, as in
        `groups`. None: as was declared there; if nothing was, whole collections that
        `fn` returns. The groups may so be found on evaluation and the plan be used on
        the training step, which returns batch statistics. (Haiku's evaluation does not
        read all of them; its groups are found on the training step.)
      free_outputs: outputs that come back shortened, as in `groups`. None: as was
        declared there.
      state: arguments that come compact, and the outputs that they come back as, as in
        `groups`. None: as was declared there, if the call has them; a function that
        takes the same state elsewhere (a prefill) says where.

    Returns:
      `small(compact_params, *args, **kwargs)`.

    Raises:
      TypeError: `fn` is no function, or `plan` no plan.
      ValueError: at trace time, if the parameters do not have the compact shapes, the
        plan removes what may not go, or members of a group disagree.

    Examples:
      ::

        deps = surgery.groups(apply)(params, x)
        plan = surgery.select(deps, deps.scores(params), sparsity=0.5)
        small = surgery.shrink(apply, plan)
        y = jax.jit(small)(plan.pack(params), x)
    """
    require_function(fn, "shrink")
    require_plan(plan)
    for name, given in (("mean", mean), ("rng", rng)):
        if given not in ("dense", "compact"):
            raise value_error(f'`{name}` must be "dense" or "compact", got {given!r}.')
    options = Options(removed=mean == "compact", compact_random=rng == "compact")

    def small(params: Any, *args: Any, **kwargs: Any) -> Any:
        with all_kept():
            return compact(params, args, kwargs)

    def compact(params: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        flat = flatten_call(params, args, kwargs)
        _check_shapes(plan, flat)
        arrays = flat.arrays[len(flat.params) :]
        others = dict(zip(flat.others, (tuple(x.shape) for x in arrays), strict=True))
        roots, inputs = located(plan, state, others)
        given = dense_shapes(inputs, others)
        with calling("shrink(fn, plan)(params, *args)", params, args, kwargs, _DENSE):
            traced = trace(fn, plan.dense_shapes, given)(params, *args, **kwargs)
        program = analyzed(traced, plan, state_outputs, roots, free_outputs)
        graph = Graph(program, solve(plan, program, inputs), options, refine)
        return jax.tree.unflatten(program.traced.out_tree, graph.emit(flat.arrays))

    return small


_DENSE = " `fn` sees the dense shapes, and is the function that the plan was made from."


def analyzed(
    traced: Traced,
    plan: Plan,
    state_outputs: StateOutputs = None,
    state: Roots = (),
    free_outputs: Any = None,
) -> Program:
    """The first pass over a function at the dense shapes of a plan."""
    exactly = plan.declared and state_outputs is None
    return analyze(
        traced,
        reduce_max="allow",
        state_outputs=state_outputs,
        free_outputs=plan.free if free_outputs is None else free_outputs,
        ties=plan.ties if exactly else None,
        state=state,
        lookups=plan.lookups,
    )


def _check_shapes(plan: Plan, flat: Any) -> None:
    shapes = plan.compact_shapes
    for path, leaf in zip(flat.params, flat.arrays, strict=False):
        name = keys_text(path)
        if path not in shapes:
            raise value_error(f"`params` has the leaf {name}, which the plan has not.")
        if tuple(leaf.shape) != shapes[path]:
            raise value_error(
                f"`params` at {name} must have the compact shape {shapes[path]}, got "
                f"{tuple(leaf.shape)}: pass `plan.pack(params)`."
            )
    missing = set(shapes) - set(flat.params)
    if missing:
        names = ", ".join(sorted(keys_text(p) for p in missing))
        raise value_error(f"`params` lacks leaves that the plan has: {names}.")


def solve(
    plan: Plan, program: Program, inputs: Mapping[KeyTuple, Kept] | None = None
) -> dict[Atom, np.ndarray]:
    """The kept coordinates of every atom that the plan determines.

    Args:
      plan: the plan.
      program: the function.
      inputs: what stays of the state that its arguments hold.

    Raises:
      ValueError: naming the parameter axis that does not fit.
    """
    solver = Solver()

    def add(axes: Sequence[Term], masks: Kept, where: str) -> None:
        for axis, (term, mask) in enumerate(zip(axes, masks, strict=True)):
            if mask is None:
                continue
            try:
                solver.add(term, mask)
            except Unsolvable as error:
                raise value_error(
                    f"the plan does not fit the function at {where} axis {axis}: "
                    f"{error}. Make it from the groups of this function."
                ) from None

    for path, axes in program.params.items():
        add(axes, plan.keep[path], keys_text(path))
    for path, masks in (inputs or {}).items():
        add(program.inputs[path], masks, f"the argument {keys_text(path)}")
    try:
        return solver.solve()
    except Unsolvable as error:
        raise value_error(
            f"the plan does not fit the function: {error}. Make it from the groups of "
            "this function."
        ) from None


class Graph:
    """The compact program of one trace, as cells.

    Attributes:
      outs: the values of the outputs.
      log: what had to be corrected, and what could not be.
    """

    def __init__(
        self,
        program: Program,
        keep: dict[Atom, np.ndarray],
        options: Options,
        refine: bool = False,
    ) -> None:
        self.program, self.options = program, options
        self.keep = Choice(keep).keep
        self.refined: frozenset[Atom] = frozenset()
        self._build(options)
        if refine:
            self._refine(options)

    def _refine(self, options: Options) -> None:
        """Gives the atoms that leak one class for each removed coordinate."""
        while True:
            self.status()
            found = frozenset().union(*(atoms for atoms, _ in self.log.leaks))
            if found <= self.refined:
                return
            self.refined |= found
            self._build(options)

    def _build(self, options: Options) -> None:
        self.log = Log()
        choice = Choice(self.keep, self.refined, options.every)
        self.leaves: list[Cell] = []
        builder = Builder(choice, options, self.log, self.program.memo)
        traced, known = self.program.traced, options.zero
        zero = [known is None or path in known for path in traced.params]
        zero += [path not in options.loose for path in traced.others]
        zero += [True] * (len(traced.input_avals) - len(zero))
        given = zip(self.program.ins, traced.input_avals, zero, strict=True)
        ins = [self._input(builder, *each) for each in given]
        self.outs = builder.build(traced.jaxpr, self.program.scope, ins)
        self.effects = builder.effects

    def _input(self, builder: Builder, info: Any, aval: Any, zero: bool) -> Value:
        leaf = Cell(name="input")
        layouts = builder.layouts(info.axes)
        self.leaves.append(leaf)

        def rule(bits: Bits) -> Cell:
            if any(bits) and not zero:
                return ce.bad("a parameter that need not be zero")
            if any(bits):  # the reference: parameters of removed coordinates are zero
                dtype = _compat.numpy_dtype(aval.dtype)
                return ce.known(np.zeros((1,) * len(bits), dtype))
            return leaf

        return Value(layouts, aval.dtype, rule)

    def status(self) -> Log:
        """What the outputs ask for, without computing anything."""
        self._roots()
        if not self.options.removed:
            self._returning()
        return self.log

    def _roots(self) -> list[Cell]:
        roots = [v.kept for v in self.outs]
        ce.mark([*self.effects, *roots])
        return roots

    def _returning(self) -> None:
        """Notes state that comes back other than 0 at removed coordinates, and counts.

        It does not count where the program is as exact with anything in its place: a
        counter for each round of a scan, a scale that multiplies zeros.
        """
        loose = self._other_than_zero()
        if not loose:
            return
        loose = self._counting(loose)
        for path, back in self.program.carried:
            if path in loose:
                every = (a for t in self.program.inputs[path] for a in leaves(t))
                atoms = frozenset(a for a in every if a in self.keep)
                why = (
                    f"the state {keys_text(back)} comes back other than 0 where removed"
                )
                self.log.leaks.append((atoms, why))

    def _other_than_zero(self) -> frozenset[KeyTuple]:
        """The inputs of state that comes back other than 0 at removed coordinates."""
        places = {path: i for i, path in enumerate(self.program.traced.outputs)}
        found = set()
        for path, back in self.program.carried:
            value = self.outs[places[back]]
            if not all(value.cell(b).zero for b in ce.patterns(value.layouts)[1:]):
                found.add(path)
        return frozenset(found)

    def _counting(self, loose: frozenset[KeyTuple]) -> frozenset[KeyTuple]:
        """This state and what follows from it, if more leaks when nothing is known."""
        while True:
            options = dataclasses.replace(self.options, loose=loose)
            graph = Graph(self.program, self.keep, options)
            if self.refined:
                graph.refined = self.refined
                graph._build(options)
            roots = graph._roots()
            if ce.first_bad(roots) or not set(graph.log.leaks) <= set(self.log.leaks):
                return loose
            more = graph._other_than_zero() - loose
            if not more:
                return frozenset()
            loose |= more

    def emit(self, arrays: Sequence[Any]) -> list[Any]:
        """The outputs, given the arrays of the inputs."""
        if self.log.uneven:
            raise value_error(self.log.uneven[0])
        if self.log.rounds:
            raise value_error(
                f"the plan removes rounds of a scan, but {self.log.rounds[0][1]}: make "
                "it from the groups of this function."
            )
        roots = self._roots()
        leaves = dict(zip(self.leaves, arrays, strict=True))
        return ce.emit([*self.effects, *roots], leaves)[len(self.effects) :]
