"""Entrants of the structured arena that are no plain optimizers of the weights.

Gates and shrinking scales train theta in place of the weights; TRP splits kernels where
the others remove channels. See `arena` and `arena_prepared`.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from experiments.config import ConfigError
from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.methods.arena import (
    Arena,
    Ready,
    compact_row,
    measured,
    open_arena,
)
from experiments.methods.arena_prepared import Entrants, prepared, ready
from experiments.methods.one_shot import recalibration
from experiments.methods.reparameterized import train_theta
from experiments.methods.swept import sgd
from experiments.methods.trp import wide_convolutions
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import analysis, compress, masks, reparam, transforms


@prepared
def arena_gates(
    arena: Arena,
    *,
    rate: float,
    channel_rate: float,
    epochs: int,
    lr: float,
    stats_momentum: float,
) -> Entrants:
    """Learned gates on channels, their price settling at the budget.

    What the gates leave is brought to the budget exactly: those most open stay.

    Args:
      arena: what all share.
      rate: of the price, for each step.
      channel_rate: Adam's learning rate for the gates.
      epochs: before the cut.
      lr: where the cosine of the weights starts.
      stats_momentum: of the network's running averages, measured anew at the cut.
    """
    lab, dense = arena.lab, arena.dense
    refresh = recalibration(lab, stats_momentum)
    weights = sgd(warmup_cosine(lr, epochs * lab.per_epoch), **arena.decay)
    tx = optax.partition(
        {
            "weights": weights,
            "channels": optax.adam(channel_rate),
            "branches": optax.set_to_zero(),
            "price": optax.set_to_zero(),
        },
        lambda theta: type(theta)(*theta._fields),
    )

    def prepare(share: float) -> Ready:
        r = reparam.learned_gates(
            arena.groups, target=share, rate=rate, cost=arena.deps.flops
        )
        run = lab.run(f"gates before the cut, {percent(share)}", flops=share)
        start = (dense.params, dense.stats)
        done = train_theta(lab, r, tx, run=run, epochs=epochs, start=start)
        free = done.theta._replace(price=np.float32(1))
        expected = float(jax.jit(r.penalty)(free))
        keeps = arena.keeps(done.theta.channels, share, "global")
        done = done._replace(stats=refresh(done.params, done.stats))
        return ready(arena, done, keeps, **{"expected flops": expected})

    return {"gates": prepare}


@prepared
def arena_scales(
    arena: Arena,
    *,
    price: float,
    epochs: int,
    lr: float,
    stats_momentum: float,
) -> Entrants:
    """Shrinking scales: a proximal step whose price is the FLOPs that a channel costs.

    Trained once for all shares; the largest scales stay.

    Args:
      arena: what all share.
      price: of the mean gate.
      epochs: before the cut.
      lr: where the cosine starts.
      stats_momentum: of the network's running averages, measured anew at the cut.
    """
    lab, dense = arena.lab, arena.dense
    rate = warmup_cosine(lr, epochs * lab.per_epoch)
    r = reparam.shrinking_scales(
        arena.groups, price=price, learning_rate=rate, cost=arena.deps.flops
    )

    def kernels(theta: Any) -> Any:
        return type(theta)(masks.prunable(theta.weights), {})

    decay = optax.add_decayed_weights(arena.decay["weight_decay"], mask=kernels)
    run = lab.run("scales before the cut")
    done = train_theta(
        lab,
        r,
        optax.chain(decay, optax.sgd(rate, arena.decay["momentum"])),
        run=run,
        epochs=epochs,
        start=(dense.params, dense.stats),
    )
    stats = recalibration(lab, stats_momentum)(done.params, done.stats)
    done = done._replace(stats=stats)

    def prepare(share: float) -> Ready:
        keeps = arena.keeps(arena.norms(done.params), share, "global")
        return ready(arena, done, keeps)

    return {"scales": prepare}


def arena_trp(
    lab: Lab,
    dense: Fit,
    *,
    flops: tuple[float, ...],
    every: int,
    nuclear: float,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    stats_momentum: float,
) -> Iterator[Row]:
    """TRP: trained at low rank all the time, every kernel split into two at the end.

    The share of the squared singular values that all truncations together keep, did
    nothing grow back, is the largest that meets the budget on the dense network. The
    trained one is truncated once more, to the budget, if it is not under it.

    Args:
      lab: the shared part.
      dense: the dense run.
      flops: shares of the dense FLOPs that may be left.
      every: steps from one truncation to the next.
      nuclear: weight of the nuclear norm.
      epochs: all that there are.
      lr: where their cosine starts.
      momentum: of heavy ball.
      weight_decay: of all leaves.
      stats_momentum: of the network's running averages, measured anew at the end.
    """
    refresh, steps = recalibration(lab, stats_momentum), epochs * lab.per_epoch
    arena = open_arena(lab, dense, lr=lr, momentum=momentum, weight_decay=weight_decay)
    for share in flops:
        whole = _energy(lab, dense.params, dense.stats, share)
        energy = whole ** (every / steps)
        start = compress.truncate(dense.params, energy=energy, scope=wide_convolutions)
        tx = transforms.trp(
            warmup_cosine(lr, steps),
            energy=energy,
            every=every,
            nuclear=nuclear,
            scope=wide_convolutions,
            total_steps=steps,
            weight_decay=weight_decay,
            momentum=momentum,
        )
        run = lab.run(f"trp, {percent(share)} FLOPs", flops=share)
        program = compile_program(lab, lambda _, tx=tx: tx)
        begin = (start.params, dense.stats)
        done = fit(lab, program, run, epochs, start=begin)
        left = _energy(lab, done.params, done.stats, share)
        cut = compress.truncate(done.params, energy=left, scope=wide_convolutions)
        before = lab.logits(done.params, done.stats)
        done = done._replace(params=cut.params, stats=refresh(cut.params, done.stats))
        yield _split(arena, done, cut.ranks, before, run.label, energy)


def _thin(lab: Lab, params: Any, stats: Any, ranks: Any) -> tuple[Any, Any]:
    """The network as a function of its parameters, and the one of split kernels."""

    def network(params: Any, index: jax.Array) -> jax.Array:
        return structured.network(lab)(structured.variables(params, stats), index)

    return network, compress.low_rank(network, params, ranks)


def _energy(lab: Lab, params: Any, stats: Any, share: float) -> float:
    """The most energy that a truncation may keep within a share of the FLOPs."""
    index, low, high = structured.examples(lab, lab.mesh.size), 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        cut = compress.truncate(params, energy=middle, scope=wide_convolutions)
        network, thin = _thin(lab, params, stats, cut.ranks)
        left = analysis.flops(thin.fn)(thin.params, index)
        fits = left <= share * analysis.flops(network)(params, index)
        low, high = (middle, high) if fits else (low, middle)
    if low == 0.0:
        raise ConfigError(f"`flops`: no rank leaves {percent(share)} of them.")
    return low


def _split(
    arena: Arena, done: Fit, ranks: Any, before: Any, run: str, energy: float
) -> Row:
    """The row of the network of thin kernels."""
    thin = _thin(arena.lab, done.params, done.stats, ranks)[1]
    packed = structured.variables(thin.params, {})

    def small(tree: Any, index: jax.Array) -> jax.Array:
        return thin.fn(tree["params"], index)

    after, numbers = measured(arena, small, packed)
    return compact_row(
        arena,
        thin.params,
        after=after,
        run=run,
        before=before,
        seconds=done.seconds,
        extra={**numbers, "energy": energy},
    )
