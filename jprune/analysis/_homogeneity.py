"""How every value of a program scales with some parameters, proved from its equations.

If a kernel's filter c is multiplied by k_c > 0, a value may be multiplied by k_c to
some power along one of its axes (its *degree*), or not depend on k at all, or neither.
The degrees follow equation by equation: a convolution hands them on, a product adds
them, a mean keeps them, `rsqrt` halves and negates them, ReLU keeps them as k > 0. A
norm ends at degree 0. Where a parameter is added to a value of degree d it has to be
scaled with it (a bias, a running mean), which is noted, and the walk begins anew.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jprune._jaxpr import _compat
from jprune._jaxpr._flat import Flat, Origin
from jprune._jaxpr._moves import moved_dims
from jprune._tree import KeyTuple

_LINEAR = {"neg", "abs", "real", "copy", "copy_p", "optimization_barrier"}
_POWERS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "cbrt": 1 / 3}
_SUMS = {"reduce_sum", "reduce_max", "reduce_min"}
_WINDOWS = {"reduce_window_sum", "reduce_window_max", "reduce_window_min"}
_SPREAD = {"broadcast_in_dim", "convert_element_type", "reshape"}
_COMPARE = {"eq", "ne", "lt", "le", "gt", "ge"}


class Degree(NamedTuple):
    """A value is multiplied by k ** power, along an axis (None: all by one k)."""

    power: float
    axis: int | None


class Breaks(Exception):
    """A value that does not scale; the text says where."""


class _Join(Exception):
    """A parameter that has to scale as well."""

    def __init__(self, origin: Origin, degree: Degree) -> None:
        self.origin, self.degree = origin, degree


def joint_scaling(
    flat: Flat, data: set[Any], path: KeyTuple, axis: int | None
) -> dict[KeyTuple, Degree]:
    """The parameters that, scaled with a kernel, leave all results as they are.

    Args:
      flat: the program.
      data: its variables that depend on more than the parameters.
      path: of the kernel.
      axis: of its filters; None: it is scaled as a whole.

    Returns:
      By path the degree and the axis, the kernel first.

    Raises:
      Breaks: there are none, with the reason.
    """
    scaled = {path: Degree(1.0, axis)}
    for _ in range(20):
        try:
            _walk(flat, data, scaled)
            return scaled
        except _Join as join:
            origin, degree = join.origin, join.degree
            if origin.path in scaled or origin.at:
                raise Breaks("a parameter is added that scales otherwise") from None
            at = None if degree.axis is None else origin.dims[degree.axis]
            if degree.axis is not None and at is None:
                raise Breaks("a parameter is added that has no axis for it") from None
            scaled[origin.path] = Degree(degree.power, at)
    raise Breaks("too many parameters would have to be scaled")


def _walk(flat: Flat, data: set[Any], scaled: dict[KeyTuple, Degree]) -> None:
    jaxpr = flat.jaxpr.jaxpr
    known: dict[Any, Degree] = {}
    for path, var in zip(flat.params, jaxpr.invars, strict=False):
        if path in scaled:
            known[var] = scaled[path]
    walk = _Walk(flat, data, known)
    for eqn in jaxpr.eqns:
        tags = [walk.of(v) for v in eqn.invars]
        if not any(tags):
            continue
        out = walk.rule(eqn, tags)
        if out is not None and out.power != 0:
            for var in eqn.outvars:
                known[var] = out
    for var in jaxpr.outvars:
        if walk.of(var) is not None:
            raise Breaks("a result scales with it")


class _Walk:
    def __init__(self, flat: Flat, data: set[Any], known: dict[Any, Degree]) -> None:
        self.flat, self.data, self.known = flat, data, known
        self.makers = {v: e for e in flat.eqns for v in e.outvars}

    def of(self, var: Any) -> Degree | None:
        return None if isinstance(var, _compat.Literal) else self.known.get(var)

    def rule(self, eqn: Any, tags: Sequence[Degree | None]) -> Degree | None:
        """The degree of the results; None for independent ones."""
        name = eqn.primitive.name
        some = next(t for t in tags if t is not None)
        if name in _LINEAR:
            return some
        if name in _POWERS:
            return some._replace(power=some.power * _POWERS[name])
        if name == "integer_pow":
            return some._replace(power=some.power * eqn.params["y"])
        if name == "pow" and _literal(eqn.invars[1]) is not None:
            return some._replace(power=some.power * float(_literal(eqn.invars[1])))
        if name in ("mul", "div"):
            return self._product(eqn, tags, -1 if name == "div" else 1)
        if name in ("add", "sub", "add_any"):
            return self._sum(eqn, tags)
        if name in ("max", "min", *_COMPARE, "select_n", "concatenate", "clamp"):
            return self._alike(eqn, tags)
        if name == "sign":
            return None
        if name in _SUMS or name in ("argmax", "argmin"):
            found = _without(some, eqn.params["axes"])
            return None if name.startswith("arg") else found
        if name in _WINDOWS:
            axis = some.axis
            if axis is not None and eqn.params["window_dimensions"][axis] != 1:
                raise Breaks(f"`{name}` mixes its channels")
            return some
        if name in ("dot_general", "conv_general_dilated"):
            return _contracted(eqn, tags)
        return self._moved(eqn, some)

    def _moved(self, eqn: Any, some: Degree) -> Degree:
        name = eqn.primitive.name
        if len(eqn.invars) == 1:
            dims = moved_dims(eqn, tuple(range(len(eqn.invars[0].aval.shape))))
            if dims is not None and some.axis in (None, *dims):
                at = None if some.axis is None else dims.index(some.axis)
                return some._replace(axis=at)
        if some.axis is None and name in ("reshape", "slice", "rev", "squeeze"):
            return some
        if name == "pad" and self.of(eqn.invars[0]) and not _literal(eqn.invars[1]):
            edge = eqn.params["padding_config"]
            if some.axis is None or tuple(edge[some.axis]) == (0, 0, 0):
                return some
        if name == "slice" and some.axis is not None:
            sizes = [v.aval.shape[some.axis] for v in (*eqn.invars, *eqn.outvars)]
            if sizes[0] == sizes[1]:
                return some
        raise Breaks(f"`{name}` reads what scales with it")

    def _product(self, eqn: Any, tags: Sequence[Degree | None], sign: int) -> Any:
        first, second = tags
        if first is not None and second is not None:
            if first.axis != second.axis:
                raise Breaks(f"`{eqn.primitive.name}` of values with unlike axes")
            return first._replace(power=first.power + sign * second.power)
        if first is not None:
            self._join_variance(eqn.invars[1], first)
            return first
        assert second is not None
        if sign == 1:
            self._join_variance(eqn.invars[0], second)
        return second._replace(power=sign * second.power)

    def _join_variance(self, var: Any, degree: Degree) -> None:
        """A factor 1/sqrt(v + eps) of a parameter v: v scales with the square."""
        if isinstance(var, _compat.Literal) or var in self.data or degree.power != 1:
            return
        origin = self._under_root(var, False)
        if origin is not None:
            raise _Join(origin, degree._replace(power=2 * degree.power))

    def _under_root(self, var: Any, rooted: bool) -> Origin | None:
        if isinstance(var, _compat.Literal):
            return None
        if rooted and var in self.flat.origins:
            return self.flat.origins[var]
        eqn = self.makers.get(var)
        if eqn is None:
            return None
        rooted = rooted or eqn.primitive.name in ("rsqrt", "sqrt")
        if eqn.primitive.name not in ("rsqrt", "sqrt", "mul", "div", "add", "max") and (
            len(eqn.invars) != 1
            or moved_dims(eqn, tuple(range(len(eqn.invars[0].aval.shape)))) is None
        ):
            return None
        for v in eqn.invars:
            found = self._under_root(v, rooted)
            if found is not None:
                return found
        return None

    def _sum(self, eqn: Any, tags: Sequence[Degree | None]) -> Degree:
        first, second = tags
        if first is not None and second is not None:
            if first != second:
                raise Breaks("a sum of values that scale differently")
            return first
        some = first if first is not None else second
        other = eqn.invars[1 if first is not None else 0]
        assert some is not None
        if isinstance(other, _compat.Literal):
            return some  # an epsilon: exact as far as that is small
        origin = self.flat.origins.get(other)
        if origin is not None:
            raise _Join(origin, some)
        raise Breaks("it is added to what does not scale with it")

    def _alike(self, eqn: Any, tags: Sequence[Degree | None]) -> Degree | None:
        name = eqn.primitive.name
        rest = list(zip(eqn.invars, tags, strict=True))
        if name == "select_n":
            if tags[0] is not None:
                raise Breaks("a choice depends on it")
            rest = rest[1:]
        kinds = {t for v, t in rest if not self._scales_anyhow(v)}
        if len(kinds) != 1:
            raise Breaks(f"`{name}` compares it with what does not scale with it")
        (kind,) = kinds
        if name == "concatenate" and kind is not None:
            if kind.axis == eqn.params["dimension"]:
                raise Breaks("a concatenation joins its channels to others")
        return None if name in _COMPARE else kind

    def _scales_anyhow(self, var: Any) -> bool:
        """Whether it is 0, infinite or NaN, which a positive factor leaves alone."""
        maker = self.makers.get(var) if not isinstance(var, _compat.Literal) else None
        while maker is not None and maker.primitive.name in _SPREAD:
            var = maker.invars[0]
            literal = isinstance(var, _compat.Literal)
            maker = None if literal else self.makers.get(var)
        if _literal(var) is None:
            return False
        value = np.asarray(_literal(var), np.float64)
        return not np.any(np.isfinite(value) & (value != 0))


def _without(some: Degree, axes: Sequence[int]) -> Degree:
    if some.axis is None:
        return some
    if some.axis in axes:
        raise Breaks("a sum mixes its channels")
    return some._replace(axis=some.axis - sum(a < some.axis for a in axes))


def _contracted(eqn: Any, tags: Sequence[Degree | None]) -> Degree:
    first, second = tags
    if first is not None and second is not None:
        if first.axis is None and second.axis is None:
            return first._replace(power=first.power + second.power)
        raise Breaks("a contraction of two values that scale")
    place = 0 if first is not None else 1
    some = tags[place]
    assert some is not None
    if some.axis is None:
        return some
    if eqn.primitive.name == "conv_general_dilated":
        return some._replace(axis=_conv_axis(eqn, place, some.axis))
    summed, batch = eqn.params["dimension_numbers"]
    if some.axis in summed[place]:
        raise Breaks("a contraction mixes its channels")
    if some.axis in batch[place]:
        return some._replace(axis=list(batch[place]).index(some.axis))
    shapes = [v.aval.ndim for v in eqn.invars]
    free = [d for d in range(shapes[place]) if d not in (*summed[place], *batch[place])]
    at = len(batch[0]) + free.index(some.axis)
    if place == 1:
        at += shapes[0] - len(summed[0]) - len(batch[0])
    return some._replace(axis=at)


def _conv_axis(eqn: Any, place: int, axis: int) -> int:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if place == 1 and axis == numbers.rhs_spec[0]:
        return numbers.out_spec[1]
    depthwise = groups == eqn.invars[0].aval.shape[numbers.lhs_spec[1]]
    same = eqn.outvars[0].aval.shape[numbers.out_spec[1]] == groups
    if place == 0 and axis == numbers.lhs_spec[1] and depthwise and same:
        return numbers.out_spec[1]
    raise Breaks("a convolution mixes its channels")


def _literal(var: Any) -> Any:
    """The number a literal is, or None."""
    return var.val if isinstance(var, _compat.Literal) else None
