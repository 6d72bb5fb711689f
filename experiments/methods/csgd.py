"""C-SGD: filters of a cluster become equal, then one of them stands for all."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import Rate, learning_rate
from jprune import compress, surgery, transforms


def csgd(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: float,
    clusters: tuple[str, ...],
    strength: float,
    vector_multiplier: float,
    bias_rate: float,
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each way to cluster; removal is a merge, nothing is fine-tuned.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      sparsity: fraction of the channels to remove from every group.
      clusters: "kmeans", "even", "imbalanced".
      strength: the pull to the mean.
      vector_multiplier: of the pull, on biases and norm scales.
      bias_rate: of the learning rate, on biases.
      epochs: length of each run.
      lr: see `schedules.learning_rate`.
      momentum: of Nesterov.
      weight_decay: of the kernels.
    """
    deps = structured.find_groups(lab, dense)
    groups = structured.coupled(deps)
    steps = epochs * lab.per_epoch
    for how in clusters:
        found = compress.find_clusters(
            dense.params,
            groups,
            sparsity=sparsity,
            how=how,  # pyright: ignore[reportArgumentType]
        )

        def transform(_: Any, found: Any = found):
            return transforms.csgd(
                learning_rate(lr, steps),
                groups,
                found,
                strength=strength,
                weight_decay=weight_decay,
                momentum=momentum,
                vector_multiplier=vector_multiplier,
                bias_rate=bias_rate,
                total_steps=steps,
            )

        run = lab.run(f"csgd {percent(sparsity)} {how}", clusters=how)
        program = compile_program(lab, transform)
        done = fit(lab, program, run, epochs, start=dense[:2])
        yield _merged(lab, deps, groups, found, done, run.label)


def _merged(
    lab: Lab, deps: Any, groups: Any, found: dict[str, Any], done: Fit, run: str
) -> Row:
    """The row of the merged network, and what plain deletion would have cost."""
    tree = structured.variables(done.params, done.stats)
    before = lab.logits(done.params, done.stats)
    index = structured.examples(lab, lab.batch)
    merged = compress.merge(structured.network(lab), deps, tree, found, index)
    made = structured.channel_row(
        lab,
        merged.plan,
        merged.variables,
        tree,
        run=run,
        method="csgd",
        before=before,
        seconds=done.seconds,
    )
    keep = [_first_members(found[group.id]) for group in groups]
    plan = surgery.plan_from_keep(
        deps, {group.id: k for group, k in zip(groups, keep, strict=True)}
    )
    deleted = structured.channel_row(
        lab, plan, plan.pack(tree), tree, run=run, method="csgd", before=None, seconds=0
    )
    extra = {
        **(made.extra or {}),
        "deviation": max(merged.deviation.values()),
        "accuracy by deletion": deleted.after,
    }
    return made._replace(extra=extra)


def _first_members(numbers: Any) -> np.ndarray:
    keep = np.zeros(len(numbers), bool)
    keep[np.unique(numbers, return_index=True)[1]] = True
    return keep
