"""`shard_map`: one program for each device, which sees a piece of each operand.

An axis that is split over the mesh has other sizes inside and may not shrink. The
others pass, and so do their ghosts, under the specification of the operand or result
that they belong to.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation
from jprune.surgery import _cells as ce
from jprune.surgery._analysis import AxisSite
from jprune.surgery._axes import Axes
from jprune.surgery._build import CellSite, Outs, Results
from jprune.surgery._cells import Bits, Cell, Value
from jprune.surgery._frames import Boundary, Frame, GraphCall
from jprune.surgery._registry import Rule
from jprune.surgery._scope import MANY, Info

_SPLIT = "split over a mesh"


def shard_axes(site: AxisSite, eqn: Equation, ins: Sequence[Info]) -> list[Info]:
    """The axes of the body, those that are split apart."""
    p = eqn.params
    inner = [
        Info(_across(site, info.axes, spec, var.aval.shape), info.source, info.dims)
        for info, spec, var in zip(ins, p["in_specs"], p["jaxpr"].invars, strict=True)
    ]
    everywhere = site.fixed(_compat.mapped_devices(p), _SPLIT)  # pays on each device
    found = site.walk(p["jaxpr"], inner, everywhere)
    return [
        Info(_across(site, info.axes, spec, var.aval.shape), MANY)
        for info, spec, var in zip(found, p["out_specs"], eqn.outvars, strict=True)
    ]


def _split(spec: Any, dim: int) -> bool:
    return dim < len(spec) and spec[dim] not in (None, ())


def _across(site: AxisSite, axes: Axes, spec: Any, shape: Sequence[int]) -> Axes:
    """The axes on the other side, where the value has another shape."""
    out = []
    for d, (term, size) in enumerate(zip(axes, shape, strict=True)):
        if _split(spec, d):
            site.freeze(term, _SPLIT)
        out.append(site.fixed(size, _SPLIT) if _split(spec, d) else term)
    return tuple(out)


def shard_cells(site: CellSite, eqn: Equation, ins: list[Value], outs: Outs) -> Results:
    """The compact body on each device."""
    p, scope, boundary = eqn.params, site.inner(), Boundary()
    specs: dict[Cell, Any] = {}
    inside = [
        _inside(boundary, specs, value, spec, site.builder.layouts(scope.infos[v].axes))
        for value, spec, v in zip(ins, p["in_specs"], p["jaxpr"].invars, strict=True)
    ]
    frame = Frame(site.builder, p["jaxpr"], scope, inside)
    frame.outs = [
        Value(v.layouts, v.dtype, _unlisted(v.cell, spec))
        for v, spec in zip(frame.outs, p["out_specs"], strict=True)
    ]

    def run(bodies: Sequence[Any], extra: Any, arrays: Sequence[Any]) -> list[Any]:
        keys = [key for key in call.wanted if key is not None]
        mapped = jax.shard_map(
            bodies[0],
            mesh=p["mesh"],
            in_specs=tuple(specs[cell] for cell in call.deps),
            out_specs=[p["out_specs"][index] for index, _ in keys],
            check_vma=p["check_vma"],
            axis_names=_compat.manual_axes(p),
        )
        return mapped(*arrays)

    call = GraphCall([frame], boundary, run, name="shard_map")
    if eqn.effects:
        site.builder.effects.append(call.effect())
    pairs = zip(outs, frame.outs, strict=True)
    return call.results([Value(lay, v.dtype, v.cell) for lay, v in pairs])


def _inside(
    boundary: Boundary, specs: dict[Cell, Any], value: Value, spec: Any, layouts: Any
) -> Value:
    """An operand as one device sees it."""

    def rule(bits: Bits) -> Cell:
        cell = value.cell(bits)
        specs[cell] = spec
        if _listed(cell, spec):
            leaf = Cell(name="input")
            boundary.outer[leaf] = cell
            return leaf
        leaf = boundary.leaf(cell)
        leaf.shape = None  # the value inside has its own
        return leaf

    return Value(layouts, value.dtype, rule)


def _listed(cell: Cell, spec: Any) -> bool:
    """Whether a known value differs along an axis that is split."""
    known = cell.known
    if known is None:
        return False
    return any(n > 1 and _split(spec, d) for d, n in enumerate(known.shape))


def _unlisted(rule: Callable[[Bits], Cell], spec: Any) -> Callable[[Bits], Cell]:
    """What is known on one device along a split axis is not known of all."""

    def cell(bits: Bits) -> Cell:
        found = rule(bits)
        return ce.compute(lambda x: x, found) if _listed(found, spec) else found

    return cell


RULES: dict[str, Rule] = {"shard_map": Rule(axes=shard_axes, cells=shard_cells)}
