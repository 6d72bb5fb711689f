"""MaskSparsity: network slimming finds the mask, then only doomed scales are pushed."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab import Lab, Run
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.results import Row
from experiments.schedules import Rate, learning_rate
from jprune import masks, surgery, transforms


def masksparsity(
    lab: Lab,
    dense: Fit,
    *,
    strength: tuple[float, ...],
    threshold: float,
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
    tune_epochs: int,
    tune_lr: Rate,
) -> Iterator[Row]:
    """Two rows for each strength: cut after slimming, cut after MaskSparsity.

    Both start from the dense network, train as long and lose the same channels: those
    whose scale slimming leaves under the threshold. `before` and `after` are before and
    after the removal; the accuracy after fine-tuning is among the extra numbers.

    Args:
      lab: the shared part.
      dense: the dense run, from which both start.
      strength: of the L1 penalty, in both.
      threshold: of the scales.
      epochs: length of each of the two runs.
      lr: see `schedules.learning_rate`.
      momentum: of Nesterov there, of heavy ball in fine-tuning.
      weight_decay: of all leaves there, of the kernels in fine-tuning.
      tune_epochs: length of fine-tuning.
      tune_lr: see `schedules.learning_rate`.
    """
    deps = structured.find_groups(lab, dense)
    groups = structured.coupled(deps)
    rate = learning_rate(lr, epochs * lab.per_epoch)
    shared: dict[str, Any] = {"weight_decay": weight_decay, "momentum": momentum}
    start = (dense.params, dense.stats)

    def named(form: str, s: float) -> Run:
        return lab.run(f"{form} {s:g}", form=form, strength=s)

    for s in strength:
        slim = compile_program(
            lab,
            lambda _, s=s: transforms.network_slimming(rate, strength=s, **shared),
        )
        slimmed = fit(lab, slim, named("slimming", s), epochs, start=start)
        keeps = masks.keep_by_scale(slimmed.params, groups, threshold)
        mine = compile_program(
            lab,
            lambda _, s=s, keeps=keeps: transforms.masksparsity(
                rate, groups, keeps, strength=s, **shared
            ),
        )
        pushed = fit(lab, mine, named("masksparsity", s), epochs, start=start)
        for name, done in (("slimming", slimmed), ("masksparsity", pushed)):
            run = named(name, s)
            tuned = structured.fine_tune(
                lab,
                done.params,
                done.stats,
                groups,
                keeps,
                run=run.then("tuned"),
                epochs=tune_epochs,
                lr=tune_lr,
                momentum=momentum,
                weight_decay=weight_decay,
                teacher=dense,
            )
            yield _cut(lab, deps, groups, keeps, dense, done, tuned, run.label)


def _cut(
    lab: Lab,
    deps: Any,
    groups: Any,
    keeps: Any,
    dense: Fit,
    done: Fit,
    tuned: Fit,
    run: str,
) -> Row:
    """The row of one removal; fine-tuning is in the extra numbers."""
    plan = surgery.plan_from_keep(deps, keeps)
    tree = structured.variables(done.params, done.stats)
    found = structured.channel_row(
        lab,
        plan,
        plan.pack(tree),
        tree,
        run=run,
        method="masksparsity",
        before=lab.logits(done.params, done.stats),
        seconds=done.seconds + tuned.seconds,
    )
    logits = np.asarray(lab.logits(tuned.params, tuned.stats))
    wanted = lab.dataset.labels[lab.dataset.test]
    return found._replace(
        extra={
            **(found.extra or {}),
            "tuned": float(np.mean(logits.argmax(-1) == wanted)),
            "kept scale over dense": _kept_scale(groups, keeps, done, dense),
            "largest doomed scale": _doomed_scale(groups, keeps, done),
        }
    )


def _scales(groups: Any, keeps: Any, fit: Fit, kept: bool) -> np.ndarray:
    """All norm scales of the kept, or of the doomed, channels."""
    mask = masks.from_groups(fit.params, groups, keeps, roles=("scale",))
    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(fit.params), strict=True)
    found = [np.asarray(p)[np.asarray(m) == kept] for m, p in pairs if jnp.ndim(m)]
    return np.abs(np.concatenate(found))


def _kept_scale(groups: Any, keeps: Any, done: Fit, dense: Fit) -> float:
    """Mean magnitude of the kept scales, relative to the dense network's."""
    now, then = (_scales(groups, keeps, f, True) for f in (done, dense))
    return float(now.mean() / then.mean())


def _doomed_scale(groups: Any, keeps: Any, done: Fit) -> float:
    return float(_scales(groups, keeps, done, False).max(initial=0))
