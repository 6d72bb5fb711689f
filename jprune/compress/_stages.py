"""A network run stage by stage over calibration data, kernels replaced on the way.

The flat program is cut at the contractions that are to change. All batches are taken to
the first; what it reads is measured; its kernel is replaced; and the new result is what
the later stages see, so that every layer is fitted to inputs with the errors of those
before it. Beside it the program may run unchanged, for the outputs to aim at. One pass
in all: a stage's live values are kept for each batch, nothing is computed twice.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._dtypes import owned
from jprune._errors import listing, value_error
from jprune._jaxpr import _compat, _flat
from jprune._jaxpr._chain import Chain, data_dependent, find_chain, reads
from jprune._jaxpr._matrix import MatrixForm, random_positions
from jprune._jaxpr._trace import abstract, flatten_call
from jprune._tree import KeyTuple, path_keys
from jprune._typing import PyTree
from jprune.compress._capture import (
    as_args,
    require_finite,
    require_rows,
    site_name,
    statistics,
    wanted_forms,
)
from jprune.surgery._callable import BATCH, require_list, traced

Env = dict[Any, Any]


class Stages:
    """One pass over a function.

    Args:
      fn: `fn(params, *args)`.
      params: the parameters.
      batches: the data, all of one shape; kept on the device.
      wanted: paths of the parameters that may be replaced.
      named: they were asked for one by one.
      targets: also run the unchanged program, for the outputs to aim at.
      start: the parameters that the other one runs with from the start.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: PyTree,
        batches: Iterable[Any],
        wanted: set[KeyTuple],
        *,
        named: bool,
        targets: bool,
        start: PyTree = None,
    ) -> None:
        require_list(batches)
        calls = [flatten_call(params, as_args(batch), {}) for batch in batches]
        if not calls:
            raise value_error("`batches` is empty: there is nothing to calibrate on.")
        arguments = [call.arrays[len(call.params) :] for call in calls]
        _require_one_shape(arguments)
        held, *args = calls[0].rebuild(calls[0].arrays)[0]
        flat = _flat.flatten(traced(fn, held, tuple(args), BATCH))
        self.flat, self.params = flat, params
        self.data = data_dependent(flat)
        forms = _read_once(flat, wanted_forms(flat, wanted, named), named)
        self.forms = [f for f in forms if f.eqn.outvars[0] in self.data]
        self.leaves = dict(zip(flat.params, calls[0].arrays, strict=False))
        self.fixed = self.fixed_now = _fixed(flat, calls[0].arrays, self.data)
        if start is not None:
            arrays = flatten_call(start, (), {}).arrays
            self.fixed_now = _fixed(flat, arrays, self.data)
        self.replaced: dict[tuple[KeyTuple, tuple], Any] = {}
        inputs = flat.jaxpr.jaxpr.invars[len(flat.params) :]
        self.now = [dict(zip(inputs, a, strict=True)) for a in arguments]
        self.then = [dict(e) for e in self.now] if targets else None
        self.last_use = _last_use(flat)

    def __iter__(self) -> Iterator[MatrixForm]:
        """The contractions in order; each is run when the next is asked for."""
        at = 0
        for form in self.forms:
            self._advance(at, form.site.eqn)
            self._result: Callable | None = None
            yield form
            self._contract(form)
            at = form.site.eqn + 1

    def chain(self, form: MatrixForm) -> Chain:
        """What follows a contraction."""
        return find_chain(self.flat, form, self.data)

    def weights(self, form: MatrixForm) -> np.ndarray:
        """The kernel as it was trained, [G, K, M] float64."""
        var = form.eqn.invars[form.site.place]
        return np.asarray(form.weights(self.fixed[var]), np.float64)

    def sums(
        self, form: MatrixForm, chain: Chain | None, samples: int | None, key: jax.Array
    ) -> dict[str, np.ndarray]:
        """Statistics of the inputs now and the outputs to aim at, over all batches.

        Args:
          form: the contraction at hand.
          chain: what follows it, if the other summand's error is to be made up for.
          samples: positions of a convolution; see `capture`.
          key: for them.

        Raises:
          ValueError: values that are not finite.
        """
        partner = chain.partner if chain is not None and self.then is not None else None
        (out,) = form.eqn.outvars
        x_var = form.eqn.invars[1 - form.site.place]
        if partner is not None and partner not in self.now[0]:
            partner = None  # it comes later, and makes up for this one
        slope = None
        if chain is not None and partner is not None:
            like = jax.ShapeDtypeStruct(out.aval.shape, out.aval.dtype)
            slope = chain.slope(self.flat, self.fixed, like)

        @jax.jit
        def one(now: Any, then: Any, operand: Any, pair: Any, key: jax.Array) -> Any:
            drawn = random_positions(key, form, samples)
            x = form.inputs(now, drawn)
            if then is None:
                return statistics(x, jnp.zeros((*x.shape[:2], 0), x.dtype), "gram")
            y = self._bind(form, then, operand)
            if pair is not None:
                assert chain is not None
                y = residual_target(
                    y, chain.sign * pair[0], chain.sign * pair[1], slope
                )
            return statistics(x, form.outputs(y, drawn), "gram")

        kernel = self.fixed[form.eqn.invars[form.site.place]]
        total: dict[str, np.ndarray] = {}
        for i, env in enumerate(self.now):
            now = env.get(x_var, self.fixed_now.get(x_var))
            old = None
            if self.then is not None:
                old = self.then[i].get(x_var, self.fixed.get(x_var))
            pair = None
            if partner is not None:
                assert self.then is not None
                pair = (self.then[i][partner], env[partner])
            found = one(now, old, kernel, pair, jax.random.fold_in(key, i))
            found = jax.device_get(found)
            for name, value in found.items():
                total[name] = total.get(name, 0) + np.asarray(value, np.float64)
        require_rows(site_name(form), total)
        require_finite(site_name(form), *total.values())
        return total

    def replace(
        self, form: MatrixForm, weights: np.ndarray, shift: np.ndarray | None = None
    ) -> None:
        """Gives the contraction at hand new weights.

        Args:
          form: the contraction.
          weights: [G, K, M].
          shift: [G, M] to be added to its outputs, if any.
        """
        origin = form.site.origin
        like = jax.ShapeDtypeStruct(form.param_shape, self.leaves[origin.path].dtype)
        operand = form.operand(weights)
        self.replaced[origin.path, origin.at] = form.as_param(operand, like)
        operand = form.as_operand(jnp.asarray(self.replaced[origin.path, origin.at]))
        offset = None if shift is None else form.result(np.asarray(shift))

        @jax.jit
        def result(x: Any, kernel: Any) -> Any:
            y = self._bind(form, x, kernel)
            return y if offset is None else y + offset.astype(y.dtype)

        self._result = lambda x: result(x, operand)

    def variables(self, changes: Mapping[KeyTuple, Any]) -> PyTree:
        """The parameters with the replaced kernels, and `changes` added."""

        def leaf(path: Any, x: Any) -> Any:
            keys = path_keys(path)
            for (name, at), new in self.replaced.items():
                if name == keys:
                    index: list[Any] = [slice(None)] * np.ndim(x)
                    for axis, position in at:
                        index[axis] = position
                    x = jnp.asarray(x).at[tuple(index)].set(new)
            if keys in changes:
                x = jnp.asarray(x + changes[keys]).astype(x.dtype)
            return x

        return owned(jax.tree_util.tree_map_with_path(leaf, self.params), self.params)

    @staticmethod
    def _bind(form: MatrixForm, x: Any, operand: Any) -> Any:
        ins = [x, operand] if form.site.place == 1 else [operand, x]
        return _compat.bind(form.eqn, form.eqn.params, ins)[0]

    def _contract(self, form: MatrixForm) -> None:
        """Runs the contraction at hand."""
        kernel, (out,) = form.eqn.invars[form.site.place], form.eqn.outvars
        x_var = form.eqn.invars[1 - form.site.place]
        bind = jax.jit(lambda x, w: self._bind(form, x, w))
        for envs, fixed, changed in (
            (self.now, self.fixed_now, self._result),
            (self.then or [], self.fixed, None),
        ):
            for env in envs:
                x = env.get(x_var, fixed.get(x_var))
                env[out] = changed(x) if changed else bind(x, fixed[kernel])
                self._drop(env, form.site.eqn)

    def _advance(self, start: int, stop: int) -> None:
        """Runs the equations between two contractions, compiled, batch by batch."""
        eqns = [
            (i, e)
            for i, e in enumerate(self.flat.eqns[start:stop], start)
            if any(v in self.data for v in e.outvars)
        ]
        made = {v for _, e in eqns for v in e.outvars}
        read = dict.fromkeys(
            v
            for _, e in eqns
            for v in e.invars
            if not isinstance(v, _compat.Literal) and v not in made
        )
        taken = [v for v in read if v in self.data]
        given = [v for v in read if v not in self.data]
        left = [v for v in made if self.last_use.get(v, -1) >= stop]

        @jax.jit
        def segment(fixed: list[Any], values: list[Any]) -> list[Any]:
            env = dict(zip([*given, *taken], [*fixed, *values], strict=True))
            for _, eqn in eqns:
                ins = [_flat.value(env, v) for v in eqn.invars]
                env.update(
                    zip(eqn.outvars, _compat.bind(eqn, eqn.params, ins), strict=True)
                )
            return [env[v] for v in left]

        for envs, fixed in ((self.now, self.fixed_now), (self.then or [], self.fixed)):
            known = [fixed[v] for v in given]
            for env in envs:
                results = segment(known, [env[v] for v in taken]) if eqns else []
                env.update(zip(left, results, strict=True))
                self._drop(env, stop - 1)

    def _drop(self, env: Env, done: int) -> None:
        """Forgets what no later equation reads."""
        for var in [v for v in env if self.last_use.get(v, -1) <= done]:
            del env[var]


