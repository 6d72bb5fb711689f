r"""How much a block changes the residual stream, measured on data.

Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You
Expect", 2024 (arXiv 2403.03853), equation 1: the influence of a block with input x and
output y is

$$ 1 - E \frac{x^T y}{\|x\| \, \|y\|} , $$

the mean over all positions, features on the last axis. A block that hands its input on
has 0. Blocks are the rounds of a scan over layers, input and output its carry, and the
residual branches of an unrolled network, input and output the stream before and after
the sum.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import surgery
from jprune._errors import value_error
from jprune._jaxpr import _compat, _flat, _walk
from jprune._jaxpr._trace import flatten_call, trace
from jprune._tree import KeyTuple
from jprune._typing import PyTree
from jprune.analysis._branches import branch_ends
from jprune.surgery._axes import Atom, leaves
from jprune.surgery._callable import on_batch, require_function, require_list
from jprune.surgery._layout import labels
from jprune.surgery._program import analyze
from jprune.surgery._scope import Scope

Sums = dict[Any, jax.Array]


class BlockInfluence(NamedTuple):
    """The result of `block_influence`.

    Attributes:
      rounds: by the id of a group of kind "depth", a number for each round: scores for
        `surgery.select(..., kinds=("depth",))`. [group.size]
      branches: by name as in `residual_branches`, the number of an unrolled residual
        branch.
    """

    rounds: dict[str, np.ndarray]
    branches: dict[str, float]


def block_influence(
    fn: Callable[..., Any],
    deps: surgery.Groups,
    params: PyTree,
    batches: Iterable[Any],
    *,
    at: str | Sequence[Any] | None = None,
) -> BlockInfluence:
    """Measures 1 - cosine similarity of each block's input and output.

    Args:
      fn: `fn(params, *args)`, in eval mode.
      deps: its groups.
      params: the parameters.
      batches: the data; each batch is the tuple of `args`, or the one argument.
      at: where the names of branches start, as in `residual_branches`.

    Returns:
      A `BlockInfluence`. Weights instead of data: `deps.scores(params)` has the
      magnitude of each round, `deps.scores` of gradient times weight its saliency.

    Raises:
      ValueError: there is no batch, or neither rounds that may go nor branches.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import analysis, surgery
      >>> def net(p, x):
      ...     return jax.lax.scan(lambda h, w: (h + h @ w, None), x, p)[0]
      >>> p, x = jnp.stack([jnp.zeros((2, 2)), jnp.eye(2)[::-1]]), jnp.eye(2)
      >>> deps = surgery.groups(net)(p, x)
      >>> found = analysis.block_influence(net, deps, p, [x])
      >>> {name: vector.round(3).tolist() for name, vector in found.rounds.items()}
      {'params:0': [0.0, 0.293]}
    """
    require_function(fn)
    require_list(batches)
    totals: Sums = {}
    number = 0
    prefix = () if at is None else ((at,) if isinstance(at, str) else tuple(at))
    runs: dict[Any, Any] = {}
    for batch in batches:
        args = batch if isinstance(batch, tuple) else (batch,)
        call = flatten_call(params, args, {})
        key = tuple((x.shape, x.dtype) for x in call.arrays)
        with on_batch(params, batch):
            if key not in runs:
                runs[key] = jax.jit(_measure(fn, deps, call, prefix))
            found = runs[key](call.arrays)
        totals = _added(totals, found)
        number += 1
    if not number:
        raise value_error("`batches` is empty.")
    if not totals:
        raise value_error(
            "`fn` has no rounds of a scan that may go, and no residual branch: see "
            "`deps.frozen()` for the reasons."
        )
    means = {k: np.asarray(v, np.float64) / number for k, v in totals.items()}
    return BlockInfluence(
        {name: v for (kind, name), v in means.items() if kind == "rounds"},
        {name: float(v) for (kind, name), v in means.items() if kind == "branches"},
    )


def _measure(
    fn: Callable[..., Any], deps: surgery.Groups, call: Any, prefix: tuple
) -> Callable[[list[Any]], Sums]:
    """A function of the arrays of a call: the influence of each block in it."""
    (params, *args), kwargs = call.rebuild(call.arrays)
    traced = trace(fn)(params, *args, **kwargs)
    old = deps.program
    program = analyze(
        traced,
        reduce_max="allow",
        free_outputs=old.free,
        ties=old.ties if old.declared else None,
    )
    wanted = [g.id for g in deps if g.kind == "depth"]
    stacked = {m.path for name in wanted for m in deps[name].members}
    atoms = surgery.Groups(program, deps.shapes, params).atoms if wanted else {}
    names = {atoms[name]: name for name in wanted if name in atoms}

    def run(arrays: list[Any]) -> Sums:
        found: Sums = {}
        if names:
            look = _Rounds(names)
            _, found = look.evaluate(traced.jaxpr, program.scope, arrays)
        return {("rounds", k): v for k, v in found.items()} | _branches(
            traced, arrays, prefix, stacked
        )

    return run


def _added(a: Sums, b: Sums) -> Sums:
    return {**a, **{k: a[k] + v if k in a else v for k, v in b.items()}}


def influence(x: Any, y: Any) -> jax.Array:
    """1 - cosine similarity over the last axis, the mean over the others."""
    x, y = (v.astype(jnp.promote_types(v.dtype, jnp.float32)) for v in (x, y))
    x, y = (v.reshape(-1, v.shape[-1] if v.ndim else 1) for v in (x, y))
    length = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    cosine = jnp.sum(x * y, -1) / jnp.where(length > 0, length, 1)
    still = jnp.all(x == y, -1)  # two zero vectors are the same
    return jnp.mean(jnp.where(still, 0, 1 - cosine))


class _Rounds:
    """Runs a program and measures the carry of its scans, round by round."""

    def __init__(self, names: dict[Atom, str]) -> None:
        self.names = names

    def evaluate(
        self, jaxpr: Any, scope: Scope, values: Sequence[Any]
    ) -> tuple[list[Any], Sums]:
        """The results of a jaxpr, and what was measured in it."""
        sums: Sums = {}

        def equation(index: int, eqn: Any, ins: list[Any]) -> list[Any]:
            nonlocal sums
            inner, name = scope.inner.get(index), eqn.primitive.name
            if inner and name in _walk.CALLS | _walk.CUSTOM:
                outs, found = self.evaluate(_walk.body_of(eqn), inner[0], ins)
            elif inner and name == "scan":
                outs, found = self._scan(eqn, scope, inner[0], ins)
            else:
                return _compat.bind(eqn, eqn.params, ins)
            sums = _added(sums, found)
            return outs

        return _walk.run(jaxpr, values, equation), sums

    def _scan(
        self, eqn: Any, scope: Scope, inner: Scope, ins: list[Any]
    ) -> tuple[list[Any], Sums]:
        p, loop = eqn.params, _walk.loop(eqn, ins)
        start, n = loop.carry, len(loop.carry)
        floats = [i for i in range(n) if jnp.issubdtype(start[i].dtype, jnp.inexact)]
        stream = max(floats, key=lambda i: start[i].size, default=None)

        def body(carry: Any, row: Any) -> Any:
            outs, found = self.evaluate(loop.body, inner, [*loop.consts, *carry, *row])
            change = jnp.zeros(())
            if stream is not None:
                change = influence(carry[stream], outs[stream])
            return outs[:n], (outs[n:], change, found)

        carry, (ys, changes, found) = lax.scan(
            body, start, loop.rows, length=p["length"], reverse=p["reverse"]
        )
        sums = {k: v.mean(0) for k, v in found.items()}
        terms = [scope.info(v).axes[0] for v in _walk.loop(eqn, eqn.invars).rows]
        atoms = {x: t for t in terms for x in leaves(t) if x in self.names}
        for atom, term in atoms.items():
            where = labels(term, atom)
            vector = jnp.zeros(atom.size, changes.dtype)
            vector = vector.at[where[where >= 0]].add(changes[where >= 0])
            sums = _added(sums, {self.names[atom]: vector})
        return [*carry, *ys], sums


def _branches(
    traced: Any, arrays: Sequence[Any], prefix: tuple, stacked: set[KeyTuple]
) -> Sums:
    """The influence of each residual branch of the opened program."""
    flat = _flat.flatten(traced)
    sums = branch_ends(flat, prefix, stacked)
    if not sums:
        return {}
    jaxpr = flat.jaxpr.jaxpr
    env = dict(zip(jaxpr.invars, arrays, strict=True))
    env.update(zip(jaxpr.constvars, flat.jaxpr.consts, strict=True))
    _flat.run(jaxpr, env, 0, len(jaxpr.eqns))
    return {
        ("branches", name): influence(env[before], env[after])
        for name, (before, after) in sums.items()
    }
