"""Contenders that decide before training, or in its first epochs.

K-starts and dissipating gradients need to know their layers beforehand: they have the
Erdos-Renyi-Kernel allocation. The others have one ranking over the whole network.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import lanes
from experiments.systems import arena
from experiments.systems.arena import (
    Task,
    Train,
    Trial,
    compile_program,
    held,
    sgd,
    stacked,
)
from jprune import at_init, masks, transforms


def _at_init(
    trial: Trial,
    momentum: float,
    weight_decay: float,
    choose: Callable[[Task, Any, jax.Array], tuple[Any, Any]],
    per_class: int,
) -> Train:
    """`choose(task, params, batch) -> (params, mask)` for each lane, then training."""
    program = held(trial, momentum, weight_decay, trial.steps)
    batch = jnp.asarray(_examples(trial.shared, per_class))

    def train(task: Task) -> Any:
        first = task.shared.first()
        each = [lanes.lane(first, i) for i in range(len(task.shared.seeds))]
        pairs = [choose(task, params, batch) for params in each]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
        start = lanes.apply(stacked[1], stacked[0])
        return task.fit(program, trial.epochs, start=start, mask=stacked[1])

    return train


def _examples(shared: lanes.Lanes, per_class: int) -> Any:
    """The first training examples of each class. [classes * per_class]"""
    train = shared.splits["train"]
    labels = jax.device_get(shared.labels)[train]
    return [i for c in range(10) for i in train[labels == c][:per_class].tolist()]


def _loss(shared: lanes.Lanes, temperature: float = 1.0) -> Callable[..., jax.Array]:
    def loss(params: Any, index: jax.Array) -> jax.Array:
        logits = shared.network(params, shared.data, index, None) / temperature
        wanted = shared.labels[index]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        return losses.mean()

    return loss


@arena.contender("SNIP", "lr")
def snip(
    trial: Trial, *, momentum: float, weight_decay: float, per_class: int
) -> Train:
    """The initial weights whose connection matters most to the loss."""

    def choose(task: Task, params: Any, batch: jax.Array) -> tuple[Any, Any]:
        found = at_init.snip(_loss(trial.shared), params, batch)
        return params, masks.unstructured(found, keep=task.kept, min_keep=0)

    return _at_init(trial, momentum, weight_decay, choose, per_class)


@arena.contender("SBP", "lr")
def sbp(trial: Trial, *, momentum: float, weight_decay: float, per_class: int) -> Train:
    """SNIP's mask and the rescaling trick."""

    def choose(task: Task, params: Any, batch: jax.Array) -> tuple[Any, Any]:
        return at_init.sbp(
            _loss(trial.shared), params, batch, keep=task.kept, min_keep=0
        )

    return _at_init(trial, momentum, weight_decay, choose, per_class)


@arena.contender("GraSP", "lr")
def grasp(
    trial: Trial,
    *,
    momentum: float,
    weight_decay: float,
    per_class: int,
    temperature: float,
) -> Train:
    """The initial weights that the gradient flow needs."""

    def choose(task: Task, params: Any, batch: jax.Array) -> tuple[Any, Any]:
        found = at_init.grasp(_loss(trial.shared, temperature), params, batch)
        mask = masks.unstructured(found, keep=task.kept, min_keep=0, signed=True)
        return params, mask

    return _at_init(trial, momentum, weight_decay, choose, per_class)


@arena.contender("SynFlow", "lr")
def synflow(trial: Trial, *, momentum: float, weight_decay: float, rounds: int):
    """Without data, in many rounds."""
    shape = trial.shared.data.shape[1:]

    def network(params: Any, x: jax.Array) -> jax.Array:
        return trial.shared.network(params, x, jnp.arange(1), None)

    def choose(task: Task, params: Any, batch: jax.Array) -> tuple[Any, Any]:
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        mask = at_init.synflow_mask(network, params, x, keep=task.kept, rounds=rounds)
        return params, mask

    return _at_init(trial, momentum, weight_decay, choose, 1)


def _early(
    trial: Trial,
    lr: float,
    momentum: float,
    weight_decay: float,
    rules: Callable[[Task], list[Callable[..., Any]]],
) -> Train:
    """Dense first epochs, `rule(early, key, knob) -> mask` after each, then the rest.

    The rate of the first epochs is that of the whole budget's schedule.
    """
    rate = trial.schedule(lr)
    tx = sgd(rate, momentum, weight_decay)
    shared = trial.shared

    def loss(params: Any, batch: Any) -> jax.Array:
        pixels, labels = batch
        logits = shared.network(params, pixels, jnp.arange(len(labels)), None)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def window(early: Any, pixels: Any, labels: Any, order: Any) -> Any:
        batches = (pixels[order], labels[order])
        return at_init.train_early(loss, tx, early, [batches], [None])

    begin = jax.jit(
        jax.vmap(lambda params: at_init.train_early(loss, tx, params, [], []))
    )
    train_one = jax.jit(window)

    def train(task: Task) -> Any:
        steps = rules(task)
        early = begin(task.shared.first())
        hyper, clock = task.given().tree, time.perf_counter()
        for epoch, rule in enumerate(steps):
            order = task.shared.order(epoch)
            early = stacked(
                train_one(lanes.lane(early, i), shared.data, shared.labels, order[i])
                for i in range(len(task.shared.seeds))
            )
            decide = jax.jit(jax.vmap(rule))
            mask = decide(early, hyper.key, hyper.knob)
            early = early._replace(params=lanes.apply(mask, early.params), mask=mask)
        jax.block_until_ready(early)
        task.spent.append(time.perf_counter() - clock)
        done = len(steps) * shared.per_epoch
        held = compile_program(
            trial,
            lambda h: sgd(
                lambda step: rate(step + done),
                momentum,
                weight_decay,
                transforms.keep_masked(h.mask),
            ),
        )
        rest = trial.epochs - len(steps)
        return task.fit(held, rest, start=early.params, mask=early.mask)

    return train


@arena.contender("K-starts", "balance")
def k_starts(
    trial: Trial, *, lr: float, momentum: float, weight_decay: float, k: int
) -> Train:
    """The fittest of k random masks after the first epoch."""

    def rules(task: Task) -> list[Callable[..., Any]]:
        share = masks.erk(trial.shapes, task.sparsity)

        def rule(early: Any, key: jax.Array, knob: jax.Array) -> Any:
            how = {"k": k, "balance": knob, "at_once": 1, "within": early.mask}
            return at_init.k_starts(key, early.params, early.grads, share, **how)

        return [rule]

    return _early(trial, lr, momentum, weight_decay, rules)


@arena.contender("dissipating", "lr", static=True)
def dissipating(
    trial: Trial, *, momentum: float, weight_decay: float, window: int
) -> Train:
    """What moved least in the first epochs goes."""

    def rules(task: Task) -> list[Callable[..., Any]]:
        def after(part: float) -> Callable[..., Any]:
            share = masks.erk(trial.shapes, 1 - (1 - task.sparsity) ** part)
            return lambda early, key, knob: at_init.dissipating(sparsity=share)(early)

        return [after(i / window) for i in range(1, window + 1)]

    def train(task: Task) -> Any:
        return _early(trial, float(task.knob), momentum, weight_decay, rules)(task)

    return train
