"""A kernel as two thin arrays, and how each is laid out for one contraction."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._tree import KeyTuple
from jprune._unfolding import Spectrum, Unfolding

Dims = tuple[int | None, ...]
"""For each axis of a value the kernel's axis behind it; None for a unit one."""

INNER = "k"
"""The label of the axis that the two factors share."""


class Factors(NamedTuple):
    """Two thin arrays in the place of one kernel, which is their product over k.

    Attributes:
      first: [*each, *rows, k], the axes of the kernel's unfolding.
      second: [*each, k, *columns].
    """

    first: jax.Array
    second: jax.Array


def split(
    parts: Spectrum, keep: jax.Array, unfolding: Unfolding, like: jax.Array
) -> Factors:
    r"""The factors of what is kept, $\sqrt{s}$ on both, as wide as the largest rank.

    Args:
      parts: the SVD of the kernel.
      keep: [*each, q] bool, leading Trues.
      unfolding: of the kernel.
      like: the kernel, for shape and dtype.
    """
    width = int(keep.sum(-1).max())
    root = jnp.sqrt(jnp.where(keep, parts.s, 0))[..., :width]
    first = parts.u[..., :width] * root[..., None, :]
    second = root[..., None] * parts.vt[..., :width, :]
    each, rows, columns = (
        [like.shape[a] for a in axes]
        for axes in (unfolding.each, unfolding.rows, unfolding.columns)
    )
    return Factors(
        first.reshape(*each, *rows, width).astype(like.dtype),
        second.reshape(*each, width, *columns).astype(like.dtype),
    )


class Refused(Exception):
    """An equation has no form as two contractions; the text says why."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["factors"],
    meta_fields=["path", "unfolding", "dims"],
)
@dataclasses.dataclass(frozen=True)
class Thin:
    """A kernel that is never formed, seen through casts, transposes and unit axes.

    Attributes:
      factors: the two arrays.
      path: of the parameter, for messages.
      unfolding: which of the kernel's axes the factors have.
      dims: for each axis of the value the kernel's axis behind it; None for a unit one.
    """

    factors: Factors
    path: KeyTuple
    unfolding: Unfolding
    dims: Dims

    def mapped(self, fn: Callable[[jax.Array], jax.Array]) -> "Thin":
        """The same with a function applied to both arrays."""
        return dataclasses.replace(self, factors=Factors(*map(fn, self.factors)))

    def scaled(self, fn: Callable[[jax.Array], jax.Array]) -> "Thin":
        """The same with a linear function of the whole applied to one of them."""
        first, second = self.factors
        return dataclasses.replace(self, factors=Factors(fn(first), second))

    def labels(self) -> tuple[Any, ...]:
        """A label for each axis of the value; a unit axis has one of its own."""
        return tuple(("unit", i) if d is None else d for i, d in enumerate(self.dims))

    def halves(self) -> tuple["Labelled", "Labelled"]:
        """The two arrays with the kernel's axes as labels."""
        each, rows, columns = (
            self.unfolding.each,
            self.unfolding.rows,
            self.unfolding.columns,
        )
        first, second = self.factors
        return (
            Labelled(first, (*each, *rows, INNER)),
            Labelled(second, (*each, INNER, *columns)),
        )

    def loop_axis(self) -> bool:
        """Whether the value's first axis has one product for each position."""
        return bool(self.dims) and self.dims[0] in self.unfolding.each

    def for_loop(self) -> "Thin":
        """The same with the value's first axis as first axis of both arrays."""
        axis = self.dims[0]
        rest = tuple(a for a in self.unfolding.each if a != axis)
        first, second = self.halves()
        factors = Factors(
            first.laid((axis, *rest, *self.unfolding.rows, INNER)),
            second.laid((axis, *rest, INNER, *self.unfolding.columns)),
        )
        each = self.unfolding._replace(each=(axis, *rest))  # type: ignore[arg-type]
        return dataclasses.replace(self, factors=factors, unfolding=each)

    def in_loop(self) -> "Thin":
        """One position of it, as a loop's body gets it."""
        inner = self.unfolding._replace(each=self.unfolding.each[1:])
        return dataclasses.replace(self, unfolding=inner, dims=self.dims[1:])


class Labelled(NamedTuple):
    """An array and a label for each of its axes."""

    array: jax.Array
    labels: tuple[Any, ...]

    def laid(self, order: Sequence[Any]) -> jax.Array:
        """The array with its axes in this order; a label it lacks is a unit axis."""
        present = [label for label in order if label in self.labels]
        array = self.array.transpose([self.labels.index(x) for x in present])
        new = [i for i, label in enumerate(order) if label not in self.labels]
        return jnp.expand_dims(array, new)
