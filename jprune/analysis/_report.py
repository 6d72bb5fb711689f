"""What is left of a network: per leaf and in total, counted exactly.

A *report* reads parameters, masks, or both, on the host and changes nothing. For each
leaf it counts the kept scalars (non-zero entries of a parameter, True entries of a
mask) and gives two sizes. A leaf that takes no part in pruning is listed and counts as
kept whole: a bias that is still zero was not removed. The *dense* size is what the
array takes now, zeros included. The *stored* size is what a file needs that writes each
kept value once, and one bit per entry to say where it belongs,

    stored = min(dense, kept * itemsize + ceil(size / 8)),

so it is a figure one can reach, not a limit: at 98 % of float32 it is 19.5 times less
than dense, not 50 times, because positions are not free. Neither size says anything of
speed; see `jprune.analysis.compare` for that.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._dtypes import not_zero
from jprune._errors import listing, type_error, value_error
from jprune._tree import named_leaves, require_same_structure, require_tree
from jprune._typing import Mask, Params
from jprune.analysis._table import byte_size, percent, text_table
from jprune.masks._scope import resolve_scope


class LeafReport(NamedTuple):
    """One leaf, or the sum of several.

    Attributes:
      path: the leaf's path, "in scope" or "total".
      shape: of the leaf; None for a sum.
      dtype: name of the data type; None for a sum.
      in_scope: whether the leaf takes part in pruning. One that does not counts as kept
        whole, zeros included.
      size: number of scalars.
      kept: how many of them are kept.
      bytes_dense: bytes of the array as it is; None if only a mask was given.
      bytes_stored: bytes of the kept values and one bit per entry, or `bytes_dense` if
        that is less; None if only a mask was given.
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: str | None
    in_scope: bool
    size: int
    kept: int
    bytes_dense: int | None
    bytes_stored: int | None

    @property
    def sparsity(self) -> float:
        """Fraction that is zero; 0.0 for an empty leaf."""
        return (self.size - self.kept) / self.size if self.size else 0.0


class Report(NamedTuple):
    """Counts per leaf and in total; `str(report)` is a plain-text table.

    Attributes:
      rows: one entry per leaf, in flattening order.
      in_scope: the sum over the leaves that take part in pruning.
      total: the sum over all leaves.
    """

    rows: tuple[LeafReport, ...]
    in_scope: LeafReport
    total: LeafReport

    def __str__(self) -> str:
        sums = [self.total]
        if self.in_scope.size != self.total.size:
            sums.insert(0, self.in_scope)
        header = (
            "leaf",
            "shape",
            "dtype",
            "kept",
            "of",
            "sparsity %",
            "dense",
            "stored",
        )
        return text_table(
            header,
            [[_cells(row) for row in rows] for rows in (self.rows, sums)],
            left=3,
        )


def report(params: Params, mask: Mask | None = None, *, scope: Any = None) -> Report:
    """Counts what is kept, per leaf and in total.

    All scalars of all leaves count, running statistics too; what is trained alone
    counts as *parameters* in `compare`.

    Args:
      params: parameters, or a mask (a tree whose leaves are all bool). When `mask` is
        given too, only shapes and dtypes are read, so `jax.ShapeDtypeStruct`s will do.
        Random keys are listed and count as kept whole. Leaves that are no arrays
        (functions, names, Python numbers of an Equinox module) have no row.
      mask: the mask of `params`. A leaf out of scope is a 0-d True. Without it, the
        non-zero entries of `params` count as kept.
      scope: which leaves take part: a tree of Python bools, a regular expression
        searched in the path, or a function of the parameters such as `masks.prunable`.
        None: `mask` (or `params`, if it is a mask) says so; without one it is
        `masks.prunable`. `".*"` takes every floating leaf.

    Returns:
      A `Report`: `.rows`, `.in_scope`, `.total`; printing it gives a table. Of a bare
      mask the leaves out of scope have unknown size: they have no row.

    Raises:
      TypeError: if an array is not numeric, or abstract without a mask; names its path.
      ValueError: if there is no leaf or none takes part, or `mask` or `scope` does not
        fit `params`.

    Examples:
      >>> import numpy as np
      >>> ones = np.ones(4, np.float32)
      >>> params = {"kernel": np.diag(ones), "bias": ones}
      >>> result = report(params)
      >>> result.in_scope.kept, result.in_scope.sparsity
      (4, 0.75)
      >>> print(result)
      leaf      shape  dtype    kept  of  sparsity %  dense  stored
      -------------------------------------------------------------
      bias      4      float32     4   4           -   16 B    16 B
      kernel    4x4    float32     4  16       75.00   64 B    18 B
      -------------------------------------------------------------
      in scope                     4  16       75.00   64 B    18 B
      total                        8  20       60.00   80 B    34 B
    """
    require_tree("params", params)
    every = named_leaves(params)
    there = [hasattr(leaf, "dtype") for _, leaf in every]
    leaves = list(itertools.compress(every, there))
    _require_arrays(leaves, counted=mask is None)
    bare = mask is None and all(_is_bool(leaf) for _, leaf in leaves)
    marks = [leaf for _, leaf in leaves]
    if mask is not None:
        marks = _marks(mask, params, there)
    marked = scope is None and (bare or mask is not None)
    flags = [True] * len(every) if marked else _flags(scope, params)
    flags = list(itertools.compress(flags, there))
    counts = jax.device_get([_nonzero(mark) for mark in marks])
    rows = tuple(
        # A 0-d True on a larger leaf says "out of scope", a 0-d False "all is gone".
        _row(
            path,
            leaf,
            flag and (mark.ndim == leaf.ndim or not count),
            int(count),
            sized=not bare,
        )
        for (path, leaf), mark, flag, count in zip(
            leaves, marks, flags, counts, strict=True
        )
        if not (bare and leaf.ndim == 0)
    )
    pruned = [row for row in rows if row.in_scope]
    return Report(rows, _sum("in scope", pruned), _sum("total", rows))


