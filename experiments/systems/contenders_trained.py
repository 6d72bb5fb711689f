"""Contenders that have the whole budget: sparse at its end, or all along.

One ranking over the whole network decides where a method allows it; who must know its
layers beforehand (RigL, SET, static masks, grow-and-prune) has the Erdos-Renyi-Kernel
allocation.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from experiments import lanes
from experiments.systems import arena
from experiments.systems.arena import Task, Train, Trial, compile_program, sgd, stacked
from jprune import masks, reparam, scores, transforms


def _scratch(trial: Trial, transform: Callable[..., Any]) -> Train:
    """Trains from the initialization with one optimizer for the whole budget."""
    program = compile_program(trial, transform)
    return lambda task: task.fit(program, trial.epochs)


@arena.contender("SWD", "a_max")
def swd(trial: Trial, *, lr: float, momentum: float, mu: float, a_min: float) -> Train:
    """Selective weight decay; the knob is its last strength."""
    return _scratch(
        trial,
        lambda h: transforms.swd(
            trial.schedule(lr),
            mu=mu,
            total_steps=trial.steps,
            a_min=a_min,
            a_max=h.knob,
            keep=h.keep,
            momentum=momentum,
            remove=False,
        ),
    )


@arena.contender("gradual", "lr")
def gradual(
    trial: Trial, *, momentum: float, weight_decay: float, end: float, every: int
) -> Train:
    """Gradual magnitude pruning along Zhu and Gupta's cubic."""
    last = round(end * trial.steps)
    return _scratch(
        trial,
        lambda h: sgd(
            trial.schedule(h.knob),
            momentum,
            weight_decay,
            transforms.prune_gradually(h.sparsity, end=last, every=every),
        ),
    )


@arena.contender("weight history", "beta")
def weightmom(
    trial: Trial,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    end: float,
    every: int,
    gamma: float,
) -> Train:
    """Gradual pruning by a running average of the magnitudes, WeightMom's reading."""
    last = round(end * trial.steps)
    return _scratch(
        trial,
        lambda h: sgd(
            trial.schedule(lr),
            momentum,
            weight_decay,
            transforms.prune_by_weight_history(
                h.sparsity, end=last, every=every, beta=h.knob, gamma=gamma
            ),
        ),
    )


@arena.contender("ISS-P", "factor")
def issp(
    trial: Trial, *, lr: float, momentum: float, weight_decay: float, end: float
) -> Train:
    """Low weights shrink by a factor after every step."""
    last = round(end * trial.steps)
    return _scratch(
        trial,
        lambda h: sgd(
            trial.schedule(lr),
            momentum,
            weight_decay,
            transforms.shrink_softly(
                h.sparsity, end=last, factor=h.knob, ranking="global"
            ),
        ),
    )


@arena.contender("ISS-R", "increment")
def issr(
    trial: Trial,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    end: float,
    every: int,
    limit: float,
) -> Train:
    """Low weights decay ever harder."""
    return _scratch(
        trial,
        lambda h: transforms.issr(
            trial.schedule(lr),
            sparsity=h.sparsity,
            end=round(end * trial.steps),
            increment=h.knob,
            every=every,
            limit=limit,
            optimizer=lambda rate: sgd(rate, momentum, weight_decay),
            ranking="global",
        ),
    )


def _random_masks(task: Task) -> Any:
    """An Erdos-Renyi mask for every lane, drawn by its seed."""
    share = masks.erk(task.trial.shapes, task.sparsity)
    shapes = lanes.lane(task.shared.first(), 0)

    @jax.jit
    def one(key: jax.Array) -> Any:
        return masks.unstructured(scores.random(key, shapes), share)

    seeds = [jax.random.key(seed, impl="rbg") for seed in task.shared.seeds]
    return stacked(one(key) for key in seeds)


def _under_mask(trial: Trial, transform: Callable[..., Any]) -> Train:
    """Trains the whole budget from the initialization under a random mask."""
    program = compile_program(trial, transform)

    def train(task: Task) -> Any:
        mask = _random_masks(task)
        start = lanes.apply(mask, task.shared.first())
        return task.fit(program, trial.epochs, start=start, mask=mask)

    return train


@arena.contender("RigL", "drop_fraction")
def rigl(
    trial: Trial,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    every: int,
    end: float,
) -> Train:
    """Sparse from the start, grows where the gradient is largest."""
    return _under_mask(
        trial,
        lambda h: transforms.rigl(
            trial.schedule(lr),
            mask=h.mask,
            drop_fraction=h.knob,
            every=every,
            end=round(end * trial.steps),
            momentum=momentum,
            weight_decay=weight_decay,
            key=h.key,
        ),
    )


