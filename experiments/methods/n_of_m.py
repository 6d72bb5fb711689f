"""N:M sparsity: hard at once, hard in stages, and SR-STE.

All kernels whose contracted axis the group length divides; the others stay dense.
"""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods.one_shot import recalibration
from experiments.methods.removal import row
from experiments.methods.reparameterized import train_theta
from experiments.results import Row
from experiments.schedules import warmup_cosine
from jprune import compress, masks, reparam, transforms

Pairs = tuple[tuple[int, int], ...]


def eligible(params: Any, m: int) -> Any:
    """The kernels whose contracted axis m divides, as a scope."""
    return jax.tree.map(
        lambda on, p: bool(on and p.shape[-2] % m == 0), masks.prunable(params), params
    )


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
        yield _row(lab, found, f"one-shot {n}:{m}", "hard_n_of_m", n, m)
        stages: dict[str, dict[str, Any]] = {
            "one-shot, tuned": {"end": 0},
            "gradual": {"begin": round(begin * steps), "end": round(end * steps)},
        }
        for name, when in stages.items():

            def transform(_: Any, n=n, m=m, scope=scope, when=when):
                return optax.chain(
                    optax.add_decayed_weights(weight_decay, mask=masks.prunable),
                    optax.sgd(warmup_cosine(lr, steps), momentum),
                    transforms.prune_to_n_of_m(n, m, scope=scope, **when),
                )

            run, start = f"{name} {n}:{m}", (dense.params, dense.stats)
            done = fit(lab, compile_program(lab, transform), run, epochs, start=start)
            yield _row(lab, done, run, "hard_n_of_m", n, m)


def sr_ste(
    lab: Lab,
    dense: Fit,
    *,
    pairs: Pairs,
    strengths: tuple[float, ...],
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One run for each pair and strength, from the initialization.

    Args:
      lab: the shared part.
      dense: the dense run; only the shapes of its parameters are used.
      pairs: of n and m.
      strengths: of the decay of pruned weights; 0 is the plain straight-through mask.
      epochs: length of each run.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of all leaves.
    """
    rate = warmup_cosine(lr, epochs * lab.per_epoch)
    for n, m in pairs:
        scope = eligible(dense.params, m)
        for strength in strengths:
            tx = transforms.sr_ste(
                rate,
                n,
                m,
                scope=scope,
                strength=strength,
                weight_decay=weight_decay,
                momentum=momentum,
            )
            run = f"sr-ste {strength:g}, {n}:{m}" if strength else f"ste {n}:{m}"
            r = reparam.straight_through_n_of_m(n, m, scope=scope)
            done = train_theta(lab, r, tx, run=run, epochs=epochs)
            found = Fit(done.params, done.stats, done.seconds)
            yield _row(lab, found, run, "sr_ste", n, m)


def _row(lab: Lab, done: Fit, run: str, method: str, n: int, m: int) -> Row:
    """The row of N:M weights; packing refuses them if they are not."""
    scope = eligible(done.params, m)
    packed = compress.pack_n_of_m(done.params, n, m, scope=scope)
    leaves = jax.tree.leaves(packed, is_leaf=_is_packed)
    mine = [leaf for leaf in leaves if _is_packed(leaf)]
    size, total = masks.size(done.params, scope), masks.size(done.params)
    found = row(
        lab,
        done.params,
        after=lab.logits(done.params, done.stats),
        run=run,
        method=method,
        kept=total - size + size * n // m,
        seconds=done.seconds,
    )
    share = sum(x.nbytes for x in mine) / sum(x.dense_nbytes for x in mine)
    return found._replace(extra={"bytes of the N:M kernels": share})


def _is_packed(x: Any) -> bool:
    return hasattr(x, "dense_nbytes")
