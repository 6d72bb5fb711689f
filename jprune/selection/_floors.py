r"""The k largest of a tree when every leaf is guaranteed some: thresholds, no masks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jprune._typing import Mask, PyTree
from jprune.selection._image import ImageKind
from jprune.selection._largest import largest
from jprune.selection._threshold import Threshold, WarmStart


class Shares(NamedTuple):
    """What each leaf keeps of a global count.

    Attributes:
      counts: kept of each leaf; they add up to k. [leaves] int32
      leaf: the threshold of each leaf, for `keep_mask` with these counts.
      common: the threshold of the leaves above their floor, for `WarmStart.after`.
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
      >>> from jprune.selection._floors import kth_with_floors
      >>> tree = [jnp.array([5.0, 4.0, 3.0]), jnp.array([0.1, 0.2])]
      >>> shares = kth_with_floors(tree, 3, [1, 1])
      >>> shares.counts.tolist()
      [2, 1]
      >>> selection.keep_mask(tree, shares.leaf, shares.counts)[1].tolist()
      [False, True]
    """
    count = jnp.asarray(k, jnp.int32)
    how: Any = {"init": init, "image": image, "within": within, "times": times}
    found = largest(tree, count, floors=floors, masked=False, **how)
    return Shares(found.counts, found.leaf, found.found)
