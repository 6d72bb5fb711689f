"""jprune: pruning for JAX.

Pruning methods are Optax gradient transformations, masks are pure functions of pytrees,
and removal is a JAX function transformation. Everything works on any pytree of arrays
and any apply function.

A *mask* is a pytree of bool arrays with the structure of the parameters, True = keep; a
leaf out of scope holds a 0-d True. *Sparsity* is the fraction that is zero.

Contents, in the order in which most people need them:

* `jprune.masks`: which weights stay. Patterns, allocations, scopes; apply and count.
* `jprune.scores`: what a weight, channel or group is worth.
* `jprune.transforms`: pruning while training, one line of an Optax chain.
* `jprune.reparam`: pruning that is learned as part of the weights.
* `jprune.at_init`: pruning before training, or in its first epochs.
* `jprune.surgery`: from masks or scores to a smaller, faster function and parameters.
* `jprune.compress`: what changes values at removal: merge, low rank, N:M storage.
* `jprune.analysis`: what is left, what it costs, how a run went.
* `jprune.frameworks`: models of NNX, Linen, Equinox, Haiku and Keras made compact.
* `jprune.selection`: the k-th largest entry, exactly, for a method of your own.
* `jprune.cite`: the paper behind a method. `python -m jprune`: the command line.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jprune._cite import cite as cite
from jprune._version import __version__ as __version__

if TYPE_CHECKING:
    from jprune import analysis as analysis
    from jprune import at_init as at_init
    from jprune import compress as compress
    from jprune import masks as masks
    from jprune import reparam as reparam
    from jprune import scores as scores
    from jprune import selection as selection
    from jprune import surgery as surgery
    from jprune import transforms as transforms

__all__ = (
    "__version__",
    "analysis",
    "at_init",
    "cite",
    "compress",
    "masks",
    "reparam",
    "scores",
    "selection",
    "surgery",
    "transforms",
)


def __getattr__(name: str) -> Any:
    """A package, imported at its first use."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
