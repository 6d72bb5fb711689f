"""Importances: pure functions from parameters (and gradients) to a tree of scores.

Every function returns a tree with the structure and shapes of the parameters, finite on
zeros. Scores are non-negative, larger = more important, except `movement`, which is
signed: rank it with `masks.unstructured(..., signed=True)`. Leaves that are not
floating point (random keys, counters) come back as they are; masks leave them out.

* Of the weights alone: `magnitude`, `lamp`, `random`.
* With gradients or activations: `saliency`, `second_order`, `movement`, `wanda`,
  `relative_change`.
* Of filters whose scale a norm hides: `invariant_magnitude`.
* Of what is removed together: `channel_norm`, `block_norm`, `over_groups`,
  `geometric_median`.
* Made comparable between leaves: `normalized`.
"""

from jprune._public import settled
from jprune.scores._groups import over_groups as over_groups
from jprune.scores._invariant import invariant_magnitude as invariant_magnitude
from jprune.scores._lamp import lamp as lamp
from jprune.scores._median import geometric_median as geometric_median
from jprune.scores._scores import block_norm as block_norm
from jprune.scores._scores import channel_norm as channel_norm
from jprune.scores._scores import magnitude as magnitude
from jprune.scores._scores import movement as movement
from jprune.scores._scores import normalized as normalized
from jprune.scores._scores import random as random
from jprune.scores._scores import relative_change as relative_change
from jprune.scores._scores import saliency as saliency
from jprune.scores._scores import second_order as second_order
from jprune.scores._scores import wanda as wanda

__dir__ = settled(globals())
