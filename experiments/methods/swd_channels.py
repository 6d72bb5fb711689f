"""SWD on channels: from the initialization to a network that is really smaller.

The norm scales and shifts of the channels that a FLOPs budget drops now get the extra
decay; at the end those channels are removed from every parameter and from the optimizer
state, the compact network is verified against the zeroed one, and trained on.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from experiments.lab import Lab, Run
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.methods.removal import accuracy
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, scores, surgery, transforms


def swd_channels(
    lab: Lab,
    dense: Fit,
    *,
    flops: float,
    multiple: int,
    epochs: int,
    lr: float,
    momentum: float,
    mu: float,
    a_min: float,
    a_max: float,
    tune_epochs: int,
    tune_lr: float,
) -> Iterator[Row]:
    """One row: half the multiply-adds gone, with what the compact network costs.

    Args:
      lab: the shared part.
      dense: the dense run; only the shapes of its variables are used.
      flops: fraction of the dense FLOPs that may remain.
      multiple: each group keeps a multiple of so many channels; compilers run aligned
        widths faster. It must divide every group.
      epochs: length of the run.
      lr: where its cosine starts.
      momentum: of heavy ball, before and after the removal.
      mu: base weight decay.
      a_min: first strength of the selective decay.
      a_max: last one; exponential in between.
      tune_epochs: length of the training of the compact network.
      tune_lr: where its cosine starts.
    """
    run = lab.run(f"swd channels, {percent(flops)} FLOPs")
    deps = structured.find_groups(lab, dense)
    groups = structured.coupled(deps)
    choose = _within_flops(deps, groups, flops, multiple)
    steps = epochs * lab.per_epoch

    def transform(_: Any) -> optax.GradientTransformation:
        return transforms.swd(
            warmup_cosine(lr, steps),
            mu=mu,
            a_min=a_min,
            a_max=a_max,
            total_steps=steps,
            momentum=momentum,
            select=lambda p: masks.from_groups(
                p, groups, choose(p), roles=("scale", "bias")
            ),
            remove=False,
        )

    done = fit(lab, compile_program(lab, transform), run, epochs)
    keeps = choose(done.params)
    plan = surgery.plan_from_keep(deps, keeps)
    tree = structured.variables(done.params, done.stats)
    packed = plan.pack(tree)
    found = structured.channel_row(
        lab,
        plan,
        packed,
        tree,
        run=run.label,
        method="swd_channels",
        before=lab.logits(done.params, done.stats),
        seconds=done.seconds,
    )
    tuned = _train_compact(
        lab, plan, done, run, epochs=tune_epochs, lr=tune_lr, momentum=momentum
    )
    numbers = (
        _verified(lab, plan, tree)
        | structured.measured(lab, plan, tree, packed)
        | tuned
    )
    yield found._replace(extra={**(found.extra or {}), **numbers})


def _within_flops(
    deps: Any, groups: list[Any], share: float, multiple: int
) -> Callable[[Any], dict[str, jax.Array]]:
    """From parameters to what each group keeps: mean |scale|, under the budget."""

    def choose(params: Any) -> dict[str, jax.Array]:
        found = scores.over_groups(
            params, groups, norm="l1", reduce="mean", roles=("scale",), raw=True
        )
        return surgery.choose(
            deps, found, flops=share, ranking="global", round_to=multiple
        )

    return jax.jit(choose)


def _verified(lab: Lab, plan: Any, tree: Any) -> dict[str, float]:
    """The certificate and the numbers: compact against the dense network zeroed.

    Raises:
      RuntimeError: they differ.
    """
    index = structured.examples(lab, 64)
    report = surgery.verify(structured.network(lab), plan, tree, index)
    if not report.ok:
        raise RuntimeError(
            f"the compact network differs from the zeroed one:\n{report}"
        )
    return {"verified": 1.0}


def _train_compact(
    lab: Lab,
    plan: Any,
    done: Fit,
    run: Run,
    *,
    epochs: int,
    lr: float,
    momentum: float,
) -> dict[str, float]:
    """Trains the compact network on, from the packed momentum; its accuracy."""

    def forward(v: Any, inputs: Any, index: jax.Array, key: jax.Array) -> Any:
        params, stats = structured.split(v)
        return lab.forward(params, stats, inputs, index, train=True, key=key)

    tree = structured.variables(done.params, done.stats)
    compact = surgery.shrink(forward, plan)

    def network(params, stats, inputs, index, *, train: bool, key):
        del train  # evaluation has its own pass, `logits`
        return compact(structured.variables(params, stats), inputs, index, key)

    def optimizer(_: Any) -> optax.GradientTransformation:
        return optax.sgd(warmup_cosine(lr, epochs * lab.per_epoch), momentum)

    # The trace of the long run is its momentum; its shapes follow the parameters.
    momenta = optax.tree.get(done.opt, "trace")
    fresh = jax.jit(optimizer(None).init)(done.params)
    opt = plan.pack_state(
        optax.tree.set(fresh, trace=momenta), done.params, at="params"
    )
    program = compile_program(
        lab,
        optimizer,
        forward=network,
        logits=lambda p, s: structured.compact_logits(
            lab, plan, structured.variables(p, s)
        ),
    )
    tuned = fit(
        lab,
        program,
        run.then("compact"),
        epochs,
        start=structured.split(plan.pack(tree)),
        opt=opt,
    )
    logits = structured.compact_logits(
        lab, plan, structured.variables(tuned.params, tuned.stats)
    )
    return {"trained on": accuracy(lab, logits)}
