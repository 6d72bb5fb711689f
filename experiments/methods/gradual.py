"""Gradual magnitude pruning: from the dense network, along the cubic of Zhu & Gupta."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import optax

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.removal import row
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, transforms


def gradual(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    batch: int,
    epochs: int,
    end: float,
    every: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each sparsity; the zeros are there before training ends.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      sparsity: fractions to remove.
      batch: examples in a step.
      epochs: length of each run.
      end: share of the run after which nothing more is removed.
      every: steps between removals.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch

    def transform(final: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(weight_decay, mask=masks.prunable),
            optax.sgd(warmup_cosine(lr, steps), momentum),
            transforms.prune_gradually(final, end=round(end * steps), every=every),
        )

    program = compile_program(lab, transform)
    for share in sparsity:
        kept = masks.kept_count(masks.size(dense.params), share)
        run = f"gradual {percent(share)}"
        start = (dense.params, dense.stats)
        done = fit(lab, program, run, epochs, start=start, hyper=np.float32(share))
        yield row(
            lab,
            done.params,
            after=lab.logits(done.params, done.stats),
            run=run,
            method="gradual",
            kept=kept,
            seconds=done.seconds,
        )
