"""One contraction of a kernel that is a product, as two (`compress.low_rank`).

A dot product over the kernel's rows meets `first`, then `second`; over its columns, the
other way round. A convolution takes the spatial axes of either half with that half: its
stride, padding and dilation go along, axis by axis. Where the unfolding has one matrix
for each output channel, the second convolution is depthwise.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from jprune._factors import INNER, Labelled, Refused, Thin
from jprune._jaxpr import _compat
from jprune._jaxpr._compat import Equation


def contract(eqn: Equation, place: int, thin: Thin, other: jax.Array) -> jax.Array:
    """`dot_general` of a thin operand at `place` with an array.

    Raises:
      Refused: if it does not contract exactly the rows, or exactly the columns.
    """
    contracted, batched = eqn.params["dimension_numbers"]
    labels = thin.labels()
    summed = [labels[d] for d in contracted[place]]
    shared = [labels[d] for d in batched[place]]
    free = [x for x in labels if x not in (*summed, *shared)]
    near, far = _halves(thin, summed, shared)
    near_array = near.laid((*shared, *summed, INNER))
    far_array = far.laid((*shared, INNER, *free))
    n, m = len(shared), len(summed)
    own = (tuple(range(n, n + m)), tuple(range(n)))
    theirs = (tuple(contracted[1 - place]), tuple(batched[1 - place]))
    batch = tuple(range(n))
    if place == 1:
        middle = _dot(eqn, other, near_array, theirs, own, inner=True)
        last = ((middle.ndim - 1,), batch)
        return _dot(eqn, middle, far_array, last, ((n,), batch))
    middle = _dot(eqn, near_array, other, own, theirs, inner=True)
    return _dot(eqn, far_array, middle, ((n,), batch), ((n,), batch))


def _halves(thin: Thin, summed: Sequence[Any], shared: Sequence[Any]) -> Any:
    """The half that is read first, and the other."""
    sides = (set(thin.unfolding.rows), set(thin.unfolding.columns))
    seen = {x for x in summed if isinstance(x, int)}
    if {x for x in shared if isinstance(x, int)} != set(thin.unfolding.each):
        raise Refused(
            f"a dot product has axes {_axes(shared)} in common with its operand, the "
            f"unfolding a matrix for each of {_axes(thin.unfolding.each)}"
        )
    if seen not in sides:
        raise Refused(
            f"a dot product sums over axes {_axes(seen)}, neither the rows "
            f"{_axes(sides[0])} nor the columns {_axes(sides[1])}"
        )
    first, second = thin.halves()
    return (first, second) if seen == sides[0] else (second, first)


def _axes(labels: Any) -> list[int]:
    return sorted(x for x in labels if isinstance(x, int))


def _dot(
    eqn: Equation, lhs: Any, rhs: Any, of_lhs: Any, of_rhs: Any, inner: bool = False
) -> jax.Array:
    """The equation's product with other dimension numbers."""
    numbers = ((of_lhs[0], of_rhs[0]), (of_lhs[1], of_rhs[1]))
    params = {**eqn.params, "dimension_numbers": numbers}
    if inner:  # the operands' dtype, as the result of a layer would have
        params["preferred_element_type"] = None
        params["out_sharding"] = None
    return _compat.bind(eqn, params, [lhs, rhs])[0]


def convolve(eqn: Equation, place: int, thin: Thin, other: jax.Array) -> jax.Array:
    """`conv_general_dilated` with a thin kernel.

    Raises:
      Refused: for a grouped convolution, a kernel in the place of the image, and an
        unfolding that has input and output channels on one side.
    """
    if place != 1:
        raise Refused("a convolution has it as its image")
    params = eqn.params
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        raise Refused("a grouped convolution reads it, one matrix would mix its groups")
    numbers, labels = params["dimension_numbers"], thin.labels()
    spec = numbers.rhs_spec
    out, into, window = labels[spec[0]], labels[spec[1]], [labels[d] for d in spec[2:]]
    near, far, each = _sides(thin, out, into)
    early = [x in near.labels or x not in far.labels for x in window]
    inner = [INNER if x == out else x for x in labels]
    if each:
        split = [y for x in labels for y in ((out, INNER) if x == out else (x,))]
        kernel = near.laid(split)
        shape = [n for n, y in zip(kernel.shape, split, strict=True) if y != out]
        at, count = inner.index(INNER), kernel.shape[split.index(out)]
        shape[at] *= count
        kernel = kernel.reshape(shape)
    else:
        kernel, count = near.laid(inner), 1
    middle = _conv(params, numbers, other, kernel, early)
    outer = [INNER if x == into else x for x in labels]
    again = numbers._replace(lhs_spec=numbers.out_spec)
    late = [not x for x in early]
    return _conv(params, again, middle, far.laid(outer), late, count, last=True)


def _sides(thin: Thin, out: Any, into: Any) -> tuple[Labelled, Labelled, bool]:
    """The half with the input channels, the other, and whether it is depthwise."""
    first, second = thin.halves()
    each = thin.unfolding.each
    if each not in ((), (out,)):
        raise Refused(
            f"a convolution reads it, but its unfolding has a matrix for each of axes "
            f"{list(each)}: only the output channels {_axes([out])} may have one"
        )
    near, far = first, second
    if into in second.labels or (not each and out in first.labels):
        near, far = second, first
    if into in far.labels or (not each and out in near.labels):
        raise Refused(
            "a convolution reads it, but its unfolding has input and output channels "
            "on one side"
        )
    return near, far, bool(each)


def _conv(
    params: dict[str, Any],
    numbers: Any,
    image: jax.Array,
    kernel: jax.Array,
    here: Sequence[bool],
    groups: int = 1,
    last: bool = False,
) -> jax.Array:
    """The convolution along some of its spatial axes, along the others a 1 x 1 one."""

    def chosen(name: str, neutral: Any) -> list[Any]:
        pairs = zip(params[name], here, strict=True)
        return [value if mine else neutral for value, mine in pairs]

    return lax.conv_general_dilated(
        image.astype(kernel.dtype),
        kernel,
        chosen("window_strides", 1),
        chosen("padding", (0, 0)),
        lhs_dilation=chosen("lhs_dilation", 1),
        rhs_dilation=chosen("rhs_dilation", 1),
        dimension_numbers=numbers,
        feature_group_count=groups,
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"] if last else None,
    )