@arena.contender("SET", "drop_fraction")
def sparse_evolutionary(
    trial: Trial,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    every: int,
    end: float,
) -> Train:
    """Sparse from the start, grows at random."""
    return _under_mask(
        trial,
        lambda h: transforms.sparse_evolutionary(
            trial.schedule(lr),
            mask=h.mask,
            drop_fraction=h.knob,
            every=every,
            end=round(end * trial.steps),
            momentum=momentum,
            weight_decay=weight_decay,
            key=h.key,
        ),
    )


@arena.contender("static random", "lr")
def static(trial: Trial, *, momentum: float, weight_decay: float) -> Train:
    """A random mask that stands still."""
    return _under_mask(
        trial,
        lambda h: transforms.static_sparse(
            trial.schedule(h.knob),
            mask=h.mask,
            momentum=momentum,
            weight_decay=weight_decay,
        ),
    )


@arena.contender("C-GaP", "lr")
def gap(
    trial: Trial,
    *,
    momentum: float,
    weight_decay: float,
    partitions: tuple[str, ...],
    rounds: int,
) -> Train:
    """Grow-and-prune: one part of the layers is dense after the other."""
    steps = rounds * len(partitions)
    period = 28 * trial.steps // (33 * steps)

    def transform(h: Any, share: float) -> Any:
        tuning = trial.schedule(h.knob, trial.steps - steps * period)
        return transforms.gap(
            optax.join_schedules(
                [trial.schedule(h.knob, period)] * steps + [tuning],
                [k * period for k in range(1, steps + 1)],
            ),
            masks.erk(trial.shapes, share),
            partitions=partitions,
            period=period,
            steps=steps,
            weight_decay=weight_decay,
            momentum=momentum,
            key=h.key,
        )

    def train(task: Task) -> Any:
        program = compile_program(trial, lambda h: transform(h, task.sparsity))
        return task.fit(program, trial.epochs)

    return train


def _of_theta(
    trial: Trial,
    make: Callable[[Task], reparam.Reparam],
    tx: Callable[[Any], Any],
) -> Train:
    """Trains theta for the whole budget; the exported parameters."""

    def train(task: Task) -> Any:
        r = make(task)
        program = compile_program(
            trial, lambda h: optax.chain(tx(h), reparam.projection(r)), r
        )
        theta = jax.vmap(r.init)(task.shared.first())
        done = task.fit(program, trial.epochs, start=theta)
        return jax.jit(jax.vmap(r.export))(done)[0]

    return train


@arena.contender("straight-through", "lr")
def straight_through(trial: Trial, *, momentum: float, weight_decay: float) -> Train:
    """Dense weights trained through the mask of their largest magnitudes (DPF)."""
    return _of_theta(
        trial,
        lambda task: reparam.straight_through(
            lambda p: masks.unstructured(p, keep=task.kept, min_keep=0)
        ),
        lambda h: sgd(trial.schedule(h.knob), momentum, weight_decay),
    )


@arena.contender("Top-KAST", "lr")
def top_kast(
    trial: Trial, *, momentum: float, weight_decay: float, backward: float
) -> Train:
    """A sparse forward pass, gradients for a larger set around it."""
    return _of_theta(
        trial,
        lambda task: reparam.top_kast(
            task.sparsity,
            max(1 - backward * (1 - task.sparsity), 0.0),
            decay=weight_decay,
            ranking="global",
        ),
        lambda h: optax.sgd(trial.schedule(h.knob), momentum),
    )


@arena.contender("ASWL", "alpha", static=True)
def aswl(
    trial: Trial,
    *,
    lr: float,
    momentum: float,
    decay: float,
    gamma: float,
    attention_rate: float,
) -> Train:
    """Attentions learn the sparsity of each layer; the knob is how hard they prune."""
    rates = {"weights": lr, "attention": attention_rate * lr}
    return _of_theta(
        trial,
        lambda task: reparam.learned_attention(
            gamma=gamma, alpha=task.knob, decay=decay, target=1 - task.sparsity
        ),
        lambda h: optax.partition(
            {k: optax.sgd(trial.schedule(v), momentum) for k, v in rates.items()},
            lambda theta: theta._replace(weights="weights", attention="attention"),
        ),
    )


@arena.contender("ASL", "weight", static=True)
def asl(
    trial: Trial,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    threshold_rate: float,
    min_size: int,
) -> Train:
    """Thresholds learn the sparsity of each layer; the knob is the budget's weight."""
    slow = sgd(trial.schedule(lr), momentum, weight_decay)
    fast = optax.sgd(trial.schedule(threshold_rate * lr), momentum)
    return _of_theta(
        trial,
        lambda task: reparam.learned_thresholds(
            task.sparsity, weight=task.knob, min_size=min_size
        ),
        lambda h: optax.partition(
            {"weights": slow, "thresholds": fast},
            lambda theta: theta._replace(weights="weights", thresholds="thresholds"),
        ),
    )
