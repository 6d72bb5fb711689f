"""Top-KAST: a sparse forward pass, gradients for a larger set around it."""

from collections.abc import Iterator

import optax

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods.removal import row
from experiments.methods.reparameterized import train_theta
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import reparam


def top_kast(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    backward: float,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each sparsity, from the initialization, each layer at that sparsity.

    Args:
      lab: the shared part.
      dense: not used.
      sparsity: of the forward pass.
      backward: how many times as many weights get a gradient.
      epochs: length of each run.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of the paper's penalty.
    """
    del dense
    for share in sparsity:
        behind = max(1 - backward * (1 - share), 0.0)
        r = reparam.top_kast(share, behind, decay=weight_decay)
        tx = optax.sgd(warmup_cosine(lr, epochs * lab.per_epoch), momentum)
        run = f"top-kast {percent(share)}"
        done = train_theta(lab, r, tx, run=run, epochs=epochs)
        yield row(
            lab,
            done.params,
            after=lab.logits(done.params, done.stats),
            run=run,
            method="top_kast",
            kept=done.kept(),
            seconds=done.seconds,
        )
