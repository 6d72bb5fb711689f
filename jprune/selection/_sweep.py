r"""One sweep over the data: how many integers are at least each of a few pivots.

Two things make a sweep cost one read of the weights (measured on CPU, 25 M floats):

1. one *variadic* reduction per leaf returns the counts at all pivots together. A plain
   `sum(b >= p)` is some eight times slower;
2. the leaves pass through an optimization barrier together with the pivots. An image
   does not depend on the loop, and without the barrier XLA hoists it out of the loop: a
   whole copy of the model. The same holds for the positions of the entries.

Two integers are swept over: the image of each entry, and, to break a tie, its position.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._axes import placed_as
from jprune.selection._bracket import Bracket, Counts, Pivots
from jprune.selection._count_true import count_true
from jprune.selection._image import Image
from jprune.selection._leaves import Leaf, Table


def available(table: Table, per_leaf: bool) -> jax.Array:
    """How many entries take part. 0-d, or [leaves] int32"""
    totals = []
    for leaf in table.leaves:
        if leaf.within is None:
            totals.append(jnp.int32(leaf.size))
            continue
        if leaf.within.ndim == 0:
            total = jnp.where(leaf.within, jnp.int32(leaf.size), 0)
        else:
            total = count_true(leaf.within)
            if table.axis_names:
                total = lax.psum(_once(leaf, total), table.axis_names)
        totals.append(total)
    stacked = jnp.stack(totals)
    return stacked if per_leaf else jnp.sum(stacked, dtype=jnp.int32)


def sweep_images(table: Table, per_leaf: bool) -> Callable[..., Counts]:
    """The counting function of the images, for `search`."""

    def count(pivots: Pivots, bracket: Bracket | None = None) -> Counts:
        ends = [] if bracket is None else [bracket.lo, bracket.hi]
        leaves, pivots, ends = lax.optimization_barrier((_swept(table), pivots, ends))
        images = [table.image.of(*leaf) for leaf in leaves]
        return _count(table, images, pivots, ends, per_leaf)

    return count


def sweep_positions(
    table: Table, bits: jax.Array, per_leaf: bool
) -> Callable[[Pivots], Counts]:
    """The counting function of the places from the end, for `search`.

    An entry above the threshold has the place n, one at the threshold its distance
    n - 1 - position from the last (0..n-1), and one below it -1.
    """
    strides = all_strides(table, per_leaf)

    def count(pivots: Pivots) -> Counts:
        swept, steps, pivots = lax.optimization_barrier(
            (_swept(table), strides, pivots)
        )
        places = []
        for i, leaf in enumerate(table.leaves):
            image = table.image.of(*swept[i])
            above, tied = split_at(table, image, bits[i] if per_leaf else bits)
            total = leaf.size if per_leaf else sum(table.sizes)
            place = leaf.from_end(steps[i], total)
            places.append(jnp.where(above, total, jnp.where(tied, place, -1)))
        return _count(table, places, pivots, [], per_leaf)

    return count


class Cut(NamedTuple):
    """Thresholds of each leaf. [leaves] of the image's dtype

    Attributes:
      above: an image larger than this is kept.
      least: one at least this large is kept, or ties with others.
    """

    above: jax.Array
    least: jax.Array


def sweep_cut(table: Table, ties: bool) -> Callable[..., Counts]:
    """The counting function of a search through all its stages.

    Args:
      table: the leaves.
      ties: whether places are ever counted.

    Returns:
      `count(pivots, places, cut)`: in each leaf the images that reach its pivots, or
      where `places` is true the places from the end, given the `cut`: an entry above it
      has the largest, one that ties its distance n - 1 - position from the last, and
      one below -1.
    """
    numbers = _numbers(table)

    def count(pivots: Pivots, places: jax.Array, cut: Cut) -> Counts:
        rows = list(pivots)
        if ties:
            dtype = table.image.dtype
            largest = jnp.full(cut.least.shape, jnp.iinfo(dtype).max, dtype)
            # Where images are counted no entry reaches the cut, and none is too large.
            rows += [jnp.where(places, x, largest) for x in (*cut, -1)]
        rows = _stacked(table, rows)
        leaves, where, rows = lax.optimization_barrier((_swept(table), numbers, rows))
        each = functools.partial(_counted, image=table.image, ties=ties)
        seen = [each(*x, rows) for x in zip(leaves, where, strict=True)]
        columns = [jnp.stack(column) for column in zip(*seen, strict=True)]
        # Or XLA would write a sum of one as a chain over all leaves, in each kernel.
        return Counts(lax.optimization_barrier(columns))

    return count


# What is compiled for each leaf is traced and lowered once for all of one shape.
@functools.partial(jax.jit, static_argnames=("image", "ties"))
def _counted(
    arrays: tuple[Any, ...],
    number: jax.Array,
    rows: jax.Array,
    *,
    image: Image,
    ties: bool,
) -> list[jax.Array]:
    """How many images of a leaf, or places, reach each of its pivots."""
    integers, row = _read(arrays, _entries(rows, number), image)
    if ties:
        *row, above, least, most = row
        place = _place(number, integers.shape).astype(integers.dtype)
        place = placed_as(place, integers)
        place = jnp.where(integers >= least, place, jnp.minimum(integers, most))
        integers = jnp.where(integers > above, jnp.iinfo(image.dtype).max, place)
    return _reduce(integers, row, [])


def keep_cut(
    table: Table, cut: Cut, last: jax.Array, flat: bool = False
) -> list[jax.Array]:
    """The mask of each leaf: above the cut, or tied with it and up to the last place.

    Args:
      table: the leaves, as they are: what is made of the mask and the leaf can then
        take the place of the leaf in memory.
      cut: the thresholds.
      last: the place from the end of the last tie that is kept. [leaves]
      flat: whether a leaf may be laid along one axis; only its places are.

    Returns:
      Bool arrays of the leaves' shapes.
    """
    each = functools.partial(_kept, image=table.image, flat=flat)
    rows = _stacked(table, [*cut, last.astype(cut.least.dtype)])
    # Behind a barrier, or the places would be made before a loop around this.
    numbers, rows = lax.optimization_barrier((_numbers(table, flat), rows))
    pairs = zip(_swept(table), numbers, strict=True)
    return [each(*pair, rows) for pair in pairs]


@functools.partial(jax.jit, static_argnames=("image", "flat"))
def _kept(
    arrays: tuple[Any, ...],
    number: jax.Array,
    rows: jax.Array,
    *,
    image: Image,
    flat: bool,
) -> jax.Array:
    """The mask of one leaf."""
    integers, (above, least, end) = _read(arrays, _entries(rows, number), image)
    place = _place(number, (integers.size,) if flat else integers.shape)
    first = (place >= end).reshape(integers.shape)
    return (integers > above) | ((integers >= least) & first)


def _stacked(table: Table, rows: list[jax.Array]) -> jax.Array:
    """Rows with an entry for each leaf; the last says what is ranked, if two may be."""
    if table.which is not None:
        which = table.which.astype(rows[0].dtype)
        rows = [*rows, jnp.broadcast_to(which, rows[0].shape)]
    return jnp.stack(rows)


def _read(
    arrays: tuple[Any, ...], row: list[jax.Array], image: Image
) -> tuple[jax.Array, list[jax.Array]]:
    """The images of a leaf, and what its entries of the rows say besides."""
    if arrays[-1] is None:
        return image.of(*arrays), row
    *row, which = row
    return image.of(*arrays, which=which != 0), row


def _swept(table: Table) -> list[tuple[Any, ...]]:
    """What `Image.of` takes of each leaf."""
    return [leaf.swept for leaf in table.leaves]


def _numbers(table: Table, flat: bool = False) -> list[jax.Array]:
    """For each leaf its number, the place from the end of its first entry, and steps.

    The last axis has none: its step is 1. Behind a barrier, so that the kernels of two
    leaves of one shape are one, and no places are made before the loop.
    """
    rows = []
    for i, leaf in enumerate(table.leaves):
        shape = () if flat else leaf.value.shape
        steps = [math.prod(shape[d + 1 :]) for d in _long(shape)[:-1]]
        row = np.array([i, max(leaf.size - 1, 0), *steps], np.uint32)
        rows.append(lax.optimization_barrier(row))
    return rows


def entry(x: jax.Array, i: int) -> jax.Array:
    """`x[i]` of a vector, by a kernel that does not know i: one for many leaves. 0-d"""
    number = lax.optimization_barrier(np.array([i, 0], np.uint32))
    return _entries(x[None], number)[0]


def _entries(rows: jax.Array, number: jax.Array) -> list[jax.Array]:
    """The entries of one leaf, of an array with a column for each."""
    # The number is unsigned, or JAX would ask whether it is negative.
    column = lax.dynamic_slice_in_dim(rows, number[0], 1, axis=1)
    return [column[j, 0] for j in range(rows.shape[0])]


def _long(shape: tuple[int, ...]) -> list[int]:
    """The axes along which places differ."""
    return [axis for axis, length in enumerate(shape) if length > 1]


def _place(number: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The place from the end of each entry, row-major: the first has the largest."""
    first, *steps = number.astype(jnp.int32)[1:]
    place = jnp.broadcast_to(first, shape)
    for axis, step in zip(_long(shape), [*steps, 1], strict=False):  # of one entry none
        index = lax.broadcasted_iota(jnp.int32, shape, axis)
        place -= index * step
    return place


