"""Any contraction of a parameter as a product of matrices, Y = X W.

A dot product over some axes of a kernel is a matrix product once these axes are laid
into one, and a convolution is one of patches: N rows (examples and positions), K inputs
of each output (taps times channels, heads times head dimension), M outputs. Shared
batch axes and the groups of a grouped convolution give G such products side by side:

    X [G, N, K]   W [G, K, M]   Y [G, N, M] .
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._jaxpr._flat import Flat, Site
from jprune._tree import KeyTuple


class Unreadable(Exception):
    """The contraction is no product of matrices in the above sense; says why."""


class MatrixForm(NamedTuple):
    """How one site is read as Y = X W.

    Attributes:
      site: the contraction.
      eqn: its equation.
      shape: (G, K, M).
      order: the operand's axes in the order batch, summed, outputs.
      counts: how many of them are of each kind.
      param_shape: of the parameter; of one layer, if it is a stack.
      split: G of a grouped convolution, whose output axis holds G x M; else 1.
    """

    site: Site
    eqn: Any
    shape: tuple[int, int, int]
    order: tuple[int, ...]
    counts: tuple[int, int, int]
    param_shape: tuple[int, ...]
    split: int = 1

    @property
    def path(self) -> KeyTuple:
        """Of the parameter."""
        return self.site.origin.path

    def axes(self, kind: int) -> list[int | None]:
        """The parameter's axes behind those laid into G (0), K (1) or M (2)."""
        start = sum(self.counts[:kind])
        dims = self.order[start : start + self.counts[kind]]
        return [self.site.origin.dims[d] for d in dims]

    def sizes(self, kind: int) -> list[int]:
        """Their lengths."""
        start = sum(self.counts[:kind])
        shape = self.eqn.invars[self.site.place].aval.shape
        return [shape[d] for d in self.order[start : start + self.counts[kind]]]

    def coordinates(self, axis: int) -> np.ndarray | None:
        """For each of the K inputs, its position on an axis of the parameter. [K]

        None if the contraction does not sum over that axis.
        """
        axes, sizes = self.axes(1), self.sizes(1)
        if axis not in axes:
            return None
        place = axes.index(axis)
        view = [-1 if d == place else 1 for d in range(len(sizes))]
        at = np.arange(sizes[place]).reshape(view)
        return np.broadcast_to(at, sizes).reshape(-1)

    def weights(self, operand: Any) -> Any:
        """The kernel as the equation reads it, as [G, K, M]."""
        g, k, m = self.shape
        laid = operand.transpose(self.order)
        if self.split > 1:
            return jnp.moveaxis(laid.reshape(k, g, m), 1, 0)
        return laid.reshape(g, k, m)

    def operand(self, weights: Any) -> Any:
        """Inverse of `weights`."""
        var = self.eqn.invars[self.site.place]
        if self.split > 1:
            weights = jnp.moveaxis(weights, 0, 1)
        shape = [var.aval.shape[d] for d in self.order]
        return weights.reshape(shape).transpose(np.argsort(self.order))

    def as_operand(self, param: Any, shape: Sequence[int] | None = None) -> Any:
        """The parameter (one layer of a stack) as the equation reads it.

        Args:
          param: the parameter.
          shape: of the operand, if the parameter is narrower than it was.
        """
        origin, var = self.site.origin, self.eqn.invars[self.site.place]
        taken = {axis for axis, _ in origin.at}
        left = [a for a in range(np.ndim(param) + len(taken)) if a not in taken]
        order = [left.index(a) for a in origin.dims if a is not None]
        order += [d for d in range(len(left)) if d not in order]  # unit axes
        laid = param.transpose(order).reshape(shape or var.aval.shape)
        return laid.astype(var.aval.dtype)

    def as_param(self, operand: Any, like: Any) -> Any:
        """Inverse of `as_operand`, in the shape and dtype of `like`."""
        origin = self.site.origin
        taken = {axis for axis, _ in origin.at}
        left = [a for a in range(like.ndim + len(taken)) if a not in taken]
        order = [left.index(a) for a in origin.dims if a is not None]
        order += [d for d in range(len(left)) if d not in order]
        shape = [like.shape[d] for d in order]
        return operand.reshape(shape).transpose(np.argsort(order)).astype(like.dtype)

    def outputs(self, y: Any, positions: Any = None) -> Any:
        """The result as [G, N, M]; of a convolution at some positions only.

        Args:
          y: the result of the equation.
          positions: [count, spatial axes] of the output, or None for all.
        """
        g, _, m = self.shape
        if self.eqn.primitive.name == "dot_general":
            _, rows, outs = _dot_axes(self.eqn, self.site.place)
            batch = len(self.eqn.params["dimension_numbers"][1][0])
            laid = y.transpose((*range(batch), *rows, *outs))
            return laid.reshape(g, -1, m)
        spec = self.eqn.params["dimension_numbers"].out_spec
        y = y.transpose((spec[0], *spec[2:], spec[1]))
        if positions is not None:
            y = y[(slice(None), *positions.T)]
        return jnp.moveaxis(y.reshape(-1, g, m), 1, 0)

    def result(self, vector: Any) -> Any:
        """A number for each output, [G, M], laid out to be added to the result."""
        ndim = len(self.eqn.outvars[0].aval.shape)
        if self.eqn.primitive.name != "dot_general":
            shape = [1] * ndim
            shape[self.eqn.params["dimension_numbers"].out_spec[1]] = -1
            return vector.reshape(shape)
        batch, rows, outs = _dot_axes(self.eqn, self.site.place)
        shape = self.eqn.outvars[0].aval.shape
        laid = vector.reshape(
            [shape[d] for d in batch] + [1] * len(rows) + [shape[d] for d in outs]
        )
        return laid.transpose(np.argsort([*batch, *rows, *outs]))

    def output_axes(self) -> list[int]:
        """Axes of the result that the parameter makes: G and M."""
        if self.eqn.primitive.name != "dot_general":
            return [self.eqn.params["dimension_numbers"].out_spec[1]]
        batch, _, outs = _dot_axes(self.eqn, self.site.place)
        return [*batch, *outs]

    def inputs(self, x: Any, positions: Any = None) -> Any:
        """The other operand as [G, N, K]: patches, of a convolution.

        Args:
          x: the other operand.
          positions: see `outputs`.
        """
        g, k, _ = self.shape
        if self.eqn.primitive.name == "dot_general":
            place = 1 - self.site.place
            (_, batch) = self.eqn.params["dimension_numbers"]
            order = _free_last(x.ndim, batch[place], _summed(self.eqn, self.site)[1])
            return x.transpose(order).reshape(g, -1, k)
        return _patches(self.eqn, x, positions, g)


