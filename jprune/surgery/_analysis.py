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

from jprune._groups import Role
from jprune._jaxpr._compat import ClosedJaxpr, Equation, InconclusiveSize, Jaxpr
from jprune.surgery import _axes as ax
from jprune.surgery import _roles
from jprune.surgery._axes import Atom, Axes, Reason, StructureError, Term
from jprune.surgery._cost import Branches, Contraction, Cost, operations
from jprune.surgery._registry import RULES, NoRule, Rule, is_strict
from jprune.surgery._scope import CONST, Info, Scope, fresh_axes


class Context:
    """What the first pass collects over a whole program.

    Attributes:
      reduce_max: what to do with an axis that a maximum runs over, see `groups`.
      roles: for (parameter index, axis), its role, from its first use.
      costs: the contractions met, as products of axis terms.
      reductions: axes of order statistics (max and the like), decided by the caller.
      pads: pieces of axes that padding made.
      summed: axes that a contraction or a sum runs over.
      lookups: axes of parameters that may shrink although they are looked up by number.
      rounds: axes along which a scan takes its rounds.
      channelwise: for (parameter index, axis), kernels that act on each channel alone.
    """

    def __init__(self, reduce_max: str = "known") -> None:
        self.reduce_max = reduce_max
        self.roles: dict[tuple[int, int], Role] = {}
        self.costs: list[Cost] = []
        self.reductions: list[tuple[Term, str]] = []
        self.pads: list[Term] = []
        self.summed: list[Term] = []
        self.lookups: list[Term] = []
        self.rounds: list[Term] = []
        self.channelwise: set[tuple[int, int]] = set()

    def looked_up(self, term: Term) -> bool:
        """Whether an axis was declared to be looked up by number, see `groups`."""
        return any(ax.same(term, t) for t in self.lookups)


class AxisSite:
    """One equation at one call site: what the `axes` half of its rule works with.

    Attributes:
      context: what is collected over the whole program.
      scope: what is known of the jaxpr that the equation is in, at this call site.
      eqn: the equation.
      index: its place in the jaxpr.
      repeat: the rounds of the loops around it, for the cost.
    """

    __slots__ = ("context", "eqn", "index", "repeat", "scope")

    def __init__(
        self, context: Context, scope: Scope, eqn: Equation, index: int, repeat: Axes
    ) -> None:
        self.context = context
        self.scope = scope
        self.eqn = eqn
        self.index = index
        self.repeat = repeat

    def fresh(self, size: int) -> Atom:
        """A free axis that nothing is known of."""
        return Atom(size)

    def fixed(self, size: int, why: str) -> Atom:
        """A new axis that may not shrink."""
        return Atom(size, Reason(why, self.eqn.primitive.name))

    def freeze(self, term: Term, why: str) -> None:
        """Forbids removal on an axis, naming the primitive at hand."""
        ax.freeze(term, Reason(why, self.eqn.primitive.name))

    def unify(self, s: Term, t: Term) -> None:
        """Makes two axes the same."""
        if s is t:
            return
        why = Reason("axes of different structure", self.eqn.primitive.name)
        ax.unify(s, t, why)

    def summed(self, *terms: Term) -> None:
        """Notes that the equation sums over some axes: they are none of its results."""
        self.context.summed.extend(terms)

    def channelwise(self, kernel: Info, dim: int) -> None:
        """Notes that a kernel mixes no channels: it scales those of a dimension."""
        axis = kernel.dims[dim] if kernel.source >= 0 and kernel.dims else None
        if axis is not None:
            self.context.channelwise.add((kernel.source, axis))

    def walk(
        self, jaxpr: Jaxpr | ClosedJaxpr, ins: Sequence[Info], over: Term | None = None
    ) -> list[Info]:
        """Analyzes a sub-jaxpr (closed or open) of the equation.

        Args:
          jaxpr: the sub-jaxpr.
          ins: what is known of its inputs.
          over: the axis of rounds, or devices, that it runs over, for the cost; None
            for one run.

        Returns:
          What is known of its outputs. Its scope is appended to those of the equation.
        """
        repeat = self.repeat if over is None else (*self.repeat, over)
        scope, outs = walk(self.context, jaxpr, ins, repeat)
        self.scope.inner.setdefault(self.index, []).append(scope)
        return outs

    def alternatives(
        self, runs: Sequence[Callable[[], list[Info]]]
    ) -> list[list[Info]]:
        """Runs analyses of which only one is executed; the dearest counts."""
        before, results, branches = self.context.costs, [], []
        for run in runs:
            self.context.costs = []
            results.append(run())
            branches.append(self.context.costs)
        self.context.costs = before
        if any(branches):
            before.append(Branches(tuple(map(tuple, branches))))
        return results


