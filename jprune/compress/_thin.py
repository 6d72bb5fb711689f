"""A program whose kernels are products: every contraction of one becomes two.

The program is evaluated equation by equation, as in `_sites`. A `Thin` stands for a
kernel that is never formed; casts, transposes, unit axes and scalars pass over it, and
`jit`, loops, branches and rematerialization are entered again around it. At a
contraction it is read in two halves (`Rule.low_rank`). Whatever else reads a `Thin`
has no such form: it is noted, and `close` raises.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._errors import listing, value_error
from jprune._factors import Refused, Thin
from jprune._jaxpr import _compat, _walk
from jprune._jaxpr._compat import ClosedJaxpr, Equation, Jaxpr
from jprune._jaxpr._moves import moved_dims
from jprune._tree import KeyTuple, keys_text
from jprune.surgery._registry import RULES

_EACH_ARRAY = {
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "reduce_precision",
    "stop_gradient",
}


class Walk:
    """One run of a jaxpr in which some inputs are `Thin`.

    Attributes:
      refused: by parameter, why it cannot stay a product.
    """

    def __init__(self) -> None:
        self.refused: dict[KeyTuple, str] = {}

    def run(self, jaxpr: Jaxpr | ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
        """Evaluates an open or closed jaxpr; a result may be `Thin` as well."""
        return _walk.run(jaxpr, values, lambda _, eqn, ins: self._equation(eqn, ins))

    def whole(self, values: Sequence[Any], avals: Sequence[Any], why: str) -> list[Any]:
        """The values as arrays; one that is `Thin` is refused, its place filled."""
        arrays = list(values)
        for i, (value, aval) in enumerate(zip(values, avals, strict=True)):
            if isinstance(value, Thin):
                self.refused.setdefault(value.path, why)
                arrays[i] = jnp.zeros(aval.shape, aval.dtype)
        return arrays

    def close(self) -> None:
        """Raises for the parameters that were read in another way.

        Raises:
          ValueError: naming each with the reason.
        """
        if self.refused:
            lines = [f"{keys_text(p)}: {w}" for p, w in self.refused.items()]
            raise value_error(
                "These parameters cannot be two factors: the function reads them "
                "otherwise than in contractions over the rows or the columns of their "
                f"unfolding.{listing(lines)}\nLeave them out of `ranks` (rank 0), or "
                "give another `kind`."
            )

    def _equation(self, eqn: Equation, ins: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        thin = [i for i, value in enumerate(ins) if isinstance(value, Thin)]
        if not thin:
            return _compat.bind(eqn, eqn.params, ins)
        if name in _AROUND:
            return _AROUND[name](self, eqn, ins)
        passed = self._pass(eqn, ins)
        if passed is not None:
            return [passed]
        why = f"`{name}` reads it"
        rule = RULES.get(name)
        if rule and rule.low_rank:
            if len(thin) == 2:
                ins, why = list(ins), f"`{name}` multiplies it with another such kernel"
            else:
                place = thin[0]
                try:
                    return [rule.low_rank(eqn, place, ins[place], ins[1 - place])]
                except Refused as refusal:
                    why = str(refusal)
        arrays = self.whole(ins, [v.aval for v in eqn.invars], why)
        return _compat.bind(eqn, eqn.params, arrays)

    def _pass(self, eqn: Equation, ins: list[Any]) -> Thin | None:
        """The result of what may be done to each factor, or to one of them."""
        name, value = eqn.primitive.name, ins[0]
        if name == "neg":
            return value.scaled(jnp.negative)
        if name == "mul" and 0 in [v.aval.ndim for v in eqn.invars]:
            value, by = ins if isinstance(ins[0], Thin) else ins[::-1]
            return value.scaled(lambda x: x * by)
        if name == "div" and isinstance(value, Thin) and eqn.invars[1].aval.ndim == 0:
            return value.scaled(lambda x: x / ins[1])
        if len(ins) != 1:
            return None
        if name in _EACH_ARRAY:
            return value.mapped(lambda x: _compat.bind(eqn, eqn.params, [x])[0])
        dims = moved_dims(eqn, value.dims)
        shape = eqn.outvars[0].aval.shape
        if dims is None or any(
            d is None and n != 1 for d, n in zip(dims, shape, strict=True)
        ):
            return None
        return dataclasses.replace(value, dims=dims)


# Calls, branches and loops


def _call(walk: Walk, eqn: Equation, ins: list[Any]) -> list[Any]:
    params, body = eqn.params, _walk.body_of(eqn)

    def run(*values: Any) -> list[Any]:
        return walk.run(body, values)

    if eqn.primitive.name in ("jit", "pjit") and not params.get("inline"):
        return jax.jit(run)(*ins)
    if eqn.primitive.name in ("remat", "remat2", "checkpoint"):
        policy, cse = params["policy"], params["prevent_cse"]
        return jax.checkpoint(run, policy=policy, prevent_cse=cse)(*ins)
    return run(*ins)


def _cond(walk: Walk, eqn: Equation, ins: list[Any]) -> list[Any]:
    def branch(body: Any) -> Callable[..., list[Any]]:
        return lambda *values: walk.whole(
            walk.run(body, values), body.out_avals, "a branch returns it"
        )

    return lax.switch(ins[0], [branch(b) for b in eqn.params["branches"]], *ins[1:])


def _scan(walk: Walk, eqn: Equation, ins: list[Any]) -> list[Any]:
    params, loop = eqn.params, _walk.loop(eqn, ins)
    avals, n = _walk.loop(eqn, [v.aval for v in eqn.invars]), len(loop.carry)
    start = walk.whole(loop.carry, avals.carry, "it is the state of a loop")
    over = [
        x.for_loop()
        if isinstance(x, Thin) and x.loop_axis()
        else walk.whole([x], [aval], "a loop runs over an axis of its matrix")[0]
        for x, aval in zip(loop.rows, avals.rows, strict=True)
    ]

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        row = [x.in_loop() if isinstance(x, Thin) else x for x in xs]
        outs = walk.run(loop.body, [*loop.consts, *carry, *row])
        outs = walk.whole(outs, loop.body.out_avals, "a loop returns it")
        return outs[:n], outs[n:]

    carry, ys = lax.scan(
        step,
        start,
        over,
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys]


def _while(walk: Walk, eqn: Equation, ins: list[Any]) -> list[Any]:
    loop, test = _walk.loop(eqn, ins), eqn.params["cond_jaxpr"]
    avals = _walk.loop(eqn, [v.aval for v in eqn.invars])
    start = walk.whole(loop.carry, avals.carry, "it is the state of a loop")

    def step(carry: list[Any]) -> list[Any]:
        outs = walk.run(loop.body, [*loop.consts, *carry])
        return walk.whole(outs, loop.body.out_avals, "a loop returns it")

    return lax.while_loop(
        lambda carry: walk.run(test, [*loop.condition, *carry])[0], step, start
    )


_AROUND: dict[str, Callable[[Walk, Equation, list[Any]], list[Any]]] = {
    **dict.fromkeys(_walk.CALLS, _call),
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
