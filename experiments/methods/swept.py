"""Methods whose runs differ in numbers alone: one compiled step serves the sweep."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from math import ceil
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.lab import Lab, Run
from experiments.loop import Fit, compile_program, fit
from experiments.methods.removal import kernels, largest, remove, row
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import Rate, drops, learning_rate
from jprune import masks, transforms


class Point(NamedTuple):
    """One run of a sweep: what it is called, its traced numbers, what it keeps."""

    run: Run
    hyper: Any
    kept: int


def swept(
    lab: Lab,
    transform: Callable[[Any], optax.GradientTransformation],
    points: Iterable[Point],
    *,
    epochs: int,
    start: tuple[Any, Any] | None = None,
    select: Callable[[Any, Any], Any] | None = None,
) -> Iterator[Row]:
    """A run and a row for each point, of one program.

    Args:
      lab: the shared part.
      transform: from a point's numbers to the optimizer.
      points: the runs.
      epochs: length of each.
      start: parameters and statistics to start from; None for the seed's own.
      select: `(params, numbers)` -> mask of what is removed when training is over; None
        where the zeros are there before.
    """
    program = compile_program(lab, transform, select=select)
    finish = remove if select else row_of
    for run, hyper, kept in points:
        done = fit(lab, program, run, epochs, start=start, hyper=hyper)
        yield finish(lab, done, run=run.label, method=lab.method, kept=kept)


def row_of(lab: Lab, done: Fit, *, run: str, method: str, kept: int) -> Row:
    """The row of a run that ends with its zeros in place."""
    return row(
        lab,
        done.params,
        after=lab.logits(done.params, done.stats),
        run=run,
        method=method,
        kept=kept,
        seconds=done.seconds,
    )


def sizes(lab: Lab) -> list[int]:
    """How many weights each prunable kernel of the network has."""
    shapes, _ = jax.eval_shape(lab.init)
    return [leaf.size for leaf in kernels(shapes)]


def kept_count(lab: Lab, share: float) -> int:
    """How many weights stay when `share` of all kernels goes."""
    return masks.kept_count(sum(sizes(lab)), share)


def sgd(rate: Any, momentum: float, weight_decay: float, *then: Any) -> Any:
    """Heavy ball with coupled decay of the kernels, and what comes behind it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=masks.prunable),
        optax.sgd(rate, momentum),
        *then,
    )


def swd(
    lab: Lab,
    *,
    sparsity: tuple[float, ...],
    batch: int,
    epochs: int,
    lr: Rate,
    momentum: float,
    mu: float,
    a_min: float,
    a_max: float,
) -> Iterator[Row]:
    """Selective weight decay, from the initialization; one removal at the end.

    Args:
      lab: the shared part.
      sparsity: fractions to remove.
      batch: examples in a step; small ones serve it better than more epochs.
      epochs: length of each run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      mu: base weight decay of the kernels.
      a_min: first strength of the selective decay.
      a_max: last one; exponential in between.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch

    def transform(keep: Any) -> optax.GradientTransformation:
        return transforms.swd(
            learning_rate(lr, steps),
            mu=mu,
            a_min=a_min,
            a_max=a_max,
            total_steps=steps,
            keep=keep,
            momentum=momentum,
            remove=False,
        )

    points = [
        Point(lab.run(f"swd {percent(s)}", sparsity=s), lab.count(kept), kept)
        for s, kept in _kept(lab, sparsity)
    ]
    yield from swept(lab, transform, points, epochs=epochs, select=largest)


def gradual(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    batch: int,
    epochs: int,
    end: float,
    every: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """Gradual magnitude pruning of the dense network, along Zhu & Gupta's cubic.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      sparsity: fractions to remove.
      batch: examples in a step.
      epochs: length of each run.
      end: share of the run after which nothing more is removed.
      every: steps between removals.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch

    def transform(final: Any) -> optax.GradientTransformation:
        prune = transforms.prune_gradually(final, end=round(end * steps), every=every)
        return sgd(learning_rate(lr, steps), momentum, weight_decay, prune)

    points = [
        Point(lab.run(f"gradual {percent(s)}", sparsity=s), np.float32(s), kept)
        for s, kept in _kept(lab, sparsity)
    ]
    yield from swept(lab, transform, points, epochs=epochs, start=dense[:2])


