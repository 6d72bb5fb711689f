"""Adaptive sparsity loss: thresholds learn the sparsity of each layer, to a budget."""

from collections.abc import Iterator
from typing import Any, Literal

import optax

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods.removal import row
from experiments.methods.reparameterized import layer_sparsities, train_theta
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, reparam


def asl(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    weight: float,
    budget: Literal["global", "leaf"],
    min_size: int,
    epochs: int,
    lr: float,
    threshold_rate: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each sparsity, from the initialization.

    A row tells the sparsity that the thresholds predict beside the one there is.

    Args:
      lab: the shared part.
      dense: unused.
      sparsity: targets of the loss.
      weight: of the sparsity loss.
      budget: "global" or "leaf".
      min_size: kernels with fewer weights stay dense.
      epochs: length of each run.
      lr: where the cosine of the weights starts.
      threshold_rate: learning rate of the thresholds over that of the weights.
      momentum: of heavy ball, for both.
      weight_decay: of the weights.
    """
    del dense
    for share in sparsity:
        r = reparam.learned_thresholds(
            share, weight=weight, budget=budget, min_size=min_size
        )
        steps = epochs * lab.per_epoch
        weights = optax.chain(
            optax.add_decayed_weights(weight_decay, mask=masks.prunable),
            optax.sgd(warmup_cosine(lr, steps), momentum),
        )
        thresholds = optax.sgd(warmup_cosine(threshold_rate * lr, steps), momentum)
        tx = optax.partition(
            {"weights": weights, "thresholds": thresholds},
            lambda theta: theta._replace(weights="weights", thresholds="thresholds"),
        )
        run = f"asl {budget} {percent(share)}"
        done = train_theta(lab, r, tx, run=run, epochs=epochs)
        extra = {"predicted": predicted(done.theta), **layer_sparsities(done.mask)}
        yield row(
            lab,
            done.params,
            after=lab.logits(done.params, done.stats),
            run=run,
            method="asl",
            kept=done.kept(),
            seconds=done.seconds,
        )._replace(extra=extra)


def predicted(theta: Any) -> float:
    """The sparsity that a Gaussian would have under these thresholds."""
    sizes = {
        name: masks.size(theta.weights, scope=f"^{name}$") for name in theta.thresholds
    }
    left = sum(
        float(reparam.predicted_density(x)) * sizes[name]
        for name, x in theta.thresholds.items()
    )
    return 1 - left / sum(sizes.values())
