"""Global sparse momentum: from the dense network, by saliency, one removal."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.removal import largest, remove
from experiments.results import Row
from experiments.schedules import Rate, learning_rate
from jprune import masks, transforms


def gsm(
    lab: Lab,
    dense: Fit,
    *,
    compression: int,
    epochs: int,
    lr: Rate,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> Iterator[Row]:
    """One run at `compression` times fewer weights.

    The paper's two counts differ by the rounding: floor(n / compression) weights are
    active in each step, n - floor(n (1 - 1 / compression)) are kept at the end.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      compression: how many times fewer weights.
      epochs: length of the run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      nesterov: whether it looks ahead.
      weight_decay: of the kernels; what shrinks the passive weights.
    """
    size, steps = masks.size(dense.params), epochs * lab.per_epoch
    active = size // compression
    kept = size - int(size * (1 - Fraction(1, compression)))

    def transform(_: Any):
        return transforms.gsm(
            learning_rate(lr, steps),
            keep=active,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
        )

    program = compile_program(
        lab, transform, select=lambda params, _: largest(params, lab.count(kept))
    )
    run = lab.run(f"gsm {compression}x")
    done = fit(lab, program, run, epochs, start=dense[:2])
    yield remove(lab, done, run=run.label, method="gsm", kept=kept)
