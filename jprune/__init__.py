"""jprune: pruning for JAX.

Pruning methods are Optax gradient transformations, masks are pure functions of pytrees,
and removal is a JAX function transformation. Everything works on any pytree of arrays
and any apply function.

A *mask* is a pytree of bool arrays with the structure of the parameters, True = keep; a
leaf out of scope holds a 0-d True. *Sparsity* is the fraction that is zero.

Packages, each imported when it is first used:

* `scores`: how important an entry, a channel or a group is.
* `masks`: which entries stay, how they are applied and counted.
* `transforms`: pruning methods as Optax transformations, and their recipes.
* `reparam`: weights as a function of other parameters (gates, thresholds).
* `at_init`: masks before training.
* `surgery`: what must shrink together, and the smaller function.
* `compress`: merge, reconstruct, low rank, fold constants, packed storage.
* `analysis`: reports, FLOPs, latency, plots.
* `selection`: the exact k-th largest that all of it rests on.
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
    return sorted({*globals(), *__all__})
