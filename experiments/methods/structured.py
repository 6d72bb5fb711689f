"""What methods that remove whole channels share: groups, the cut, the row about it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from experiments.lab import Lab, Run
from experiments.loop import Fit, compile_program, fit
from experiments.methods.removal import row
from experiments.methods.swept import sgd
from experiments.results import Row
from experiments.schedules import Rate, learning_rate
from jprune import analysis, masks, surgery, transforms


def variables(params: Any, stats: Any) -> dict[str, Any]:
    """Parameters and statistics as the one tree that groups are found on."""
    return {"params": params, **stats}


def network(lab: Lab) -> Callable[[Any, jax.Array], jax.Array]:
    """The network in eval mode: (variables, indices of examples) -> logits."""

    def apply(tree: Any, index: jax.Array) -> jax.Array:
        params, stats = split(tree)
        key = jax.random.key(0)  # nothing is random in evaluation
        return lab.forward(params, stats, lab.inputs, index, train=False, key=key)[0]

    return apply


def examples(lab: Lab, count: int) -> jax.Array:
    """The first `count` training examples."""
    return lab.replicated(lab.dataset.train[:count].astype(np.int32))


def find_groups(lab: Lab, dense: Fit) -> Any:
    """The groups of the network, as surgery finds them."""
    tree = variables(dense.params, dense.stats)
    index = examples(lab, lab.mesh.size)
    return surgery.groups(network(lab))(tree, index)


def coupled(deps: Any) -> list[Any]:
    """Groups that parameters both produce and read."""
    return [group for group in deps if group.kind == "coupled"]


def inner(deps: Any) -> list[Any]:
    """Groups with one producing kernel: inside a block, not on the residual stream."""
    return [
        group
        for group in coupled(deps)
        if sum(ref.role == "out" for ref in group.members) == 1
    ]


def compact_logits(lab: Lab, plan: Any, packed: Any) -> jax.Array:
    """The compact network on the test set."""
    small = surgery.shrink(network(lab), plan)
    return jax.jit(small)(packed, lab.replicated(lab.dataset.test.astype(np.int32)))


def flops_left(lab: Lab, plan: Any, packed: Any, dense: Any) -> float:
    """FLOPs of the compact network over those of the dense one."""
    index, whole = examples(lab, lab.mesh.size), network(lab)
    compact = analysis.flops(surgery.shrink(whole, plan))(packed, index)
    return float(compact / analysis.flops(whole)(dense, index))


def channel_row(
    lab: Lab,
    plan: Any,
    packed: Any,
    dense: Any,
    *,
    run: str,
    method: str,
    before: Any,
    seconds: float,
    extra: dict[str, float] | None = None,
) -> Row:
    """A row on a compact network; sparsity is of the dense network's weights.

    Args:
      lab: the shared part.
      plan: what was removed.
      packed: the compact variables.
      dense: the variables before removal.
      run: label of the row.
      method: name of the method.
      before: logits of the network before removal.
      seconds: wall time of the run.
      extra: further numbers.
    """
    params, _ = split(packed)
    size, kept = masks.size(split(dense)[0]), masks.size(params)
    after = compact_logits(lab, plan, packed)
    found = row(
        lab,
        params,
        after=after,
        before=before,
        run=run,
        method=method,
        kept=kept,
        seconds=seconds,
    )
    numbers = {"flops": flops_left(lab, plan, packed, dense), **(extra or {})}
    return found._replace(
        asked=1 - kept / size, got=1 - found.nonzero / size, extra=numbers
    )


def measured(lab: Lab, plan: Any, tree: Any, packed: Any) -> dict[str, float]:
    """Parameters and milliseconds of the dense network and of the compact one."""
    index, whole = lab.replicated(lab.dataset.test.astype(np.int32)), network(lab)
    small = surgery.shrink(whole, plan)
    times = analysis.latency(
        {"dense": (whole, tree, index), "compact": (small, packed, index)}
    )
    return {
        "parameters": float(parameter_count(packed["params"])),
        "dense parameters": float(parameter_count(tree["params"])),
        "ms": 1e3 * times["compact"].median,
        "dense ms": 1e3 * times["dense"].median,
        "dense over compact": times["dense"].median / times["compact"].median,
    }


def parameter_count(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(tree))


def fine_tune(
    lab: Lab,
    params: Any,
    stats: Any,
    groups: Sequence[Any],
    keeps: Mapping[str, Any],
    *,
    run: Run,
    epochs: int,
    lr: Rate,
    momentum: float,
    weight_decay: float,
    teacher: Fit | None = None,
) -> Fit:
    """Trains on with the removed channels held at zero, from cut parameters.

    Zeroed channels carry nothing, so this is the training of the compact network.

    Args:
      lab: the shared part.
      params: the parameters, not yet zeroed.
      stats: batch statistics.
      groups: the groups.
      keeps: by group id what stays.
      run: label.
      epochs: length.
      lr: see `schedules.learning_rate`.
      momentum: of heavy ball.
      weight_decay: of the kernels.
      teacher: the dense run, for `config.distill`.
    """
    mask = masks.from_groups(params, groups, keeps)

    def transform(_: Any) -> optax.GradientTransformation:
        rate = learning_rate(lr, epochs * lab.per_epoch)
        return sgd(rate, momentum, weight_decay, transforms.keep_masked(mask))

    start = (masks.apply(mask, params), stats)
    told = None if teacher is None else teacher[:2]
    program = compile_program(lab, transform, teacher=told)
    return fit(lab, program, run, epochs, start=start)


def split(tree: Any) -> tuple[Any, Any]:
    """The parameters, and the statistics beside them."""
    return tree["params"], {name: x for name, x in tree.items() if name != "params"}