def all_strides(table: Table, per_leaf: bool) -> list[jax.Array]:
    """The strides of each leaf, kept out of the kernels that use them.

    As constants they would make the kernels of two leaves of one shape different, and
    each would be compiled.
    """
    strides = [leaf.strides(per_leaf) for leaf in table.leaves]
    # One barrier each: a common one would make a replicated leaf's strides vary.
    return [lax.optimization_barrier(s) for s in strides]


def split_at(
    table: Table, image: jax.Array, bits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which entries lie above the threshold, and which tie with it.

    No search looks at `top` itself.
    """
    top = table.image.top
    above = image > jnp.where(bits == top - 1, top, bits)
    return above, (image >= bits) & ~above


def _count(
    table: Table,
    integers: list[jax.Array],
    pivots: Pivots,
    ends: list[jax.Array],
    per_leaf: bool,
) -> Counts:
    """Counts at the pivots, and the integers next to the ends if there are ends."""
    rows = len(pivots)
    seen = []
    for i, (leaf, b) in enumerate(zip(table.leaves, integers, strict=True)):
        at = [x[i] if per_leaf else x for x in (*pivots, *ends)]
        result = _reduce(b, at[:rows], at[rows:])
        seen.append([_once(leaf, c) for c in result[:rows]] + result[rows:])
    merged = [jnp.stack(column) for column in zip(*seen, strict=True)]
    if not per_leaf:
        total = functools.partial(jnp.sum, dtype=jnp.int32)
        fold = [total] * rows + ([jnp.min, jnp.max] if ends else [])
        merged = [f(column) for f, column in zip(fold, merged, strict=True)]
    at, nearest = merged[:rows], merged[rows:]
    names = table.axis_names
    if names:
        at = list(lax.psum(jnp.stack(at), names))
    if not ends:
        return Counts(at)
    least, greatest = nearest
    if names:
        least, greatest = lax.pmin(least, names), lax.pmax(greatest, names)
    return Counts(at, least, greatest)


def _reduce(b: jax.Array, pivots: Pivots, ends: list[jax.Array]) -> list[jax.Array]:
    """One variadic reduction: each count, the least >= lo and the greatest < hi."""
    rows = len(pivots)
    operands = [(b >= p).astype(jnp.int32) for p in pivots]
    starts = [jnp.int32(0)] * rows
    if ends:
        lo, hi = ends
        high = jnp.asarray(jnp.iinfo(b.dtype).max, b.dtype)
        operands += [jnp.where(b >= lo, b, high), jnp.where(b < hi, b, ~high)]
        starts += [high, ~high]

    def merge(x, y):
        merged = [p + q for p, q in zip(x[:rows], y[:rows], strict=True)]
        if ends:
            merged += [jnp.minimum(x[rows], y[rows])]
            merged += [jnp.maximum(x[rows + 1], y[rows + 1])]
        return tuple(merged)

    axes = tuple(range(b.ndim))
    return list(lax.reduce(tuple(operands), tuple(starts), merge, axes))


def _once(leaf: Leaf, count: jax.Array) -> jax.Array:
    """A count, zeroed on all but the first replica of a leaf."""
    here = leaf.counted_here()
    return count if here is None else jnp.where(here, count, 0)
