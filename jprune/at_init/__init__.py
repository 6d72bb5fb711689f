"""Pruning before training, or in its first epochs: which weights to train at all.

Every function is pure and takes any pytree. `snip` scores the connections by the
gradient on one batch, `loss_fn(params, batch)`, or `loss_fn(params, batch, key)` where
a key is given; `jprune.masks` turns the scores into masks of single weights, blocks or
channels, and `scores.over_groups` into those of surgery's groups. Train on with
`transforms.keep_masked`.

**K-starts** draws k random masks and trains on with the fittest (`k_starts`,
`random_mask`, `fitness`, `better_half`); **dissipating gradients** drops what stays
near its initial value. `train_early` runs the first epochs with a rule after each:
`fittest`, `dissipating`, `dissipating_to`, or the rules of both methods `combined`.
"""

from jprune.at_init._dissipating import combined as combined
from jprune.at_init._dissipating import dissipating as dissipating
from jprune.at_init._dissipating import dissipating_to as dissipating_to
from jprune.at_init._dissipating import fittest as fittest
from jprune.at_init._early import Early as Early
from jprune.at_init._early import begin as begin
from jprune.at_init._early import train_early as train_early
from jprune.at_init._early import train_window as train_window
from jprune.at_init._k_starts import better_half as better_half
from jprune.at_init._k_starts import fitness as fitness
from jprune.at_init._k_starts import k_starts as k_starts
from jprune.at_init._k_starts import random_mask as random_mask
from jprune.at_init._snip import snip as snip