def weightmom(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    strengths: tuple[tuple[float, float], ...],
    batch: int,
    epochs: int,
    begin: float,
    end: float,
    every: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """WeightMom's reading: gradual pruning by a running average of the magnitudes.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      sparsity: fractions to remove.
      strengths: pairs of beta (memory) and gamma (weight of the relative sparsity);
        0 and 0 is gradual magnitude.
      batch: examples in a step.
      epochs: length of each run.
      begin: share of the run before which nothing is removed.
      end: share of the run after which nothing more is removed.
      every: steps between removals.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch

    def transform(hyper: Any) -> optax.GradientTransformation:
        final, beta, gamma = hyper
        prune = transforms.prune_by_weight_history(
            final,
            begin=round(begin * steps),
            end=round(end * steps),
            every=every,
            beta=beta,
            gamma=gamma,
        )
        return sgd(learning_rate(lr, steps), momentum, weight_decay, prune)

    points = [
        Point(
            lab.run(
                f"weightmom {percent(s)} beta {beta:g} gamma {gamma:g}",
                sparsity=s,
                strengths=(beta, gamma),
            ),
            tuple(np.float32(x) for x in (s, beta, gamma)),
            kept,
        )
        for s, kept in _kept(lab, sparsity)
        for beta, gamma in strengths
    ]
    yield from swept(lab, transform, points, epochs=epochs, start=dense[:2])


def issp(
    lab: Lab,
    *,
    sparsity: tuple[float, ...],
    factors: tuple[float, ...],
    batch: int,
    epochs: int,
    end: float,
    lr: float,
    drops_at: tuple[float, ...],
) -> Iterator[Row]:
    """ISS-P: low weights shrink by a factor, from the initialization on.

    Args:
      lab: the shared part.
      sparsity: fractions to remove of each kernel.
      factors: what low weights are multiplied by; 0 is iterative hard thresholding.
      batch: examples in a step.
      epochs: length of each run.
      end: share of the run after which the low set is zero.
      lr: Adam's constant rate.
      drops_at: shares of the run at which it drops to a fifth.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch

    def transform(hyper: Any) -> optax.GradientTransformation:
        return transforms.issp(
            drops(lr, steps, drops_at, 0.2),
            sparsity=hyper["sparsity"],
            factor=hyper["factor"],
            end=round(end * steps),
        )

    def point(factor: float, share: float) -> Point:
        name = f"iss-p {factor:g}" if factor else "iht"
        run = lab.run(f"{name}, {percent(share)}", factors=factor, sparsity=share)
        hyper = {"sparsity": np.float32(share), "factor": np.float32(factor)}
        return Point(run, hyper, _kept_in_each(lab, share))

    points = [point(factor, share) for factor in factors for share in sparsity]
    yield from swept(lab, transform, points, epochs=epochs)


def issr(
    lab: Lab,
    *,
    sparsity: tuple[float, ...],
    increments: tuple[float, ...],
    every: int,
    limit: float,
    batch: int,
    epochs: int,
    end: float,
    lr: float,
    drops_at: tuple[float, ...],
) -> Iterator[Row]:
    """ISS-R: low weights decay ever harder, from the initialization on.

    Args:
      lab: the shared part.
      sparsity: fractions to remove of each kernel.
      increments: by which the decay of a low weight grows.
      every: steps between two growths.
      limit: of the decay.
      batch: examples in a step.
      epochs: length of each run.
      end: share of the run after which the low set is zero at the latest.
      lr: Adam's constant rate.
      drops_at: shares of the run at which it drops to a fifth.
    """
    lab = lab.rebatched(batch)
    steps = epochs * lab.per_epoch
    for share in sparsity:

        def transform(increment: Any, share=share) -> optax.GradientTransformation:
            return transforms.issr(
                drops(lr, steps, drops_at, 0.2),
                sparsity=share,
                increment=increment,
                every=every,
                limit=limit,
                end=round(end * steps),
            )

        kept = _kept_in_each(lab, share)
        points = [
            Point(
                lab.run(
                    f"iss-r {growth:g}, {percent(share)}",
                    increments=growth,
                    sparsity=share,
                ),
                np.float32(growth),
                kept,
            )
            for growth in increments
        ]
        yield from swept(lab, transform, points, epochs=epochs)


def _kept(lab: Lab, sparsity: Sequence[float]) -> list[tuple[float, int]]:
    return [(share, kept_count(lab, share)) for share in sparsity]


def _kept_in_each(lab: Lab, share: float) -> int:
    """How many ISS leaves: it removes the ceiling of the share, of each kernel."""
    low = [min(ceil(Fraction(str(share)) * n), int(0.995 * n)) for n in sizes(lab)]
    return sum(sizes(lab)) - sum(low)
