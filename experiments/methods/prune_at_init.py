"""Pruning before training: one mask from the initialization, then ordinary training."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import unknown
from experiments.lab import Lab
from experiments.loop import Program, compile_program, fit
from experiments.methods.removal import row
from experiments.methods.swept import sgd
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import Rate, learning_rate
from jprune import at_init, masks, scores, transforms

CRITERIA = ("random", "magnitude", "snip", "grasp", "synflow")


def prune_at_init(
    lab: Lab,
    *,
    criteria: tuple[str, ...],
    sparsity: tuple[float, ...],
    prefix: str,
    draw: tuple[float, float] | None,
    sigma_w2: float,
    per_class: int,
    chunks: int,
    temperature: float,
    rounds: int,
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each criterion and sparsity, all from one initialization.

    Nothing keeps a criterion from emptying a layer. A row tells how many layers it
    emptied, the effective sparsity, and of a one-shot criterion the critical sparsity,
    from which on it empties one.

    Args:
      lab: the shared part.
      criteria: of `CRITERIA`, each with "shuffled" behind it to shuffle its mask within
        each layer, or "rescaled" for the rescaling trick ("snip rescaled" is SBP).
      sparsity: fractions to remove, over all kernels.
      prefix: put before the label of each row.
      draw: variances of weights (times fan-in) and biases to initialize with; None for
        the network's own initialization.
      sigma_w2: the variance that rescaling restores.
      per_class: training examples of each class that SNIP and GraSP see.
      chunks: of these.
      temperature: of GraSP's logits.
      rounds: of SynFlow.
      epochs: length of each run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    params, stats = lab.init()
    if draw is not None:
        params = at_init.initialize(lab.key("draw"), params, *draw)
    data = examples(lab, per_class, chunks)
    score = partial(_scores, lab, stats, data, chunks, temperature, rounds)
    program = _program(lab, epochs, lr, momentum, weight_decay)
    effective = _effective(lab, stats, params)
    for criterion in criteria:
        name, _, change = criterion.partition(" ")
        if name not in CRITERIA or change not in ("", "shuffled", "rescaled"):
            raise unknown("criterion", criterion, CRITERIA)
        select, facts = score(name, params)
        for share in sparsity:
            kept = masks.kept_count(masks.size(params), share)
            mask = select(kept)
            if change == "shuffled":
                mask = at_init.shuffle(lab.key(criterion), mask)
            start = masks.apply(mask, params)
            if change == "rescaled":
                start = at_init.rescale(start, mask, sigma_w2)
            label = f"{prefix}{criterion} {percent(share)}"
            run = lab.run(label, criteria=criterion, sparsity=share)
            done = fit(lab, program, run, epochs, start=(start, stats), hyper=mask)
            worth = {
                "emptied": len(at_init.emptied(mask)),
                "effective": float(masks.sparsity(effective(mask))),
            }
            yield row(
                lab,
                done.params,
                after=lab.logits(done.params, done.stats),
                run=label,
                method="prune_at_init",
                kept=kept,
                seconds=done.seconds,
            )._replace(extra={**worth, **facts})


def _program(
    lab: Lab, epochs: int, lr: Rate, momentum: float, weight_decay: float
) -> Program:
    """Ordinary training with a mask held, compiled once for all masks."""
    rate = learning_rate(lr, epochs * lab.per_epoch)
    return compile_program(
        lab,
        lambda mask: sgd(rate, momentum, weight_decay, transforms.keep_masked(mask)),
    )


def examples(lab: Lab, per_class: int, chunks: int) -> jax.Array:
    """The first training examples of each class, class by class in turn. [n] int32

    As many as divide among chunks and devices.
    """
    train, classes = lab.dataset.train, lab.dataset.classes
    labels = np.asarray(lab.dataset.labels)[train]
    first = [train[labels == c][:per_class] for c in range(classes)]
    index = np.stack(first, axis=1).ravel()
    return lab.replicated(index[: len(index) - len(index) % (chunks * lab.mesh.size)])


def _scores(
    lab: Lab,
    stats: Any,
    data: jax.Array,
    chunks: int,
    temperature: float,
    rounds: int,
    name: str,
    params: Any,
) -> tuple[Callable[[int], Any], dict[str, float]]:
    """A criterion as `kept count -> mask`, and its critical sparsity."""
    if name == "synflow":
        network = _network(lab, stats)
        x = jax.ShapeDtypeStruct(lab.inputs[:1].shape, jnp.float32)

        def prune(kept: int) -> Any:
            with jax.enable_x64(True):  # over 32 layers R is beyond float32
                return at_init.synflow_mask(
                    network, params, x, keep=kept, rounds=rounds
                )

        return prune, {}

    def loss(params: Any, index: jax.Array, cool: float = 1.0) -> jax.Array:
        key = jax.random.key(0)  # nothing is random in these networks
        out, _ = lab.forward(params, stats, lab.inputs, index, train=True, key=key)
        wanted = lab.labels[index]
        losses = optax.softmax_cross_entropy_with_integer_labels(out / cool, wanted)
        return losses.mean()

    flat = partial(loss, cool=temperature)
    rules = {
        "random": lambda p: scores.random(lab.key("random"), p),
        "magnitude": scores.magnitude,
        "snip": lambda p: at_init.snip(loss, p, data, chunks=chunks),
        "grasp": lambda p: at_init.grasp(flat, p, data, chunks=chunks),
    }
    found, signed = jax.jit(rules[name])(params), name == "grasp"
    select = jax.jit(
        lambda keep: masks.unstructured(found, keep=keep, min_keep=0, signed=signed)
    )
    critical = float(at_init.critical_sparsity(found, signed=signed))
    return lambda kept: select(lab.count(kept)), {"critical": critical}


def _effective(lab: Lab, stats: Any, params: Any) -> Callable[[Any], Any]:
    """`mask -> effective mask`, compiled once."""
    x = jax.ShapeDtypeStruct(lab.inputs[:1].shape, jnp.float32)
    flow = at_init.flow(_network(lab, stats), params, x)
    return jax.jit(lambda mask: masks.effective(mask, flow))


def _network(lab: Lab, stats: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """The network in eval mode on inputs as they reach its first layer."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        raw = lab.dataset.mean + lab.dataset.std * x
        raw = jnp.repeat(raw, lab.mesh.size, axis=0)
        index, key = jnp.arange(lab.mesh.size), jax.random.key(0)
        return lab.forward(params, stats, raw, index, train=False, key=key)[0]

    return apply
