"""SLS: every layer learns the N of its N:M until the network meets a budget."""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from experiments.lab import Lab
from experiments.loop import Fit
from experiments.methods.removal import row
from experiments.methods.reparameterized import (
    decayed,
    layer_sparsities,
    train_theta,
)
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, reparam


def sls(
    lab: Lab,
    dense: Fit,
    *,
    m: int,
    density: tuple[float, ...],
    uniform: bool,
    weight: float,
    scope: str,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each budget, from the dense network; two with `uniform`.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      m: group length.
      density: budgets, as fractions of the parameters in scope.
      uniform: also the same N in every layer, straight-through, for comparison.
      weight: of the relative cost.
      scope: regular expression of the kernels that take part.
      epochs: length of each run.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    inside = masks.prunable(dense.params, include=scope)
    for budget in density:
        search = reparam.learned_n_of_m(
            m,
            target=budget,
            weight=weight,
            scope=inside,
            steps_per_epoch=lab.per_epoch,
        )
        choices = {f"sls {percent(budget)}": search}
        if uniform:
            n = max(int(budget * m), 1)
            choices[f"uniform {n}:{m}"] = reparam.straight_through_n_of_m(
                n, m, scope=inside
            )
        for run, r in choices.items():
            rate = warmup_cosine(lr, epochs * lab.per_epoch)
            tx = optax.chain(decayed(weight_decay, kernels), optax.sgd(rate, momentum))
            start = (dense.params, dense.stats)
            done = train_theta(lab, r, tx, run=run, epochs=epochs, start=start)
            yield row(
                lab,
                done.params,
                after=lab.logits(done.params, done.stats),
                run=run,
                method="sls",
                kept=done.kept(),
                seconds=done.seconds,
            )._replace(extra=layer_sparsities(done.mask))


def kernels(theta: Any) -> Any:
    """The kernels of the weights, no priority: what decays."""
    if hasattr(theta, "priorities"):
        nothing = jax.tree.map(lambda _: False, theta)
        return nothing._replace(weights=masks.prunable(theta.weights))
    return masks.prunable(theta)
