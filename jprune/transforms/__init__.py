"""Pruning methods as Optax gradient transformations.

Four kinds, told apart by where they stand in a chain. *Gradient maps* come first, on
the raw gradient: `accumulate_gradient`, `mask_by_saliency`, `merge_clusters`,
`mask_updates`. *Penalties* add the gradient of a regularizer before momentum, or
decoupled before the learning rate: `add_selective_decay`, `add_masked_l1`,
`add_decorrelation`, `add_growing_decay`, `add_pruned_decay`. *Projections* come last,
after the learning rate, and land removed weights on exactly zero: `keep_masked`,
`prune_by_weight_history`, `prune_gradually`, `prune_once`, `prune_to_n_of_m`,
`prune_unmoved`, `shrink_softly`, `zero_in_turn`; `truncate_rank` lands kernels on low
rank instead, and `truncate` is its pure function. *Wrappers* stand around a whole
optimizer: `drop_and_grow`, `grow_and_prune`; the latter's form for several workers is
`grow_in_parallel`. Beside each method is its paper's recipe, made of these and of
Optax's own: `csgd`, `gap`, `gsm`, `issp`, `masksparsity`, `rigl`, `sparse_evolutionary`
(SET), `sr_ste`, `static_sparse`, `swd`, `tpp`, `trp`; `issr` joins the two ends of its
chain.

Under `optax.inject_hyperparams` learning rates, strengths, decays and sparsities are
injected. What decides the program is static: steps, periods and floors (`total_steps`,
`begin`, `end`, `every`, `min_keep`), N and M, seeds, and functions that are no
schedules (`select`, `scope`, `allocation`); of these name in `static_args` all that the
transformation takes, those left at their defaults too.

`check` tells whether the projections of a chain have the last word; `finish` removes
after training; `diagnostics` gives what to log; `state_sharding` places the state on
a mesh.
"""

