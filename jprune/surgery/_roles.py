"""What a parameter does with the coordinates on each of its axes.

A value computed from a single parameter (a cast, a transpose, a standardized kernel)
still stands for that parameter; the first equation that mixes it with anything else
shows the role: contracted in a product ("in"), a free axis of a product ("out"), added
("bias"), multiplied ("scale"), subtracted or square-rooted ("stat": running
statistics), looked up ("table").
"""

from collections.abc import Sequence
from typing import Any

from jprune.surgery._axes import Axes
from jprune.surgery._scope import CONST, MANY, Info

_SHAPED = {"transpose", "squeeze", "expand_dims", "broadcast_in_dim", "reshape"}


def source_of(ins: Sequence[Info]) -> int:
    """What a value computed from some operands depends on."""
    source = CONST
    for info in ins:
        if info.source != CONST and info.source != source:
            source = info.source if source == CONST else MANY
    return source


def sources(
    ctx: Any, eqn: Any, ins: Sequence[Info], outs: Sequence[Axes], source: int
) -> list[Info]:
    """Adds sources to the results, and records the roles that the equation shows."""
    name = eqn.primitive.name
    # Random bits come from a key, which is an input; they are as free as constants.
    if source == CONST or name == "random_bits":
        return [Info(axes, CONST) for axes in outs]
    if source != MANY:
        if name in ("sqrt", "rsqrt") and ins[0].dims:
            _assign(ctx, ins[0], dict.fromkeys(range(len(ins[0].axes)), "stat"))
        return [Info(axes, source, _dims(eqn, ins, axes)) for axes in outs]
    for place, info in enumerate(ins):
        if info.source >= 0 and info.dims:
            _assign(ctx, info, _roles(eqn, place, len(info.axes)))
    return [Info(axes) for axes in outs]


def _assign(ctx: Any, info: Any, roles: dict[int, str]) -> None:
    for dim, role in roles.items():
        axis = info.dims[dim]
        if axis is not None and info.axes[dim].size > 1:
            ctx.roles.setdefault((info.source, axis), role)


def _roles(eqn: Any, place: int, ndim: int) -> dict[int, str]:
    """The role of each dimension of operand `place`."""
    name = eqn.primitive.name
    if name == "dot_general":
        (contract, batch) = eqn.params["dimension_numbers"]
        return {
            d: "in" if d in contract[place] else "other" if d in batch[place] else "out"
            for d in range(ndim)
        }
    if name == "conv_general_dilated" and place == 1:
        out, inner, *_ = eqn.params["dimension_numbers"].rhs_spec
        return {d: {out: "out", inner: "in"}.get(d, "other") for d in range(ndim)}
    if name in ("gather", "dynamic_slice") and place == 0:
        return dict.fromkeys(range(ndim), "table")
    by_name = {"add": "bias", "mul": "scale", "div": "scale"}
    if name == "sub":
        return dict.fromkeys(range(ndim), "stat" if place == 1 else "bias")
    return dict.fromkeys(range(ndim), by_name.get(name, "other"))


def _dims(eqn: Any, ins: Sequence[Info], out: Axes) -> tuple[int | None, ...] | None:
    """The parameter axis behind each dimension of a value of a single parameter."""
    name, ndim = eqn.primitive.name, len(out)
    if name not in _SHAPED:
        for info in ins:
            if info.dims and len(info.axes) == ndim:
                pairs = zip(info.axes, out, strict=True)
                fits = all(a is b or a.size == b.size for a, b in pairs)
                return info.dims if fits else None
        return None
    dims = ins[0].dims
    if dims is None:
        return None
    if name == "transpose":
        return tuple(dims[p] for p in eqn.params["permutation"])
    if name == "broadcast_in_dim":
        new: list[int | None] = [None] * ndim
        for d, place in enumerate(eqn.params["broadcast_dimensions"]):
            new[place] = dims[d]
        return tuple(new)
    return _reshaped_dims(ins[0], dims, out)


def _reshaped_dims(
    info: Info, dims: tuple[int | None, ...], out: Axes
) -> tuple[int | None, ...]:
    """Dimensions that carry over one to one, by their position among sizes > 1."""
    new: list[int | None] = [None] * len(out)
    old = [(t.size, d) for t, d in zip(info.axes, dims, strict=True) if t.size != 1]
    here = [(t.size, i) for i, t in enumerate(out) if t.size != 1]
    front = 0
    while front < min(len(old), len(here)) and old[front][0] == here[front][0]:
        new[here[front][1]] = old[front][1]
        front += 1
    back = 1
    while back <= min(len(old), len(here)) - front and old[-back][0] == here[-back][0]:
        new[here[-back][1]] = old[-back][1]
        back += 1
    left_old = old[front : len(old) - back + 1]
    left_new = here[front : len(here) - back + 1]
    if len(left_old) == 1:  # one axis split into several
        for _, place in left_new:
            new[place] = left_old[0][1]
    return tuple(new)
