"""Masks: pure functions of parameter trees.

A mask is a tree of bool arrays with exactly the structure of the parameters, True =
keep; a leaf out of scope holds a 0-d True.

* From scores, with exact counts: `unstructured`, `n_of_m`, `blocks`, `channels`; by a
  value instead of a count `above`.
* How a sparsity is spread over leaves: `uniform`, `erdos_renyi`, `erk`.
* Which leaves take part: `prunable`; how many scalars they hold: `size`, `kept_count`.
* Use and look at: `apply`, `count`, `sparsity`, `is_n_of_m`, `effective`.
* Make and combine: `full`, `from_zeros`, `intersect`.
* Of groups, channels tied across layers: `from_groups`, `keep_by_scale`.
"""

from jprune._public import settled
from jprune.masks._above import above as above
from jprune.masks._allocation import erdos_renyi as erdos_renyi
from jprune.masks._allocation import erk as erk
from jprune.masks._allocation import uniform as uniform
from jprune.masks._count import kept_count as kept_count
from jprune.masks._effective import effective as effective
from jprune.masks._groups import from_groups as from_groups
from jprune.masks._n_of_m import is_n_of_m as is_n_of_m
from jprune.masks._n_of_m import n_of_m as n_of_m
from jprune.masks._scope import prunable as prunable
from jprune.masks._tree import apply as apply
from jprune.masks._tree import count as count
from jprune.masks._tree import from_zeros as from_zeros
from jprune.masks._tree import full as full
from jprune.masks._tree import intersect as intersect
from jprune.masks._tree import size as size
from jprune.masks._tree import sparsity as sparsity
from jprune.masks._units import blocks as blocks
from jprune.masks._units import channels as channels
from jprune.masks._unstructured import unstructured as unstructured
from jprune.masks._voting import keep_by_scale as keep_by_scale

__dir__ = settled(globals())
