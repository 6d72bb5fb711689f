"""A larger member of a family of compact networks, cut to the cost of a smaller one.

What a weight costs differs a hundredfold between the layers of such a network: most of
the weights lie where there is little to compute. So the budget is multiply-adds, and a
rule may rank a weight or a channel by its importance for each multiply-add it saves.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from experiments.config import ConfigError, unknown
from experiments.lab import Lab, Run
from experiments.loop import Fit, compile_program, fit
from experiments.methods import structured
from experiments.methods.removal import row
from experiments.methods.swept import sgd
from experiments.models import fbnetv3
from experiments.results import Row
from experiments.schedules import warmup_cosine
from jprune import analysis, masks, surgery, transforms

RULES = (
    "channels by magnitude",
    "channels by magnitude per FLOP",
    "weights, one share",
    "weights by magnitude",
    "weights by magnitude per FLOP",
)


def compact_convnets(
    lab: Lab,
    dense: Fit,
    *,
    smaller: str,
    rules: tuple[str, ...],
    spare: str,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """One row for each rule: cut at once to the smaller member's cost, then trained on.

    Args:
      lab: the shared part; its model is the larger member.
      dense: the larger member, trained.
      smaller: the member whose multiply-adds are the budget.
      rules: of `RULES`. Channels leave for good; weights are masked, which saves
        arithmetic on paper alone.
      spare: regular expression of the kernels no single weight of which goes.
      epochs: length of the training afterwards.
      lr: where its cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    for rule in rules:
        if rule not in RULES:
            raise unknown("rule", rule, RULES)
    how = {
        "epochs": epochs,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
    }
    shape = (1, *np.shape(lab.dataset.inputs)[1:])
    image = jax.ShapeDtypeStruct(shape, np.float32)
    budget = multiply_adds(smaller, lab.dataset.classes, image)
    for rule in rules:
        cut = _channels if rule.startswith("channels") else _weights
        yield cut(lab, dense, rule, budget, image, spare, how)


def multiply_adds(name: str, classes: int, image: Any) -> int:
    """Of a member of the family for one image, by abstract evaluation."""
    model = fbnetv3.FBNetV3(fbnetv3.MEMBERS[name], classes)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return analysis.flops(model.apply)(variables, image) // 2


def _channels(
    lab: Lab, dense: Fit, rule: str, budget: int, image: Any, spare: str, how: Any
) -> Row:
    """Channels through surgery, chosen inside blocks and on the streams alike."""
    del image, spare
    deps = structured.find_groups(lab, dense)
    tree = structured.variables(dense.params, dense.stats)
    worth = deps.scores(tree)
    if rule.endswith("per FLOP"):
        worth = per_flop(deps, worth)
    keeps = surgery.choose(deps, worth, flops=2 * budget * lab.mesh.size)
    plan = surgery.plan_from_keep(deps, keeps)
    run = Run(rule, {**lab.settings, "rule": rule})
    groups = [deps[name] for name in keeps]
    done = structured.fine_tune(
        lab, dense.params, dense.stats, groups, keeps, run=run, **how
    )
    tuned = structured.variables(done.params, done.stats)
    return structured.channel_row(
        lab,
        plan,
        plan.pack(tuned),
        tree,
        run=rule,
        method="compact_convnets",
        before=lab.logits(dense.params, dense.stats),
        seconds=done.seconds,
    )


def per_flop(deps: Any, worth: Any) -> dict[str, np.ndarray]:
    """Each group's scores over the FLOPs that one of its channels saves.

    Args:
      deps: the groups.
      worth: scores by group id.
    """
    whole = deps.flops()
    saved = {name: whole - deps.flops({name: deps[name].size - 1}) for name in worth}
    return {name: np.asarray(s) / max(saved[name], 1) for name, s in worth.items()}


def _weights(
    lab: Lab, dense: Fit, rule: str, budget: int, image: Any, spare: str, how: Any
) -> Row:
    """Single weights, held at zero while the others are trained on."""
    model = fbnetv3.FBNetV3(fbnetv3.MEMBERS[lab.config.model], lab.dataset.classes)
    tree = structured.variables(dense.params, dense.stats)
    costs = fbnetv3.weight_costs(model, tree, image)
    scope = masks.prunable(dense.params, exclude=spare)
    choose = choice(rule)
    mask = choose(dense.params, costs, scope, budget)

    def transform(_: Any) -> optax.GradientTransformation:
        rate = warmup_cosine(how["lr"], how["epochs"] * lab.per_epoch)
        last = transforms.keep_masked(mask)
        return sgd(rate, how["momentum"], how["weight_decay"], last)

    run = Run(rule, {**lab.settings, "rule": rule})
    start = (masks.apply(mask, dense.params), dense.stats)
    program = compile_program(lab, transform)
    done = fit(lab, program, run, how["epochs"], start=start)
    found = row(
        lab,
        done.params,
        after=lab.logits(done.params, done.stats),
        run=rule,
        method="compact_convnets",
        kept=int(masks.count(mask, dense.params, masks.prunable(dense.params))),
        seconds=done.seconds,
    )
    left = sparse_cost(mask, costs, dense.params) / sum(_costs(costs, dense.params))
    return found._replace(extra={"flops": left})


