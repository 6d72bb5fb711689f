r"""Kernels cut to low rank, as a pure function of the parameters.

With the SVD $M = U \mathrm{diag}(s) V^T$ of a kernel read as a matrix, truncation keeps
the k largest singular values: $T = U_k \mathrm{diag}(s_k) V_k^T$, the nearest matrix of
rank k. How k is chosen is the rule:

* energy: $k = \min\{i : \sum_{j \le i} s_j^2 / \sum_j s_j^2 \ge e\}$;
* value: the number of $s_j \ge \tau$;
* rate: $\lfloor r q \rfloor$ of the q singular values;
* ranks that are given, such as those a run has reached.

Never less than 1. Beside T goes the direction $U_k V_k^T$, the sub-gradient of the
nuclear norm $\sum_j s_j$ at T: a step of size c along it takes c off every singular
value that is kept.

**The rule of energy is no projection.** The share is of what is left, so truncating
again may cut further: $s^2 = (89, 6, 5)$ at e = 0.9 gives k = 2, and then k = 1. Cut
again with `ranks`, or leave many steps between two cuts and take e near 1.

Xu et al., "TRP: Trained Rank Pruning for Efficient Deep Neural Networks", IJCAI 2020
(arXiv 2004.14566, 1812.02402).
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from math import floor
from typing import Any, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np

from jprune._dtypes import owned
from jprune._errors import listing, require_static, value_error
from jprune._finite import require_finite
from jprune._tree import named_leaves, require_same_structure
from jprune._typing import Params, PyTree, Scalar
from jprune._unfolding import (
    Spectrum,
    Unfold,
    Unfolding,
    first_values,
    folded,
    places,
    spectrum,
    unfolding_of,
)
from jprune.masks._count import exact, is_traced
from jprune.masks._scope import in_scope, resolve_scope, scoped_names

Keep = Callable[[jax.Array], jax.Array]
"""From singular values [*each, q] to which of them stay."""


class Truncated(NamedTuple):
    """What `truncate` returns, each with the structure of the parameters.

    Attributes:
      params: the kernels at low rank; other leaves as they were.
      ranks: int32, 0-d (one for each matrix of a "decoupled" kernel); 0 out of scope.
      directions: $U_k V_k^T$ of each kernel; a 0-d zero out of scope.
    """

    params: Params
    ranks: PyTree
    directions: PyTree


class Rule(NamedTuple):
    """How many singular values are kept; one of the first four is given."""

    energy: Any = None
    value: Any = None
    rate: Any = None
    ranks: Any = None
    min_rank: int = 1

    def check(self) -> None:
        """Raises unless one rule is given and its number is in range."""
        given = [n for n in self._fields[:4] if getattr(self, n) is not None]
        if len(given) != 1:
            raise value_error(
                "Give exactly one of `energy`, `value`, `rate` and `ranks`, got "
                f"{', '.join(given) or 'none'}."
            )
        require_static(min_rank=self.min_rank)
        if self.min_rank < 1:
            raise value_error(f"`min_rank` must be at least 1, got {self.min_rank}.")
        for name in ("energy", "rate"):
            share = getattr(self, name)
            if share is None or is_traced(share):
                continue
            one = np.ndim(share) == 0 and isinstance(share, SupportsFloat)
            if not one or not 0 < float(share) <= 1:
                raise value_error(
                    f"`{name}` must be one number in (0, 1], got {share}."
                )

    def of_leaf(
        self, rank: Any, shape: tuple[int, ...], unfolding: Unfolding
    ) -> "Rule":
        """The rule for one kernel, a rate as the rank it means there."""
        if self.rate is not None:
            rank = _share(min(unfolding.sizes(shape)[1:]), self.rate)
        return Rule(self.energy, self.value, None, rank, 0)

    def keep(self, s: jax.Array) -> jax.Array:
        """Which of the singular values stay, [*each, q] bool: the first ones."""
        if self.energy is not None:
            kept = _below_energy(s, self.energy)
        elif self.value is not None:
            kept = s >= jnp.asarray(self.value, s.dtype)
        else:
            kept = first_values(s, self.ranks)
        return kept | (places(s) < self.min_rank)


def _below_energy(s: jax.Array, energy: Any) -> jax.Array:
    """A value stays iff the energy before it is still below the share."""
    e = jnp.asarray(energy, s.dtype)
    square = s * s
    total = square.sum(-1, keepdims=True)
    before = jnp.cumsum(square, -1) / jnp.where(total > 0, total, 1)
    before = jnp.concatenate([jnp.zeros_like(s[..., :1]), before[..., :-1]], -1)
    # Rounding may reach 1 before the last value; a kernel of zeros has no share at all.
    return ((before < e) & (total > 0)) | (e >= 1)


def _share(count: int, rate: Any) -> Any:
    if is_traced(rate):
        return jnp.maximum(jnp.floor(rate * count), 1).astype(jnp.int32)
    return max(floor(exact(rate) * Fraction(count)), 1)  # 0.57 of 100 is 57


def truncate(
    params: Params,
    *,
    energy: Scalar | None = None,
    value: Scalar | None = None,
    rate: Scalar | None = None,
    ranks: PyTree = None,
    kind: Unfold = "channel",
    scope: Any = None,
    min_rank: int = 1,
) -> Truncated:
    r"""Every kernel in scope replaced by its nearest one of low rank.

    Args:
      params: the parameters.
      energy: e, the share of the squared singular values to reach, in (0, 1].
      value: $\tau$, the least singular value that is kept; 0.05 in the authors' code.
      rate: r, the share of the singular values that is kept, in (0, 1].
      ranks: a tree of integers, as in `Truncated.ranks` or the state of
        `truncate_rank`; 0 leaves a leaf whole.
      kind: how kernels are read as matrices: "channel", "spatial", "decoupled", an
        `Unfolding`, or a function (path, leaf) of either; see `Unfolding`.
      scope: which leaves; see `masks.unstructured`. With concrete `ranks` the default
        is every leaf whose rank is not 0.
      min_rank: the fewest singular values kept, a floor for every kernel.

    Returns:
      A `Truncated`. A kernel that loses nothing is returned bit for bit.

    Raises:
      ValueError: not exactly one rule, a number out of range, a leaf without an
        unfolding, ranks of another structure, not integers, negative or all 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import compress
      >>> params = {"kernel": jnp.array([[4.0, 0.0], [3.0, -5.0]])}
      >>> cut = compress.truncate(params, energy=0.75)
      >>> cut.params["kernel"].round(4), cut.ranks["kernel"]
      (Array([[ 2., -2.],
             [ 4., -4.]], dtype=float32), Array(1, dtype=int32))

    References:
      Xu et al., arXiv 2004.14566; rules of the authors' code. Its value rule may keep
      nothing, ours keeps one.
    """
    rule = Rule(energy, value, rate, ranks, min_rank)
    rule.check()
    if ranks is not None:
        scope = _scope_of_ranks(ranks, params, scope)
    leaves = Leaves(params, scope, kind)
    ws, unfoldings = leaves.taken(params), tuple(leaves.unfoldings)
    require_finite(
        "`params`",
        zip(leaves.names(params), ws, strict=True),
        "a kernel with NaN or infinities has no singular values.",
    )
    asked = leaves.taken(ranks) if ranks is not None else [None] * len(ws)
    rules = [
        rule.of_leaf(k, jnp.shape(w), u)
        for w, u, k in zip(ws, unfoldings, asked, strict=True)
    ]
    cuts = _all_cut(ws, rules, unfoldings=unfoldings, min_rank=min_rank)
    found = leaves.truncated(params, cuts)
    return found._replace(params=owned(found.params, params))


def _scope_of_ranks(ranks: PyTree, params: Params, scope: Any) -> Any:
    require_same_structure("ranks", ranks, params)
    bad = [f"{path}: {k}" for path, k in named_leaves(ranks) if not _is_integer(k)]
    if bad:
        raise value_error(f"`ranks` must be integers:{listing(bad)}")
    found = [(path, k) for path, k in named_leaves(ranks) if not is_traced(k)]
    bad = [f"{path}: {k}" for path, k in found if np.min(k, initial=0) < 0]
    if bad:
        raise value_error(f"`ranks` must not be negative:{listing(bad)}")
    if scope is not None or len(found) < len(jax.tree.leaves(ranks)):
        return scope
    given = jax.tree.map(lambda k: bool(np.max(k, initial=0) > 0), ranks)
    if found and not any(jax.tree.leaves(given)):
        raise value_error(
            "`ranks` are 0 for every leaf: nothing has been truncated yet. Give an "
            "`energy`, or wait for the first truncation of the run."
        )
    return given


def _is_integer(rank: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(rank), jnp.integer)


class Cut(NamedTuple):
    """One kernel cut: itself, its direction, its rank, whether anything was lost."""

    kernel: jax.Array
    direction: jax.Array
    rank: jax.Array
    lossy: jax.Array


def cut(w: jax.Array, unfolding: Unfolding, rule: Keep) -> Cut:
    """Cuts one kernel to the singular values that a rule keeps."""
    parts = spectrum(w, unfolding)
    keep = rule(parts.s)
    lossy = ~keep.all()
    kernel = folded(_product(parts, parts.s * keep), unfolding, w)
    direction = folded(_product(parts, keep.astype(parts.s.dtype)), unfolding, w)
    kept = keep.sum(-1, dtype=jnp.int32)
    return Cut(jnp.where(lossy, kernel, w), direction, kept, lossy)


@partial(jax.jit, static_argnames=("unfoldings", "min_rank"))
def _all_cut(
    ws: list[jax.Array],
    rules: list[Rule],
    unfoldings: tuple[Unfolding, ...],
    min_rank: int,
) -> list[Cut]:
    """One program for all kernels: compiled once for their shapes."""
    return [
        cut(w, u, rule._replace(min_rank=min_rank).keep)
        for w, rule, u in zip(ws, rules, unfoldings, strict=True)
    ]


def _product(parts: Spectrum, middle: jax.Array) -> jax.Array:
    """`u @ diag(middle) @ vt`, at full precision wherever it runs."""
    scaled = parts.u * middle[..., None, :]
    return jnp.matmul(scaled, parts.vt, precision=jax.lax.Precision.HIGHEST)


class Leaves:
    """The leaves in scope with their unfoldings; what is static about a tree."""

    def __init__(self, params: Params, scope: Any, kind: Unfold) -> None:
        self.scope = jax.tree.map(
            lambda taken, w: taken and np.size(w) > 0,  # no values, nothing to cut
            resolve_scope(scope, params),
            params,
        )
        self.unfoldings = []
        if jax.tree.leaves(params):
            inside = zip(
                scoped_names(params, self.scope),
                in_scope(params, self.scope),
                strict=True,
            )
            self.unfoldings = [unfolding_of(path, w, kind) for path, w in inside]

    def names(self, params: Params) -> list[str]:
        """Their paths."""
        return scoped_names(params, self.scope) if self.unfoldings else []

    def taken(self, tree: PyTree) -> list[Any]:
        """The leaves of a tree that take part, in order."""
        return in_scope(tree, self.scope) if self.unfoldings else []

    def filled(self, tree: PyTree, values: list[Any], other: Any = None) -> PyTree:
        """A tree with `values` in scope and the tree's own leaves, or `other`, else."""
        rest = iter(values)
        return jax.tree.map(
            lambda x, taken: next(rest) if taken else (x if other is None else other),
            tree,
            self.scope,
        )

    def truncated(self, params: Params, cuts: list[Cut]) -> Truncated:
        """The trees of the cuts."""
        return Truncated(
            self.filled(params, [c.kernel for c in cuts]),
            self.filled(params, [c.rank for c in cuts], jnp.int32(0)),
            self.filled(params, [c.direction for c in cuts], jnp.float32(0)),
        )
