"""The networks that surgery is proved on, each with hand-written minima.

A `Net` is one row of the table in docs/networks.md. `make(train)` gives the function,
its variables and its arguments as NumPy arrays in float64 (integers stay), small enough
that forward and gradient compile in a few seconds. Every variable is random, so that no
bias, norm scale or running mean is trivially 0 or 1.

Two minima are written by hand beside each network, by reasoning about its layers:

* `groups`: how many coupled groups there are to find. More is fine (a finer split of
  the same axes), fewer means that something removable was frozen.
* `fixed`: how many scalars of the parameters no group may reach (biases of the logits,
  tables indexed by position, ...). Everything else must lie on a removable coordinate,
  so the removable fraction of the parameters is at least `1 - fixed / total`.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Case(NamedTuple):
    """A function, its variables and its arguments; `state` names what it returns.

    Attributes:
      apply: `apply(variables, *args)` gives the output, or `(output, new)` where `new`
        has the structure of `variables[state]`.
      variables: pytree of float64 NumPy arrays.
      args: the other arguments.
      state: key of the collection that is returned updated, or None.
    """

    apply: Callable[..., Any]
    variables: Any
    args: tuple
    state: str | None = None


class Net(NamedTuple):
    """A named network with its minima (see the module docstring).

    Attributes:
      name: the row of the table.
      make: `make(train, batch)` builds the case.
      groups: hand-written minimum of coupled groups.
      fixed: hand-written maximum of scalars out of every group's reach.
      train: whether the network has a train mode that differs (batch norm, dropout).
      batched: whether a leading batch axis of the first argument is free.
    """

    name: str
    make: Callable[..., Case]
    groups: int
    fixed: int
    train: bool = False
    batched: bool = True


def fill(shapes: Any, seed: int = 0) -> Any:
    """Random float64 values: He-like kernels, scales near 1, positive variances."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, like: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = like.shape
        if not np.issubdtype(like.dtype, np.floating):
            return np.zeros(shape, like.dtype)
        if re.search(r"(^|/)var", name):
            return rng.uniform(0.5, 1.5, shape)
        if len(shape) < 2:
            centre = 1.0 if "scale" in name else 0.0
            return centre + 0.3 * rng.standard_normal(shape)
        fan_in = max(np.prod(shape[:-1]), 1)
        return rng.standard_normal(shape) * np.sqrt(1.5 / fan_in)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def images(batch: int, side: int, channels: int = 3, seed: int = 1) -> np.ndarray:
    """A batch of random images in NHWC. [batch, side, side, channels]"""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, side, side, channels))


def tokens(batch: int, length: int, vocabulary: int, seed: int = 1) -> np.ndarray:
    """A batch of random token sequences. [batch, length] int32"""
    rng = np.random.default_rng(seed)
    return rng.integers(0, vocabulary, (batch, length)).astype(np.int32)


def total(variables: Any) -> int:
    """Number of scalars in a tree."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(variables))