def walk(
    context: Context, jaxpr: Jaxpr | ClosedJaxpr, ins: Sequence[Info], repeat: Axes = ()
) -> tuple[Scope, list[Info]]:
    """Analyzes one jaxpr, open or closed, given what is known of its inputs."""
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    scope = Scope()
    for var in jaxpr.constvars:
        scope.infos[var] = Info(fresh_axes(var), CONST)
    scope.infos.update(zip(jaxpr.invars, ins, strict=True))
    for index, eqn in enumerate(jaxpr.eqns):
        site = AxisSite(context, scope, eqn, index, repeat)
        scope.infos.update(zip(eqn.outvars, _equation(site), strict=True))
    return scope, [scope.info(v) for v in jaxpr.outvars]


def _equation(site: AxisSite) -> list[Info]:
    """The results of one equation: by its rule, or as a generator."""
    eqn, scope = site.eqn, site.scope
    ins = [scope.info(v) for v in eqn.invars]
    rule = RULES.get(eqn.primitive.name)
    source = _roles.source_of(ins)
    if source == CONST and not (rule and rule.constant):
        scope.generators.add(site.index)
        outs = [fresh_axes(v) for v in eqn.outvars]
    else:
        outs = _by_rule(site, rule, ins)
    plain = [o for o in outs if not isinstance(o, Info)]
    if len(plain) < len(outs):  # a call knows more than the axes
        return [o if isinstance(o, Info) else Info(o) for o in outs]
    return _roles.sources(site.context.roles, rule, eqn, ins, plain, source)


def _by_rule(
    site: AxisSite, rule: Rule | None, ins: list[Info]
) -> Sequence[Axes | Info]:
    """The rule's answer; without one, or if it has none, the equation is opaque."""
    eqn = site.eqn
    why = "unknown primitive"
    if rule is not None:
        try:
            outs = rule.axes(site, eqn, ins)
            _check_sizes(eqn, outs)
            _count(site, rule, ins, outs)
            return outs
        except Exception as error:  # an unforeseen form must not crash
            if is_strict() and not isinstance(error, _EXPECTED):
                raise
            why = f"no rule for this form: {error}"
            site.scope.inner.pop(site.index, None)
        _count(site, rule)
    site.scope.opaque[site.index] = why
    site.scope.generators.add(site.index)
    for info in ins:
        for term in info.axes:
            site.freeze(term, why)
    return [fresh_axes(v) for v in eqn.outvars]


_EXPECTED = (NoRule, StructureError, InconclusiveSize)
"""What a rule may raise: forms that it does not cover, sizes that are symbolic."""


def _count(
    site: AxisSite,
    rule: Rule,
    ins: Sequence[Info] = (),
    outs: Sequence[Axes | Info] = (),
) -> None:
    """Adds the operations of an equation, as a product of axes; opaque: a number."""
    if rule.work is None:
        return
    work = rule.work(site.eqn)
    if not outs:
        cost = Contraction(operations(work, site.eqn), site.repeat)
    else:
        out = outs[0].axes if isinstance(outs[0], Info) else outs[0]
        axes = [out[d] for d in work.result]
        axes += [ins[place].axes[d] for place, d in work.operands]
        cost = Contraction(work.factor, (*site.repeat, *axes))
    site.context.costs.append(cost)


def _check_sizes(eqn: Equation, outs: Sequence[Axes | Info]) -> None:
    for var, out in zip(eqn.outvars, outs, strict=True):
        axes = out.axes if isinstance(out, Info) else out
        if [t.size for t in axes] != list(var.aval.shape):
            raise StructureError("its rule gives axes of another shape")
