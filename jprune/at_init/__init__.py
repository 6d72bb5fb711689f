"""Pruning before training: which weights to train at all, told at initialization.

Every function is pure and takes any pytree. `snip` scores the connections by the
gradient on one batch, `loss_fn(params, batch)`, or `loss_fn(params, batch, key)` where
a key is given; `jprune.masks` turns the scores into masks of single weights, blocks or
channels, and `scores.over_groups` into those of surgery's groups. Train on with
`transforms.keep_masked`.
"""

from jprune.at_init._snip import snip as snip
