"""Surgery: structured removal as a function transformation.

One pass over the jaxpr of any function finds which axes of its parameters are coupled;
a choice of coordinates is a plan; the same jaxpr is evaluated at the compact shapes. No
layer is known by name: heads, feed-forward widths, residual streams, grouped
convolutions, concatenations and recurrent states follow from the operations themselves.
What an operation does not let be proved is frozen, with the reason.

* What belongs together: `groups` gives `Groups` (its table, scores, frozen axes), each
  a `Group` of `AxisRef`s; the axes of N:M and Wanda: `contraction_axes`.
* What stays, a `Plan`: `select` for a budget (`choose`: the same as data), or
  `plan_from_masks`, `plan_from_keep`; from its file: `load_plan`.
* The smaller network: `shrink` the function, `Plan.pack` parameters and states;
  `verify` that it equals the dense one. As one file: `save_packed`, `load_packed`; a
  checkpoint larger than memory: `pack_file`.
* A primitive of your own: `jprune.surgery.rules`, see `docs/surgery_rules.md`.

The meaning is exact: the compact function on `plan.pack(params)` equals the dense
function on `plan.zero(params)`, forward and gradient, because whatever a removed
coordinate still contributes (a norm's variance, a pooled sigmoid) is carried along as a
*ghost* (see `surgery._cells`).
"""

from jprune._groups import AxisRef as AxisRef
from jprune._groups import Group as Group
from jprune._public import settled
from jprune.surgery._groups import Groups as Groups
from jprune.surgery._groups import contraction_axes as contraction_axes
from jprune.surgery._groups import groups as groups
from jprune.surgery._make import plan_from_keep as plan_from_keep
from jprune.surgery._make import plan_from_masks as plan_from_masks
from jprune.surgery._packed import load_packed as load_packed
from jprune.surgery._packed import pack_file as pack_file
from jprune.surgery._packed import save_packed as save_packed
from jprune.surgery._plan import Plan as Plan
from jprune.surgery._plan import load_plan as load_plan
from jprune.surgery._select import choose as choose
from jprune.surgery._select import select as select
from jprune.surgery._shrink import shrink as shrink
from jprune.surgery._verify import verify as verify

__dir__ = settled(globals())
