"""Checking a plan: the certificate and a run, and which group is to blame.

The certificate says whether removal equals zeroing without computing anything; the run
compares the compact function with the zeroed dense one. Where the reference itself is
not finite (0 / 0 in a weight norm of a removed unit) its entries are left out of the
comparison, and the report says so; if that leaves nothing, or zeros alone, nothing is
verified. When the two disagree, the groups that the certificate calls inexact are
suspected first, and the suspects are halved, on the side of the larger error, until one
is left.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune._errors import value_error
from jprune._jaxpr._trace import Traced
from jprune._tree import KeyTuple, keys_text
from jprune._typing import PyTree
from jprune.surgery._build import Options
from jprune.surgery._callable import (
    as_function,
    state_outputs_of,
)
from jprune.surgery._carried import Kept, located, with_state
from jprune.surgery._certificate import exactness_of
from jprune.surgery._compact_model import Call, compact_call, paired, traced_dense
from jprune.surgery._groups import Groups, groups
from jprune.surgery._layout import Choice
from jprune.surgery._make import plan_from_keep
from jprune.surgery._measure import (
    Gap,
    Result,
    Run,
    gap,
    is_float,
    matched,
    projected_output,
    run_moved,
)
from jprune.surgery._numbering import texts
from jprune.surgery._plan import Plan, pack_leaf, require_plan, zero_leaf
from jprune.surgery._program import Program
from jprune.surgery._shrink import Graph, analyzed, shrink, solve

Mean = Literal["dense", "compact"]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
      ok: the compact model equals the reference within the tolerance, on at least one
        entry, and not all of them are 0; with `compact=`, that function equals the
        meaning asked for.
      way: how the certificate says it does: "zero", "constant", "ghost" or "no".
      reasons: for "no", where removed coordinates that differ met a sum.
      error: largest difference of an output leaf, relative to its own largest reference
        value; 1 or more where integers or bools are not equal.
      gradient_error: the same for the gradient, or None if it was not asked for.
      tolerance: what `error` is held to.
      nonfinite: fraction of the reference's entries that are not finite and were left
        out.
      groups: ids of the smallest set of groups found to fail, when `ok` is False.
      stopped: whether the search for them ended at `limit`.
      compact: the error of the function given as `compact`, by what removal means:
        `{"dense": ..., "compact": ...}`; None without one.
      zero: whether the reference is 0 in every entry, so that equal numbers say
        nothing.
      differs: the errors above the tolerance, by path of the output leaf, or of the
        parameter whose gradient it is ("gradient of ...").
    """

    ok: bool
    way: str
    reasons: tuple[str, ...]
    error: float
    gradient_error: float | None
    tolerance: float
    nonfinite: float
    groups: tuple[str, ...] = ()
    stopped: bool = False
    compact: dict[str, float] | None = None
    zero: bool = False
    differs: dict[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{'verified' if self.ok else 'FAILED'}: relative error {self.error:.1e}"
            f" (tolerance {self.tolerance:.0e}), certificate: {self.way}"
        ]
        if self.gradient_error is not None:
            lines.append(f"gradient: relative error {self.gradient_error:.1e}")
        lines += [f"differs: {path} by {e:.1e}" for path, e in self.differs.items()]
        lines += [f"not exact: {why}" for why in self.reasons]
        if self.nonfinite == 1.0:
            lines.append("nothing was compared: no entry of the reference is finite")
        elif self.zero:
            lines.append(
                "nothing was compared: the reference is 0 in every entry, as with a "
                "last layer that starts at 0. Verify with random values in its place"
            )
        elif self.nonfinite:
            lines.append(f"reference not finite in {self.nonfinite:.1%} of its entries")
        if self.compact is not None:
            lines.append(
                f"the function given {_meanings(self.compact, self.tolerance)}"
            )
        if self.groups:
            among = "failing groups, among (time was up)" if self.stopped else "failing"
            word = among if self.stopped else f"{among} groups"
            lines.append(f"{word}: {', '.join(self.groups)}")
        return "\n".join(lines)


def _meanings(errors: dict[str, float], tolerance: float) -> str:
    """Which meaning of removal a function has."""
    words = [
        f"equals mean={mean!r}"
        if error <= tolerance
        else f"differs from mean={mean!r} by {error:.1e}"
        for mean, error in sorted(errors.items(), key=lambda item: item[1])
    ]
    return ", ".join(words)


