"""Networks that are sparse from the first step: RigL, SET, a static random mask."""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.removal import row
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, scores, transforms


def dynamic_sparse(
    lab: Lab,
    dense: Fit,
    *,
    label: str,
    grow: str,
    sparsity: tuple[float, ...],
    drop_fraction: float,
    every: int,
    end: float,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each sparsity, from the initialization under an ERK mask.

    Runs of one sparsity and seed begin with the same mask and the same weights.

    Args:
      lab: the shared part.
      dense: the dense run; only the shapes of its parameters are used.
      label: what the rows are called.
      grow: "gradient" (RigL, its mask moves in place of a step, along a cosine) or
        "random" (SET, its mask moves after a step, by a constant share).
      sparsity: fractions to remove.
      drop_fraction: share of the kept weights that moves; 0 holds the first mask.
      every: steps between two moves.
      end: share of the run after which the mask stands still.
      epochs: length of each run.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    steps = epochs * lab.per_epoch
    last = max(round(end * steps), 1)
    rigl = grow == "gradient" and drop_fraction > 0
    falling = optax.cosine_decay_schedule(drop_fraction, last)

    def transform(mask: Any) -> optax.GradientTransformation:
        inner = optax.chain(
            optax.add_decayed_weights(weight_decay, mask=masks.prunable),
            optax.sgd(warmup_cosine(lr, steps), momentum),
        )
        return transforms.drop_and_grow(
            inner,
            mask=mask,
            drop_fraction=falling if rigl else drop_fraction,
            grow="gradient" if grow == "gradient" else "random",
            also_step=not rigl,
            every=every,
            end=last,
            key=lab.seed,
        )

    program = compile_program(lab, transform)
    for share in sparsity:
        params, stats = lab.init()
        lots = scores.random(jax.random.key(lab.seed), params)
        mask = masks.unstructured(lots, masks.erk(params, share))
        run = f"{label} {percent(share)}"
        start = (masks.apply(mask, params), stats)
        done = fit(lab, program, run, epochs, start=start, hyper=lab.replicated(mask))
        found = row(
            lab,
            done.params,
            after=lab.logits(done.params, done.stats),
            run=run,
            method="dynamic_sparse",
            kept=masks.kept_count(masks.size(dense.params), share),
            seconds=done.seconds,
        )
        yield found._replace(extra=_moved(mask, done.opt.mask))


def _moved(first: Any, last: Any) -> dict[str, float]:
    """How many the mask keeps at the end, and the share of it that was not there."""
    both = jax.tree.map(lambda a, b: a & b, first, last)
    kept, stayed = int(masks.count(last)), int(masks.count(both))
    return {"in the mask": kept, "moved": round(1 - stayed / kept, 4)}
