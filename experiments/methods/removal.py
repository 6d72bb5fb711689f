"""The moment of removal: the network before it against the network after it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.results import Row
from jprune import masks, scores, transforms


def largest(keep: Any, scope: Any = None) -> Callable[[Any], Any]:
    """Selects the `keep` largest magnitudes over all kernels, exactly."""
    return lambda params: masks.unstructured(
        scores.magnitude(params), keep=keep, scope=scope
    )


def remove(
    lab: Lab,
    fit: Fit,
    select: Callable[[Any], Any],
    *,
    run: str,
    method: str,
    kept: int,
) -> Row:
    """The row of a run that ends with a removal: what `select` leaves out goes to 0.

    Args:
      lab: the shared part.
      fit: a finished run.
      select: parameters -> mask.
      run: label of the row.
      method: name of the method.
      kept: how many weights were to be kept.
    """
    params, _ = transforms.finish(fit.params, select)
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
