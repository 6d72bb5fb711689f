"""Entrants of the structured arena that train before the cut; see `arena`.

Each is a function of the configuration: it prepares the dense network for `epochs`,
cuts, and trains on for `tune_epochs`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.methods.arena import Arena, Ready, entrant, open_arena
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import compress, masks, surgery, transforms

Tuning = dict[str, Any]


def entrants(
    arena: Arena,
    name: str,
    flops: tuple[float, ...],
    tune_epochs: int,
    prepare: Callable[[float], Ready],
) -> Iterator[Row]:
    for share in flops:
        yield entrant(arena, prepare(share), name, share, tune_epochs)


def _prepared(arena: Arena, name: str, share: float | None, epochs: int, tx: Any):
    """The dense network after `epochs` of the transformation `tx`."""
    lab = arena.lab
    run = lab.run(
        f"{name} before the cut" + (f", {percent(share)}" if share else ""),
        flops=share,
        entrant=name,
    )
    program = compile_program(lab, lambda _: tx)
    return fit(lab, program, run, epochs, start=arena.dense[:2])


def ready(arena: Arena, done: Any, keeps: Any, **extra: float) -> Ready:
    """A finished preparation and what stays of it."""
    tree = structured.variables(done.params, done.stats)
    uncut = arena.lab.logits(done.params, done.stats)
    return Ready(tree, arena.plan(keeps), uncut, done.seconds, extra)


def arena_slimming(
    lab: Lab,
    dense: Fit,
    *,
    flops: tuple[float, ...],
    strength: float,
    epochs: int,
    lr: float,
    tune_epochs: int,
    tune_lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """Network slimming, and MaskSparsity with the masks that slimming leaves.

    Slimming is trained once for all shares and cut at one threshold of the scales. The
    same channels go after MaskSparsity, which starts from the dense network again; its
    search is that run of slimming, which comes on top of its own epochs.

    Args:
      lab: the shared part.
      dense: the dense run.
      flops: shares of the dense FLOPs that may be left.
      strength: of the L1 penalty, in both.
      epochs: before the cut.
      lr: where their cosine starts.
      tune_epochs: after the cut.
      tune_lr: where their cosine starts.
      momentum: of heavy ball, in both.
      weight_decay: of all leaves before the cut, of the kernels after it.
    """
    tuning: Tuning = {"momentum": momentum, "weight_decay": weight_decay}
    arena = open_arena(lab, dense, lr=tune_lr, **tuning)
    shared: Tuning = {**tuning, "strength": strength, "nesterov": False}
    rate = warmup_cosine(lr, epochs * lab.per_epoch)
    slim = transforms.network_slimming(rate, **shared)
    slimmed = _prepared(arena, "slimming", None, epochs, slim)

    def kept(share: float) -> Any:
        return arena.keeps(arena.norms(slimmed.params), share, "global")

    def by_slimming(share: float) -> Ready:
        return ready(arena, slimmed, kept(share))

    def by_mask(share: float) -> Ready:
        tx = transforms.masksparsity(rate, arena.groups, kept(share), **shared)
        done = _prepared(arena, "masksparsity", share, epochs, tx)
        return ready(arena, done, kept(share))

    yield from entrants(arena, "slimming", flops, tune_epochs, by_slimming)
    yield from entrants(arena, "masksparsity", flops, tune_epochs, by_mask)


def arena_csgd(
    lab: Lab,
    dense: Fit,
    *,
    flops: tuple[float, ...],
    strength: float,
    vector_multiplier: float,
    epochs: int,
    lr: float,
    tune_epochs: int,
    tune_lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """C-SGD: k-means clusters in every block become equal and are merged.

    Args:
      lab: the shared part.
      dense: the dense run.
      flops: shares of the dense FLOPs that may be left.
      strength: the pull to the mean.
      vector_multiplier: of the pull, on norm scales and shifts.
      epochs: before the cut.
      lr: where their cosine starts.
      tune_epochs: after the cut.
      tune_lr: where their cosine starts.
      momentum: of Nesterov before the cut, of heavy ball after it.
      weight_decay: of the kernels.
    """
    tuning: Tuning = {"momentum": momentum, "weight_decay": weight_decay}
    arena = open_arena(lab, dense, lr=tune_lr, **tuning)
    rate = warmup_cosine(lr, epochs * lab.per_epoch)

    def prepare(share: float) -> Ready:
        keeps = arena.keeps(arena.filters(arena.tree), share)
        counts = {name: int(np.sum(keep)) for name, keep in keeps.items()}
        clusters = compress.find_clusters(dense.params, arena.groups, keep=counts)
        tx = transforms.csgd(
            rate,
            arena.groups,
            clusters,
            strength=strength,
            vector_multiplier=vector_multiplier,
            total_steps=epochs * lab.per_epoch,
            **tuning,
        )
        done = _prepared(arena, "csgd", share, epochs, tx)
        tree = structured.variables(done.params, done.stats)
        index = structured.examples(lab, lab.batch)
        merged = compress.merge(
            structured.network(lab), arena.deps, tree, clusters, index
        )
        uncut = lab.logits(done.params, done.stats)
        values = merged.plan.unpack(merged.variables)
        extra = {"deviation": max(merged.deviation.values())}
        return Ready(values, merged.plan, uncut, done.seconds, extra)

    yield from entrants(arena, "csgd", flops, tune_epochs, prepare)


def arena_tpp(
    lab: Lab,
    dense: Fit,
    *,
    flops: tuple[float, ...],
    grow: float,
    interval: int,
    gram: float,
    ceiling: float,
    epochs: int,
    lr: float,
    tune_epochs: int,
    tune_lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """TPP: the filters of small L1 norm are decorrelated from the others, then zeroed.

    Args:
      lab: the shared part.
      dense: the dense run.
      flops: shares of the dense FLOPs that may be left.
      grow: share of the preparation in which the strength grows.
      interval: steps between the zeroing of two groups.
      gram: weight of the Gram term.
      ceiling: of the strength.
      epochs: before the cut.
      lr: constant there.
      tune_epochs: after the cut.
      tune_lr: where their cosine starts.
      momentum: of heavy ball, in both.
      weight_decay: of all leaves before the cut, of the kernels after it.
    """
    tuning: Tuning = {"momentum": momentum, "weight_decay": weight_decay}
    arena = open_arena(lab, dense, lr=tune_lr, **tuning)
    steps = epochs * lab.per_epoch

    def prepare(share: float) -> Ready:
        keeps = arena.keeps(arena.filters(arena.tree), share)
        tx = transforms.tpp(
            lr,
            arena.groups,
            keeps,
            total_steps=steps,
            end=round(grow * steps),
            every=1,
            ceiling=ceiling,
            gram=gram,
            interval=interval,
            **tuning,
        )
        done = _prepared(arena, "tpp", share, epochs, tx)
        return ready(arena, done, keeps)

    yield from entrants(arena, "tpp", flops, tune_epochs, prepare)


def arena_swd(
    lab: Lab,
    dense: Fit,
    *,
    flops: tuple[float, ...],
    mu: float,
    a_min: float,
    a_max: float,
    epochs: int,
    lr: float,
    tune_epochs: int,
    tune_lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """SWD on channels: norm scales and shifts that the budget drops now decay harder.

    Args:
      lab: the shared part.
      dense: the dense run.
      flops: shares of the dense FLOPs that may be left.
      mu: base weight decay before the cut.
      a_min: first strength of the selective decay.
      a_max: last one; exponential in between.
      epochs: before the cut.
      lr: where their cosine starts.
      tune_epochs: after the cut.
      tune_lr: where their cosine starts.
      momentum: of heavy ball, in both.
      weight_decay: of the kernels after the cut.
    """
    arena = open_arena(
        lab, dense, lr=tune_lr, momentum=momentum, weight_decay=weight_decay
    )
    steps = epochs * lab.per_epoch

    def prepare(share: float) -> Ready:
        @jax.jit
        def keeps(params: Any) -> dict[str, jax.Array]:
            found = arena.norms(params)
            return surgery.choose(arena.deps, found, flops=share, ranking="global")

        tx = transforms.swd(
            warmup_cosine(lr, steps),
            mu=mu,
            a_min=a_min,
            a_max=a_max,
            total_steps=steps,
            momentum=momentum,
            select=lambda p: masks.from_groups(
                p, arena.groups, keeps(p), roles=("scale", "bias")
            ),
            remove=False,
        )
        done = _prepared(arena, "swd channels", share, epochs, tx)
        return ready(
            arena, done, arena.keeps(arena.norms(done.params), share, "global")
        )

    yield from entrants(arena, "swd channels", flops, tune_epochs, prepare)
