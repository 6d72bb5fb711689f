"""First pass: one walk over the jaxpr that finds which axes are coupled.

Every value gets one axis term per dimension. Parameters start with a fresh atom on each
axis, inputs with frozen ones ("model input"), closed-over constants with fresh ones
(they are indexed like parameters). Each equation's rule relates the terms of its
operands and results; at the end the outputs are frozen ("model output"), except for
state that comes back updated. What is left unfrozen on the parameters' axes are the
groups.

An equation whose operands depend on neither parameters nor inputs is a *generator*: its
results can be computed at full size and indexed, so their axes are fresh, whatever the
primitive. So are the results of an opaque equation, all of whose operands are frozen.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jprune._jaxpr import _compat
from jprune.surgery import _axes as ax
from jprune.surgery import _roles
from jprune.surgery._axes import Atom, Reason, Term
from jprune.surgery._cost import Branches, Cost
from jprune.surgery._scope import CONST, Info, Scope, fresh_axes


class Context:
    """What the rules of the first pass work with.

    Attributes:
      roles: for (parameter index, axis), its role, from its first use.
      costs: the contractions met, as products of axis terms.
      reductions: axes of order statistics (max and the like), decided by the caller.
      pads: pieces of axes that padding made.
      summed: axes that a contraction or a sum runs over.
    """

    def __init__(self, rules: dict[str, Any], reduce_max: str = "known") -> None:
        self.rules = rules
        self.reduce_max = reduce_max
        self.roles: dict[tuple[int, int], str] = {}
        self.costs: list[Cost] = []
        self.reductions: list[tuple[Term, str]] = []
        self.pads: list[Term] = []
        self.summed: list[Term] = []
        self.repeat = 1
        self.scope = Scope()
        self.eqn: Any = None
        self.index = 0

    # -- for the rules ---------------------------------------------------------------

    def fresh(self, size: int) -> Atom:
        """A free axis that nothing is known of."""
        return Atom(size)

    def fixed(self, size: int, why: str) -> Atom:
        """A new axis that may not shrink."""
        return Atom(size, Reason(why, self._name))

    def freeze(self, term: Term, why: str) -> None:
        """Forbids removal on an axis, naming the primitive at hand."""
        ax.freeze(term, Reason(why, self._name))

    def unify(self, s: Term, t: Term) -> None:
        """Makes two axes the same."""
        if s is t or s.size == t.size == 1:
            return
        ax.unify(s, t, Reason("axes of different structure", self._name))

    def walk(self, jaxpr: Any, ins: Sequence[Info], times: int = 1) -> list[Info]:
        """Analyzes a sub-jaxpr (closed or open) of the equation at hand.

        Args:
          jaxpr: the sub-jaxpr.
          ins: what is known of its inputs.
          times: how often it runs, for the cost.

        Returns:
          What is known of its outputs. Its scope is appended to those of the equation.
        """
        outer = (self.scope, self.eqn, self.index, self.repeat)
        self.repeat *= times
        try:
            scope, outs = walk(self, jaxpr, ins)
        finally:
            self.scope, self.eqn, self.index, self.repeat = outer
        self.scope.inner.setdefault(self.index, []).append(scope)
        return outs

    def alternatives(self, runs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Runs analyses of which only one is executed; the dearest counts."""
        before, results, branches = self.costs, [], []
        for run in runs:
            self.costs = []
            results.append(run())
            branches.append(self.costs)
        self.costs = before
        if any(branches):
            self.costs.append(Branches(tuple(map(tuple, branches))))
        return results

    @property
    def _name(self) -> str:
        return self.eqn.primitive.name if self.eqn is not None else ""


def walk(ctx: Context, jaxpr: Any, ins: Sequence[Info]) -> tuple[Scope, list[Info]]:
    """Analyzes one jaxpr, open or closed, given what is known of its inputs."""
    if isinstance(jaxpr, _compat.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    ctx.scope = scope = Scope()
    for var in jaxpr.constvars:
        scope.infos[var] = Info(tuple(map(Atom, var.aval.shape)), CONST)
    scope.infos.update(zip(jaxpr.invars, ins, strict=True))
    for index, eqn in enumerate(jaxpr.eqns):
        ctx.eqn, ctx.index = eqn, index
        scope.infos.update(zip(eqn.outvars, _equation(ctx, eqn), strict=True))
    return scope, [scope.info(v) for v in jaxpr.outvars]


def _equation(ctx: Context, eqn: Any) -> list[Info]:
    """The results of one equation: by its rule, or as a generator."""
    ins = [ctx.scope.info(v) for v in eqn.invars]
    rule = ctx.rules.get(eqn.primitive.name)
    source = _roles.source_of(ins)
    if source == CONST and not (rule and rule.constant):
        ctx.scope.generators.add(ctx.index)
        outs = [fresh_axes(v) for v in eqn.outvars]
    else:
        outs = _by_rule(ctx, rule, eqn, ins)
    if any([isinstance(o, Info) for o in outs]):  # a call knows more than the axes
        return [o if isinstance(o, Info) else Info(o) for o in outs]
    return _roles.sources(ctx, eqn, ins, outs, source)


def _by_rule(ctx: Context, rule: Any, eqn: Any, ins: list[Info]) -> list[Any]:
    """The rule's answer; without one, or if it fails, the equation is opaque."""
    if rule is None:
        why = "unknown primitive"
    else:
        try:
            outs = rule.analyze(ctx, eqn, ins)
            _check_sizes(eqn, outs)
            return outs
        except Exception as error:  # noqa: BLE001  an unforeseen form must not crash
            why = f"no rule for this form: {error}"
            ctx.scope.inner.pop(ctx.index, None)
    ctx.scope.opaque[ctx.index] = why
    ctx.scope.generators.add(ctx.index)
    for info in ins:
        for term in info.axes:
            ctx.freeze(term, why)
    return [fresh_axes(v) for v in eqn.outvars]


def _check_sizes(eqn: Any, outs: Sequence[Any]) -> None:
    for var, out in zip(eqn.outvars, outs, strict=True):
        axes = out.axes if isinstance(out, Info) else out
        if [t.size for t in axes] != list(var.aval.shape):
            raise ax.StructureError("its rule gives axes of another shape")
