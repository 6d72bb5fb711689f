"""jprune: pruning for JAX.

Pruning methods are Optax gradient transformations, masks are pure functions of pytrees,
and removal is a JAX function transformation. Everything works on any pytree of arrays
and any apply function.

A *mask* is a pytree of bool arrays with the structure of the parameters, True = keep; a
leaf out of scope holds a 0-d True. *Sparsity* is the fraction that is zero.
"""

from jprune import analysis as analysis
from jprune import at_init as at_init
from jprune import compress as compress
from jprune import masks as masks
from jprune import reparam as reparam
from jprune import scores as scores
from jprune import selection as selection
from jprune import surgery as surgery
from jprune import transforms as transforms
from jprune._cite import cite as cite
from jprune._version import __version__ as __version__
