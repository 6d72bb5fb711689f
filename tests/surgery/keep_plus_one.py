"""An independent route to the values of a compact model: keep one removed coordinate.

The oracle of the ghosts. Every removed coordinate of an axis holds what the first of
them holds, so one *representative* is kept in the arrays, with its zero parameters, and
counted several times wherever a sum runs over it. No ghost is computed: `weighted` runs
the dense program with weights in its reductions (1 for a kept position, the number of
removed ones for a representative, 0 for the other removed ones), and `surgery.shrink`
slices that program with the kept coordinates and the representatives, which asks for no
ghost because a weight of 0 stands before everything that is sliced away.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import surgery
from jprune._jaxpr import _compat
from jprune.surgery import _axes as ax
from jprune.surgery._layout import Choice
from jprune.surgery._program import Program
from jprune.surgery._scope import Scope

Weights = Callable[[ax.Term], np.ndarray]


def with_representatives(deps: Any, keep: dict[str, np.ndarray]) -> Any:
    """The plan that also keeps the first removed coordinate of each group."""
    more = {}
    for name, kept in keep.items():
        more[name] = kept.copy()
        if not kept.all():
            more[name][np.flatnonzero(~kept)[0]] = True
    return surgery.plan_from_keep(deps, more)


def weighted(deps: Any, keep: dict[str, np.ndarray]) -> Callable[..., Any]:
    """The function of `deps`, its reductions weighted for the removal of the rest."""
    choice = Choice({deps.atoms[name]: kept for name, kept in keep.items()})

    def weights(term: ax.Term) -> np.ndarray:
        lay = choice.layout(term)
        out = lay.keep.astype(np.float64)
        out[lay.classes] = lay.mult
        return out

    program: Program = deps.program

    def fn(params: Any, *args: Any) -> Any:
        flat = jax.tree.leaves((params, *args))
        outs = run(program.traced.jaxpr, program.scope, flat, weights)
        return jax.tree.unflatten(program.traced.out_tree, outs)

    return fn


def run(jaxpr: Any, scope: Scope, args: Sequence[Any], weights: Weights) -> list[Any]:
    """Evaluates a jaxpr, open or closed, with weighted reductions."""
    consts: Sequence[Any] = ()
    if isinstance(jaxpr, _compat.ClosedJaxpr):
        jaxpr, consts = jaxpr.jaxpr, jaxpr.consts
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(var: Any) -> Any:
        is_literal = isinstance(var, _compat.Literal)
        return _compat.literal_value(var) if is_literal else env[var]

    for index, eqn in enumerate(jaxpr.eqns):
        axes = [scope.info(v).axes for v in eqn.invars]
        inner = scope.inner.get(index, [])
        outs = equation(eqn, [read(v) for v in eqn.invars], axes, inner, weights)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def equation(
    eqn: Any, args: list[Any], axes: Any, inner: list[Scope], weights: Weights
) -> list[Any]:
    """One equation: reductions are weighted, calls and loops are entered."""
    name, p = eqn.primitive.name, eqn.params
    bind = lambda *given: _compat.bind(eqn, p, given)  # noqa: E731
    enter = lambda body, i=0: lambda *a: run(body, inner[i], a, weights)  # noqa: E731
    weigh = lambda x, which, dims, how: spread(  # noqa: E731
        x, [(d, weights(axes[which][d])) for d in dims], how
    )
    if name in HOW:
        return bind(weigh(args[0], 0, p["axes"], HOW[name]))
    if name == "dot_general":
        return bind(weigh(args[0], 0, p["dimension_numbers"][0][0], times), args[1])
    if name == "conv_general_dilated":  # the input features of one group
        feature = p["dimension_numbers"].rhs_spec[1]
        return bind(args[0], weigh(args[1], 1, [feature], times))
    if name in ("jit", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"):
        body = p["call_jaxpr"] if name.startswith("custom") else p["jaxpr"]
        plain = name.startswith("custom") and not reduces(body)
        return bind(*args) if plain else enter(body)(*args)
    if name == "cond":
        branches = [enter(b, i) for i, b in enumerate(p["branches"])]
        return lax.switch(args[0], branches, *args[1:])
    if name == "scan":
        n, m = p["num_consts"], p["num_consts"] + p["num_carry"]
        body = enter(p["jaxpr"])

        def step(carry: Any, row: Any) -> Any:
            out = body(*args[:n], *carry, *row)
            return out[: m - n], out[m - n :]

        carry, ys = lax.scan(step, args[n:m], args[m:], p["length"], p["reverse"])
        return [*carry, *ys]
    if name == "while":
        n, m = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        cond, body = enter(p["cond_jaxpr"], 0), enter(p["body_jaxpr"], 1)
        return lax.while_loop(
            lambda c: cond(*args[:n], *c)[0], lambda c: body(*args[n:m], *c), args[m:]
        )
    return bind(*args)


def spread(x: Any, pairs: Any, how: Callable[..., Any]) -> Any:
    """`how(x, weights)` with the outer product of the weights along some axes."""
    grid = np.ones((1,) * x.ndim)
    for d, weight in pairs:
        grid = grid * weight.reshape([-1 if i == d else 1 for i in range(x.ndim)])
    return x if (grid == 1).all() else how(x, np.broadcast_to(grid, x.shape))


def times(x: Any, weight: np.ndarray) -> Any:
    """A sum counts a position so many times."""
    return x * jnp.asarray(weight, x.dtype)


def without(fill: Callable[[Any], Any]) -> Callable[..., Any]:
    """An extremum leaves out the positions of weight 0."""
    return lambda x, weight: jnp.where(weight == 0, fill(x.dtype), x)


HOW: dict[str, Callable[..., Any]] = {
    "reduce_sum": times,
    "reduce_prod": lambda x, weight: x ** jnp.asarray(weight, x.dtype),
    "reduce_max": without(lambda dtype: jnp.asarray(-jnp.inf, dtype)),
    "reduce_min": without(lambda dtype: jnp.asarray(jnp.inf, dtype)),
}


def reduces(jaxpr: Any) -> bool:
    """Whether a rule's own program contains what would have to be weighted."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        eqn.primitive.name in (*HOW, "dot_general", "conv_general_dilated")
        or any(map(reduces, _compat.sub_jaxprs(eqn.params)))
        for eqn in jaxpr.eqns
    )