def verify(
    fn: Callable[..., Any],
    plan: Plan,
    params: PyTree,
    *args: Any,
    gradient: bool = False,
    tolerance: float | None = None,
    mean: Mean = "dense",
    reference: Literal["zeroed", "dense"] = "zeroed",
    compact: Any = None,
    limit: float = 60.0,
    progress: Callable[[str], None] | None = None,
    **kwargs: Any,
) -> Report:
    """Compares the compact function with the dense one.

    Args:
      fn: the dense function; or the dense model object, which holds its parameters
        (NNX, Equinox, Keras) or not (Linen, Haiku).
      plan: what is removed.
      params: the dense parameters; leaves that are no arrays pass. With a model object,
        what `groups` of its framework takes after it: `verify(model, plan, x)`.
      *args: its other arguments.
      gradient: also compare the gradient of a fixed projection of the output.
      tolerance: of the largest difference, each leaf relative to its own largest
        reference value. What rounding alone moves in a leaf a thousand times smaller
        than the largest one is granted; integers and bools must be equal. Default
        1e-9 in float64, 1e-4 in float32, 5e-2 below.
      mean: as given to `shrink`. With "compact" the reference does not divide by the
        same counts, so a difference shows what that meaning changes.
      reference: "zeroed": `fn(plan.zero(params))`, whether surgery is right. "dense":
        `fn(params)`, what the removal itself changes (0 when everything removed was
        without effect).
      compact: a function of your own over the packed parameters, such as your class at
        the compact widths: `compact(plan.pack(params), *args, **kwargs)`. Where `fn` is
        a model object, a model object of the same framework: one that holds its
        parameters is called with those. The report then says which meaning of removal
        it has; `ok` is whether that is `mean`.
      limit: seconds after which the search for a failing group ends. The comparison
        itself always runs to its end.
      progress: called with a line of text at each step of that search, as `print`.
      **kwargs: keyword arguments of `fn`, or what else `groups` took.

    Returns:
      A `Report`; printing it says what happened.

    Raises:
      TypeError: `fn` is no function and no model, or `compact` is a model beside a
        function, or a function beside a model.
      ValueError: if `compact` cannot run, or gives results of other paths or shapes.

    Examples:
      ::

        narrow = Net(width=plan.compact_shapes["dense", "kernel"][1])
        print(surgery.verify(apply, plan, params, x, compact=narrow.apply))
    """
    require_plan(plan)
    beside = compact_call(compact, fn, plan, (params, *args), kwargs)
    fn, (params, *rest), kwargs = as_function(fn, (params, *args), kwargs)
    args = tuple(rest)
    traced = traced_dense(fn, plan, params, args, kwargs)
    roots, inputs = located(plan, None, _other_shapes(traced))
    program = analyzed(traced, plan, state_outputs_of(fn), roots)
    tolerance = _tolerance(params) if tolerance is None else tolerance
    call = (fn, params, args, kwargs)
    check = _Check(call, gradient, mean, reference, program, tolerance)
    options = Options(removed=mean == "compact")
    graph = Graph(program, solve(plan, program, inputs), options)
    way, reasons = exactness_of(graph.status())
    found = check(plan)
    ok = found.ok(tolerance)
    blame: tuple[str, ...] = ()
    stopped, errors = False, None
    if beside is not None:
        errors = check.meanings(plan, beside)
        ok = errors[mean] <= tolerance and (ok or mean == "compact") and not found.zero
    elif not ok:
        deps = groups(
            fn,
            reduce_max="drop",
            state_outputs=[path for path, _ in program.ties] or False,
            free_outputs=plan.free,
            state=dict(roots),
            lookups=texts(plan.lookups),
        )(params, *args, **kwargs)
        search = _Search(deps, plan, check, tolerance, limit, progress)
        blame, stopped = search.run(found)
    return Report(
        ok=ok,
        way=way,
        reasons=reasons,
        error=found.forward.error,
        gradient_error=found.gradient.error if found.gradient else None,
        tolerance=tolerance,
        nonfinite=found.forward.nonfinite,
        groups=blame,
        stopped=stopped,
        compact=errors,
        zero=found.zero,
        differs=found.differs(tolerance),
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """The gaps of outputs and of gradients."""

    forward: Gap
    gradient: Gap | None

    @property
    def worst(self) -> float:
        return max(g.error for g in self.gaps)

    @property
    def vacuous(self) -> bool:
        """Whether outputs or gradients have no entry that was compared."""
        return self.zero or any(g.compared == 0 for g in self.gaps)

    @property
    def zero(self) -> bool:
        """Whether all that was compared is 0 on both sides, which says nothing."""
        compared = [g for g in self.gaps if g.compared]
        return bool(compared) and all(g.largest == g.error == 0 for g in compared)

    @property
    def gaps(self) -> list[Gap]:
        return [g for g in (self.forward, self.gradient) if g is not None]

    def differs(self, tolerance: float) -> dict[str, float]:
        """The leaves with an error above the tolerance, by what they are called."""
        kinds = (("", self.forward), ("gradient of ", self.gradient))
        return {
            f"{kind}{keys_text(path) or 'the output'}": error
            for kind, found in kinds
            for path, error in (found.leaves if found else {}).items()
            if error > tolerance
        }

    def ok(self, tolerance: float) -> bool:
        return not self.vacuous and self.worst <= tolerance


class _Check:
    """Compares compact and dense for plans that remove parts of one plan."""

    def __init__(
        self,
        call: tuple[Callable[..., Any], PyTree, tuple, dict[str, Any]],
        gradient: bool,
        mean: Mean,
        reference: str,
        program: Program,
        tolerance: float,
    ) -> None:
        self.fn, self.params, self.args, self.kwargs = call
        self.gradient, self.reference = gradient, reference
        self.tolerance = tolerance
        self.mean: Mean = mean
        self.program = program
        self.projected, self.shape = None, ()
        if gradient:
            state = [p for p, _ in program.ties] + [p for _, p in program.carried]
            avals = program.traced.jaxpr.out_avals
            paths = program.traced.outputs
            self.projected, self.shape = projected_output(paths, avals, state)
        self.dense = Run(self.fn, self.projected)  # compiled once for all

    def __call__(self, plan: Plan) -> _Found:
        params, args, kwargs = self.params, self.args, self.kwargs
        if self.reference == "zeroed":
            params = plan.zero(params)
            args, kwargs = with_state(self._inputs(plan), args, kwargs, zero_leaf)
        weights = self._weights(plan, zero_leaf)

        def dense(params: PyTree, args: tuple, kwargs: dict[str, Any]) -> Result:
            return self._packed(self.dense(params, args, kwargs, weights), plan)

        small = self._small(plan, self.mean)
        given = (params, args, kwargs)
        got = small(*self._compact(plan))
        again = functools.partial(run_moved, dense, given)
        return self._found(dense(*given), got, again)

    def meanings(self, plan: Plan, compact: Call) -> dict[str, float]:
        """The error of a function of the packed parameters, by meaning of removal."""
        run = Run(compact.fn, self.projected)
        try:
            given = compact.given or self._compact(plan)
            got = paired(run(*given, self._weights(plan, pack_leaf)), compact)
        except Exception as error:  # the user's class, whatever it raises
            raise value_error(
                "`compact` cannot run on the packed parameters: "
                f"{type(error).__name__}: {error}. Build your class at the widths of "
                "`jprune.frameworks.widths(deps, plan)`."
            ) from error
        errors: dict[str, float] = {}
        means: tuple[Mean, ...] = ("dense", "compact")
        for mean in means:
            small, inputs = self._small(plan, mean), self._compact(plan)
            want = small(*inputs)
            if compact.given is not None:  # of a model the result alone, not its state
                outputs = {p: x for p, x in want.outputs.items() if p[0] == "out"}
                want = dataclasses.replace(want, outputs=outputs)
            _require_same_results(want.outputs, got.outputs)
            if self.gradient and not matched(want.gradient, got.gradient):
                raise value_error(
                    "`gradient=True`: the parameters of `compact` have other paths "
                    "than the packed ones, so no gradient can be compared."
                )
            again = functools.partial(run_moved, small, inputs)
            errors[mean] = self._found(want, got, again).worst
        return errors

    def _small(self, plan: Plan, mean: Mean) -> Callable[..., Result]:
        """The compact function, to be called as the dense one."""
        outputs = state_outputs_of(self.fn)
        small = shrink(self.fn, plan, mean=mean, state_outputs=outputs)
        run = Run(small, self.projected)
        weights = self._weights(plan, pack_leaf)
        return lambda params, args, kwargs: run(params, args, kwargs, weights)

    def _compact(self, plan: Plan) -> tuple[PyTree, tuple, dict[str, Any]]:
        """The arguments of the compact function."""
        inputs = self._inputs(plan)
        args, kwargs = with_state(inputs, self.args, self.kwargs, pack_leaf)
        return plan.pack(self.params), args, kwargs

    def _inputs(self, plan: Plan) -> dict[Any, Kept]:
        """What stays of the state that the call takes."""
        return {path: plan.inputs[path] for path in self.program.inputs}

    def _packed(self, want: Result, plan: Plan) -> Result:
        """The dense results as the compact function should give them."""
        keep = self._kept(plan)
        return Result(
            {p: pack_leaf(x, keep[p]) for p, x in want.outputs.items()},
            {p: pack_leaf(x, plan.keep[p]) for p, x in want.gradient.items()},
        )

    def _kept(self, plan: Plan) -> dict[Any, tuple[np.ndarray, ...]]:
        """Which coordinates of each output stay."""
        program = self.program
        choice = Choice(solve(plan, program, self._inputs(plan)))
        return {
            path: tuple(choice.layout(term).keep for term in info.axes)
            for path, info in zip(program.traced.outputs, program.outs, strict=True)
        }

    def _weights(self, plan: Plan, fn: Callable[..., Any]) -> Any:
        """Of a fixed projection of an output, 0 where it loses coordinates."""
        if self.projected is None:
            return None
        weights = np.cos(np.arange(math.prod(self.shape))).reshape(self.shape)
        return fn(weights, self._kept(plan)[self.projected])

    def _found(self, want: Result, got: Result, again: Callable[[], Result]) -> _Found:
        """The gaps; `again` gives the reference for inputs moved a little."""
        moved = functools.cache(again)
        outputs = matched(want.outputs, got.outputs)
        forward = gap(outputs, self.tolerance, lambda: moved().outputs)
        if not self.gradient:
            return _Found(forward, None)
        slopes = matched(want.gradient, got.gradient)
        return _Found(forward, gap(slopes, self.tolerance, lambda: moved().gradient))


def _other_shapes(traced: Traced) -> dict[KeyTuple, tuple[int, ...]]:
    """Of the arguments behind the parameters, by path."""
    avals = traced.input_avals[len(traced.params) :]
    return dict(zip(traced.others, (a.shape for a in avals), strict=True))


def _require_same_results(want: dict[Any, Any], got: dict[Any, Any]) -> None:
    shapes = [{p: tuple(np.shape(x)) for p, x in out.items()} for out in (want, got)]
    if shapes[0] != shapes[1]:
        raise value_error(
            f"`compact` must give what the dense function gives, {shapes[0]}, got "
            f"{shapes[1]} (by path of the result)."
        )


def _tolerance(params: PyTree) -> float:
    dtypes = {jnp.dtype(x.dtype) for x in jax.tree.leaves(params) if is_float(x)}
    if all(d.itemsize >= 8 for d in dtypes):
        return 1e-9
    return 1e-4 if all(d.itemsize >= 4 for d in dtypes) else 5e-2


class _Search:
    """Which groups of a plan fail: certificate first, then halves by their error."""

    def __init__(
        self,
        deps: Groups,
        plan: Plan,
        check: _Check,
        tolerance: float,
        limit: float,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.deps, self.check, self.tolerance = deps, check, tolerance
        self.keep = _kept(deps, plan)
        self.end = time.monotonic() + limit
        self.progress = progress or (lambda line: None)

    def run(self, found: _Found) -> tuple[tuple[str, ...], bool]:
        """The ids, and whether time was up before the search was."""
        names = list(self.keep)
        exactness = self.deps.exactness
        if found.vacuous:
            return tuple(n for n in names if exactness[n].nonfinite), False
        inexact = [n for n in names if not exactness[n].exact]
        if inexact and len(inexact) < len(names):
            if self._late():
                return tuple(inexact), True
            names = inexact if self._error(inexact) > self.tolerance else names
        while len(names) > 1:
            if self._late():
                return tuple(names), True
            middle = len(names) // 2
            halves = names[:middle], names[middle:]
            errors = [self._error(half) for half in halves]
            if max(errors) <= self.tolerance:
                break  # only together
            names = halves[int(np.argmax(errors))]
        return tuple(names), False

    def _late(self) -> bool:
        return time.monotonic() > self.end

    def _error(self, names: list[str]) -> float:
        part = plan_from_keep(self.deps, {n: self.keep[n] for n in names})
        error = self.check(part).worst
        self.progress(f"{len(names)} groups from {names[0]}: error {error:.1e}")
        return error


def _kept(deps: Groups, plan: Plan) -> dict[str, np.ndarray]:
    """The kept coordinates of each group that loses some."""
    keep = {}
    for group in deps:
        ref = group.members[0]
        where, mask = ref.coordinates(group.size), plan.keep[ref.path][ref.axis]
        kept = np.zeros(group.size, bool)
        kept[where[(where >= 0) & mask]] = True
        if not kept.all():
            keep[group.id] = kept
    return keep
