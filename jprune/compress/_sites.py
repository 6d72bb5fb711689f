"""Where a program reads removed coordinates, and what absorbs a constant there.

The program is run once, equation by equation. Two facts travel with the values:

* an `Origin`: the value is a parameter, seen through casts, transposes and unit axes;
* a `Pending` constant: some contraction upstream read removed coordinates, and whatever
  that added to its result is still a plain summand of this value.

A *site* opens at a contraction of a parameter over an axis on which the plan removes
something. The same equation, bound once more with only the removed rows of the
parameter, gives what they contribute. The site closes at the first addition of a
parameter (a bias) or subtraction of one (a running mean), which can absorb a constant.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._jaxpr import _compat, _walk
from jprune._jaxpr._compat import ClosedJaxpr, Equation, Jaxpr
from jprune._jaxpr._moves import Dims, moved_dims
from jprune._tree import KeyTuple

Pair = tuple[Any, Any]
"""A value and what is known of it: an `Origin`, a `Pending` or None."""


class Origin(NamedTuple):
    """A parameter of rank `ndim`; `dims[i]` is its axis behind axis i of the value."""

    path: KeyTuple
    dims: Dims
    ndim: int


class Pending(NamedTuple):
    """A summand of a value; `dims[i]` is its axis behind axis i of the value."""

    site: int
    dims: Dims


class Reading(NamedTuple):
    """What the removed rows contribute at a site.

    Attributes:
      constant: mean of the contribution over examples and positions.
      spread: largest deviation from it.
      unsteady: largest deviation from the mean over examples at the same position.
      scale: largest magnitude of the result at the site.
      varies: largest deviation, over examples, of what the kept rows contribute;
        infinite where those rows, or the removed ones, are all 0.
    """

    constant: jax.Array
    spread: jax.Array
    unsteady: jax.Array
    scale: jax.Array
    varies: jax.Array


class Sink(NamedTuple):
    """The parameter that absorbs a site's constant, or why there is none.

    Attributes:
      path: the parameter, None if there is none.
      dims: for each axis of the constant, the axis of the parameter.
      ndim: rank of the parameter.
      sign: +1 if the constant is to be added, -1 if subtracted.
      why: the reason if there is none.
    """

    path: KeyTuple | None
    dims: tuple[int, ...] = ()
    ndim: int = 0
    sign: int = 1
    why: str = ""


class Walk:
    """One run of a jaxpr that collects sites, readings and sinks.

    Args:
      removed: `removed(path, axis)` gives the bool mask of removed positions of a
        parameter's axis, or None if nothing is removed there.
    """

    def __init__(self, removed: Callable[[KeyTuple, int], np.ndarray | None]) -> None:
        self.removed = removed
        self.sites: list[KeyTuple] = []
        self.readings: list[Reading] = []
        self.sinks: dict[int, Sink] = {}

    def run(self, jaxpr: Jaxpr | ClosedJaxpr, pairs: Sequence[Pair]) -> list[Pair]:
        """Evaluates an open or closed jaxpr; gives its results and their tags."""
        program, _ = _walk.opened(jaxpr)
        reads = [v for eqn in program.eqns for v in eqn.invars] + list(program.outvars)
        uses = Counter(v for v in reads if not isinstance(v, _compat.Literal))

        def equation(_: int, eqn: Equation, ins: list[Pair]) -> list[Pair]:
            for var, (_, tag) in zip(eqn.invars, ins, strict=True):
                if isinstance(tag, Pending) and uses[var] > 1:
                    self._refuse(tag, "its result is read in several places")
            return self._equation(eqn, ins)

        return _walk.run(jaxpr, pairs, equation, lambda array, _: (array, None))

    def _equation(self, eqn: Equation, pairs: list[Pair]) -> list[Pair]:
        name = eqn.primitive.name
        values, tags = [v for v, _ in pairs], [t for _, t in pairs]
        if name in _walk.CALLS | _walk.CUSTOM:
            return self.run(_walk.body_of(eqn), pairs)
        results = _compat.bind(eqn, eqn.params, values)
        if name in ("dot_general", "conv_general_dilated"):
            self._refuse_all(tags, "it goes into another contraction")
            return [(results[0], self._open(eqn, values, tags, results[0]))]
        return [(r, self._follow(eqn, tags, r)) for r in results]

    def _open(self, eqn: Equation, values: list, tags: list, result: jax.Array) -> Any:
        """A site, if a parameter is contracted over removed rows."""
        for place, tag in enumerate(tags):
            if not isinstance(tag, Origin):
                continue
            contracted, free, kept_dims = _axes(eqn, place, result.ndim)
            gone = self._gone(tag, contracted, values[place].shape)
            if gone is None:
                continue
            only = list(values)
            only[place] = jnp.where(gone, values[place], 0)
            part = _compat.bind(eqn, eqn.params, only)[0]
            self.sites.append(tag.path)
            told = jnp.any(only[place] != 0) & jnp.any(only[place] != values[place])
            self.readings.append(_reading(part, result, told, free))
            return Pending(len(self.sites) - 1, kept_dims)
        return None

    def _gone(self, tag: Origin, contracted: Sequence[int], shape: tuple) -> Any:
        """Mask of the parameter's entries in removed rows, None if there are none."""
        keep = np.ones((1,) * len(shape), bool)
        for dim in contracted:
            axis = tag.dims[dim]
            mask = None if axis is None else self.removed(tag.path, axis)
            if mask is not None and mask.any():
                view = [1] * len(shape)
                view[dim] = mask.size
                keep = keep & ~mask.reshape(view)
        return None if keep.all() else ~keep

    def _follow(self, eqn: Equation, tags: list, result: jax.Array) -> Any:
        """The tag of a result; closes a site at a bias or a running mean."""
        name = eqn.primitive.name
        pending = [i for i, tag in enumerate(tags) if isinstance(tag, Pending)]
        if not pending:
            return _moved(eqn, tags[0], result) if len(tags) == 1 else None
        place = pending[0]
        other = tags[1 - place] if len(tags) == 2 else None
        if name in ("add", "add_any") or (name == "sub" and place == 0):
            if len(pending) == 2:
                return self._refuse_all(tags, "two such results are added")
            if isinstance(other, Origin):
                self._absorb(tags[place], other, -1 if name == "sub" else 1)
                return None
            return tags[place]
        moved = _moved(eqn, tags[place], result) if len(tags) == 1 else None
        if moved is None:
            self._refuse_all(tags, f"`{name}` comes before any bias or running mean")
        return moved

    def _absorb(self, tag: Pending, into: Origin, sign: int) -> None:
        """Closes a site at a parameter that is added or subtracted axis by axis."""
        pairs = {
            s: t for s, t in zip(tag.dims, into.dims, strict=True) if s is not None
        }
        dims = [pairs[s] for s in sorted(pairs)]
        if None in dims:
            return self._refuse(tag, "the bias that follows does not span its channels")
        sink = Sink(into.path, tuple(d for d in dims if d is not None), into.ndim, sign)
        self.sinks.setdefault(tag.site, sink)

    def close(self, outs: Sequence[Pair]) -> None:
        """Refuses the sites that are still open at the outputs."""
        tags = [tag for _, tag in outs]
        self._refuse_all(tags, "it reaches the output before any bias or running mean")

    def _refuse(self, tag: Any, why: str) -> None:
        if isinstance(tag, Pending):
            self.sinks.setdefault(tag.site, Sink(None, why=why))

    def _refuse_all(self, tags: Sequence[Any], why: str) -> None:
        for tag in tags:
            self._refuse(tag, why)


