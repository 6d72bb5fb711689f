"""What stands behind each axis of a value that was only moved."""

from jprune._jaxpr._compat import Equation

Dims = tuple[int | None, ...]

_SAME_AXES = {
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "reduce_precision",
    "sharding_constraint",
    "stop_gradient",
}
_UNIT_AXES = {"reshape", "squeeze", "expand_dims"}


def moved_dims(eqn: Equation, dims: Dims) -> Dims | None:
    """What stands behind each axis of a value cast, transposed or given unit axes.

    None if the equation does anything else. An axis that has nothing behind it is new.
    """
    name = eqn.primitive.name
    if name in _SAME_AXES:
        return dims
    if name == "transpose":
        return tuple(dims[p] for p in eqn.params["permutation"])
    shape = eqn.outvars[0].aval.shape
    moved: list[int | None] = [None] * len(shape)
    if name == "broadcast_in_dim":
        for d, place in enumerate(eqn.params["broadcast_dimensions"]):
            moved[place] = dims[d]
    elif name in _UNIT_AXES:
        before = eqn.invars[0].aval.shape
        old = [dims[d] for d, n in enumerate(before) if n != 1]
        new = [d for d, n in enumerate(shape) if n != 1]
        if [n for n in before if n != 1] != [shape[d] for d in new]:
            return None
        for d, source in zip(new, old, strict=True):
            moved[d] = source
    else:
        return None
    return tuple(moved)
