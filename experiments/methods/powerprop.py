"""Powerpropagation, then magnitude pruning of the result without any retraining."""

from collections.abc import Iterator

import jax
import numpy as np
import optax

from experiments.lab import Lab
from experiments.methods.removal import row
from experiments.methods.reparameterized import decayed, train_theta
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, reparam, transforms


def powerprop(
    lab: Lab,
    *,
    alpha: tuple[float, ...],
    sparsity: tuple[float, ...],
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each power, one row for each power and sparsity.

    Each kernel loses the same share. A row also tells the overlap: on which share of
    the weights the masks by magnitude of the initial and of the trained network agree.

    Args:
      lab: the shared part.
      alpha: the powers; 1 is the ordinary network.
      sparsity: fractions to remove at the end.
      epochs: length of each run.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of theta.
    """
    first, _ = lab.init()
    for power in alpha:
        r = reparam.powerpropagation(power)
        rate = warmup_cosine(lr, epochs * lab.per_epoch)
        tx = optax.chain(decayed(weight_decay), optax.sgd(rate, momentum))
        done = train_theta(
            lab,
            r,
            tx,
            run=lab.run(f"alpha {power:g}", alpha=power, sparsity=None),
            epochs=epochs,
        )
        before = lab.logits(done.params, done.stats)
        for share in sparsity:
            select = jax.jit(
                lambda p, share=share: masks.unstructured(p, share, ranking="leaf")
            )
            params, mask = transforms.finish(done.params, select)
            yield row(
                lab,
                params,
                before=before,
                after=lab.logits(params, done.stats),
                run=f"alpha {power:g}, {percent(share)}",
                method="powerprop",
                kept=int(masks.count(mask)),
                seconds=done.seconds,
            )._replace(extra={"overlap": agreement(select(first), mask)})


def agreement(a: dict, b: dict) -> float:
    """The share of the covered weights on which two masks say the same."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    same = [np.asarray(x == y).ravel() for x, y in pairs if x.ndim]
    return float(np.concatenate(same).mean())
