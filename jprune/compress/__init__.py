"""Changes of values at removal: merge, fold constants, split in two, measure again.

`jprune.surgery` removes coordinates and leaves every value that stays as it was. The
functions here change values so that removal costs less, or nothing; `pack_n_of_m`
stores N:M weights as values and indices.
"""

from jprune._factors import Factors as Factors
from jprune.compress._fold import fold_constants as fold_constants
from jprune.compress._low_rank import LowRank as LowRank
from jprune.compress._low_rank import low_rank as low_rank
from jprune.compress._merge import Merged as Merged
from jprune.compress._merge import deviation as deviation
from jprune.compress._merge import merge as merge
from jprune.compress._merge import snap as snap
from jprune.compress._pack_n_of_m import PackedNOfM as PackedNOfM
from jprune.compress._pack_n_of_m import pack_n_of_m as pack_n_of_m
from jprune.compress._pack_n_of_m import packed_bytes as packed_bytes
from jprune.compress._pack_n_of_m import unpack_n_of_m as unpack_n_of_m
from jprune.compress._recalibrate import recalibrate as recalibrate
