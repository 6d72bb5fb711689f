"""Iterative magnitude pruning: rewound in two ways, and one round of it alone."""

import time
from collections.abc import Iterator
from typing import Any

import optax

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.removal import row
from experiments.methods.swept import sgd
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, transforms


def iterative(
    lab: Lab,
    *,
    sparsity: tuple[float, ...],
    rounds: int,
    early_epochs: int,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """Three rows for each sparsity: weights rewound, learning rate rewound, one round.

    Args:
      lab: the shared part.
      sparsity: fractions to remove.
      rounds: how many times a share is removed.
      early_epochs: length of the run whose end the weights go back to.
      epochs: length of the run of each round, the schedule from its start.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    steps = epochs * lab.per_epoch

    def transform(mask: Any) -> optax.GradientTransformation:
        rate, held = warmup_cosine(lr, steps), transforms.keep_masked(mask)
        return sgd(rate, momentum, weight_decay, held)

    program = compile_program(lab, transform)
    params, stats = lab.init()
    everything = lab.replicated(masks.full(params))
    early = lab.run("iterative, early", form="early")
    first = fit(lab, program, early, early_epochs, hyper=everything)

    def prune(form: str, share: float, count: int, rewind: Any) -> Row:
        run = lab.run(f"{form} {percent(share)}", form=form, sparsity=share)
        runs: list[Fit] = []

        def train(start: Any, mask: Any) -> Any:
            name = run.then(f"round {len(runs)}")
            runs.append(
                fit(lab, program, name, epochs, start=(start, stats), hyper=mask)
            )
            return runs[-1].params

        clock = time.perf_counter()
        found, mask = transforms.prune_iteratively(
            train,
            params,
            share,
            rounds=count,
            rewind=rewind,
            early=first.params,
        )
        return row(
            lab,
            found,
            after=lab.logits(found, runs[-1].stats),
            run=run.label,
            method="iterative",
            kept=masks.kept_count(masks.size(params), share),
            seconds=time.perf_counter() - clock,
        )

    for share in sparsity:
        yield prune("weights rewound", share, rounds, "weights")
        yield prune("rate rewound", share, rounds, "learning_rate")
        yield prune("one round", share, 1, "learning_rate")