def matrix_form(flat: Flat, site: Site) -> MatrixForm:
    """How a site is read as a product of matrices.

    Raises:
      Unreadable: a convolution with the parameter in the place of the image, or with
        batch groups.
    """
    eqn, place = flat.eqns[site.eqn], site.place
    shape = eqn.invars[place].aval.shape
    whole = flat.jaxpr.jaxpr.invars[site.origin.index].aval.shape
    taken = {axis for axis, _ in site.origin.at}
    layer = tuple(n for axis, n in enumerate(whole) if axis not in taken)
    if eqn.primitive.name == "dot_general":
        _, batch = eqn.params["dimension_numbers"]
        kinds = [list(batch[place]), _summed(eqn, site)[0]]
        kinds.append([d for d in range(len(shape)) if d not in sum(kinds, [])])
        sizes = [math.prod(shape[d] for d in kind) for kind in kinds]
        counts = (len(kinds[0]), len(kinds[1]), len(kinds[2]))
        order = tuple(sum(kinds, []))
        shape3 = (sizes[0], sizes[1], sizes[2])
        return MatrixForm(site, eqn, shape3, order, counts, layer)
    if place != 1:
        raise Unreadable("a convolution reads it as its image")
    if eqn.params["batch_group_count"] != 1:
        raise Unreadable("a convolution with batch groups reads it")
    spec = eqn.params["dimension_numbers"].rhs_spec
    groups = eqn.params["feature_group_count"]
    summed = (*spec[2:], spec[1])
    inputs = math.prod(shape[d] for d in summed)
    sizes = (groups, inputs, shape[spec[0]] // groups)
    order, counts = (*summed, spec[0]), (0, len(summed), 1)
    return MatrixForm(site, eqn, sizes, order, counts, layer, groups)


def spatial_shape(form: MatrixForm) -> tuple[int, ...]:
    """The output positions of a convolution; empty for a dot product."""
    if form.eqn.primitive.name == "dot_general":
        return ()
    spec = form.eqn.params["dimension_numbers"].out_spec
    shape = form.eqn.outvars[0].aval.shape
    return tuple(shape[d] for d in spec[2:])


def _summed(eqn: Any, site: Site) -> tuple[list[int], list[int]]:
    """The axes a dot product sums over, of the parameter and of the other operand.

    In the order of the parameter's axes, whatever order the equation has.
    """
    own, other = (
        eqn.params["dimension_numbers"][0][i] for i in (site.place, 1 - site.place)
    )
    pairs = sorted(
        zip(own, other, strict=True), key=lambda p: (site.origin.dims[p[0]] or 0, p[0])
    )
    return [a for a, _ in pairs], [b for _, b in pairs]


def _free_last(ndim: int, batch: Sequence[int], summed: Sequence[int]) -> list[int]:
    rest = [d for d in range(ndim) if d not in (*batch, *summed)]
    return [*batch, *rest, *summed]


def _dot_axes(eqn: Any, place: int) -> tuple[list[int], list[int], list[int]]:
    """Axes of a dot product's result: shared, the other operand's, the parameter's."""
    summed, batch = eqn.params["dimension_numbers"]
    shared = len(batch[0])
    free = [eqn.invars[i].aval.ndim - len(summed[i]) - len(batch[i]) for i in (0, 1)]
    first = list(range(shared, shared + free[0]))
    second = list(range(shared + free[0], shared + sum(free)))
    rows, outs = (first, second) if place == 1 else (second, first)
    return list(range(shared)), rows, outs


def _patches(eqn: Any, x: Any, positions: Any, groups: int) -> Any:
    """What the kernel of a convolution sees, [G, N, taps x channels of a group]."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    taps = [eqn.invars[1].aval.shape[d] for d in numbers.rhs_spec[2:]]
    steps = [eqn.outvars[0].aval.shape[d] for d in numbers.out_spec[2:]]
    x = x.transpose((numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    holes = [n - 1 for n in params["lhs_dilation"]]
    pads = [(*p, hole) for p, hole in zip(params["padding"], holes, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    if positions is None:
        grid = np.stack(np.meshgrid(*map(np.arange, steps), indexing="ij"), -1)
        positions = grid.reshape(-1, len(steps))
    tap = np.stack(np.meshgrid(*map(np.arange, taps), indexing="ij"), -1)
    tap = tap.reshape(-1, len(taps))
    stride, dilation = params["window_strides"], params["rhs_dilation"]
    index = tuple(
        (positions[:, d] * stride[d])[:, None] + (tap[:, d] * dilation[d])[None]
        for d in range(len(taps))
    )
    seen = x[(slice(None), *index)]  # [batch, positions, taps, channels]
    seen = seen.reshape(-1, len(tap), groups, seen.shape[-1] // groups)
    return jnp.moveaxis(seen, 2, 0).reshape(groups, seen.shape[0], -1)


def random_positions(key: jax.Array, form: MatrixForm, count: int | None) -> Any:
    """Output positions drawn with replacement; None where all are taken."""
    shape = spatial_shape(form)
    if count is None or not shape:
        return None
    keys = jax.random.split(key, len(shape))
    drawn = [
        jax.random.randint(k, (count,), 0, n) for k, n in zip(keys, shape, strict=True)
    ]
    return jnp.stack(drawn, -1)
