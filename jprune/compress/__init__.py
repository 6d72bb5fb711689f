"""Changes of values at removal: merge, refit, fold, split in two, measure again.

`jprune.surgery` removes coordinates and leaves every value that stays as it was. The
functions here change values so that removal costs less, or nothing.

* Filters trained to be equal become one: `merge`; which ones: `find_clusters`.
* A removed channel's constant goes into the next bias: `fold_constants`.
* Kernels are cut to low rank: `truncate` (`Unfolding` says how another kernel is read
  as a matrix); one contraction becomes two: `low_rank`.
* Batch statistics of the smaller network: `recalibrate`.
* Inputs and outputs of any contraction, over batches: `capture`.
* Channels chosen by LASSO, the layer that reads them refitted: `reconstruct`; a kernel
  that reads some of its inputs through a gather: `sample_inputs`.
* Channels alike by their batch norms: `similar_channels` (`data_distances` to check),
  merged or removed: `remove_similar`.
* Scale-invariant filters at length 1, the function unchanged: `canonicalize`.
* Weights removed on calibration data, layer by layer: `wanda`, `sparse_gpt`.
* N:M weights as values and indices: `pack_n_of_m`, `unpack_n_of_m`.
* Single weights as compressed rows, which pay on a CPU: `to_bcsr`, `sparse_dot`.
"""

from jprune._public import settled
from jprune._unfolding import Unfolding as Unfolding
from jprune.compress._bcsr import sparse_dot as sparse_dot
from jprune.compress._bcsr import to_bcsr as to_bcsr
from jprune.compress._calibrate import sparse_gpt as sparse_gpt
from jprune.compress._calibrate import wanda as wanda
from jprune.compress._canonicalize import canonicalize as canonicalize
from jprune.compress._capture import capture as capture
from jprune.compress._clusters import find_clusters as find_clusters
from jprune.compress._fold import fold_constants as fold_constants
from jprune.compress._low_rank import low_rank as low_rank
from jprune.compress._merge import merge as merge
from jprune.compress._pack_n_of_m import pack_n_of_m as pack_n_of_m
from jprune.compress._pack_n_of_m import unpack_n_of_m as unpack_n_of_m
from jprune.compress._recalibrate import recalibrate as recalibrate
from jprune.compress._reconstruct import reconstruct as reconstruct
from jprune.compress._sample_inputs import sample_inputs as sample_inputs
from jprune.compress._similar import data_distances as data_distances
from jprune.compress._similar import remove_similar as remove_similar
from jprune.compress._similar import similar_channels as similar_channels
from jprune.transforms._truncate import truncate as truncate

__dir__ = settled(globals())
