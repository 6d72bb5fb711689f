"""TPP against plain L1: the same filters go, with and without preparation."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.lab import Lab
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.methods.removal import accuracy
from experiments.results import Row
from jprune import analysis, masks, transforms


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
    tune_lr: float,
    samples: int,
) -> Iterator[Row]:
    """Two rows for each sparsity: cut at once by L1 norm, and cut after TPP.

    `before` and `after` are before the cut and after fine-tuning; accuracy and mean
    Jacobian singular value just after the cut are among the extra numbers.

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
      tune_lr: where its cosine starts.
      samples: training images at which the Jacobian is taken.
    """
    deps = structured.find_groups(lab, dense)
    groups = structured.inner(deps)
    steps = epochs * lab.per_epoch
    ramp = round(grow * steps)
    for share in sparsity:
        keeps = transforms.keep_large_filters(dense.params, groups, share)

        def transform(_: Any, keeps: Any = keeps):
            return transforms.tpp(
                lr,
                groups,
                keeps,
                grow=ramp,
                settle=steps - ramp,
                every=1,
                ceiling=ceiling,
                gram=gram,
                interval=interval,
                weight_decay=weight_decay,
                momentum=momentum,
            )

        start = (dense.params, dense.stats)
        program = compile_program(lab, transform)
        ready = fit(lab, program, f"tpp {share:.0%}", epochs, start=start)
        for name, cut in (("l1", dense), ("tpp", ready)):
            clock = time.perf_counter()
            run = f"{name} {share:.0%}"
            zeroed = masks.apply(
                masks.from_groups(cut.params, groups, keeps), cut.params
            )
            found = analysis.trainability(
                _image_network(lab, cut.stats), zeroed, _images(lab, samples)
            )
            tuned = structured.fine_tune(
                lab,
                cut.params,
                cut.stats,
                groups,
                keeps,
                run=f"{run} tuned",
                epochs=tune_epochs,
                lr=tune_lr,
                momentum=momentum,
                weight_decay=weight_decay,
            )
            plan = structured.plan_of(deps, groups, keeps)
            tree = structured.variables(tuned.params, tuned.stats)
            at_cut = lab.logits(zeroed, cut.stats)
            yield structured.channel_row(
                lab,
                plan,
                plan.pack(tree),
                tree,
                run=run,
                method="tpp",
                before=lab.logits(tuned.params, tuned.stats),
                seconds=cut.seconds * (name == "tpp") + time.perf_counter() - clock,
                extra={
                    "accuracy uncut": accuracy(lab, lab.logits(cut.params, cut.stats)),
                    "accuracy at the cut": accuracy(lab, at_cut),
                    "logit change of the cut": _change(lab, cut, at_cut),
                    "mean singular value": float(found.mean),
                },
            )


def _change(lab: Lab, cut: Fit, at_cut: Any) -> float:
    whole = np.asarray(lab.logits(cut.params, cut.stats))
    return float(np.abs(whole - np.asarray(at_cut)).max())


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
