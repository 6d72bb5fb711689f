"""Contenders that start from a dense network and pay for it with half of the budget."""

from typing import Any

import jax
import optax

from experiments import lanes
from experiments.systems import arena
from experiments.systems.arena import Task, Train, Trial, compile_program, held
from jprune import masks, reparam, transforms


@arena.contender("one-shot, trained on", "lr")
def one_shot(trial: Trial, *, momentum: float, weight_decay: float) -> Train:
    """The dense network cut at once, then trained on."""
    steps = trial.half * trial.shared.per_epoch
    program = held(trial, momentum, weight_decay, steps)

    def train(task: Task) -> Any:
        mask = lanes.largest(task.start(), task.kept)
        start = lanes.apply(mask, task.start())
        return task.fit(program, trial.half, start=start, mask=mask)

    return train


@arena.contender("iterative, rate rewound", "lr")
def iterative(
    trial: Trial, *, momentum: float, weight_decay: float, rounds: int
) -> Train:
    """The dense network cut in equal ratios, each round trained from the full rate."""
    each = trial.half // rounds
    program = held(trial, momentum, weight_decay, each * trial.shared.per_epoch)

    def train(task: Task) -> Any:
        params = task.start()
        for done in range(1, rounds + 1):
            share = 1 - (1 - task.sparsity) ** (done / rounds)
            kept = masks.kept_count(trial.size, share) if done < rounds else task.kept
            mask = lanes.largest(params, kept)
            start = lanes.apply(mask, params)
            stage = f", round {done}"
            params = task.fit(program, each, start=start, mask=mask, stage=stage)
        return params

    return train


@arena.contender("GSM", "weight_decay")
def gsm(trial: Trial, *, lr: float, momentum: float) -> Train:
    """From the dense network, only the most salient weights follow their gradient."""
    steps = trial.half * trial.shared.per_epoch
    program = compile_program(
        trial,
        lambda h: transforms.gsm(
            trial.schedule(lr, steps),
            keep=h.keep,
            weight_decay=h.knob,
            momentum=momentum,
        ),
    )
    return lambda task: task.fit(program, trial.half, start=task.start())


@arena.contender("powerpropagation", "alpha", static=True)
def powerprop(trial: Trial, *, lr: float, momentum: float) -> Train:
    """Half of the budget dense, cut, the other half under the mask; theta all along."""
    steps = trial.half * trial.shared.per_epoch

    def train(task: Task) -> Any:
        r = reparam.powerpropagation(float(task.knob))
        rate = trial.schedule(lr, steps)
        grow = compile_program(trial, lambda h: optax.sgd(rate, momentum), r)
        theta = jax.vmap(r.init)(task.shared.first())
        theta = task.fit(grow, trial.half, start=theta, stage=", dense")
        mask = lanes.largest(theta, task.kept)
        tune = compile_program(
            trial,
            lambda h: optax.chain(
                optax.sgd(rate, momentum), transforms.keep_masked(h.mask)
            ),
            r,
        )
        start = lanes.apply(mask, theta)
        return tune.used(task.fit(tune, trial.half, start=start, mask=mask))

    return train
