"""Iterative soft shrinkage: from the initialization, sparse in mind from step 0."""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import optax

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.removal import kernels, row
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import drops
from jprune import transforms


def issp(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    factors: tuple[float, ...],
    batch: int,
    epochs: int,
    end: float,
    lr: float,
    drops_at: tuple[float, ...],
) -> Iterator[Row]:
    """One run for each factor and sparsity; one compiled step serves them all.

    Args:
      lab: the shared part.
      dense: the dense run; only the shapes of its parameters are used.
      sparsity: fractions to remove of each kernel.
      factors: what low weights are multiplied by; 0 is iterative hard thresholding.
      batch: examples in a step.
      epochs: length of each run.
      end: share of the run after which the low set is zero.
      lr: Adam's constant rate.
      drops_at: shares of the run at which it drops to a fifth.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch

    def transform(hyper: Any) -> optax.GradientTransformation:
        return transforms.issp(
            drops(lr, steps, drops_at, 0.2),
            sparsity=hyper["sparsity"],
            factor=hyper["factor"],
            end=round(end * steps),
        )

    program = compile_program(lab, transform)
    for factor in factors:
        for share in sparsity:
            name = f"iss-p {factor:g}" if factor else "iht"
            run = f"{name}, {percent(share)}"
            hyper = {"sparsity": np.float32(share), "factor": np.float32(factor)}
            done = fit(lab, program, run, epochs, hyper=hyper)
            yield _row(lab, done, run, "issp", share)


def issr(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    increments: tuple[float, ...],
    every: int,
    limit: float,
    batch: int,
    epochs: int,
    end: float,
    lr: float,
    drops_at: tuple[float, ...],
) -> Iterator[Row]:
    """One run for each increment and sparsity.

    Args:
      lab: the shared part.
      dense: the dense run; only the shapes of its parameters are used.
      sparsity: fractions to remove of each kernel.
      increments: by which the decay of a low weight grows.
      every: steps between two growths.
      limit: of the decay.
      batch: examples in a step.
      epochs: length of each run.
      end: share of the run after which the low set is zero at the latest.
      lr: Adam's constant rate.
      drops_at: shares of the run at which it drops to a fifth.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch
    for share in sparsity:

        def transform(increment: Any, share=share) -> optax.GradientTransformation:
            return transforms.issr(
                drops(lr, steps, drops_at, 0.2),
                sparsity=share,
                increment=increment,
                every=every,
                limit=limit,
                end=round(end * steps),
            )

        program = compile_program(lab, transform)
        for increment in increments:
            run = f"iss-r {increment:g}, {percent(share)}"
            done = fit(lab, program, run, epochs, hyper=np.float32(increment))
            yield _row(lab, done, run, "issr", share)


def _row(lab: Lab, done: Fit, run: str, method: str, share: float) -> Row:
    """The row of a finished run; how many were to be kept is counted anew here."""
    sizes = [x.size for x in kernels(done.params)]
    low = [min(ceil(Fraction(str(share)) * n), int(0.995 * n)) for n in sizes]
    return row(
        lab,
        done.params,
        after=lab.logits(done.params, done.stats),
        run=run,
        method=method,
        kept=sum(sizes) - sum(low),
        seconds=done.seconds,
    )
