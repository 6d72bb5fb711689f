"""Reparameterizations: what decides about pruning is learned as part of the weights.

A `Reparam` is five pure functions: `init`, `apply`, `export`, and where needed
`penalty` and `project`. The fields of a theta are told apart by name
(`theta._replace(...)`); its classes are in the module of each method.

* Under a loss, under an optimizer: `wrap`, `projection`; one behind another: `compose`;
  an optimizer of ordinary parameters that moves theta: `reparameterized`.
* Weights that are easy to prune: `powerpropagation`.
* Dense weights trained through a mask: `straight_through`, `top_kast`.
* How much each layer keeps is learned: `learned_attention` (ASWL),
  `learned_thresholds` (adaptive sparsity loss), `learned_n_of_m` (SLS).
* Which channels and which residual branches stay is learned: `learned_gates` (with
  noise), `shrinking_scales` (without), of a `Branch`.
"""

from jprune._public import settled
from jprune.reparam._gated import Branch as Branch
from jprune.reparam._learned_attention import learned_attention as learned_attention
from jprune.reparam._learned_gates import learned_gates as learned_gates
from jprune.reparam._learned_n_of_m import learned_n_of_m as learned_n_of_m
from jprune.reparam._learned_thresholds import learned_thresholds as learned_thresholds
from jprune.reparam._powerpropagation import powerpropagation as powerpropagation
from jprune.reparam._reparam import Reparam as Reparam
from jprune.reparam._reparam import compose as compose
from jprune.reparam._reparam import projection as projection
from jprune.reparam._reparam import reparameterized as reparameterized
from jprune.reparam._reparam import wrap as wrap
from jprune.reparam._shrinking_scales import shrinking_scales as shrinking_scales
from jprune.reparam._straight_through import straight_through as straight_through
from jprune.reparam._straight_through import top_kast as top_kast

__dir__ = settled(globals())
