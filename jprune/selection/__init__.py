"""The k largest entries of a tree, exactly, every step, at full size.

The engine behind `masks` and `transforms`, and the only place in jprune where order
statistics are computed. Most people need `masks.unstructured` instead; this is for a
method of your own that ranks at every step.

* `kth_magnitude` finds the k-th largest as a `Threshold`, by counting, without a sort;
  `keep_mask` makes the mask of exactly k entries from it.
* A `WarmStart` carries a threshold from one step to the next, so that the next search
  is a few reads of the tree.
"""

from jprune._public import settled
from jprune.selection._select import keep_mask as keep_mask
from jprune.selection._select import kth_magnitude as kth_magnitude
from jprune.selection._threshold import Threshold as Threshold
from jprune.selection._threshold import WarmStart as WarmStart

__dir__ = settled(globals())
