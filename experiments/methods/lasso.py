"""LASSO channel pruning against plain removal, before any fine-tuning."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.config import ConfigError
from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods import structured
from experiments.methods.one_shot import recalibration
from experiments.methods.removal import accuracy
from experiments.results import Row
from experiments.rules import percent
from jprune import compress, surgery


def lasso(
    lab: Lab,
    dense: Fit,
    *,
    flops: tuple[float, ...],
    images: int,
    batch: int,
    samples: int,
    stats_momentum: float | None,
) -> Iterator[Row]:
    """For each share of the FLOPs, the same counts removed in four ways.

    Every group inside a block loses the same share of its channels; the stream stays.
    "magnitude": the smallest norms go; "magnitude, refitted": the same, and the readers
    are fitted anew; "lasso, as trained": chosen by LASSO alone; "lasso": both. Each row
    also says what recalibrated batch statistics make of it.

    Args:
      lab: the shared part.
      dense: the run whose result is cut.
      flops: what is to be left.
      images: training examples to calibrate on.
      batch: of them.
      samples: output positions of a convolution, for each batch.
      stats_momentum: of the network's running averages; None: no recalibrated rows.
    """
    deps = structured.find_groups(lab, dense)
    tree = structured.variables(dense.params, dense.stats)
    groups = structured.inner(deps)
    index = lab.dataset.train[:images].astype(np.int32).reshape(-1, batch)
    batches = [lab.replicated(part) for part in index]
    refresh = recalibration(lab, stats_momentum) if stats_momentum else None
    before = lab.logits(dense.params, dense.stats)
    apply = structured.network(lab)

    def fitted(keep: dict[str, Any]) -> Any:
        return compress.reconstruct(
            apply, deps, tree, batches, keep, samples=samples, key=lab.key("lasso")
        )

    for share in flops:
        counts = even_counts(deps, groups, share)
        clock = time.perf_counter()
        chosen = fitted(counts)
        seconds = time.perf_counter() - clock
        norms = {g.id: largest(deps.scores(tree)[g.id], counts[g.id]) for g in groups}
        by_norm = surgery.plan_from_keep(deps, norms)
        refitted = fitted(norms)
        for name, plan, values, took in (
            ("magnitude", by_norm, tree, 0.0),
            ("magnitude, refitted", by_norm, refitted.variables, 0.0),
            ("lasso, as trained", chosen.plan, tree, 0.0),
            ("lasso", chosen.plan, chosen.variables, seconds),
        ):
            found = structured.channel_row(
                lab,
                plan,
                plan.pack(values),
                tree,
                run=f"{name}, {percent(share)} FLOPs",
                method="lasso",
                before=before,
                seconds=took,
                extra=errors(lab, dense, plan, values, refresh)
                | ({"layer error": _mean(chosen)} if name == "lasso" else {}),
            )
            yield found


def even_counts(deps: Any, groups: Any, share: float) -> dict[str, int]:
    """The largest equal share of every group that leaves at most `share` of the FLOPs.

    Raises:
      ConfigError: one channel of each is too much already.
    """
    allowed = share * deps.flops()
    for part in np.linspace(1, 0, 401):
        counts = {g.id: max(1, round(part * g.size)) for g in groups}
        if deps.flops(counts) <= allowed:
            return counts
    raise ConfigError(f"`flops`: the groups alone cannot leave {percent(share)}.")


def largest(scores: Any, count: int) -> np.ndarray:
    """The mask of the `count` largest."""
    keep = np.zeros(len(scores), bool)
    keep[np.argsort(-np.asarray(scores), kind="stable")[:count]] = True
    return keep


def errors(
    lab: Lab, dense: Fit, plan: Any, values: Any, refresh: Any
) -> dict[str, float]:
    """Relative error of the logits, and accuracy with statistics measured anew."""
    params, stats = structured.split(plan.zero(values))
    wanted = np.asarray(lab.logits(dense.params, dense.stats))
    got = np.asarray(lab.logits(params, stats))
    found = {"logit error": float(np.sum((got - wanted) ** 2) / np.sum(wanted**2))}
    if refresh is not None:
        fresh = lab.logits(params, refresh(params, stats))
        found["recalibrated"] = accuracy(lab, fresh)
    return found


def _mean(found: Any) -> float:
    return float(np.mean([fit.fitted for fit in found.layers.values()]))