from jprune.transforms._accumulate_gradient import (
    AccumulateGradientState as AccumulateGradientState,
)
from jprune.transforms._accumulate_gradient import (
    accumulate_gradient as accumulate_gradient,
)
from jprune.transforms._check import check as check
from jprune.transforms._clusters import even_clusters as even_clusters
from jprune.transforms._clusters import find_clusters as find_clusters
from jprune.transforms._clusters import imbalanced_clusters as imbalanced_clusters
from jprune.transforms._clusters import kmeans_clusters as kmeans_clusters
from jprune.transforms._decorrelation import (
    AddDecorrelationState as AddDecorrelationState,
)
from jprune.transforms._decorrelation import ZeroInTurnState as ZeroInTurnState
from jprune.transforms._decorrelation import add_decorrelation as add_decorrelation
from jprune.transforms._decorrelation import growing_strength as growing_strength
from jprune.transforms._decorrelation import keep_large_filters as keep_large_filters
from jprune.transforms._decorrelation import tpp as tpp
from jprune.transforms._decorrelation import zero_in_turn as zero_in_turn
from jprune.transforms._diagnostics import diagnostics as diagnostics
from jprune.transforms._drop_and_grow import DropAndGrowState as DropAndGrowState
from jprune.transforms._drop_and_grow import drop_and_grow as drop_and_grow
from jprune.transforms._dynamic_sparse import rigl as rigl
from jprune.transforms._dynamic_sparse import sparse_evolutionary as sparse_evolutionary
from jprune.transforms._dynamic_sparse import static_sparse as static_sparse
from jprune.transforms._finish import PruneOnceState as PruneOnceState
from jprune.transforms._finish import finish as finish
from jprune.transforms._finish import prune_once as prune_once
from jprune.transforms._grow_and_prune import GrowAndPruneState as GrowAndPruneState
from jprune.transforms._grow_and_prune import average_density as average_density
from jprune.transforms._grow_and_prune import gap as gap
from jprune.transforms._grow_and_prune import grow_and_prune as grow_and_prune
from jprune.transforms._grow_and_prune import hand_over as hand_over
from jprune.transforms._grow_and_prune import sparse_start as sparse_start
from jprune.transforms._grow_in_parallel import combine_grown as combine_grown
from jprune.transforms._grow_in_parallel import grow_in_parallel as grow_in_parallel
from jprune.transforms._growing_decay import (
    AddGrowingDecayState as AddGrowingDecayState,
)
from jprune.transforms._growing_decay import IssrState as IssrState
from jprune.transforms._growing_decay import add_growing_decay as add_growing_decay
from jprune.transforms._growing_decay import issr as issr
from jprune.transforms._iterative import iterative_sparsities as iterative_sparsities
from jprune.transforms._iterative import prune_iteratively as prune_iteratively
from jprune.transforms._keep_masked import KeepMaskedState as KeepMaskedState
from jprune.transforms._keep_masked import MaskUpdatesState as MaskUpdatesState
from jprune.transforms._keep_masked import keep_masked as keep_masked
from jprune.transforms._keep_masked import mask_updates as mask_updates
from jprune.transforms._masked_l1 import AddMaskedL1State as AddMaskedL1State
from jprune.transforms._masked_l1 import add_masked_l1 as add_masked_l1
from jprune.transforms._masked_l1 import masksparsity as masksparsity
from jprune.transforms._masked_l1 import network_slimming as network_slimming
from jprune.transforms._merge_clusters import MergeClustersState as MergeClustersState
from jprune.transforms._merge_clusters import collapse_factor as collapse_factor
from jprune.transforms._merge_clusters import csgd as csgd
from jprune.transforms._merge_clusters import merge_clusters as merge_clusters
from jprune.transforms._n_of_m import AddPrunedDecayState as AddPrunedDecayState
from jprune.transforms._n_of_m import PruneToNOfMState as PruneToNOfMState
from jprune.transforms._n_of_m import add_pruned_decay as add_pruned_decay
from jprune.transforms._n_of_m import prune_to_n_of_m as prune_to_n_of_m
from jprune.transforms._n_of_m import sr_ste as sr_ste
from jprune.transforms._partitions import split_by_path as split_by_path
from jprune.transforms._partitions import split_evenly as split_evenly
from jprune.transforms._prune_gradually import (
    PruneGraduallyState as PruneGraduallyState,
)
from jprune.transforms._prune_gradually import prune_gradually as prune_gradually
from jprune.transforms._prune_unmoved import PruneUnmovedState as PruneUnmovedState
from jprune.transforms._prune_unmoved import prune_unmoved as prune_unmoved
from jprune.transforms._saliency import MaskBySaliencyState as MaskBySaliencyState
from jprune.transforms._saliency import gsm as gsm
from jprune.transforms._saliency import mask_by_saliency as mask_by_saliency
from jprune.transforms._selective_decay import (
    AddSelectiveDecayState as AddSelectiveDecayState,
)
from jprune.transforms._selective_decay import (
    add_selective_decay as add_selective_decay,
)
from jprune.transforms._selective_decay import swd as swd
from jprune.transforms._sharding import state_sharding as state_sharding
from jprune.transforms._shrink_softly import ShrinkSoftlyState as ShrinkSoftlyState
from jprune.transforms._shrink_softly import issp as issp
from jprune.transforms._shrink_softly import shrink_softly as shrink_softly
from jprune.transforms._truncate import Truncated as Truncated
from jprune.transforms._truncate import Unfolding as Unfolding
from jprune.transforms._truncate import truncate as truncate
from jprune.transforms._truncate_rank import TruncateRankState as TruncateRankState
from jprune.transforms._truncate_rank import trp as trp
from jprune.transforms._truncate_rank import truncate_rank as truncate_rank
from jprune.transforms._weight_history import (
    PruneByWeightHistoryState as PruneByWeightHistoryState,
)
from jprune.transforms._weight_history import layer_importance as layer_importance
from jprune.transforms._weight_history import (
    prune_by_weight_history as prune_by_weight_history,
)