def _axes(eqn: Equation, place: int, ndim: int) -> tuple[list[int], list[int], Dims]:
    """Contracted axes of the parameter; examples' and positions' axes of the result.

    The third is, for each axis of the result, its number among the parameter's axes of
    the contribution (those left after the mean over examples and positions).
    """
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        contracted = [numbers.rhs_spec[1]] if place == 1 else []
        channel = numbers.out_spec[1]
        free = [d for d in range(ndim) if d != channel]
    else:
        (contract, batch) = eqn.params["dimension_numbers"]
        contracted = list(contract[place])
        shared = len(batch[0])
        left = [
            eqn.invars[i].aval.ndim - len(contract[i]) - len(batch[i]) for i in (0, 1)
        ]
        start = shared + (left[0] if place == 1 else 0)
        own = [*range(shared), *range(start, start + left[place])]
        free = [d for d in range(ndim) if d not in own]
    rest = [d for d in range(ndim) if d not in free]
    dims = tuple(rest.index(d) if d in rest else None for d in range(ndim))
    return contracted, free, dims


def _reading(
    part: jax.Array, result: jax.Array, told: jax.Array, free: Sequence[int]
) -> Reading:
    def unsteady(x: jax.Array) -> jax.Array:
        average = x.mean(free[0], keepdims=True) if free else x
        return jnp.abs(x - average).max()

    constant = part.mean(tuple(free), keepdims=True)
    return Reading(
        constant.reshape([n for d, n in enumerate(part.shape) if d not in free]),
        jnp.abs(part - constant).max(),
        unsteady(part),
        jnp.abs(result).max(),
        jnp.where(told, unsteady(result - part), jnp.inf),
    )


def _moved(eqn: Equation, tag: Any, result: jax.Array) -> Any:
    """The tag of a value that was only cast, transposed or given unit axes."""
    if not isinstance(tag, Origin | Pending):
        return None
    dims = moved_dims(eqn, tag.dims)
    return None if dims is None else tag._replace(dims=dims)
