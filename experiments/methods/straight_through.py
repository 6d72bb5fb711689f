"""Dense weights trained through the mask of their largest magnitudes."""

from collections.abc import Iterator

import optax

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods.removal import row
from experiments.methods.reparameterized import decayed, train_theta
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, reparam


def straight_through(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each sparsity, from the initialization; sparse at every step.

    Args:
      lab: the shared part.
      dense: the dense run; only the shapes of its parameters are used.
      sparsity: fractions to remove.
      epochs: length of each run.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of all dense weights, pruned now or not.
    """
    for share in sparsity:
        kept = masks.kept_count(masks.size(dense.params), share)
        r = reparam.straight_through(lambda p, k=kept: masks.unstructured(p, keep=k))
        rate = warmup_cosine(lr, epochs * lab.per_epoch)
        tx = optax.chain(decayed(weight_decay), optax.sgd(rate, momentum))
        run = f"straight-through {percent(share)}"
        done = train_theta(lab, r, tx, run=run, epochs=epochs)
        yield row(
            lab,
            done.params,
            after=lab.logits(done.params, done.stats),
            run=run,
            method="straight_through",
            kept=kept,
            seconds=done.seconds,
        )