def _require_arrays(leaves: list[tuple[str, Any]], counted: bool) -> None:
    if not leaves:
        raise value_error("`params` must have at least one array, got none.")
    bad = [
        f"{path}: {type(leaf).__name__}"
        for path, leaf in leaves
        if not _is_numeric(leaf) or (counted and isinstance(leaf, jax.ShapeDtypeStruct))
    ]
    if bad:
        raise type_error(
            "`params` must be a tree of numeric or bool arrays (abstract ones only "
            f"with `mask`).{listing(bad)}"
        )


def _is_numeric(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return (
        _is_bool(leaf)
        or _is_key(leaf)
        or (dtype is not None and jnp.issubdtype(dtype, jnp.number))
    )


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _is_bool(leaf: Any) -> bool:
    return getattr(leaf, "dtype", None) == np.dtype(bool)


def _marks(mask: Mask, params: Params, there: list[bool]) -> list[Any]:
    """The leaves of `mask` for the arrays of `params`, checked against them."""
    require_same_structure("mask", mask, params)
    mask = jax.tree.map(lambda m: np.bool_(m) if isinstance(m, bool) else m, mask)
    every = zip(named_leaves(mask), named_leaves(params), strict=True)
    pairs = list(itertools.compress(every, there))
    bad = [
        f"{path}: {getattr(mark, 'dtype', type(mark).__name__)}"
        f"{list(np.shape(mark))} for a leaf of shape {list(leaf.shape)}"
        for (path, mark), (_, leaf) in pairs
        if not _is_bool(mark) or mark.shape not in ((), leaf.shape)
    ]
    if bad:
        raise value_error(
            "`mask` must hold bool arrays of the parameters' shapes, or a 0-d True "
            f"where a leaf is out of scope.{listing(bad)}"
        )
    return [mark for (_, mark), _ in pairs]


def _flags(scope: Any, params: Params) -> list[bool]:
    """Whether each leaf takes part; the leaves of a bare mask stand for weights."""
    weights = jax.tree.map(
        lambda leaf: jnp.float32(0) if _is_bool(leaf) else leaf, params
    )
    return jax.tree.leaves(resolve_scope(scope, weights))


def _nonzero(leaf: Any) -> Any:
    """How many entries are not 0, on the device where the leaf is."""
    if isinstance(leaf, np.ndarray | np.generic):
        return np.count_nonzero(leaf)
    if _is_key(leaf):
        return leaf.size
    if leaf.size >= 2**31:
        raise value_error(
            f"A leaf has {leaf.size} scalars, and counts on the device are int32: pass "
            "it as a NumPy array."
        )
    return jnp.count_nonzero(not_zero(leaf))


def _row(path: str, leaf: Any, in_scope: bool, nonzero: int, sized: bool) -> LeafReport:
    size = math.prod(leaf.shape)
    kept = nonzero if in_scope else size
    # A key is its words: it is never split, so what it takes is what is stored.
    item = jax.random.key_data(leaf).nbytes // max(size, 1) if _is_key(leaf) else None
    item = leaf.dtype.itemsize if item is None else item
    dense = size * item
    stored = min(dense, kept * item + -(-size // 8))
    return LeafReport(
        path=path,
        shape=tuple(leaf.shape),
        dtype=str(leaf.dtype),
        in_scope=in_scope,
        size=size,
        kept=kept,
        bytes_dense=dense if sized else None,
        bytes_stored=stored if sized else None,
    )


def _sum(name: str, rows: Sequence[LeafReport]) -> LeafReport:
    sized = all(row.bytes_dense is not None for row in rows)
    return LeafReport(
        path=name,
        shape=None,
        dtype=None,
        in_scope=all(row.in_scope for row in rows),
        size=sum(row.size for row in rows),
        kept=sum(row.kept for row in rows),
        bytes_dense=sum(row.bytes_dense or 0 for row in rows) if sized else None,
        bytes_stored=sum(row.bytes_stored or 0 for row in rows) if sized else None,
    )


def _cells(row: LeafReport) -> tuple[str, ...]:
    whole = row.shape is not None and not row.in_scope
    return (
        row.path,
        "" if row.shape is None else "x".join(map(str, row.shape)) or "scalar",
        row.dtype or "",
        f"{row.kept:,}",
        f"{row.size:,}",
        "-" if whole else percent(row.size - row.kept, row.size),
        byte_size(row.bytes_dense),
        byte_size(row.bytes_stored),
    )