def choice(rule: str) -> Callable[..., Any]:
    """`(params, costs, scope, budget)` -> a mask within the budget."""
    if rule == "weights, one share":
        return one_share
    per_cost = rule.endswith("per FLOP")

    def choose(params: Any, costs: Any, scope: Any, budget: int) -> Any:
        return largest_within(params, costs, scope, budget, per_cost=per_cost)

    return choose


def one_share(params: Any, costs: Any, scope: Any, budget: int) -> Any:
    """The same share of every kernel in scope goes, its smallest weights.

    Args:
      params: the parameters.
      costs: multiply-adds of one weight of each leaf.
      scope: the kernels that may lose weights; the others' cost is paid whole.
      budget: multiply-adds that may be left.

    Raises:
      ValueError: if the budget cannot be met.
    """
    share = share_for(params, costs, scope, budget)

    def one(leaf: Any, on: bool) -> Any:
        if not on:
            return np.ones((), bool)
        keep = int(leaf.size * (1 - share) + 1e-9)
        return masks.unstructured({"kernel": leaf}, keep=keep)["kernel"]

    return jax.tree.map(one, params, scope)


def share_for(params: Any, costs: Any, scope: Any, budget: int) -> float:
    """(all - budget) / what is in scope: the share that must go."""
    inside, outside = _split_cost(params, costs, scope)
    share = max(inside + outside - budget, 0) / inside
    if share >= 1:
        raise ConfigError(
            f"`budget` is {budget:,} multiply-adds: what may not be pruned alone costs "
            f"{outside:,}."
        )
    return share


def largest_within(
    params: Any, costs: Any, scope: Any, budget: int, *, per_cost: bool
) -> Any:
    """The largest weights over all kernels, down to the last that the budget pays for.

    Args:
      params: the parameters.
      costs: multiply-adds of one weight of each leaf.
      scope: the kernels that may lose weights; the others' cost is paid whole.
      budget: multiply-adds that may be left.
      per_cost: rank |w| over the root of its cost: w^2, the energy a weight brings, for
        each multiply-add.
    """
    _, outside = _split_cost(params, costs, scope)
    leaves, tree = jax.tree.flatten(params)
    taken = [at for at, on in enumerate(jax.tree.leaves(scope)) if on]
    each = jax.tree.leaves(costs)
    sizes = [leaves[at].size for at in taken]
    cost = np.repeat([each[at] for at in taken], sizes)
    flat = np.concatenate(
        [np.abs(np.asarray(leaves[at], "f8")).ravel() for at in taken]
    )
    order = np.argsort(-(flat / np.sqrt(cost) if per_cost else flat), kind="stable")
    keep = np.zeros(len(flat), bool)
    keep[order] = np.cumsum(cost[order]) <= budget - outside
    found = [np.ones((), bool)] * len(leaves)
    parts = np.split(keep, np.cumsum(sizes)[:-1])
    for at, part in zip(taken, parts, strict=True):
        found[at] = part.reshape(leaves[at].shape)
    return jax.tree.unflatten(tree, found)


def sparse_cost(mask: Any, costs: Any, params: Any) -> int:
    """Multiply-adds of the weights that a mask keeps."""

    def one(m: Any, cost: int, leaf: Any) -> int:
        kept = leaf.size if np.ndim(m) == 0 else int(np.count_nonzero(np.asarray(m)))
        return kept * cost

    return sum(jax.tree.leaves(jax.tree.map(one, mask, costs, params)))


def _costs(costs: Any, params: Any) -> list[int]:
    return jax.tree.leaves(jax.tree.map(lambda c, leaf: c * leaf.size, costs, params))


def _split_cost(params: Any, costs: Any, scope: Any) -> tuple[int, int]:
    """Multiply-adds in scope and out of it."""
    pairs = list(zip(_costs(costs, params), jax.tree.leaves(scope), strict=True))
    return sum(c for c, on in pairs if on), sum(c for c, on in pairs if not on)
