"""What a transformation ranks, as data: scope, count, floor.

The transformations that rank weights share the keywords `sparsity`, `keep`, `scope`,
`ranking` and `min_keep`; this is their one meaning.
"""

from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from jprune import selection
from jprune._typing import Mask, Params, PyTree, Scope
from jprune.masks._rank import RankingName
from jprune.masks._scope import in_scope, resolve_scope
from jprune.masks._target import keep_counts
from jprune.masks._unstructured import ranked
from jprune.selection._count_true import counts_true
from jprune.transforms._build import total


class Ranking(NamedTuple):
    """The ranking keywords of a transformation, as given.

    Attributes:
      sparsity: fraction of zeros over the scope, or a tree of them.
      keep: number kept over the scope, instead.
      scope: which leaves are ranked, see `masks.unstructured`.
      ranking: "global" or "leaf".
      min_keep: the fewest any leaf keeps.
      stacked: which leaves are stacks of layers, see `masks.unstructured`.
    """

    sparsity: Any
    keep: Any
    scope: Any
    ranking: RankingName = "global"
    min_keep: int = 1
    stacked: Any = None

    def leaves(self, params: Params) -> Scope:
        """The scope, as the `mask` argument of Optax's own transformations."""
        return resolve_scope(self.scope, params)

    def cold(self, params: Params) -> selection.WarmStart:
        """The warm start before the first search, of the right shape and dtype."""
        if not jax.tree.leaves(params):
            return selection.WarmStart.cold()
        _, ranking = self.counts(params)
        taken = in_scope(params, self.leaves(params))
        return selection.WarmStart.cold(
            taken, ranking=cast(Literal["global", "leaf"], ranking)
        )

    def counts(self, params: Params) -> tuple[Any, RankingName]:
        """How many are kept, in all or of each leaf, and the ranking that means."""
        return keep_counts(
            params,
            self.sparsity,
            self.keep,
            scope=self.scope,
            ranking=self.ranking,
            stacked=self.stacked,
        )

    def mask(self, params: Params) -> Mask:
        """The mask of the largest magnitudes, from a cold start."""
        return self.select(params, self.cold(params))[0]

    def select(
        self, params: PyTree, init: selection.WarmStart
    ) -> tuple[Mask, selection.WarmStart, jax.Array]:
        """The mask, the next warm start, and the passes the threshold took."""
        counts, ranking = self.counts(params)
        return ranked(
            params,
            counts,
            ranking=ranking,
            scope=self.scope,
            min_keep=self.min_keep,
            init=init,
            stacked=self.stacked,
        )

    def dropped(self, params: Params, laid: Params) -> jax.Array:
        """How many weights that are not zero the target leaves no room for, 0-d int32.

        That many `mask` drops, but for zeros that a floor makes it keep. They are
        counted in `laid`, the same weights in any shape.
        """
        counts, _ = self.counts(params)
        scoped = in_scope(laid, self.leaves(params))
        there: Any = counts_true([p != 0 for p in scoped]) if scoped else []
        if not isinstance(counts, list):
            there, counts = [total(there)], [counts]
        over = [
            jnp.maximum(n - jnp.sum(jnp.asarray(k, jnp.int32), dtype=jnp.int32), 0)
            for n, k in zip(there, counts, strict=True)
        ]
        return total(over)
