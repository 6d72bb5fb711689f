"""Changes of values at removal: merge, fold constants, split in two, measure again.

`jprune.surgery` removes coordinates and leaves every value that stays as it was. The
functions here change values so that removal costs less, or nothing.

* Filters trained to be equal become one: `merge`.
* A removed channel's constant goes into the next bias: `fold_constants`.
* One contraction becomes two: `low_rank`.
* Batch statistics of the smaller network: `recalibrate`.
* Inputs and outputs of any contraction, over batches: `capture`.
* N:M weights as values and indices: `pack_n_of_m`, `unpack_n_of_m`, `packed_bytes`.
"""

from jprune.compress._capture import capture as capture
from jprune.compress._fold import fold_constants as fold_constants
from jprune.compress._low_rank import low_rank as low_rank
from jprune.compress._merge import merge as merge
from jprune.compress._pack_n_of_m import pack_n_of_m as pack_n_of_m
from jprune.compress._pack_n_of_m import packed_bytes as packed_bytes
from jprune.compress._pack_n_of_m import unpack_n_of_m as unpack_n_of_m
from jprune.compress._recalibrate import recalibrate as recalibrate
