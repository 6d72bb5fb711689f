"""Entrants of the structured arena that train before the cut; see `arena`.

Each prepares the dense network for `epochs`; `prepared` makes it a method that then
cuts, trains on for `tune_epochs`, and tells a row for each budget.
"""

import inspect
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

Entrants = dict[str, Callable[[float], Ready]]
"""By name of the entrant: from a share of the FLOPs to its network at the cut."""


def prepared(make: Callable[..., Entrants]) -> Callable[..., Iterator[Row]]:
    """Makes a method of `make(arena, *, epochs, ...) -> entrants`.

    The method takes, beside the keywords of `make`: `flops`, the shares of the dense
    FLOPs that may be left; `tune_epochs` and `tune_lr`, length of the training after
    the cut and where its cosine starts; `momentum` and `weight_decay`, of that
    training, and of the one before unless `make` says otherwise.

    Args:
      make: prepares its entrants.
    """

    def method(
        lab: Lab,
        dense: Fit,
        *,
        flops: tuple[float, ...],
        tune_epochs: int,
        tune_lr: float,
        momentum: float,
        weight_decay: float,
        **own: Any,
    ) -> Iterator[Row]:
        arena = open_arena(
            lab, dense, lr=tune_lr, momentum=momentum, weight_decay=weight_decay
        )
        for name, prepare in make(arena, **own).items():
            for share in flops:
                yield entrant(arena, prepare(share), name, share, tune_epochs)

    mine = [p for p in _parameters(method) if p.kind is not p.VAR_KEYWORD]
    theirs = [p for p in _parameters(make) if p.kind is p.KEYWORD_ONLY]
    method.__signature__ = inspect.Signature([*mine, *theirs])  # for the checks
    method.__doc__ = make.__doc__
    return method


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _trained(arena: Arena, name: str, share: float | None, epochs: int, tx: Any):
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


@prepared
def arena_slimming(
    arena: Arena,
    *,
    strength: float,
    epochs: int,
    lr: float,
) -> Entrants:
    """Network slimming, and MaskSparsity with the masks that slimming leaves.

    Slimming is trained once for all shares and cut at one threshold of the scales. The
    same channels go after MaskSparsity, which starts from the dense network again; its
    search is that run of slimming, which comes on top of its own epochs. Both decay all
    leaves before the cut.

    Args:
      arena: what all share.
      strength: of the L1 penalty, in both.
      epochs: before the cut.
      lr: where their cosine starts.
    """
    shared: Any = {**arena.decay, "strength": strength, "nesterov": False}
    rate = warmup_cosine(lr, epochs * arena.lab.per_epoch)
    slim = transforms.network_slimming(rate, **shared)
    slimmed = _trained(arena, "slimming", None, epochs, slim)

    def kept(share: float) -> Any:
        return arena.keeps(arena.norms(slimmed.params), share, "global")

    def by_slimming(share: float) -> Ready:
        return ready(arena, slimmed, kept(share))

    def by_mask(share: float) -> Ready:
        tx = transforms.masksparsity(rate, arena.groups, kept(share), **shared)
        done = _trained(arena, "masksparsity", share, epochs, tx)
        return ready(arena, done, kept(share))

    return {"slimming": by_slimming, "masksparsity": by_mask}


@prepared
def arena_csgd(
    arena: Arena,
    *,
    strength: float,
    vector_multiplier: float,
    epochs: int,
    lr: float,
) -> Entrants:
    """C-SGD: k-means clusters in every block become equal and are merged.

    With Nesterov's momentum before the cut.

    Args:
      arena: what all share.
      strength: the pull to the mean.
      vector_multiplier: of the pull, on norm scales and shifts.
      epochs: before the cut.
      lr: where their cosine starts.
    """
    rate = warmup_cosine(lr, epochs * arena.lab.per_epoch)

    def prepare(share: float) -> Ready:
        keeps = arena.keeps(arena.filters(arena.tree), share)
        counts = {name: int(np.sum(keep)) for name, keep in keeps.items()}
        clusters = compress.find_clusters(arena.dense.params, arena.groups, keep=counts)
        tx = transforms.csgd(
            rate,
            arena.groups,
            clusters,
            strength=strength,
            vector_multiplier=vector_multiplier,
            total_steps=epochs * arena.lab.per_epoch,
            **arena.decay,
        )
        done = _trained(arena, "csgd", share, epochs, tx)
        tree = structured.variables(done.params, done.stats)
        index = structured.examples(arena.lab, arena.lab.batch)
        merged = compress.merge(
            structured.network(arena.lab), arena.deps, tree, clusters, index
        )
        uncut = arena.lab.logits(done.params, done.stats)
        values = merged.plan.unpack(merged.variables)
        extra = {"deviation": max(merged.deviation.values())}
        return Ready(values, merged.plan, uncut, done.seconds, extra)

    return {"csgd": prepare}


@prepared
def arena_tpp(
    arena: Arena,
    *,
    grow: float,
    interval: int,
    gram: float,
    ceiling: float,
    epochs: int,
    lr: float,
) -> Entrants:
    """TPP: the filters of small L1 norm are decorrelated from the others, then zeroed.

    All leaves decay before the cut.

    Args:
      arena: what all share.
      grow: share of the preparation in which the strength grows.
      interval: steps between the zeroing of two groups.
      gram: weight of the Gram term.
      ceiling: of the strength.
      epochs: before the cut.
      lr: constant there.
    """
    steps = epochs * arena.lab.per_epoch

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
            **arena.decay,
        )
        done = _trained(arena, "tpp", share, epochs, tx)
        return ready(arena, done, keeps)

    return {"tpp": prepare}


@prepared
def arena_swd(
    arena: Arena,
    *,
    mu: float,
    a_min: float,
    a_max: float,
    epochs: int,
    lr: float,
) -> Entrants:
    """SWD on channels: norm scales and shifts that the budget drops now decay harder.

    `mu` is the decay before the cut.

    Args:
      arena: what all share.
      mu: base weight decay before the cut.
      a_min: first strength of the selective decay.
      a_max: last one; exponential in between.
      epochs: before the cut.
      lr: where their cosine starts.
    """
    steps = epochs * arena.lab.per_epoch

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
            momentum=arena.decay["momentum"],
            select=lambda p: masks.from_groups(
                p, arena.groups, keeps(p), roles=("scale", "bias")
            ),
            remove=False,
        )
        done = _trained(arena, "swd channels", share, epochs, tx)
        return ready(
            arena, done, arena.keeps(arena.norms(done.params), share, "global")
        )

    return {"swd channels": prepare}