def residual_target(y: Any, other: Any, other_now: Any, slope: Any) -> Any:
    """What a branch should output so that the sum with a changed summand is as before.

    Args:
      y: the branch's result before.
      other: the other summand before.
      other_now: the other summand now.
      slope: by how much the sum grows with the result (a norm's scale); where it is 0,
        nothing can be made up for.
    """
    safe = jnp.where(slope == 0, 1, slope)
    return y + jnp.where(slope == 0, 0, (other - other_now) / safe)


def _fixed(flat: Any, arrays: list[Any], data: set[Any]) -> Env:
    """What depends on parameters alone, computed once."""
    jaxpr = flat.jaxpr.jaxpr
    env: Env = dict(zip(jaxpr.constvars, flat.jaxpr.consts, strict=True))
    params = jaxpr.invars[: len(flat.params)]
    env.update(zip(params, arrays[: len(params)], strict=True))
    eqns = [e for e in flat.eqns if not any(v in data for v in e.outvars)]

    @jax.jit
    def run(env: list[Any]) -> list[Any]:
        full = dict(zip(names, env, strict=True))
        for eqn in eqns:
            ins = [_flat.value(full, v) for v in eqn.invars]
            full.update(
                zip(eqn.outvars, _compat.bind(eqn, eqn.params, ins), strict=True)
            )
        return [full[v] for v in made]

    names = list(env)
    made = [v for e in eqns for v in e.outvars]
    env.update(zip(made, run([env[v] for v in names]), strict=True))
    return env


