"""Global sparse momentum: from the dense network, by saliency, one removal."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.removal import largest, remove
from experiments.methods.swept import row_of, sgd
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
    how = (epochs, lr, momentum, nesterov, weight_decay)
    done, kept = _trained(lab, dense, compression, *how)
    run = f"gsm {compression}x"
    yield remove(lab, done, run=run, method="gsm", kept=kept)


def gsm_tickets(
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
    """`gsm`, and its winning tickets against those by magnitude.

    A ticket is the initial network under a mask, trained as the dense one was: under
    the largest weights of the dense network, and under the largest that GSM leaves. The
    dense network cut at once has a row too.

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
    how = (epochs, lr, momentum, nesterov, weight_decay)
    done, kept = _trained(lab, dense, compression, *how)
    end = f"{compression}x"
    yield remove(lab, done, run=f"gsm {end}", method="gsm", kept=kept)
    yield remove(lab, dense, run=f"one-shot {end}", method="one_shot", kept=kept)
    base, keep = lab.config.dense, lab.count(kept)
    rate = learning_rate(base["lr"], base["epochs"] * lab.per_epoch)
    program = compile_program(
        lab,
        lambda mask: sgd(
            rate, base["momentum"], base["weight_decay"], transforms.keep_masked(mask)
        ),
    )
    params, stats = lab.init()
    for name, whole in (("magnitude", dense.params), ("GSM", done.params)):
        mask = largest(whole, keep)
        run = lab.run(f"ticket by {name} {end}", ticket=name)
        start = (masks.apply(mask, params), stats)
        own = fit(lab, program, run, base["epochs"], start=start, hyper=mask)
        yield row_of(lab, own, run=run.label, method="ticket", kept=kept)


def _trained(
    lab: Lab,
    dense: Fit,
    compression: int,
    epochs: int,
    lr: Rate,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[Fit, int]:
    """The run before its removal, and how many weights that leaves."""
    size, steps = masks.size(dense.params), epochs * lab.per_epoch
    kept = size - int(size * (1 - Fraction(1, compression)))

    def transform(_: Any):
        return transforms.gsm(
            learning_rate(lr, steps),
            keep=size // compression,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
        )

    program = compile_program(
        lab, transform, select=lambda params, _: largest(params, lab.count(kept))
    )
    run = lab.run(f"gsm {compression}x")
    return fit(lab, program, run, epochs, start=dense[:2]), kept
