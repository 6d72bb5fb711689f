"""Checking a plan: the certificate and a run, and which group is to blame.

The certificate says whether removal equals zeroing without computing anything; the run
compares the compact function with the zeroed dense one. Where the reference itself is
not finite (0 / 0 in a weight norm of a removed unit) its entries are left out of the
comparison, and the report says so. When the two disagree, the groups are tried in
halves until the smallest failing set is found.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune._tree import keyed_leaves
from jprune._typing import PyTree
from jprune.surgery._build import Options
from jprune.surgery._certificate import exactness_of
from jprune.surgery._groups import Groups, groups
from jprune.surgery._make import plan_from_keep
from jprune.surgery._plan import Plan
from jprune.surgery._shrink import Graph, analyzed, shrink, solve


@dataclasses.dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
      ok: the compact model equals the reference within the tolerance.
      way: how the certificate says it does: "zero", "constant", "ghost" or "no".
      reasons: for "no", where removed coordinates that differ met a sum.
      error: largest difference of the outputs, relative to the largest reference value.
      gradient_error: the same for the gradient, or None if it was not asked for.
      tolerance: what `error` is held to.
      nonfinite: fraction of the reference's entries that are not finite and were left
        out.
      groups: ids of the smallest set of groups found to fail, when `ok` is False.
    """

    ok: bool
    way: str
    reasons: tuple[str, ...]
    error: float
    gradient_error: float | None
    tolerance: float
    nonfinite: float
    groups: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{'verified' if self.ok else 'FAILED'}: relative error {self.error:.1e}"
            f" (tolerance {self.tolerance:.0e}), certificate: {self.way}"
        ]
        if self.gradient_error is not None:
            lines.append(f"gradient: relative error {self.gradient_error:.1e}")
        lines += [f"not exact: {why}" for why in self.reasons]
        if self.nonfinite:
            lines.append(f"reference not finite in {self.nonfinite:.1%} of its entries")
        if self.groups:
            lines.append(f"failing groups: {', '.join(self.groups)}")
        return "\n".join(lines)


def verify(
    fn: Callable[..., Any],
    plan: Plan,
    params: PyTree,
    *args: Any,
    gradient: bool = False,
    tolerance: float | None = None,
    mean: Literal["dense", "compact"] = "dense",
    reference: Literal["zeroed", "dense"] = "zeroed",
    **kwargs: Any,
) -> Report:
    """Compares the compact function with the dense one.

    Args:
      fn: the dense function.
      plan: what is removed.
      params: the dense parameters.
      *args: its other arguments.
      gradient: also compare the gradient of a fixed projection of the output.
      tolerance: of the largest difference, relative to the largest reference value.
        Default 1e-9 in float64, 1e-4 in float32, 5e-2 below.
      mean: as given to `shrink`. With "compact" the reference does not divide by the
        same counts, so a difference shows what that meaning changes.
      reference: "zeroed": `fn(plan.zero(params))`, whether surgery is right. "dense":
        `fn(params)`, what the removal itself changes (0 when everything removed was
        without effect).
      **kwargs: keyword arguments of `fn`.

    Returns:
      A `Report`; printing it says what happened.
    """
    program = analyzed(fn, plan, None, params, args, kwargs)
    ties = dict(program.ties)

    def compare(part: Plan) -> _Errors:
        return _compare(fn, part, params, args, kwargs, gradient, mean, reference, ties)

    errors = compare(plan)
    if tolerance is None:
        tolerance = _tolerance(params)
    graph = Graph(program, solve(plan, program), Options(removed=mean == "compact"))
    way, reasons = exactness_of(graph.status())
    worst = max(errors.forward, errors.gradient or 0.0)
    ok = bool(worst <= tolerance)
    blame: tuple[str, ...] = ()
    if not ok:

        def fails(part: Plan) -> bool:
            e = compare(part)
            return max(e.forward, e.gradient or 0.0) > tolerance

        deps = groups(
            fn,
            reduce_max="drop",
            state_outputs=list(ties) or False,
            free_outputs=plan.free,
        )(params, *args, **kwargs)
        blame = _blame(deps, plan, fails)
    return Report(
        ok,
        way,
        reasons,
        errors.forward,
        errors.gradient,
        tolerance,
        errors.nonfinite,
        blame,
    )


@dataclasses.dataclass(frozen=True)
class _Errors:
    forward: float
    gradient: float | None
    nonfinite: float


