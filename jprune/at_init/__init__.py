"""Pruning before training, or in its first epochs: which weights to train at all.

Every function is pure and takes any pytree. Train on with `transforms.keep_masked`.

* Scores of connections: `snip` and `grasp` (signed) by `loss_fn(params, batch)`, or
  `loss_fn(params, batch, key)` where a key is given; `synflow` without data, by the
  network alone. `jprune.masks` turns them into masks of weights, blocks or channels,
  `scores.over_groups` into those of surgery's groups. SynFlow in rounds:
  `synflow_mask`.
* Robust pruning: start on the edge of chaos (`edge_of_chaos`, `initialize`), prune by
  sensitivity and rescale what is left (`sbp`, `rescale`).
* What a mask is worth: `emptied`, `critical_sparsity`, `flow` for `masks.effective`,
  `shuffle`.
* In the first epochs: `train_early` decides after each window by a rule: the best of k
  random masks (`k_starts`), `dissipating`, or the list that `dissipating_k_starts`
  makes.
"""

from jprune._public import settled
from jprune.at_init._collapse import critical_sparsity as critical_sparsity
from jprune.at_init._collapse import emptied as emptied
from jprune.at_init._collapse import flow as flow
from jprune.at_init._collapse import shuffle as shuffle
from jprune.at_init._dissipating import dissipating as dissipating
from jprune.at_init._dissipating import dissipating_k_starts as dissipating_k_starts
from jprune.at_init._early import train_early as train_early
from jprune.at_init._edge_of_chaos import edge_of_chaos as edge_of_chaos
from jprune.at_init._edge_of_chaos import initialize as initialize
from jprune.at_init._grasp import grasp as grasp
from jprune.at_init._k_starts import k_starts as k_starts
from jprune.at_init._sbp import rescale as rescale
from jprune.at_init._sbp import sbp as sbp
from jprune.at_init._snip import snip as snip
from jprune.at_init._synflow import synflow as synflow
from jprune.at_init._synflow import synflow_mask as synflow_mask

__dir__ = settled(globals())
