"""Learned gates: channels and blocks close, the compact network is what is left."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from experiments.lab import Lab, Run
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.methods.one_shot import recalibration
from experiments.methods.removal import accuracy
from experiments.methods.reparameterized import Exported, train_theta
from experiments.methods.swept import sgd
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import analysis, reparam, surgery, transforms


def gates(
    lab: Lab,
    dense: Fit,
    *,
    price: tuple[float, ...],
    target: tuple[float, ...],
    rate: float,
    wait: int,
    ramp: int,
    epochs: int,
    lr: float,
    channel_rate: float,
    branch_rate: float,
    momentum: float,
    weight_decay: float,
    stats_momentum: float,
    tune_epochs: int,
    tune_lr: float,
) -> Iterator[Row]:
    """One row for each price, and one for each budget, from the dense network.

    `before` and `after` are the gated network in evaluation, its batch statistics
    measured anew, and the compact one made of it. The accuracy after fine-tuning, the
    blocks that are left and the times are among the extra numbers.

    Args:
      lab: the shared part.
      dense: the dense run, from which it starts.
      price: of the expected FLOPs, relative to the dense ones.
      target: relative FLOPs at which a price that starts at 0 settles.
      rate: of that price, for each step.
      wait: epochs at price 0.
      ramp: epochs in which the price rises after that.
      epochs: length of the run.
      lr: where the cosine of the weights starts.
      channel_rate: Adam's learning rate for the channels' gates.
      branch_rate: the same for the blocks' gates.
      momentum: of heavy ball, of the weights.
      weight_decay: of the kernels.
      stats_momentum: of the network's running averages.
      tune_epochs: length of the training with closed gates held at zero.
      tune_lr: where its cosine starts.
    """
    deps = structured.find_groups(lab, dense)
    groups = structured.inner(deps)
    blocks = branches(lab, deps, dense)
    refresh = recalibration(lab, stats_momentum)
    begin, rise = wait * lab.per_epoch, ramp * lab.per_epoch
    made = partial(reparam.learned_gates, groups, blocks, cost=deps.flops)
    ramps = [optax.linear_schedule(0.0, most, rise, begin) for most in price]
    runs = [
        (lab.run(f"gates {most:g}", price=most, target=None), made(price=ramped))
        for most, ramped in zip(price, ramps, strict=True)
    ]
    for t in target:
        run = lab.run(f"gates, {percent(t)} FLOPs", price=None, target=t)
        runs.append((run, made(target=t, rate=rate)))
    for run, r in runs:
        steps = epochs * lab.per_epoch
        weights = sgd(warmup_cosine(lr, steps), momentum, weight_decay)
        tx = optax.partition(
            {
                "weights": weights,
                "channels": optax.adam(channel_rate),
                "branches": optax.adam(branch_rate),
                "price": optax.set_to_zero(),
            },
            lambda theta: type(theta)(*theta._fields),
        )
        done = train_theta(lab, r, tx, run=run, epochs=epochs, start=dense[:2])
        done = done._replace(stats=refresh(done.params, done.stats))
        free = done.theta._replace(price=np.float32(1))
        found = {
            "expected flops": float(jax.jit(r.penalty)(free)),
            "price": float(done.theta.price),
        }
        tuning = {"epochs": tune_epochs, "lr": tune_lr, "momentum": momentum}
        yield cut(lab, deps, done, run, "gates", tuning, found)


def branches(lab: Lab, deps: Any, dense: Fit) -> dict[str, reparam.Branch]:
    """The residual blocks, found from the network's program."""
    tree = structured.variables(dense.params, dense.stats)
    index = structured.examples(lab, lab.mesh.size)
    found = analysis.residual_branches(
        structured.network(lab), deps, tree, index, at="params"
    )
    return found.branches


def cut(
    lab: Lab,
    deps: Any,
    done: Exported,
    run: Run,
    method: str,
    tuning: dict[str, Any],
    extra: dict[str, float],
) -> Row:
    """The compact network, checked and timed; and the gated one trained on.

    Args:
      lab: the shared part.
      deps: the groups.
      done: the run whose closed gates are removed.
      run: what it is.
      method: its name.
      tuning: epochs, lr and momentum of the training with closed gates held at zero.
      extra: further numbers.
    """
    plan = surgery.plan_from_masks(deps, done.mask, at="params", allow_empty=True)
    tree = structured.variables(done.params, done.stats)
    packed = plan.pack(tree)
    found = structured.channel_row(
        lab,
        plan,
        packed,
        tree,
        run=run.label,
        method=method,
        before=lab.logits(done.params, done.stats),
        seconds=done.seconds,
    )
    index = structured.examples(lab, 64)
    report = surgery.verify(
        structured.network(lab), plan, tree, index, reference="dense"
    )
    if not report.ok:
        raise RuntimeError(f"the compact network differs from the gated one:\n{report}")
    numbers = _left(deps, plan) | {"verified error": report.error, **extra}
    numbers |= structured.measured(lab, plan, tree, packed)
    numbers["tuned"] = _trained_on(lab, done, run, **tuning)
    return found._replace(extra={**(found.extra or {}), **numbers})


def _left(deps: Any, plan: Any) -> dict[str, float]:
    """How many blocks, and how many channels inside them, are left."""
    widths = []
    for group in structured.inner(deps):
        (ref,) = [ref for ref in group.members if ref.role == "out"]
        widths.append(plan.keep[ref.path][ref.axis])
    return {
        "blocks": float(sum(w.any() for w in widths)),
        "of blocks": float(len(widths)),
        "channels": float(sum(w.sum() for w in widths)),
        "of channels": float(sum(w.size for w in widths)),
    }


def _trained_on(
    lab: Lab, done: Exported, run: Run, epochs: int, lr: float, momentum: float
) -> float:
    """Accuracy after training with the gates folded in and closed ones held at zero."""

    def transform(_: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.sgd(warmup_cosine(lr, epochs * lab.per_epoch), momentum),
            transforms.keep_masked(done.mask),
        )

    start = (done.params, done.stats)
    program = compile_program(lab, transform)
    tuned = fit(lab, program, run.then("tuned"), epochs, start=start)
    return accuracy(lab, lab.logits(tuned.params, tuned.stats))
