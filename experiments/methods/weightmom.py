"""WeightMom's reading: gradual pruning by a running average of the magnitudes."""

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


def weightmom(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    strengths: tuple[tuple[float, float], ...],
    batch: int,
    epochs: int,
    begin: float,
    end: float,
    every: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each sparsity and strength; beta = gamma = 0 is gradual magnitude.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      sparsity: fractions to remove.
      strengths: pairs of beta (memory) and gamma (weight of the relative sparsity).
      batch: examples in a step.
      epochs: length of each run.
      begin: share of the run before which nothing is removed.
      end: share of the run after which nothing more is removed.
      every: steps between removals.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch

    def transform(hyper: Any) -> optax.GradientTransformation:
        final, beta, gamma = hyper
        return optax.chain(
            optax.add_decayed_weights(weight_decay, mask=masks.prunable),
            optax.sgd(warmup_cosine(lr, steps), momentum),
            transforms.prune_by_weight_history(
                final,
                begin=round(begin * steps),
                end=round(end * steps),
                every=every,
                beta=beta,
                gamma=gamma,
            ),
        )

    program = compile_program(lab, transform)
    for share in sparsity:
        kept = masks.kept_count(masks.size(dense.params), share)
        for beta, gamma in strengths:
            run = f"weightmom {percent(share)} beta {beta:g} gamma {gamma:g}"
            hyper = tuple(np.float32(x) for x in (share, beta, gamma))
            start = (dense.params, dense.stats)
            done = fit(lab, program, run, epochs, start=start, hyper=hyper)
            yield row(
                lab,
                done.params,
                after=lab.logits(done.params, done.stats),
                run=run,
                method="weightmom",
                kept=kept,
                seconds=done.seconds,
            )
