"""Pruning before training, or in its first epochs: which weights to train at all.

Every function is pure and takes any pytree. `snip`, `grasp` (signed) and `synflow`
score connections: the first two by `loss_fn(params, batch)`, or
`loss_fn(params, batch, key)` where a key is given; the last without data, by the
network alone. `jprune.masks` turns scores into masks of single weights, blocks or
channels, and `scores.over_groups` into those of surgery's groups. `iterate` prunes in
rounds, as `synflow_mask` does. Train on with `transforms.keep_masked`.

**Robust pruning**: start on the edge of chaos (`edge_of_chaos`, `mean_field`,
`initializers`, `initialize`), prune by sensitivity and rescale what is left (`sbp`,
`rescale`, `rescaling`), scale residual branches (`branch_scale`). What a mask is worth:
`emptied`, `critical_sparsity`, `flow` for `masks.effective`, `shuffle`.

**K-starts** draws k random masks and trains on with the fittest (`k_starts`,
`random_mask`, `fitness`, `better_half`); **dissipating gradients** drops what stays
near its initial value. `train_early` runs the first epochs with a rule after each:
`fittest`, `dissipating`, `dissipating_to`, or for both methods the list that
`dissipating_k_starts` makes.
"""

from jprune.at_init._collapse import critical_sparsity as critical_sparsity
from jprune.at_init._collapse import emptied as emptied
from jprune.at_init._collapse import flow as flow
from jprune.at_init._collapse import shuffle as shuffle
from jprune.at_init._dissipating import dissipating as dissipating
from jprune.at_init._dissipating import dissipating_k_starts as dissipating_k_starts
from jprune.at_init._dissipating import dissipating_to as dissipating_to
from jprune.at_init._dissipating import fittest as fittest
from jprune.at_init._early import Early as Early
from jprune.at_init._early import begin_early as begin_early
from jprune.at_init._early import train_early as train_early
from jprune.at_init._early import train_window as train_window
from jprune.at_init._edge_of_chaos import MeanField as MeanField
from jprune.at_init._edge_of_chaos import edge_of_chaos as edge_of_chaos
from jprune.at_init._edge_of_chaos import initialize as initialize
from jprune.at_init._edge_of_chaos import initializers as initializers
from jprune.at_init._edge_of_chaos import mean_field as mean_field
from jprune.at_init._fitness import fitness as fitness
from jprune.at_init._grasp import grasp as grasp
from jprune.at_init._iterate import iterate as iterate
from jprune.at_init._k_starts import better_half as better_half
from jprune.at_init._k_starts import k_starts as k_starts
from jprune.at_init._random_mask import random_mask as random_mask
from jprune.at_init._sbp import branch_scale as branch_scale
from jprune.at_init._sbp import rescale as rescale
from jprune.at_init._sbp import rescaling as rescaling
from jprune.at_init._sbp import sbp as sbp
from jprune.at_init._snip import snip as snip
from jprune.at_init._synflow import synflow as synflow
from jprune.at_init._synflow import synflow_mask as synflow_mask
