"""TRP: trained at low rank, then every kernel split into two thin ones."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.methods.one_shot import recalibration
from experiments.methods.removal import accuracy, row
from experiments.results import Row
from experiments.schedules import Rate, learning_rate
from jprune import analysis, compress, masks, transforms


def trp(
    lab: Lab,
    dense: Fit,
    *,
    kinds: tuple[str, ...],
    energy: float,
    every: int,
    nuclear: float,
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
    stats_momentum: float,
    rounds: int,
) -> Iterator[Row]:
    """One run for each way to read a kernel as a matrix; nothing is fine-tuned.

    `before` is the trained network with its kernels truncated, `after` the factorised
    one. Among the extra numbers: the accuracy of the dense network truncated in one
    shot at the same ranks, with its batch statistics measured anew; FLOPs and latency
    over those of the dense network.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      kinds: "channel", "spatial", "decoupled".
      energy: the share of the squared singular values that a truncation keeps.
      every: steps from one truncation to the next.
      nuclear: weight of the nuclear norm.
      epochs: length of each run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of all leaves.
      stats_momentum: of the network's running averages.
      rounds: calls that are timed.
    """
    steps, refresh = epochs * lab.per_epoch, recalibration(lab, stats_momentum)
    for kind in kinds:
        settings: dict[str, Any] = {"kind": kind, "scope": wide_convolutions}

        def transform(_: Any, settings: Any = settings) -> Any:
            return transforms.trp(
                learning_rate(lr, steps),
                energy=energy,
                every=every,
                nuclear=nuclear,
                total_steps=steps,
                weight_decay=weight_decay,
                momentum=momentum,
                **settings,
            )

        run = lab.run(f"trp {kind} {energy:g}", kinds=kind)
        start = compress.truncate(dense.params, energy=energy, **settings).params
        begin = (start, dense.stats)
        done = fit(lab, compile_program(lab, transform), run, epochs, start=begin)
        ranks = optax.tree.get(done.opt, "ranks")
        cut = compress.truncate(dense.params, ranks=ranks, **settings).params
        once = lab.logits(cut, refresh(cut, dense.stats))
        extra = {"accuracy by one shot": accuracy(lab, once)}
        yield _factorised(lab, dense, done, ranks, kind, run.label, rounds, extra)


def wide_convolutions(params: Any) -> Any:
    """Convolutions larger than 1 x 1, all but the first: the paper's choice."""

    def taken(path: str, leaf: Any) -> bool:
        return np.ndim(leaf) == 4 and leaf.shape[0] > 1 and path != "Conv_0/kernel"

    return masks.prunable(params, include=taken)


def _factorised(
    lab: Lab,
    dense: Fit,
    done: Fit,
    ranks: Any,
    kind: Any,
    run: str,
    rounds: int,
    extra: dict[str, float],
) -> Row:
    """The row of the network of thin kernels."""

    def network(params: Any, index: jax.Array) -> jax.Array:
        tree = structured.variables(params, done.stats)
        return structured.network(lab)(tree, index)

    clock = time.perf_counter()
    index = structured.examples(lab, lab.batch)
    thin = compress.low_rank(network, done.params, ranks, index, kind=kind)
    test = lab.replicated(lab.dataset.test.astype(np.int32))
    found = row(
        lab,
        thin.params,
        after=jax.jit(thin.fn)(thin.params, test),
        before=lab.logits(done.params, done.stats),
        run=run,
        method="trp",
        kept=masks.size(thin.params),
        seconds=done.seconds + time.perf_counter() - clock,
    )
    whole = analysis.flops(network)(dense.params, index)
    times = analysis.latency(
        {
            "dense": (network, dense.params, test),
            "thin": (thin.fn, thin.params, test),
        },
        rounds=rounds,
    )
    size = masks.size(dense.params)
    numbers = {
        "flops": float(analysis.flops(thin.fn)(thin.params, index) / whole),
        "latency": times["thin"].median / times["dense"].median,
        "kernels split": len(thin.ranks),
        "mean rank": float(np.mean(list(thin.ranks.values()))),
    }
    left = found.nonzero / size
    return found._replace(
        asked=1 - found.kept / size, got=1 - left, extra=numbers | extra
    )
