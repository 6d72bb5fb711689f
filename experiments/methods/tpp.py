"""TPP against plain L1: the same filters go, with and without preparation."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.lab import Lab, Run
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.methods.removal import accuracy
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import Rate
from jprune import analysis, masks, surgery, transforms


def tpp(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    epochs: int,
    grow: float,
    interval: int,
    gram: float,
    ceiling: float,
    lr: float,
    momentum: float,
    weight_decay: float,
    tune_epochs: int,
    tune_lr: Rate,
    samples: int,
) -> Iterator[Row]:
    """Two rows for each sparsity: cut at once by L1 norm, and cut after TPP.

    `after` is after fine-tuning (`before` is the same network, channels zeroed and not
    yet removed); accuracy and mean Jacobian singular value just after the cut are among
    the extra numbers.

    Args:
      lab: the shared part.
      dense: the dense run, from which both start.
      sparsity: fractions of the inner channels to remove.
      epochs: length of the regularized run.
      grow: share of it in which the strength grows.
      interval: steps between the zeroing of two groups.
      gram: weight of the Gram term.
      ceiling: of the strength.
      lr: constant, of the regularized run.
      momentum: of heavy ball, everywhere.
      weight_decay: of all leaves in the regularized run, of the kernels in fine-tuning.
      tune_epochs: length of fine-tuning.
      tune_lr: see `schedules.learning_rate`.
      samples: training images at which the Jacobian is taken.
    """
    deps = structured.find_groups(lab, dense)
    groups = structured.inner(deps)
    steps = epochs * lab.per_epoch
    ramp = round(grow * steps)
    tuning: dict[str, Any] = {"epochs": tune_epochs, "lr": tune_lr, "teacher": dense}
    tuning |= {"momentum": momentum, "weight_decay": weight_decay}

    def named(form: str, share: float) -> Run:
        return lab.run(f"{form} {percent(share)}", form=form, sparsity=share)

    for share in sparsity:
        keeps = transforms.keep_large_filters(dense.params, groups, share)

        def transform(_: Any, keeps: Any = keeps):
            return transforms.tpp(
                lr,
                groups,
                keeps,
                total_steps=steps,
                end=ramp,
                every=1,
                ceiling=ceiling,
                gram=gram,
                interval=interval,
                weight_decay=weight_decay,
                momentum=momentum,
            )

        program = compile_program(lab, transform)
        ready = fit(lab, program, named("tpp", share), epochs, start=dense[:2])
        for name, uncut in (("l1", dense), ("tpp", ready)):
            spent = ready.seconds if name == "tpp" else 0.0
            own = (named(name, share), spent, samples, tuning)
            yield _cut(lab, deps, groups, keeps, uncut, *own)


def _cut(
    lab: Lab,
    deps: Any,
    groups: Any,
    keeps: Any,
    uncut: Fit,
    run: Run,
    spent: float,
    samples: int,
    tuning: dict[str, Any],
) -> Row:
    """Cuts, looks at the Jacobian, fine-tunes: one row."""
    zeroed = masks.apply(masks.from_groups(uncut.params, groups, keeps), uncut.params)
    found = analysis.trainability(
        _image_network(lab, uncut.stats), zeroed, _images(lab, samples)
    )
    tuned = structured.fine_tune(
        lab, uncut.params, uncut.stats, groups, keeps, run=run.then("tuned"), **tuning
    )
    plan = surgery.plan_from_keep(deps, keeps)
    tree = structured.variables(tuned.params, tuned.stats)
    at_cut = np.asarray(lab.logits(zeroed, uncut.stats))
    whole = np.asarray(lab.logits(uncut.params, uncut.stats))
    return structured.channel_row(
        lab,
        plan,
        plan.pack(tree),
        tree,
        run=run.label,
        method="tpp",
        before=lab.logits(tuned.params, tuned.stats),
        seconds=tuned.seconds + spent,
        extra={
            "accuracy uncut": accuracy(lab, whole),
            "accuracy at the cut": accuracy(lab, at_cut),
            "logit change of the cut": float(np.abs(whole - at_cut).max()),
            "mean singular value": float(found.mean),
        },
    )


def _images(lab: Lab, count: int) -> Any:
    """The first training images as the network sees them, [count, ...]."""
    data = lab.dataset
    raw = np.asarray(data.inputs[data.train[:count]], np.float32)
    return lab.replicated((raw - np.asarray(data.mean)) / np.asarray(data.std))


def _image_network(lab: Lab, stats: Any) -> Any:
    """The network in eval mode as a function of parameters and images."""
    raw_std, raw_mean = np.asarray(lab.dataset.std), np.asarray(lab.dataset.mean)

    def network(params: Any, x: Any) -> Any:
        index = lab.replicated(np.zeros(1, np.int32))
        images = x * raw_std + raw_mean  # undone again inside
        key = lab.key("trainability")
        return lab.forward(params, stats, images, index, train=False, key=key)[0]

    return network
