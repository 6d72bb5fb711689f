"""Selective weight decay: from the initialization, no fine-tuning, one removal."""

from collections.abc import Iterator
from typing import Any

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.removal import largest, remove
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, transforms


def swd(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    batch: int,
    epochs: int,
    lr: float,
    momentum: float,
    mu: float,
    a_min: float,
    a_max: float,
) -> Iterator[Row]:
    """One run for each sparsity; one compiled step serves them all.

    Args:
      lab: the shared part.
      dense: the dense run; only the shapes of its parameters are used.
      sparsity: fractions to remove.
      batch: examples in a step; small ones serve it better than more epochs.
      epochs: length of each run.
      lr: where the cosine starts.
      momentum: of heavy ball.
      mu: base weight decay of the kernels.
      a_min: first strength of the selective decay.
      a_max: last one; exponential in between.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch

    def transform(keep: Any):
        return transforms.swd(
            warmup_cosine(lr, steps),
            mu=mu,
            a_min=a_min,
            a_max=a_max,
            total_steps=steps,
            keep=keep,
            momentum=momentum,
            remove=False,
        )

    program = compile_program(lab, transform, select=largest)
    for share in sparsity:
        kept = masks.kept_count(masks.size(dense.params), share)
        run = f"swd {percent(share)}"
        done = fit(lab, program, run, epochs, hyper=lab.count(kept))
        yield remove(lab, done, run=run, method="swd", kept=kept)
