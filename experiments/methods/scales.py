"""Shrinking scales: a proximal step closes channels and whole blocks, without noise."""

from collections.abc import Iterator
from typing import Any

import optax

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods import gates, structured
from experiments.methods.one_shot import recalibration
from experiments.methods.reparameterized import decayed, train_theta
from experiments.results import Row
from experiments.schedules import warmup_cosine
from jprune import masks, reparam


def scales(
    lab: Lab,
    dense: Fit,
    *,
    price: tuple[float, ...],
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    stats_momentum: float,
    tune_epochs: int,
    tune_lr: float,
) -> Iterator[Row]:
    """One row for each price, from the dense network; as those of `gates`.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      price: of the mean gate.
      epochs: length of the run.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.
      stats_momentum: of the network's running averages.
      tune_epochs: length of the training with closed gates held at zero.
      tune_lr: where its cosine starts.
    """
    deps = structured.find_groups(lab, dense)
    groups = structured.inner(deps)
    blocks = gates.branches(lab, deps, dense)
    refresh = recalibration(lab, stats_momentum)
    rate = warmup_cosine(lr, epochs * lab.per_epoch)
    tuning = {"epochs": tune_epochs, "lr": tune_lr, "momentum": momentum}
    for most in price:
        r = reparam.shrinking_scales(
            groups, blocks, price=most, learning_rate=rate, cost=deps.flops
        )

        def kernels(theta: Any) -> Any:
            factors = dict.fromkeys(theta.branches, False)
            return type(theta)(masks.prunable(theta.weights), factors)

        tx = optax.chain(decayed(weight_decay, kernels), optax.sgd(rate, momentum))
        run = lab.run(f"scales {most:g}", price=most)
        start = (dense.params, dense.stats)
        done = train_theta(lab, r, tx, run=run, epochs=epochs, start=start)
        done = done._replace(stats=refresh(done.params, done.stats))
        yield gates.cut(lab, deps, done, run, "scales", tuning, {})