def _last_use(flat: Any) -> dict[Any, int]:
    """The last equation that reads each variable; results of the program last."""
    found = {}
    for number, eqn in enumerate(flat.eqns):
        for var in eqn.invars:
            if not isinstance(var, _compat.Literal):
                found[var] = number
    return found


def _read_once(flat: Any, forms: list[MatrixForm], named: bool) -> list[MatrixForm]:
    """The contractions whose parameter nothing else reads.

    Raises:
      ValueError: one asked for by name is read in several places, or none is left.
    """
    known = reads(flat)
    shared = [f for f in forms if known[f.path, tuple(sorted(f.site.origin.at))] != 1]
    names = listing(sorted({site_name(f) for f in shared}))
    if shared and (named or len(shared) == len(forms)):
        raise value_error(
            "These parameters are read in several places, so that one fit cannot serve "
            f"them all: leave them out.{names}"
        )
    return [f for f in forms if f not in shared]


def _require_one_shape(arguments: list[list[Any]]) -> None:
    shapes = {
        tuple((abstract(x).shape, abstract(x).dtype) for x in a) for a in arguments
    }
    if len(shapes) > 1:
        raise value_error(
            "`batches` must all have one shape, got "
            f"{sorted({str([tuple(np.shape(x)) for x in a]) for a in arguments})}: "
            "leave the last, smaller one out."
        )
