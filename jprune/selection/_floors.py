r"""The k largest of a tree when every leaf is guaranteed some.

With a floor $m_l$ for each leaf, the best choice keeps the top $k_l$ of leaf l, where
$k_l \ge m_l$ and $\sum_l k_l = k$. As a threshold t falls, a leaf keeps
$\max(c_l(t), m_l)$ entries ($c_l$ counts what reaches t), so

$$ C(t) = \sum_l \max(c_l(t), m_l) $$

is monotone and one search finds where it is k. The total never changes: what a leaf
gets above its share, the others give up. Only leaves below their floor at that
threshold need one of their own; where there are none, that second search makes no
sweep.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jprune._typing import Mask, PyTree
from jprune.selection._bracket import Counts, Pivots, around, search, start
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
    common = _common(table, wanted, present, least, init)
    at, above, following = _around_threshold(table, common.bits)

    kept, reach = jnp.maximum(above, least), jnp.maximum(at, least)
    ties = reach - kept
    room = wanted - jnp.sum(kept, dtype=jnp.int32)
    earlier = jnp.cumsum(ties) - ties
    counts = kept + jnp.clip(room - earlier, 0, ties)

    exact = counts == above  # nothing at the threshold itself is kept
    settled = Threshold(
        jnp.where(exact, following, common.bits), jnp.where(exact, above, at), at * 0
    )
    own = _own(table, counts, present, settled, common.bits, at < counts)
    return Shares(counts, own, common)


def _common(
    table: Table,
    k: jax.Array,
    present: jax.Array,
    least: jax.Array,
    init: WarmStart | None,
) -> Threshold:
    """The largest t with `sum(max(c_l(t), m_l)) >= k`."""
    sweep = sweep_images(table, True)

    def count(pivots: Pivots) -> Counts:
        seen = sweep([jnp.broadcast_to(p, least.shape) for p in pivots])
        kept = [jnp.maximum(c, least) for c in seen.at]
        return Counts([jnp.sum(c, dtype=jnp.int32) for c in kept])

    kind = table.image
    guess, spread = first_guess(kind, init)
    top = jnp.asarray(kind.top, kind.dtype)
    lo = jnp.where(k > 0, jnp.asarray(kind.lowest, kind.dtype), top)
    total = jnp.where(k > 0, jnp.sum(present, dtype=jnp.int32), 0)
    bracket = start(lo, top, total, spread)
    first = around(guess, spread, bracket, PIVOTS)
    found = search(count, k, bracket, first, guess, 2.0**kind.mantissa)
    return Threshold(found.lo, found.at_lo, found.passes)


def _around_threshold(
    table: Table, bits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How many of each leaf reach the threshold, how many pass it; the next image."""
    # What reaches `top` ties with `top - 1`; after k = 0 nothing is above.
    last = bits >= table.image.top - 1
    following = jnp.where(last, bits, bits + 1)
    rows = [jnp.broadcast_to(b, (len(table.leaves),)) for b in (bits, following)]
    at, above = sweep_images(table, True)(rows).at
    return at, jnp.where(last, 0, above), following


def _own(
    table: Table,
    k: jax.Array,
    present: jax.Array,
    settled: Threshold,
    common: jax.Array,
    short: jax.Array,
) -> Threshold:
    """`settled`, but for the leaves in `short` the threshold of their own top k."""
    lowest = jnp.asarray(table.image.lowest, table.image.dtype)
    lo = jnp.where(short, lowest, settled.bits)
    hi = jnp.where(short, common, settled.bits + 1)
    at_lo = jnp.where(short, present, settled.count)
    spread = jnp.full(k.shape, 1 << table.image.mantissa, table.image.dtype)
    bracket = start(lo, hi, at_lo, spread)
    guess = jnp.broadcast_to(common, k.shape)
    first = around(guess, spread, bracket, PIVOTS)
    count = sweep_images(table, True)
    found = search(count, k, bracket, first, guess, 2.0**table.image.mantissa)
    return Threshold(found.lo, found.at_lo, found.passes)
