"""The k largest entries of a tree, exactly, every step, at full size.

The engine behind `masks` and `transforms`, and no part of the public surface: its names
may change. The only place in jprune where order statistics are computed.
`kth_magnitude` finds the threshold by counting, `keep_mask` makes the mask, `cold` and
`warm_start` carry the threshold from one step to the next.
"""

from jprune.selection._count import counts_above as counts_above
from jprune.selection._count import image_of as image_of
from jprune.selection._count_true import count_true as count_true
from jprune.selection._floors import Shares as Shares
from jprune.selection._floors import kth_with_floors as kth_with_floors
from jprune.selection._image import ImageKind as ImageKind
from jprune.selection._largest import Largest as Largest
from jprune.selection._largest import largest as largest
from jprune.selection._select import keep_mask as keep_mask
from jprune.selection._select import kth_magnitude as kth_magnitude
from jprune.selection._threshold import Ranking as Ranking
from jprune.selection._threshold import Threshold as Threshold
from jprune.selection._threshold import WarmStart as WarmStart
from jprune.selection._threshold import cold as cold
from jprune.selection._threshold import magnitude_at as magnitude_at
from jprune.selection._threshold import warm_start as warm_start
