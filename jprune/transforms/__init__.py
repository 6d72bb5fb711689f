r"""Pruning methods as Optax gradient transformations.

*Recipes* are the chain of a paper, from its optimizer to the removal:

* `swd`: selective weight decay: the weights that would go now decay harder
* `gsm`: only the most salient weights follow their gradient
* `rigl`: sparse from the start; grows where the gradient is largest
* `sparse_evolutionary`: SET: the same, grows at random
* `static_sparse`: the same, a random mask that stands still
* `gap`: grow-and-prune: one part of the layers dense after the other
* `issp`: the smallest weights shrink, later go (`issr`: decay ever harder)
* `sr_ste`: N:M from scratch, with `reparam.straight_through`
* `trp`: low rank while training, for `compress.low_rank`
* `csgd`: filters become equal, for `compress.merge`
* `masksparsity`: an L1 penalty on doomed norm scales (`network_slimming`: on all)
* `tpp`: doomed filters become independent of those that stay

Give a recipe `total_steps`, the length of the run: what is left to remove goes at its
last step, and `masks.from_zeros(params)` reads the result. It counts the steps that it
sees. A wrapper that refuses some (`optax.apply_if_finite`) therefore goes in front,
around the gradient alone: `optax.chain(optax.apply_if_finite(optax.identity(), 5),
swd(...))`; around the recipe the run would end before the removal (`check` warns).

The parts that recipes are made of, told apart by where they stand in a chain:

*Gradient maps* come first, on the raw gradient: `mask_by_saliency`, `merge_clusters`,
`mask_updates`.

*Penalties* add the gradient of a regularizer, before momentum, or decoupled before the
learning rate: `add_selective_decay`, `add_masked_l1`, `add_growing_decay`,
`add_pruned_decay`, `add_decorrelation` (with `keep_large_filters`).

*Projections* come last, after the learning rate, and land removed weights on exactly
zero: `keep_masked`, `prune_once`, `prune_gradually`, `prune_by_weight_history`,
`prune_to_n_of_m`, `prune_unmoved`, `prune_in_turn`, `shrink_softly`; `truncate_rank`
lands kernels on low rank instead.

`rescale_filters` lands scale-invariant filters on one length; `log_filters`, also last,
changes nothing and says how they move.

*Wrappers* stand around a whole optimizer: `drop_and_grow`, `grow_and_prune`.

*Around a run*: `check` tells whether the projections of a chain have the last word;
`finish` removes after training; `diagnostics` gives what to log; `state_sharding`
places the state on a mesh. `prune_iteratively` and `grow_in_parallel` drive whole runs.

Under `optax.inject_hyperparams` learning rates, strengths, decays and sparsities are
injected. What decides the program is static: steps, periods and floors (`total_steps`,
`begin`, `end`, `every`, `min_keep`), N and M, seeds, and functions that are no
schedules (`select`, `scope`, `allocation`); of these name in `static_args` all that the
transformation takes, those left at their defaults too.

What belongs to a group of channels (`keeps`, `clusters`) is a mapping by group id, or
by the path of a leaf that makes the channels. The State classes are in the modules of
their transformations, e.g. `jprune.transforms._prune_gradually`.
"""

from jprune._public import settled
from jprune.transforms._check import check as check
from jprune.transforms._decorrelation import add_decorrelation as add_decorrelation
from jprune.transforms._decorrelation import keep_large_filters as keep_large_filters
from jprune.transforms._decorrelation import prune_in_turn as prune_in_turn
from jprune.transforms._decorrelation import tpp as tpp
from jprune.transforms._diagnostics import diagnostics as diagnostics
from jprune.transforms._drop_and_grow import drop_and_grow as drop_and_grow
from jprune.transforms._dynamic_sparse import rigl as rigl
from jprune.transforms._dynamic_sparse import sparse_evolutionary as sparse_evolutionary
from jprune.transforms._dynamic_sparse import static_sparse as static_sparse
from jprune.transforms._finish import finish as finish
from jprune.transforms._finish import prune_once as prune_once
from jprune.transforms._grow_and_prune import gap as gap
from jprune.transforms._grow_and_prune import grow_and_prune as grow_and_prune
from jprune.transforms._grow_in_parallel import grow_in_parallel as grow_in_parallel
from jprune.transforms._growing_decay import add_growing_decay as add_growing_decay
from jprune.transforms._growing_decay import issr as issr
from jprune.transforms._iterative import prune_iteratively as prune_iteratively
from jprune.transforms._keep_masked import keep_masked as keep_masked
from jprune.transforms._keep_masked import mask_updates as mask_updates
from jprune.transforms._masked_l1 import add_masked_l1 as add_masked_l1
from jprune.transforms._masked_l1 import masksparsity as masksparsity
from jprune.transforms._masked_l1 import network_slimming as network_slimming
from jprune.transforms._merge_clusters import csgd as csgd
from jprune.transforms._merge_clusters import merge_clusters as merge_clusters
from jprune.transforms._n_of_m import add_pruned_decay as add_pruned_decay
from jprune.transforms._n_of_m import prune_to_n_of_m as prune_to_n_of_m
from jprune.transforms._n_of_m import sr_ste as sr_ste
from jprune.transforms._prune_gradually import prune_gradually as prune_gradually
from jprune.transforms._prune_unmoved import prune_unmoved as prune_unmoved
from jprune.transforms._rescale_filters import log_filters as log_filters
from jprune.transforms._rescale_filters import rescale_filters as rescale_filters
from jprune.transforms._saliency import gsm as gsm
from jprune.transforms._saliency import mask_by_saliency as mask_by_saliency
from jprune.transforms._selective_decay import (
    add_selective_decay as add_selective_decay,
)
from jprune.transforms._selective_decay import swd as swd
from jprune.transforms._sharding import state_sharding as state_sharding
from jprune.transforms._shrink_softly import issp as issp
from jprune.transforms._shrink_softly import shrink_softly as shrink_softly
from jprune.transforms._truncate_rank import trp as trp
from jprune.transforms._truncate_rank import truncate_rank as truncate_rank
from jprune.transforms._weight_history import (
    prune_by_weight_history as prune_by_weight_history,
)

__dir__ = settled(globals())
