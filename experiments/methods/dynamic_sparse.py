"""Networks that are sparse from the first step: RigL, SET, a static random mask."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from experiments.lab import Lab
from experiments.loop import compile_program, fit
from experiments.methods.swept import kept_count, row_of
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import Rate, learning_rate
from jprune import masks, scores, transforms


def dynamic_sparse(
    lab: Lab,
    *,
    recipe: str,
    sparsity: tuple[float, ...],
    drop_fraction: float,
    every: int,
    end: float,
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each sparsity, from the initialization under an ERK mask.

    Runs of one sparsity and seed begin with the same mask and the same weights.

    Args:
      lab: the shared part.
      recipe: "rigl", "set" or "static", a key of `RECIPES`.
      sparsity: fractions to remove.
      drop_fraction: share of the kept weights that moves; unused by "static".
      every: steps between two moves; unused by "static".
      end: share of the run after which the mask stands still; unused by "static".
      epochs: length of each run.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    steps = epochs * lab.per_epoch
    moves = {
        "drop_fraction": drop_fraction,
        "every": every,
        "end": max(round(end * steps), 1),
    }
    make = RECIPES[recipe]

    def transform(mask: Any) -> optax.GradientTransformation:
        return make(
            learning_rate(lr, steps),
            mask=mask,
            momentum=momentum,
            weight_decay=weight_decay,
            key=lab.seed,
            **({} if make is transforms.static_sparse else moves),
        )

    program = compile_program(lab, transform)
    for share in sparsity:
        params, stats = lab.init()
        lots = scores.random(jax.random.key(lab.seed), params)
        mask = masks.unstructured(lots, masks.erk(params, share))
        run = lab.run(f"{recipe} {percent(share)}", sparsity=share)
        start = (masks.apply(mask, params), stats)
        done = fit(lab, program, run, epochs, start=start, hyper=lab.replicated(mask))
        found = row_of(
            lab,
            done,
            run=run.label,
            method="dynamic_sparse",
            kept=kept_count(lab, share),
        )
        yield found._replace(extra=_moved(mask, done.opt.mask))


RECIPES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "rigl": transforms.rigl,
    "set": transforms.sparse_evolutionary,
    "static": transforms.static_sparse,
}
"""The recipe of each name."""


def _moved(first: Any, last: Any) -> dict[str, float]:
    """How many the mask keeps at the end, and the share of it that was not there."""
    both = jax.tree.map(lambda a, b: a & b, first, last)
    kept, stayed = int(masks.count(last)), int(masks.count(both))
    return {"in the mask": kept, "moved": round(1 - stayed / kept, 4)}
