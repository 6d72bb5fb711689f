r"""The k largest of a tree when every leaf is guaranteed some.

With a floor $m_l$ for each leaf, the best choice keeps the top $k_l$ of leaf l, where
$k_l \ge m_l$ and $\sum_l k_l = k$. As a threshold t falls, a leaf keeps
$\max(c_l(t), m_l)$ entries ($c_l$ counts what reaches t), so

$$ C(t) = \sum_l \max(c_l(t), m_l) $$

is monotone and one search finds where it is k. The total never changes: what a leaf
gets above its share, the others give up. Only leaves below their floor at that
threshold need one of their own; where there are none, that second search makes no
sweep.

Three stages share one loop, and so one sweep to compile: the search for the common
threshold, the counts just around it, and the leaves' own searches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jprune._typing import Mask, PyTree
from jprune.selection._bracket import (
    Bracket,
    Counts,
    Pivots,
    around,
    ask,
    learn,
    start,
    undecided,
)
from jprune.selection._image import ImageKind
from jprune.selection._leaves import Table, read
from jprune.selection._select import PIVOTS
from jprune.selection._sweep import available, sweep_images
from jprune.selection._threshold import Threshold, WarmStart, first_guess


class Shares(NamedTuple):
    """What each leaf keeps of a global count.

    Attributes:
      counts: kept of each leaf; they add up to k. [leaves] int32
      leaf: the threshold of each leaf, for `keep_mask` with these counts.
      common: the threshold of the leaves above their floor, for `warm_start`.
    """

    counts: jax.Array
    leaf: Threshold
    common: Threshold


def kth_with_floors(
    tree: PyTree,
    k: ArrayLike,
    floors: Any,
    *,
    init: WarmStart | None = None,
    image: ImageKind = "magnitude",
    within: Mask | None = None,
    times: PyTree | None = None,
) -> Shares:
    """Thresholds and counts of the k largest entries with a floor for each leaf.

    Args:
      tree: as for `kth_magnitude`; at least one leaf.
      k: how many to keep in all, an integer or a traced int32.
      floors: the fewest each leaf keeps, [leaves] ints. A leaf in which fewer take part
        keeps those. Where the floors add up to more than k they are dropped.
      init: as for `kth_magnitude`.
      image: as for `kth_magnitude`.
      within: as for `kth_magnitude`.
      times: as for `kth_magnitude`.

    Returns:
      The `Shares`. Ties at the common threshold go to the earlier leaves.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jprune import selection
      >>> tree = [jnp.array([5.0, 4.0, 3.0]), jnp.array([0.1, 0.2])]
      >>> shares = selection.kth_with_floors(tree, 3, [1, 1])
      >>> shares.counts.tolist()
      [2, 1]
      >>> selection.keep_mask(tree, shares.leaf, shares.counts)[1].tolist()
      [False, True]
    """
    table = read(tree, image, within, None, None, times)
    present = available(table, True)
    least = jnp.minimum(jnp.asarray(floors, jnp.int32), present)
    wanted = jnp.asarray(k, jnp.int32)
    least = jnp.where(jnp.sum(least) > wanted, 0, least)
    wanted = jnp.clip(wanted, 0, jnp.sum(present, dtype=jnp.int32))
    search = _Search(table, wanted, present, least, init)
    found = search.run()
    own = Threshold(found.own.lo, found.own.at_lo, found.own.passes)
    common = Threshold(found.common.lo, found.common.at_lo, found.common.passes)
    return Shares(found.counts, own, common)


class _Found(NamedTuple):
    """What is known after some sweeps; stage 0, 1, 2 as above, 3 when all is done."""

    stage: jax.Array
    common: Bracket
    counts: jax.Array
    own: Bracket


class _Search:
    """The three stages, each as its pivots and what is learned from their counts."""

    def __init__(
        self,
        table: Table,
        k: jax.Array,
        present: jax.Array,
        least: jax.Array,
        init: WarmStart | None,
    ) -> None:
        self.table, self.k, self.present, self.least = table, k, present, least
        self.sweep = sweep_images(table, True)
        self.kind = kind = table.image
        self.octave = 2.0**kind.mantissa
        self.guess, self.spread = first_guess(kind, init)

    def run(self) -> _Found:
        """All three stages."""
        kind = self.kind
        lowest, top = (jnp.asarray(x, kind.dtype) for x in (kind.lowest, kind.top))
        total = jnp.sum(self.present, dtype=jnp.int32)
        some = self.k > 0
        begun = start(
            jnp.where(some, lowest, top), top, jnp.where(some, total, 0), self.spread
        )
        self.first = around(self.guess, self.spread, begun, PIVOTS)
        leaves = jnp.zeros(self.least.shape, kind.dtype)
        idle = start(leaves, leaves + 1, self.least * 0, leaves)
        found = _Found(
            jnp.where(undecided(begun, self.k), 0, 1), begun, self.least * 0, idle
        )
        return lax.while_loop(lambda s: s.stage < 3, self._pass, found)

    def _pass(self, s: _Found) -> _Found:
        asked = (
            ask(s.common, self.k, self.first, self.octave),
            self._beside(s.common.lo),
            ask(s.own, s.counts, self._first_own(s), self.octave),
        )
        pivots = []
        for each in zip(*asked, strict=True):
            rows = [jnp.broadcast_to(p, self.least.shape) for p in each]
            pivots.append(lax.select_n(s.stage, *rows))
        seen = self.sweep(pivots)
        kept = [jnp.maximum(c, self.least) for c in seen.at]
        totals = Counts([jnp.sum(c, dtype=jnp.int32) for c in kept])
        common = learn(s.common, self.k, asked[0], totals, self.guess)
        counts, begun = self._shares(s.common.lo, *seen.at[:2])
        guess = jnp.broadcast_to(s.common.lo, self.least.shape)
        own = learn(s.own, s.counts, asked[2], seen, guess)
        following = (
            s._replace(common=common),
            s._replace(counts=counts, own=begun),
            s._replace(own=own),
        )
        ends = (~undecided(common, self.k), jnp.array(True), jnp.array(False))
        new = jax.tree.map(lambda *xs: lax.select_n(s.stage, *xs), *following)
        stage = s.stage + lax.select_n(s.stage, *ends)
        settled = (stage == 2) & ~jnp.any(undecided(new.own, new.counts))
        return new._replace(stage=jnp.where(settled, 3, stage))

    def _beside(self, bits: jax.Array) -> Pivots:
        """The threshold, and the next image."""
        # What reaches `top` ties with `top - 1`; after k = 0 nothing is above.
        following = jnp.where(bits >= self.kind.top - 1, bits, bits + 1)
        return [bits] + [following] * (PIVOTS - 1)

    def _first_own(self, s: _Found) -> Pivots:
        spread = jnp.full(self.least.shape, 1 << self.kind.mantissa, self.kind.dtype)
        guess = jnp.broadcast_to(s.common.lo, self.least.shape)
        return around(guess, spread, s.own, PIVOTS)

    def _shares(
        self, bits: jax.Array, at: jax.Array, above: jax.Array
    ) -> tuple[jax.Array, Bracket]:
        """What each leaf keeps, and a search for the leaves below their floor.

        The others are settled: their bracket is one wide.
        """
        kind, least = self.kind, self.least
        above = jnp.where(bits >= kind.top - 1, 0, above)
        kept, reach = jnp.maximum(above, least), jnp.maximum(at, least)
        ties = reach - kept
        room = self.k - jnp.sum(kept, dtype=jnp.int32)
        counts = kept + jnp.clip(room - (jnp.cumsum(ties) - ties), 0, ties)
        exact = counts == above  # nothing at the threshold itself is kept
        level = jnp.where(exact, self._beside(bits)[1], bits)
        short = at < counts
        return counts, start(
            jnp.where(short, jnp.asarray(kind.lowest, kind.dtype), level),
            jnp.where(short, bits, level + 1),
            jnp.where(short, self.present, jnp.where(exact, above, at)),
            jnp.full(least.shape, 1 << kind.mantissa, kind.dtype),
        )
