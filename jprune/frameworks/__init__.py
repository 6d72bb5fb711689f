"""Compact model objects of the frameworks: one file each, imported by name only.

`surgery.shrink` is a function of any pytree. What a user trains, saves and hands on is
a *model object*; each file here makes one from a model and a plan, of the same kind as
the model:

* `jprune.frameworks.nnx`: a `flax.nnx.Module` with the attributes of the dense one;
* `jprune.frameworks.linen`: a `flax.linen.Module` whose `apply` takes packed variables;
* `jprune.frameworks.equinox`: an `equinox.Module`;
* `jprune.frameworks.haiku`: a pair `init`, `apply`, as `haiku.transform` returns;
* `jprune.frameworks.keras`: a `keras.Model` (JAX backend), and pruning within `fit`.

Each has `groups` (from a model and example inputs to what may be removed), `shrink`
(from a model and a plan to the compact model) and `load` (the same from a plan's file,
for a fresh process). The compact model is the shrunk *function*, not the user's class
at smaller widths: where a norm or a mean runs over removed coordinates the two differ
(`surgery.verify(..., compact=)` tells; `widths` lists what the class must be built
with).

`surgery.verify`, `compress.recalibrate`, `analysis.flops`, `compare`, `latency` and
`relative_cost` take a model object in place of a function, with what `groups` takes
after it.
"""

from jprune._public import settled
from jprune.frameworks._widths import widths as widths

__dir__ = settled(globals())
