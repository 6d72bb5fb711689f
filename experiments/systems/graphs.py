"""Pruning a graph convolutional network, all seeds side by side.

Every run trains for as many steps as every other, from the initialization, but for GSM
and one-shot pruning, which begin with the dense network as in their papers.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import lanes
from experiments.config import ConfigError
from experiments.lanes import Fit, Lanes
from experiments.results import Row
from experiments.rules import percent
from experiments.systems.graph_runs import (
    DATA,
    MODELS,
    adam,
    fit,
    open_graph,
    size,
    train_dense,
    validated,
)
from experiments.systems.graph_sparse import gradual, rigl, snip
from experiments.systems.runner import Runner
from jprune import masks, surgery, transforms


def _removed(
    shared: Lanes, done: Fit, share: float, *, run: str, method: str, kept: int
) -> Row:
    """The row of a run that ends with the removal of the smallest weights."""
    params = lanes.apply(lanes.largest(done.params, kept), done.params)
    found = lanes.row(
        shared,
        params,
        run=run,
        method=method,
        kept=kept,
        before=done.params,
        seconds=done.seconds,
        extra=validated(shared, params),
    )
    return found._replace(asked=share)


def one_shot(
    shared: Lanes, dense: Fit, *, sparsity: tuple[float, ...]
) -> Iterator[Row]:
    """The largest weights of the dense network, nothing trained afterwards.

    Args:
      shared: the shared part.
      dense: the dense run.
      sparsity: fractions to remove, over both kernels.
    """
    for share in sparsity:
        kept = masks.kept_count(size(dense.params), share)
        cut = Fit(dense.params, None, 0.0)
        run = f"one-shot {percent(share)}"
        yield _removed(shared, cut, share, run=run, method="one_shot", kept=kept)


def swd(
    shared: Lanes,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    decoupled: bool,
    steps: int,
    lr: float,
    last_lr: float,
    schedule: str,
    momentum: float,
    mu: float,
    a_min: float,
    a_max: float,
) -> Iterator[Row]:
    """SWD from the initialization; one program for all sparsities.

    Args:
      shared: the shared part.
      dense: the dense run; only the shapes of its parameters are used.
      sparsity: fractions to remove.
      decoupled: Adam, and the selective decay after it; else the paper's coupled decay
        before heavy-ball momentum.
      steps: length of each run.
      lr: of the first step.
      last_lr: of the last.
      schedule: "exponential" or "cosine" in between.
      momentum: of heavy ball; Adam has its own.
      mu: base decay.
      a_min: first strength of the selective decay.
      a_max: last one; exponential in between.
    """
    rate = _falling(schedule, lr, last_lr, steps)

    def strength(step: Any) -> Any:
        return a_min * (a_max / a_min) ** (step / steps)

    def transform(keep: Any) -> optax.GradientTransformation:
        if not decoupled:
            return transforms.swd(
                rate,
                mu=mu,
                total_steps=steps,
                a_min=a_min,
                a_max=a_max,
                keep=keep,
                momentum=momentum,
                remove=False,
            )
        return optax.chain(
            optax.add_decayed_weights(mu, mask=masks.prunable),
            optax.scale_by_adam(),
            transforms.add_selective_decay(mu, strength, keep=keep),
            optax.scale_by_learning_rate(rate),
        )

    program = lanes.compile_program(shared, transform)
    name = "SWD after Adam" if decoupled else "SWD"
    for share in sparsity:
        kept = masks.kept_count(size(dense.params), share)
        run = f"{name} {percent(share)}"
        done = fit(shared, program, run, steps, hyper=jnp.int32(kept))
        yield _removed(shared, done, share, run=run, method="swd", kept=kept)


def _falling(kind: str, lr: float, last: float, steps: int) -> optax.Schedule:
    if kind == "exponential":
        return optax.exponential_decay(lr, steps, last / lr)
    if kind == "cosine":
        return optax.cosine_decay_schedule(lr, steps, last / lr)
    raise ConfigError(f"`schedule` is {kind!r}: one of exponential, cosine.")


def gsm(
    shared: Lanes,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    steps: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """GSM from the dense network; one program for all sparsities.

    Args:
      shared: the shared part.
      dense: the dense run, from which it starts.
      sparsity: fractions to remove.
      steps: length of each run.
      lr: constant.
      momentum: of heavy ball.
      weight_decay: what shrinks the passive weights.
    """
    program = lanes.compile_program(
        shared,
        lambda keep: transforms.gsm(
            lr, keep=keep, weight_decay=weight_decay, momentum=momentum
        ),
    )
    for share in sparsity:
        kept = masks.kept_count(size(dense.params), share)
        run, hyper = f"GSM {percent(share)}", jnp.int32(kept)
        done = fit(shared, program, run, steps, start=dense.params, hyper=hyper)
        yield _removed(shared, done, share, run=run, method="gsm", kept=kept)


def hidden(
    shared: Lanes,
    dense: Fit,
    *,
    keep: tuple[int, ...],
    steps: int,
    lr: float,
    weight_decay: float,
) -> Iterator[Row]:
    """Whole hidden features removed by surgery; the compact network, then trained on.

    Args:
      shared: the shared part.
      dense: the dense run, whose features are ranked by their weights' norms.
      keep: how many features stay.
      steps: length of the training afterwards.
      lr: constant.
      weight_decay: coupled.
    """
    everywhere = jnp.arange(len(shared.labels))

    def network(params: Any, graph: Any) -> jax.Array:
        return shared.network(params, graph, everywhere, None)

    first = lanes.lane(dense.params, 0)
    deps = surgery.groups(network)(first, shared.data)
    width = first["Dense_0"]["kernel"].shape[1]
    (group,) = [g for g in deps if g.size == width]
    program = lanes.compile_program(shared, lambda _: adam(lr, weight_decay))
    for count in keep:
        compact, worst = [], 0.0
        for at in range(len(shared.seeds)):
            params = lanes.lane(dense.params, at)
            worth = np.asarray(deps.scores(params)[group.id])
            best = np.sort(np.argsort(-worth, kind="stable")[:count])
            plan = surgery.plan_from_keep(deps, {group.id: best})
            compact.append(plan.pack(params))
            small = surgery.shrink(network, plan)(compact[-1], shared.data)
            zeroed = network(plan.zero(params), shared.data)
            worst = max(worst, float(jnp.abs(small - zeroed).max()))
        start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *compact)
        run = f"hidden {group.size} -> {count}"
        done = fit(shared, program, f"{run}, tuned", steps, start=start)
        for name, params, seconds in (
            (run, start, 0.0),
            (f"{run}, tuned", done.params, done.seconds),
        ):
            facts = {"largest difference from the zeroed network": worst}
            row = lanes.row(
                shared,
                params,
                run=name,
                method="hidden",
                kept=size(params),
                seconds=seconds,
                extra={**facts, **validated(shared, params)},
            )
            share = 1 - size(params) / size(dense.params)
            yield row._replace(asked=share, got=share)


RUNNER = Runner(
    open=open_graph,
    dense=train_dense,
    methods={
        "gradual": gradual,
        "gsm": gsm,
        "hidden": hidden,
        "one_shot": one_shot,
        "rigl": rigl,
        "snip": snip,
        "swd": swd,
    },
    data=DATA,
    models=MODELS,
)
