r"""The k largest of a tree as masks, in one loop over one sweep.

What a ranking needs, in the order of its stages:

0. how many entries take part, where a mask says which;
1. the common threshold of a global ranking. With a floor $m_l$ for each leaf, the best
   choice keeps the top $k_l$ of leaf l, where $k_l \ge m_l$ and $\sum_l k_l = k$. As a
   threshold t falls, a leaf keeps $\max(c_l(t), m_l)$ entries ($c_l$ counts what
   reaches t), so $C(t) = \sum_l \max(c_l(t), m_l)$ is monotone and one search finds
   where it is k: what a leaf gets above its share, the others give up;
2. the counts just around it, which say what each leaf keeps: the rest of the ties goes
   to the earlier leaves;
3. a threshold for each leaf: of a ranking per leaf, or of a leaf below its floor at the
   common threshold;
4. where a leaf has more ties at its threshold than it keeps, the place of the last one
   kept.

Every stage only counts, in each leaf, the integers that reach a few pivots: images, or
in stage 4 places. So all share one loop, whose body holds one reduction for each leaf:
what a user waits for at the first call is that body being compiled. A stage with
nothing to find makes no sweep, or one.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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
from jprune.selection._leaves import Instead, Table, read
from jprune.selection._pack import flat
from jprune.selection._select import PIVOTS
from jprune.selection._sweep import Cut, keep_cut, sweep_cut
from jprune.selection._threshold import Threshold, WarmStart, first_guess

_COUNT, _COMMON, _BESIDE, _OWN, _TIES, _DONE = range(6)


class Largest(NamedTuple):
    """The result of a ranking.

    Attributes:
      masks: True = keep; one for each leaf.
      counts: how many each leaf keeps. [leaves] int32
      leaf: the threshold of each leaf, for `keep_mask` with these counts.
      found: what `WarmStart.after` takes: the threshold common to the leaves above
        their floor; in a ranking per leaf, `leaf`.
    """

    masks: list[jax.Array]
    counts: jax.Array
    leaf: Threshold
    found: Threshold


def largest(
    tree: PyTree,
    k: jax.Array,
    *,
    floors: Sequence[int] | None = None,
    init: WarmStart | None = None,
    image: ImageKind = "magnitude",
    within: Mask | None = None,
    times: PyTree | None = None,
    instead: Instead | None = None,
    masked: bool = True,
) -> Largest:
    """The masks of the k largest entries, exactly k.

    Args:
      tree: as for `kth_magnitude`; at least one leaf.
      k: how many to keep, int32: one number of all, or one for each leaf, ranked by
        itself. More than take part means all of them.
      floors: in a global ranking, the fewest each leaf keeps. A leaf in which fewer
        take part keeps those. Where the floors add up to more than k they are dropped.
      init: as for `kth_magnitude`.
      image: as for `kth_magnitude`.
      within: as for `kth_magnitude`.
      times: as for `kth_magnitude`.
      instead: a tree like `tree` and a 0-d bool. Where that is true, the tree is ranked
        in place of `tree`, among the entries that `within` leaves out: one program for
        two rankings, each of which reads one of the two.
      masked: whether masks are made; without them no tie is broken.

    Returns:
      The `Largest`. Ties go to the earlier leaves, then row-major.
    """
    per_leaf = jnp.ndim(k) == 1
    table = read(tree, image, within, None, None, times, instead, per_leaf)
    least = jnp.zeros((len(table.leaves),), jnp.int32)
    if floors is not None:
        least = jnp.asarray(floors, jnp.int32)
    swept = flat(table)
    search = _Search(swept, jnp.asarray(k, jnp.int32), least, init, per_leaf, masked)
    s, masks = search.run(), []
    if masked:
        masks = keep_cut(table, s.cut, s.bracket.lo, swept is not table)
    return Largest(masks, s.counts, s.own, s.own if per_leaf else s.common)


class _State(NamedTuple):
    """What is known after some sweeps.

    Attributes:
      stage: which of the stages comes next. 0-d int32
      bracket: of the search under way; in stage 1 all leaves have the same.
      least: floors that can be met.
      counts: what each leaf keeps, once known; in stage 1 what all keep together.
      own: the threshold of each leaf.
      common: the common threshold.
      pivots: of the next sweep. Carried from the end of one pass to the start of the
        next, so that the code that finds them is not compiled into every kernel that
        uses them.
      cut: of the next sweep, where places are counted.
    """

    stage: jax.Array
    bracket: Bracket
    least: jax.Array
    counts: jax.Array
    present: jax.Array
    own: Threshold
    common: Threshold
    pivots: Pivots
    cut: Cut


class _Search:
    """The stages: what each asks of a sweep, and what it learns from the counts."""

    def __init__(
        self,
        table: Table,
        k: jax.Array,
        least: jax.Array,
        init: WarmStart | None,
        per_leaf: bool,
        ties: bool,
    ) -> None:
        self.table, self.k, self.least = table, k, least
        self.per_leaf, self.ties = per_leaf, ties
        self.kind = kind = table.image
        self.sizes = np.asarray(table.sizes, kind.dtype)
        guess, spread = first_guess(kind, init)
        self.guess = jnp.broadcast_to(guess, least.shape)
        self.spread = jnp.broadcast_to(spread, least.shape)
        self.counts = any(leaf.within is not None for leaf in table.leaves)
        self.sweep = sweep_cut(table, ties)

    def run(self) -> _State:
        """All stages."""
        begun = self._begin(jnp.asarray(self.sizes, jnp.int32))
        if self.counts:
            begun = begun._replace(stage=jnp.int32(_COUNT))
        # Where a condition reads one value, XLA looks for a trip count, again and again
        # and each time in a copy of the body: a fifth of the compile time. So it reads
        # two, of which the second is always true.
        ends = lax.while_loop(
            lambda s: (s.stage < _DONE) & (s.bracket[-1][0] >= 0),
            lambda s: _joined(self._pass(_parted(s))),
            _joined(self._ask(begun)),
        )
        return _parted(ends)

    def _begin(self, present: jax.Array) -> _State:
        """The first search, when it is known how many entries take part."""
        kind, least = self.kind, jnp.minimum(self.least, present)
        total = jnp.sum(present, dtype=jnp.int32)
        if self.per_leaf:
            wanted = jnp.clip(self.k, 0, present)
        else:
            least = jnp.where(jnp.sum(least) > self.k, 0, least)
            wanted = jnp.broadcast_to(jnp.clip(self.k, 0, total), present.shape)
        lowest, top = (jnp.asarray(x, kind.dtype) for x in (kind.lowest, kind.top))
        some, all_of = wanted > 0, present if self.per_leaf else total
        bracket = start(
            jnp.where(some, lowest, top),
            jnp.broadcast_to(top, present.shape),
            jnp.where(some, all_of, 0),
            self.spread,
        )
        own = Threshold(bracket.lo, bracket.at_lo, bracket.passes)
        common = jax.tree.map(lambda x: x[0], own)
        stage = jnp.int32(_OWN if self.per_leaf else _COMMON)
        cut = Cut(bracket.lo, bracket.lo)
        pivots = [bracket.lo] * PIVOTS
        return _State(stage, bracket, least, wanted, present, own, common, pivots, cut)

    def _pass(self, s: _State) -> _State:
        """One sweep, and what follows from it."""
        seen = self.sweep(s.pivots, s.stage == _TIES, s.cut)
        return self._ask(self._settled(self._learned(s, seen), s))

    def _ask(self, s: _State) -> _State:
        """With what the next sweep needs."""
        first = around(*self._where_to_look(s), s.bracket, PIVOTS)
        octave: Any = 2.0**self.kind.mantissa
        if self.ties:
            n = self.sizes
            places = [j * (n // PIVOTS) for j in range(1, PIVOTS)] + [n]
            first = _chosen(s.stage == _TIES, places, first)
            octave = jnp.where(s.stage == _TIES, jnp.inf, octave)
        pivots = ask(s.bracket, s.counts, first, octave)
        if not self.per_leaf:
            aside = self._beside(s.common.bits)
            pivots = _chosen(s.stage == _BESIDE, aside, pivots)
        if self.counts:
            lowest = jnp.full(self.sizes.shape, self.kind.lowest, self.kind.dtype)
            pivots = _chosen(s.stage == _COUNT, [lowest] * PIVOTS, pivots)
        return s._replace(pivots=pivots, cut=self._cut(s))

    def _where_to_look(self, s: _State) -> tuple[jax.Array, jax.Array]:
        """The guess of a search's first pass, and how far around it to look."""
        if self.per_leaf:
            return self.guess, self.spread
        own = s.stage >= _OWN
        octave = jnp.asarray(1 << self.kind.mantissa, self.kind.dtype)
        return (
            jnp.where(own, s.common.bits, self.guess),
            jnp.where(own, octave, self.spread),
        )

    def _learned(self, s: _State, seen: Counts) -> _State:
        """The state after a pass of a search; after stages 0 and 2, the next begun."""
        at, guess = seen.at, self._where_to_look(s)[0]
        if not self.per_leaf:
            sums = [
                jnp.sum(jnp.maximum(c, s.least), dtype=jnp.int32) + jnp.zeros_like(c)
                for c in at
            ]
            at = _chosen(s.stage == _COMMON, sums, at)
        bracket = learn(s.bracket, s.counts, s.pivots, Counts(at), guess)
        new = s._replace(bracket=bracket)
        if not self.per_leaf:
            new = _chosen(s.stage == _BESIDE, self._shares(s, *seen.at[:2]), new)
        if self.counts:
            new = _chosen(s.stage == _COUNT, self._begin(seen.at[0]), new)
        return new

    def _settled(self, new: _State, old: _State) -> _State:
        """On to the next stage, once nothing is left to find in this one."""
        lo, at_lo, passes = new.bracket.lo, new.bracket.at_lo, new.bracket.passes
        found = Threshold(lo, at_lo, passes)
        decided = ~jnp.any(undecided(new.bracket, new.counts))
        searched = old.stage == new.stage
        if not self.per_leaf:
            ends = decided & searched & (new.stage == _COMMON)
            new = new._replace(
                stage=jnp.where(ends, _BESIDE, new.stage),
                common=_chosen(ends, jax.tree.map(lambda x: x[0], found), new.common),
            )
        ends = decided & (new.stage == _OWN)
        new = new._replace(own=_chosen(ends, found, new.own))
        if not self.ties:
            return new._replace(stage=jnp.where(ends, _DONE, new.stage))
        n = jnp.asarray(self.sizes)
        broken = (at_lo > new.counts) & (new.counts > 0)
        zero = jnp.zeros_like(lo)
        search = start(zero, jnp.where(broken, n + 1, 1), at_lo, zero)
        bracket = _chosen(ends, search, new.bracket)
        over = jnp.where(ends, ~jnp.any(broken), decided & (new.stage == _TIES))
        stage = jnp.where(ends, _TIES, new.stage)
        return new._replace(bracket=bracket, stage=jnp.where(over, _DONE, stage))

    def _cut(self, s: _State) -> Cut:
        """What is kept of each leaf for its image alone, and what may be."""
        # What reaches `top` ties with `top - 1`: no search looks at `top` itself.
        bits, top = s.own.bits, self.kind.top
        never = jnp.asarray(jnp.iinfo(self.kind.dtype).max, self.kind.dtype)
        above = jnp.where(bits == top - 1, top, bits)
        some = s.counts > 0
        return Cut(jnp.where(some, above, never), jnp.where(some, bits, never))

    def _beside(self, bits: jax.Array) -> Pivots:
        """The common threshold, and the next image."""
        bits = jnp.broadcast_to(bits, self.least.shape)
        # What reaches `top` ties with `top - 1`; after k = 0 nothing is above.
        following = jnp.where(bits >= self.kind.top - 1, bits, bits + 1)
        return [bits] + [following] * (PIVOTS - 1)

    def _shares(self, s: _State, at: jax.Array, above: jax.Array) -> _State:
        """What each leaf keeps, and a search for the leaves below their floor.

        The others are settled: their bracket is one wide.
        """
        kind, least, k = self.kind, s.least, s.counts[0]
        bits, following = self._beside(s.common.bits)[:2]
        above = jnp.where(bits >= kind.top - 1, 0, above)
        kept, reach = jnp.maximum(above, least), jnp.maximum(at, least)
        ties = reach - kept
        room = k - jnp.sum(kept, dtype=jnp.int32)
        # Not `cumsum`, which XLA splits into seven kernels.
        pairs = jnp.broadcast_to(ties, 2 * ties.shape)
        earlier = jnp.sum(jnp.tril(pairs, -1), axis=1, dtype=jnp.int32)
        counts = kept + jnp.clip(room - earlier, 0, ties)
        exact = counts == above  # nothing at the threshold itself is kept
        level = jnp.where(exact, following, bits)
        short = at < counts
        bracket = start(
            jnp.where(short, jnp.asarray(kind.lowest, kind.dtype), level),
            jnp.where(short, bits, level + 1),
            jnp.where(short, s.present, jnp.where(exact, above, at)),
            jnp.full(least.shape, 1 << kind.mantissa, kind.dtype),
        )
        return s._replace(stage=jnp.int32(_OWN), bracket=bracket, counts=counts)


def _joined(s: _State) -> Any:
    """The state as a pass hands it on, with like arrays as rows of one.

    All are found from the same integers by the same long formulas, and XLA compiles
    those once for each array.
    """
    b, dtype = s.bracket, s.bracket.lo.dtype
    ends = jnp.stack([b.lo, b.hi, b.at_lo.astype(dtype), b.at_hi.astype(dtype)])
    flags = jnp.stack([b.lo_moved, b.hi_moved, b.bisect])
    bracket: Any = (ends, flags, b.step, b.passes)
    return s._replace(bracket=bracket, pivots=jnp.stack(s.pivots))


def _parted(s: Any) -> _State:
    """The state that `_joined` was given."""
    (lo, hi, *at), (low, high, bisect), step, passes = s.bracket
    at = [x.astype(jnp.int32) for x in at]
    bracket = Bracket(lo, hi, *at, step, low, high, bisect, passes)
    return s._replace(bracket=bracket, pivots=list(s.pivots))


def _chosen(which: jax.Array, yes: Any, no: Any) -> Any:
    """One of two trees of arrays."""
    return jax.tree.map(functools.partial(jnp.where, which), yes, no)
