"""The finest pattern: single scalars."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._axes import Axes, axes_list, contraction_axes
from jprune._errors import value_error
from jprune._stacks import stacked_axes
from jprune._typing import Mask, PyTree, Scores
from jprune.masks._rank import RankingName, rank
from jprune.masks._scope import (
    from_scope,
    in_scope,
    in_scope_list,
    inside,
    resolve_scope,
    scoped_names,
)
from jprune.masks._target import unit_counts


def unstructured(
    scores: Scores,
    sparsity: Any = None,
    *,
    keep: Any = None,
    ranking: RankingName = "global",
    within: Mask | None = None,
    scope: Any = None,
    min_keep: int = 1,
    signed: bool = False,
    axis: int | PyTree | None = None,
    stacked: Any = None,
) -> Mask:
    r"""Keeps the scalars with the largest scores, exactly as many as asked.

    Args:
      scores: non-negative scores (or signed ones with `signed=True`). Weights may be
        passed as they are: without `signed` a negative number ranks by its magnitude.
      sparsity: fraction of zeros over the scope, in [0, 1): a float, a traced scalar,
        or a tree of floats from `masks.uniform`, `masks.erdos_renyi` or `masks.erk`
        (each leaf is then ranked by itself).
      keep: number kept instead, an int or a traced int32.
      ranking: "global", one ranking over all leaves; "leaf", the same sparsity in each
        leaf, and in each layer of a stack; or "output", the same sparsity in each
        output of each leaf (Wanda's comparison group).
      within: a mask; only what it keeps can be kept (monotone pruning).
      scope: which leaves take part: None for `masks.prunable`; a regular expression
        for paths, of modules (their weights, not their biases) or of leaves (`bias$`);
        a function of the tree; or a tree of bools. See `masks.prunable`.
      min_keep: the fewest scalars any leaf in scope keeps, and any layer of a stack. It
        moves budget between leaves, never the total. A traced target too small for it
        is met without it. 0 for the mask that other code makes, which may empty leaves.
      signed: rank by value instead of magnitude (movement, GraSP).
      axis: for `ranking="output"` only: the contracted axes, all others number outputs;
        see `masks.n_of_m`, and an entry may be a tuple of axes.
      stacked: which leaves are stacks of layers: None for what `layers`, `blocks` or a
        lifted transform names, a regular expression for leaf paths (their first axis),
        or a mapping from expressions to axes; `{}` for none.

    Returns:
      A mask with the structure of `scores`; True = keep. Leaves out of scope hold a 0-d
      True. Ties are broken by position, so the count is exact even for constant scores.
      Scores that are not finite never rank: they are the first to go.

    Raises:
      ValueError: sparsity outside [0, 1), both or neither of `sparsity` and `keep`, a
        budget smaller than the floors, a mask or scope of another structure.
      TypeError: an integer or complex leaf in scope.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import masks
      >>> masks.unstructured({"w": jnp.array([[3.0, -1.0], [0.5, 2.0]])}, 0.5)["w"]
      Array([[ True, False],
             [False,  True]], dtype=bool)
    """
    scope = resolve_scope(scope, scores)
    leaves = in_scope(scores, scope)
    if not leaves:
        return from_scope(scope, [])
    stacks = in_scope_list(stacked_axes(scores, stacked), scope)
    if ranking == "output":
        names = scoped_names(scores, scope)
        given = in_scope_list(axes_list(axis, scores), scope)
        rows = zip(names, leaves, given, stacks, strict=True)
        stacks = [_outputs(*row) for row in rows]
    elif axis is not None:
        raise value_error("`axis` is for `ranking='output'`; give both or none.")
    shapes = [np.shape(x) for x in leaves]
    how: Any = {"ranking": ranking, "stacks": stacks}
    counts, how["ranking"] = unit_counts(shapes, sparsity, keep, scope=scope, **how)
    masked = inside(within, scores, scope)
    kept, _ = rank(
        leaves, counts, within=masked, min_keep=min_keep, signed=signed, **how
    )
    return from_scope(scope, kept)


def _outputs(name: str, leaf: jax.Array, given: Axes | None, stack: Axes) -> Axes:
    """Stack and output axes: each of their indices is one output of one layer."""
    into = contraction_axes(name, leaf, given, stack)
    return tuple(i for i in range(leaf.ndim) if i not in into)


def ranked(
    scores: Scores,
    counts: Any,
    *,
    ranking: RankingName = "global",
    scope: Any = None,
    min_keep: int = 1,
    within: Mask | None = None,
    init: selection.WarmStart,
    times: PyTree | None = None,
    stacked: Any = None,
) -> tuple[Mask, selection.WarmStart, jax.Array]:
    """`unstructured`, for a caller that ranks at every step and carries a warm start.

    Args:
      scores: as for `unstructured`.
      counts: what `keep_counts` gave: a number, or one for each leaf in scope.
      ranking: what `keep_counts` gave.
      scope: as for `unstructured`.
      min_keep: as for `unstructured`.
      within: as for `unstructured`.
      init: the warm start of the step before; at first `selection.WarmStart.cold` of
        the leaves in scope, for the same `ranking`.
      times: pytree like `scores` that they are multiplied by on the way, so that a
        score such as |w g| is never stored; see `selection.kth_magnitude`.
      stacked: as for `unstructured`. A leaf with one count is ranked as one.

    Returns:
      The mask, the warm start of the next step, and the passes over the weights that
      the threshold took (0-d int32).
    """
    scope = resolve_scope(scope, scores)
    leaves = in_scope(scores, scope)
    if not leaves:
        return from_scope(scope, []), init, jnp.int32(0)
    kept, found = rank(
        leaves,
        counts,
        ranking=ranking,
        within=inside(within, scores, scope),
        min_keep=min_keep,
        init=init,
        times=None if times is None else in_scope(times, scope),
        stacks=in_scope_list(stacked_axes(scores, stacked), scope),
    )
    passes = jnp.max(found.passes).astype(jnp.int32)
    return from_scope(scope, kept), init.after(found), passes
