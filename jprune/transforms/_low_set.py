r"""The low set of iterative soft shrinkage: what ISS-P shrinks and ISS-R decays.

In each leaf of n weights the $k = \min(\lceil s n \rceil, \lfloor 0.995 n \rfloor)$
smallest magnitudes, exactly k of them: no leaf is ever emptied. A layer of a stack is a
leaf here.
"""

from collections.abc import Callable
from math import ceil, prod
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jprune import selection
from jprune._typing import Mask, Params
from jprune.masks._count import exact, is_traced
from jprune.masks._fit import require_fit
from jprune.masks._rank import RankingName
from jprune.masks._scope import in_scope, resolve_scope
from jprune.masks._target import keep_counts
from jprune.masks._unstructured import ranked
from jprune.selection._threshold import Ranking

Refreshed = tuple[Mask, selection.WarmStart, jax.Array]
"""The mask (False = in the low set), the next warm start, passes of the threshold."""


class LowSet(NamedTuple):
    """The keywords that say which weights are low, as given.

    Attributes:
      sparsity: s, a number or a tree of numbers; or None.
      select: a function of the parameters to a mask instead; or None.
      scope: which leaves, see `masks.unstructured`.
      ranking: "leaf" or "global".
      stacked: which leaves are stacks of layers, see `masks.unstructured`.
    """

    sparsity: Any
    select: Callable[[Params], Mask] | None
    scope: Any
    ranking: RankingName
    stacked: Any = None

    def cold(self, params: Params) -> selection.WarmStart:
        """The warm start before the first search, of the right shape and dtype."""
        if self.select is not None or not jax.tree.leaves(params):
            return selection.WarmStart.cold()
        _, ranking = self.counts(params)
        taken = in_scope(params, resolve_scope(self.scope, params))
        return selection.WarmStart.cold(taken, ranking=cast(Ranking, ranking))

    def refresh(self, params: Params, warm: selection.WarmStart) -> Refreshed:
        """The set now, a mask at full size for each leaf in scope."""
        if self.select is not None:
            kept = jax.tree.map(jnp.asarray, self.select(params))
            return kept, warm, jnp.int32(0)
        counts, ranking = self.counts(params)
        return ranked(
            params,
            counts,
            ranking=ranking,
            scope=self.scope,
            init=warm,
            stacked=self.stacked,
        )

    def everything(self, params: Params) -> Mask:
        """The mask before the first choice: all kept, 0-d where none is made."""
        if not jax.tree.leaves(params):
            return params
        shapes = jax.eval_shape(self.refresh, params, self.cold(params))[0]
        require_fit(shapes, params)
        return jax.tree.map(lambda s: jnp.ones(s.shape, bool), shapes)

    def counts(self, params: Params) -> tuple[Any, RankingName]:
        """How many are kept, in all or of each leaf, and the ranking that means."""
        # The counts of every other method; here they check what was given, and tell
        # whether a leaf has one count or one for each layer.
        found, ranking = keep_counts(
            params,
            self.sparsity,
            scope=self.scope,
            ranking=self.ranking,
            stacked=self.stacked,
        )
        scope = resolve_scope(self.scope, params)
        sizes = [prod(np.shape(x)) for x in in_scope(params, scope)]
        if ranking == "global":
            return _kept(sum(sizes), self.sparsity), ranking
        shares = [self.sparsity] * len(found)
        if not jax.tree_util.all_leaves([self.sparsity]):
            shares = in_scope(self.sparsity, scope)
        rows = zip(sizes, shares, map(np.shape, found), strict=True)
        return [_each(n, s, stack) for n, s, stack in rows], ranking


def _each(n: int, share: Any, stack: tuple[int, ...]) -> Any:
    """What a leaf keeps; an array of what its layers keep, where it is a stack."""
    if not stack:
        return _kept(n, share)
    layer = n // prod(stack) if prod(stack) else 0
    if is_traced(share):
        return jnp.broadcast_to(_kept(layer, share), stack)
    shares = np.ravel(np.broadcast_to(share, stack))
    return np.reshape([_kept(layer, s) for s in shares], stack)


def _kept(n: int, sparsity: Any) -> Any:
    """`n` less the paper's k; an int, or an int32 where the sparsity is traced."""
    most = 995 * n // 1000
    if not is_traced(sparsity):
        return n - min(ceil(exact(sparsity) * n), most)
    # A product that should be whole may come out a little above it.
    low = jnp.ceil(jnp.asarray(sparsity, jnp.float32) * n - n * 2.0**-22)
    return n - jnp.clip(low, 0, most).astype(jnp.int32)
