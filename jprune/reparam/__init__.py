"""Reparameterizations: what decides about pruning is learned as part of the weights.

A `Reparam` is five pure functions, `init`, `apply`, `penalty`, `project` and `export`.
`wrap` puts one under a loss, `projection` under an optimizer. `powerpropagation` makes
trained weights easy to prune; `straight_through`, `n_of_m` and `top_kast` train dense
weights through a mask; `learned_attention` (ASWL), `learned_thresholds` (adaptive
sparsity loss) and `learned_n_of_m` (SLS) learn how much each layer keeps, and
`learned_gates` (with noise) and `shrinking_scales` (without) which channels and which
residual branches the network keeps. `compose`
puts one behind another, and `reparameterized` makes an optimizer of ordinary parameters
move them as one of theta would.
"""

from jprune.reparam._gated import Branch as Branch
from jprune.reparam._hard_concrete import dual_ascent as dual_ascent
from jprune.reparam._hard_concrete import expected_cost as expected_cost
from jprune.reparam._hard_concrete import hard_concrete as hard_concrete
from jprune.reparam._hard_concrete import open_probability as open_probability
from jprune.reparam._learned_attention import AttentionTheta as AttentionTheta
from jprune.reparam._learned_attention import learned_attention as learned_attention
from jprune.reparam._learned_attention import pruning_ratio as pruning_ratio
from jprune.reparam._learned_attention import remaining as remaining
from jprune.reparam._learned_gates import GateTheta as GateTheta
from jprune.reparam._learned_gates import closed_shares as closed_shares
from jprune.reparam._learned_gates import learned_gates as learned_gates
from jprune.reparam._learned_gates import open_gates as open_gates
from jprune.reparam._learned_n_of_m import NOfMTheta as NOfMTheta
from jprune.reparam._learned_n_of_m import anneal as anneal
from jprune.reparam._learned_n_of_m import cost as cost
from jprune.reparam._learned_n_of_m import learned_n_of_m as learned_n_of_m
from jprune.reparam._learned_n_of_m import units as units
from jprune.reparam._learned_thresholds import Budget as Budget
from jprune.reparam._learned_thresholds import ThresholdTheta as ThresholdTheta
from jprune.reparam._learned_thresholds import budget_penalty as budget_penalty
from jprune.reparam._learned_thresholds import learned_thresholds as learned_thresholds
from jprune.reparam._learned_thresholds import predicted_density as predicted_density
from jprune.reparam._learned_thresholds import soft_prune as soft_prune
from jprune.reparam._powerpropagation import change_power as change_power
from jprune.reparam._powerpropagation import power as power
from jprune.reparam._powerpropagation import powerpropagation as powerpropagation
from jprune.reparam._reparam import ProjectionState as ProjectionState
from jprune.reparam._reparam import Reparam as Reparam
from jprune.reparam._reparam import ReparameterizedState as ReparameterizedState
from jprune.reparam._reparam import compose as compose
from jprune.reparam._reparam import no_penalty as no_penalty
from jprune.reparam._reparam import projection as projection
from jprune.reparam._reparam import reparameterized as reparameterized
from jprune.reparam._reparam import unconstrained as unconstrained
from jprune.reparam._reparam import wrap as wrap
from jprune.reparam._shrinking_scales import ScaleTheta as ScaleTheta
from jprune.reparam._shrinking_scales import freed_costs as freed_costs
from jprune.reparam._shrinking_scales import shrinking_scales as shrinking_scales
from jprune.reparam._shrinking_scales import soft_threshold as soft_threshold
from jprune.reparam._straight_through import n_of_m as n_of_m
from jprune.reparam._straight_through import pass_through as pass_through
from jprune.reparam._straight_through import straight_through as straight_through
from jprune.reparam._straight_through import top_kast as top_kast