def _compare(
    fn: Callable[..., Any],
    plan: Plan,
    params: PyTree,
    args: tuple,
    kwargs: dict[str, Any],
    gradient: bool,
    mean: Any,
    reference: str,
    ties: dict[Any, Any],
) -> _Errors:
    small = shrink(fn, plan, mean=mean)
    dense_params = plan.zero(params) if reference == "zeroed" else params
    want = _with_gradient(fn, dense_params, args, kwargs, gradient)
    got = _with_gradient(small, plan.pack(params), args, kwargs, gradient)
    outs = keyed_leaves(want[0])
    pairs = []
    for (path, w), (_, g) in zip(outs, keyed_leaves(got[0]), strict=True):
        if path in ties:
            w = _packed(plan, ties[path], w)
        if np.shape(w) == np.shape(g):  # outputs that come back shortened have no twin
            pairs.append((w, g))
    forward, lost = _difference(pairs)
    slope = None
    if gradient:
        packed = plan.pack(want[1])
        slope, _ = _difference(
            list(zip(jax.tree.leaves(packed), jax.tree.leaves(got[1]), strict=True))
        )
    return _Errors(forward, slope, lost)


def _packed(plan: Plan, path: Any, leaf: Any) -> Any:
    out = np.asarray(leaf)
    for axis, mask in enumerate(plan.keep[path]):
        out = np.compress(mask, out, axis)
    return out


def _with_gradient(
    fn: Callable[..., Any], params: PyTree, args: tuple, kwargs: Any, gradient: bool
) -> tuple[Any, Any]:
    """The outputs, and the gradient of a projection of those that have full size."""
    if not gradient:
        return jax.jit(lambda p: fn(p, *args, **kwargs))(params), None
    leaves, tree = jax.tree.flatten(params)
    floats = [i for i, x in enumerate(leaves) if _is_float(x)]

    def loss(moving: list[Any]) -> tuple[Any, Any]:
        full = list(leaves)
        for i, x in zip(floats, moving, strict=True):
            full[i] = x
        out = fn(jax.tree.unflatten(tree, full), *args, **kwargs)
        first = next(x for x in jax.tree.leaves(out) if _is_float(x))
        weights = jnp.cos(jnp.arange(first.size, dtype=first.dtype)).reshape(
            first.shape
        )
        return jnp.sum(first * weights), out

    slope, out = jax.jit(jax.grad(loss, has_aux=True))([leaves[i] for i in floats])
    full = [np.zeros(np.shape(x)) if hasattr(x, "shape") else x for x in leaves]
    for i, x in zip(floats, slope, strict=True):
        full[i] = x
    return out, jax.tree.unflatten(tree, full)


def _is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _difference(pairs: Sequence[tuple[Any, Any]]) -> tuple[float, float]:
    """Largest relative difference, and the fraction of entries left out.

    Each leaf is relative to its own largest entry, or to a thousandth of the largest of
    all: a leaf that is zero but for rounding says nothing.
    """
    gaps, scales, lost, count = [], [], 0, 0
    for want, got in pairs:
        if not hasattr(want, "dtype") or not jnp.issubdtype(want.dtype, jnp.number):
            continue
        wide = np.complex128 if jnp.iscomplexobj(want) else np.float64
        a, b = np.asarray(want, wide), np.asarray(got, wide)
        finite = np.isfinite(a)
        lost, count = lost + int((~finite).sum()), count + a.size
        if finite.any():
            gap = np.abs(a[finite] - b[finite])
            gaps.append(float(np.where(np.isnan(gap), np.inf, gap).max()))
            scales.append(float(np.abs(a[finite]).max()))
    floor = max(1e-3 * max(scales, default=0.0), 1e-30)
    worst = max(
        (gap / max(scale, floor) for gap, scale in zip(gaps, scales, strict=True)),
        default=0.0,
    )
    return worst, lost / max(count, 1)


def _tolerance(params: PyTree) -> float:
    dtypes = {jnp.dtype(x.dtype) for x in jax.tree.leaves(params) if _is_float(x)}
    if all(d.itemsize >= 8 for d in dtypes):
        return 1e-9
    return 1e-4 if all(d.itemsize >= 4 for d in dtypes) else 5e-2


def _blame(deps: Groups, plan: Plan, fails: Callable[[Plan], bool]) -> tuple[str, ...]:
    """A smallest failing set of groups: halves while one of them fails alone."""
    keep = {}
    for group in deps:
        ref = group.members[0]
        where, mask = ref.coordinates(group.size), plan.keep[ref.path][ref.axis]
        kept = np.zeros(group.size, bool)
        kept[where[(where >= 0) & mask]] = True
        if not kept.all():
            keep[group.id] = kept
    names = list(keep)
    while len(names) > 1:
        middle = len(names) // 2
        for half in (names[:middle], names[middle:]):
            part = plan_from_keep(deps, {n: keep[n] for n in half})
            if fails(part):
                names = half
                break
        else:
            break
    return tuple(names)
