"""N:M sparsity: hard at once and in stages.

All kernels whose contracted axis the group length divides; the others stay dense.
"""

from collections.abc import Iterator
from typing import Any

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.one_shot import recalibration
from experiments.methods.reparameterized import eligible, stored
from experiments.methods.swept import row_of, sgd
from experiments.results import Row
from experiments.schedules import warmup_cosine
from jprune import masks, transforms

Pairs = tuple[tuple[int, int], ...]


def hard_n_of_m(
    lab: Lab,
    dense: Fit,
    *,
    pairs: Pairs,
    epochs: int,
    begin: float,
    end: float,
    lr: float,
    momentum: float,
    weight_decay: float,
    stats_momentum: float,
) -> Iterator[Row]:
    """Three rows for each pair, all from the dense network.

    Cut at once with statistics recalibrated and nothing trained; cut at once at step 0
    and trained on; cut in stages while it trains as long.

    Args:
      lab: the shared part.
      dense: the dense run, from which all start.
      pairs: of n and m.
      epochs: length of the two runs that train.
      begin: share of the run at which the stages begin.
      end: share at which the last one is.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.
      stats_momentum: of the network's running averages.
    """
    steps = epochs * lab.per_epoch
    refresh = recalibration(lab, stats_momentum)
    for n, m in pairs:
        scope = eligible(dense.params, m)
        mask = masks.n_of_m(dense.params, n, m, scope=scope)
        params = masks.apply(mask, dense.params)
        found = Fit(params, refresh(params, dense.stats), 0.0)
        yield _row(lab, found, f"one-shot {n}:{m}", n, m)
        stages: dict[str, dict[str, Any]] = {
            "one-shot, tuned": {"end": 0},
            "gradual": {"begin": round(begin * steps), "end": round(end * steps)},
        }
        for name, when in stages.items():

            def transform(_: Any, n=n, m=m, scope=scope, when=when):
                prune = transforms.prune_to_n_of_m(n, m, scope=scope, **when)
                return sgd(warmup_cosine(lr, steps), momentum, weight_decay, prune)

            run = lab.run(f"{name} {n}:{m}", pairs=(n, m), form=name)
            program = compile_program(lab, transform)
            done = fit(lab, program, run, epochs, start=dense[:2])
            yield _row(lab, done, run.label, n, m)


def _row(lab: Lab, done: Fit, run: str, n: int, m: int) -> Row:
    """The row of N:M weights."""
    size = masks.size(done.params, eligible(done.params, m))
    kept = masks.size(done.params) - size + size * n // m
    found = row_of(lab, done, run=run, method=lab.method, kept=kept)
    return found._replace(extra=stored(done.params, n, m))
