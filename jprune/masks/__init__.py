"""Masks: pure functions of parameter trees.

A mask is a tree of bool arrays with exactly the structure of the parameters, True =
keep; a leaf out of scope holds a 0-d True. Patterns turn scores into masks with exact
counts, allocations spread a global sparsity over leaves, and the rest applies, counts
and combines masks.
"""

from jprune.masks._above import above as above
from jprune.masks._allocation import erdos_renyi as erdos_renyi
from jprune.masks._allocation import erk as erk
from jprune.masks._allocation import uniform as uniform
from jprune.masks._count import exact as exact
from jprune.masks._count import is_traced as is_traced
from jprune.masks._count import kept_count as kept_count
from jprune.masks._count import removed_count as removed_count
from jprune.masks._count import require_sparsity as require_sparsity
from jprune.masks._effective import effective as effective
from jprune.masks._groups import from_groups as from_groups
from jprune.masks._groups import within_budget as within_budget
from jprune.masks._n_of_m import is_n_of_m as is_n_of_m
from jprune.masks._n_of_m import n_of_m as n_of_m
from jprune.masks._rank import Ranking as Ranking
from jprune.masks._scope import in_scope as in_scope
from jprune.masks._scope import prunable as prunable
from jprune.masks._scope import resolve_scope as resolve_scope
from jprune.masks._target import keep_counts as keep_counts
from jprune.masks._tree import apply as apply
from jprune.masks._tree import count as count
from jprune.masks._tree import from_zeros as from_zeros
from jprune.masks._tree import full as full
from jprune.masks._tree import intersect as intersect
from jprune.masks._tree import size as size
from jprune.masks._tree import sparsity as sparsity
from jprune.masks._units import blocks as blocks
from jprune.masks._units import channels as channels
from jprune.masks._unstructured import ranked as ranked
from jprune.masks._unstructured import unstructured as unstructured
from jprune.masks._voting import energy_threshold as energy_threshold
from jprune.masks._voting import keep_by_scale as keep_by_scale
from jprune.masks._voting import vote as vote
