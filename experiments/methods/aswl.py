"""ASWL: attentions learn the sparsity of each layer with its weights."""

from collections.abc import Iterator

import optax

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods.removal import row
from experiments.methods.reparameterized import layer_sparsities, train_theta
from experiments.results import Row
from experiments.schedules import warmup_cosine
from jprune import reparam


def aswl(
    lab: Lab,
    dense: Fit,
    *,
    density: tuple[float, ...],
    gamma: float,
    alpha: float,
    decay: float,
    epochs: int,
    lr: float,
    attention_rate: float,
    momentum: float,
) -> Iterator[Row]:
    """One run for each density at which the penalty is least, from the initialization.

    Args:
      lab: the shared part.
      dense: unused.
      density: r of the penalty; 0 is the paper's.
      gamma: weight of the penalty.
      alpha: exponent from attention to sparsity.
      decay: of the squared pruned weights.
      epochs: length of each run.
      lr: where the cosine of the weights starts.
      attention_rate: learning rate of the attentions over that of the weights.
      momentum: of heavy ball, for both.
    """
    del dense
    for target in density:
        r = reparam.learned_attention(
            gamma=gamma, alpha=alpha, decay=decay, target=target
        )
        steps = epochs * lab.per_epoch
        rates = {"weights": lr, "attention": attention_rate * lr}
        tx = optax.partition(
            {k: optax.sgd(warmup_cosine(v, steps), momentum) for k, v in rates.items()},
            lambda theta: theta._replace(weights="weights", attention="attention"),
        )
        run = f"aswl r={target:g}"
        done = train_theta(lab, r, tx, run=run, epochs=epochs)
        yield row(
            lab,
            done.params,
            after=lab.logits(done.params, done.stats),
            run=run,
            method="aswl",
            kept=done.kept(),
            seconds=done.seconds,
        )._replace(extra=layer_sparsities(done.mask))
