"""The moment of removal: the network before it against the network after it."""

from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.results import Row
from jprune import masks, scores, transforms


def kernels(params: Any, scope: Any = None) -> list[Any]:
    """The leaves that are ranked, in flattening order."""
    scope = masks.prunable(params) if scope is None else scope
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(scope), strict=True)
    return [leaf for leaf, taken in pairs if taken]


@jax.jit
def largest(params: Any, keep: jax.Array) -> Any:
    """The mask of the `keep` largest magnitudes over all kernels, exactly.

    Compiled once for a whole job: the count is traced.
    """
    return masks.unstructured(scores.magnitude(params), keep=keep)


def remove(
    lab: Lab,
    fit: Fit,
    *,
    run: str,
    method: str,
    kept: int,
) -> Row:
    """The row of a run that ends with the removal of all but the largest weights.

    Args:
      lab: the shared part.
      fit: a finished run.
      run: label of the row.
      method: name of the method.
      kept: how many weights were to be kept.
    """
    params, _ = transforms.finish(fit.params, lambda p: largest(p, lab.count(kept)))
    return row(
        lab,
        params,
        after=lab.logits(params, fit.stats),
        before=lab.logits(fit.params, fit.stats),
        run=run,
        method=method,
        kept=kept,
        seconds=fit.seconds,
    )


def row(
    lab: Lab,
    params: Any,
    *,
    after: ArrayLike,
    run: str,
    method: str,
    kept: int,
    before: ArrayLike | None = None,
    seconds: float = 0.0,
) -> Row:
    """A row on pruned parameters; their zeros are counted here, in NumPy.

    Args:
      lab: the shared part.
      params: the parameters after removal.
      after: their logits on the test set, [test, classes].
      run: label of the row.
      method: name of the method.
      kept: how many weights were to be kept.
      before: the logits just before removal, if there is such a moment.
      seconds: wall time of the run.
    """
    size, nonzero = masks.size(params), count_nonzero(params)
    found = Row(
        run=run,
        method=method,
        asked=1 - kept / size,
        got=1 - nonzero / size,
        kept=kept,
        nonzero=nonzero,
        after=accuracy(lab, after),
        seconds=seconds,
    )
    if before is None:
        return found
    old, new = np.asarray(before), np.asarray(after)
    return found._replace(
        before=accuracy(lab, old),
        changed=int(np.sum(old.argmax(-1) != new.argmax(-1))),
        logit_change=float(np.abs(old - new).max()),
    )


def accuracy(lab: Lab, logits: ArrayLike) -> float:
    """Share of the test set whose largest logit is its label's."""
    wanted = lab.dataset.labels[lab.dataset.test]
    return float(np.mean(np.asarray(logits).argmax(-1) == wanted))


def count_nonzero(params: Any) -> int:
    """Weights of the prunable leaves that are not exactly 0."""
    scope = masks.prunable(params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(scope), strict=True)
    return sum(int(np.count_nonzero(np.asarray(leaf))) for leaf, on in pairs if on)
