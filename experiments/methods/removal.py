"""The moment of removal: the network before it against the network after it."""

from typing import Any

import jax
import numpy as np

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.results import Row
from jprune import masks, scores, transforms


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
    before, after = (fit.params, fit.stats), (params, fit.stats)
    found = compare(lab, before, after, run=run, method=method, kept=kept)
    return found._replace(seconds=fit.seconds)


def compare(
    lab: Lab,
    before: tuple[Any, Any],
    after: tuple[Any, Any],
    *,
    run: str,
    method: str,
    kept: int,
) -> Row:
    """A row on two networks: what removal changed on the test set.

    Args:
      lab: the shared part.
      before: parameters and statistics before removal.
      after: those after it.
      run: label of the row.
      method: name of the method.
      kept: how many weights were to be kept.
    """
    old, new = (np.asarray(lab.logits(*variables)) for variables in (before, after))
    return row(lab, after[0], new, run=run, method=method, kept=kept)._replace(
        before=accuracy(lab, old),
        changed=int(np.sum(old.argmax(-1) != new.argmax(-1))),
        logit_change=float(np.abs(old - new).max()),
    )


def row(
    lab: Lab, params: Any, logits: np.ndarray, *, run: str, method: str, kept: int
) -> Row:
    """A row on pruned parameters; what is zero is counted here, in NumPy.

    Args:
      lab: the shared part.
      params: the parameters after removal.
      logits: theirs, on the test set.
      run: label of the row.
      method: name of the method.
      kept: how many weights were to be kept.
    """
    size = masks.size(params)
    nonzero = count_nonzero(params)
    return Row(
        run=run,
        method=method,
        asked=1 - kept / size,
        got=1 - nonzero / size,
        kept=kept,
        nonzero=nonzero,
        after=accuracy(lab, logits),
    )


def accuracy(lab: Lab, logits: np.ndarray) -> float:
    """Share of the test set whose largest logit is its label's."""
    wanted = lab.dataset.labels[lab.dataset.test]
    return float(np.mean(np.asarray(logits).argmax(-1) == wanted))


def count_nonzero(params: Any) -> int:
    """Weights of the prunable leaves that are not exactly 0."""
    scope = masks.prunable(params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(scope), strict=True)
    return sum(int(np.count_nonzero(np.asarray(leaf))) for leaf, on in pairs if on)
