"""The structured arena: one dense network, one budget, one training length for all.

Every entrant gets the same dense network and the same number of epochs. Those that
prepare the cut spend a part of them before it; all cut to the same FLOPs, inside the
residual blocks, and train on with what is left of their epochs. So a row differs from
the next in what chose the channels, and in nothing else.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import unknown
from experiments.lab import Lab, Run
from experiments.loop import Fit, Program, compile_program, fit
from experiments.methods import structured
from experiments.methods.removal import accuracy, row
from experiments.methods.swept import sgd
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import analysis, compress, masks, scores, surgery, transforms


class Ready(NamedTuple):
    """A network at the moment of its cut.

    Attributes:
      tree: its variables, of dense shape; readers of removed channels already changed
        by methods that change them.
      plan: what goes.
      uncut: logits of the network before anything was removed or changed.
      seconds: wall time of its preparation.
      extra: further numbers.
    """

    tree: Any
    plan: surgery.Plan
    uncut: jax.Array
    seconds: float = 0.0
    extra: Mapping[str, float] = {}


class Arena(NamedTuple):
    """What all entrants share.

    Attributes:
      lab: the shared part.
      dense: the dense run.
      deps: the groups of its network.
      groups: those inside the blocks, which lose channels.
      tune: `tune(ready, run, epochs)` -> the fine-tuned run.
      whole: the dense network, compiled: (variables, indices) -> logits.
      decay: "momentum" and "weight_decay" of the training after the cut.
    """

    lab: Lab
    dense: Fit
    deps: Any
    groups: list[Any]
    tune: Callable[[Ready, Run, int], Fit]
    whole: Callable[..., jax.Array]
    decay: dict[str, Any]

    @property
    def tree(self) -> Any:
        return structured.variables(self.dense.params, self.dense.stats)

    @property
    def uncut(self) -> jax.Array:
        return self.lab.logits(self.dense.params, self.dense.stats)

    def keeps(self, found: Any, share: float, ranking: Any = "group") -> Any:
        """What stays inside the blocks, by these scores, within a share of the FLOPs.

        Args:
          found: scores by group id; groups outside the blocks are passed over.
          share: of the dense FLOPs.
          ranking: "group" for one ratio in every block, "global" for one threshold.
        """
        mine = {g.id: np.asarray(found[g.id]) for g in self.groups}
        return surgery.choose(self.deps, mine, flops=share, ranking=ranking)

    def plan(self, keeps: Any) -> surgery.Plan:
        return surgery.plan_from_keep(self.deps, keeps)

    def filters(self, tree: Any) -> dict[str, Any]:
        """L1 norms of the filters that make each channel (Li et al. 2017)."""
        return scores.over_groups(
            tree["params"], self.groups, norm="l1", roles=("out",), raw=True
        )

    def norms(self, params: Any) -> dict[str, Any]:
        """Magnitudes of the norm scales of each channel."""
        return scores.over_groups(
            params, self.groups, norm="l1", reduce="mean", roles=("scale",), raw=True
        )


def open_arena(
    lab: Lab, dense: Fit, *, lr: float, momentum: float, weight_decay: float
) -> Arena:
    """The arena of one dense network.

    Args:
      lab: the shared part.
      dense: the dense run.
      lr: where the cosine of the training after the cut starts.
      momentum: of heavy ball there.
      weight_decay: of the kernels there.
    """
    deps = structured.find_groups(lab, dense)
    programs: dict[int, Program] = {}

    def program(epochs: int) -> Program:
        rate = warmup_cosine(lr, epochs * lab.per_epoch)
        if epochs not in programs:
            programs[epochs] = compile_program(
                lab,
                lambda mask: sgd(
                    rate, momentum, weight_decay, transforms.keep_masked(mask)
                ),
            )
        return programs[epochs]

    def tune(ready: Ready, run: Run, epochs: int) -> Fit:
        params, stats = structured.split(ready.plan.zero(ready.tree))
        shaped = ready.plan.masks(params, at="params")
        mask = jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape), shaped, params)
        start = lab.replicated((params, stats))
        return fit(lab, program(epochs), run, epochs, start=start, hyper=mask)

    whole = jax.jit(structured.network(lab))
    decay = {"momentum": momentum, "weight_decay": weight_decay}
    return Arena(lab, dense, deps, structured.inner(deps), tune, whole, decay)


def entrant(
    arena: Arena, ready: Ready, name: str, share: float, epochs: int, **own: Any
) -> Row:
    """Cuts, trains on, measures: the row of one entrant.

    `before` is its network before the cut, `after` the compact one at the end; the
    accuracy just after the cut is among the extra numbers, as are parameters and
    milliseconds for 200 images.

    Args:
      arena: what all share.
      ready: the network to cut.
      name: of the entrant.
      share: of the FLOPs that may be left.
      epochs: of training after the cut.
      **own: what its run differs in from others of the same entry.
    """
    lab, (tree, plan, uncut, seconds, extra) = arena.lab, ready
    run = lab.run(f"{name}, {percent(share)} FLOPs", flops=share, entrant=name, **own)
    at_cut = accuracy(lab, lab.logits(*structured.split(plan.zero(tree))))
    done = arena.tune(ready, run.then("tuned"), epochs)
    tuned = structured.variables(done.params, done.stats)
    packed = plan.pack(tuned)
    small = surgery.shrink(structured.network(lab), plan)
    after, numbers = measured(arena, small, packed)
    zeroed = np.asarray(lab.logits(done.params, done.stats))
    if np.abs(after - zeroed).max() > 1e-3 * np.abs(zeroed).max():
        raise RuntimeError(f"{run.label}: the compact network is another one")
    return compact_row(
        arena,
        packed["params"],
        after=after,
        run=run.label,
        before=uncut,
        seconds=seconds + done.seconds,
        extra={"at the cut": at_cut, **numbers, **extra},
    )


_TIMED, _ROUNDS = 200, 40
"""Test images in a call that is timed, and how often; the fastest call counts."""


def measured(
    arena: Arena, small: Callable[..., jax.Array], packed: Any
) -> tuple[np.ndarray, dict[str, float]]:
    """Logits on the test set; FLOPs, parameters, and milliseconds beside the dense.

    The two networks are called in turns, and of each the fastest call counts: what
    other jobs on the machine take is then left out.

    Args:
      arena: what all share.
      small: the compact network, (variables, indices) -> logits.
      packed: its variables.
    """
    lab = arena.lab
    test = np.resize(lab.dataset.test, -(-len(lab.dataset.test) // _TIMED) * _TIMED)
    chunks = [lab.replicated(c.astype(np.int32)) for c in test.reshape(-1, _TIMED)]
    call = jax.jit(small)
    logits = np.concatenate([np.asarray(call(packed, chunk)) for chunk in chunks])
    calls = ((arena.whole, arena.tree), (call, packed))
    times = [
        [_seconds(fn, tree, chunks[0]) for fn, tree in calls] for _ in range(_ROUNDS)
    ]
    dense, compact = np.min(times[1:], axis=0)
    flops = analysis.flops(small)(packed, structured.examples(lab, lab.mesh.size))
    return logits[: len(lab.dataset.test)], {
        "flops": float(flops / arena.deps.flops()),
        "parameters": float(structured.parameter_count(packed["params"])),
        "ms": float(1e3 * compact),
        "dense ms": float(1e3 * dense),
        "dense over compact": float(dense / compact),
    }


def _seconds(fn: Callable[..., jax.Array], *args: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start


def compact_row(
    arena: Arena,
    params: Any,
    *,
    after: Any,
    run: str,
    before: Any,
    seconds: float,
    extra: Mapping[str, float],
) -> Row:
    """A row whose sparsity is of the dense network's weights.

    Args:
      arena: what all share.
      params: of the compact network.
      after: its logits.
      run: label.
      before: logits of the network before the cut.
      seconds: wall time.
      extra: further numbers.
    """
    lab, size, kept = arena.lab, masks.size(arena.dense.params), masks.size(params)
    found = row(
        lab,
        params,
        after=after,
        run=run,
        method=lab.method,
        kept=kept,
        seconds=seconds,
    )
    return found._replace(
        asked=1 - kept / size,
        got=1 - found.nonzero / size,
        before=accuracy(lab, before),
        extra=dict(extra),
    )


RULES = ("random", "l1", "similarity", "lasso", "uniform")


def arena_at_once(
    lab: Lab,
    dense: Fit,
    *,
    rules: tuple[str, ...],
    flops: tuple[float, ...],
    images: int,
    samples: int,
    tune_epochs: int,
    tune_lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """Cut without training first; all epochs come after the cut.

    First a row of the dense network that trains on as long, nothing removed. "random",
    "l1" (filter norms), "lasso" (with its least squares): one ratio in every block.
    "similarity": clusters by the filters' cosine, removed channels read as their mean.
    "uniform": Torch-Pruning's default, group norms and one ratio for every group of the
    network, the residual streams among them.

    Args:
      lab: the shared part.
      dense: the dense run.
      rules: of `RULES`.
      flops: shares of the dense FLOPs that may be left.
      images: training examples that LASSO sees, a multiple of 100.
      samples: output positions a convolution gives it, for each 100 of them.
      tune_epochs: length of the training afterwards.
      tune_lr: where its cosine starts.
      momentum: of heavy ball there.
      weight_decay: of the kernels there.
    """
    for rule in rules:
        if rule not in RULES:
            raise unknown("rule", rule, RULES)
    arena = open_arena(
        lab, dense, lr=tune_lr, momentum=momentum, weight_decay=weight_decay
    )
    yield _uncut(arena, tune_epochs)
    for rule in rules:
        for share in flops:
            ready = _chosen(arena, rule, share, images, samples)
            yield entrant(arena, ready, rule, share, tune_epochs, rules=rule)


def _uncut(arena: Arena, epochs: int) -> Row:
    """The dense network trained on as long as the others."""
    lab, dense = arena.lab, arena.dense
    whole = surgery.plan_from_keep(arena.deps, {})
    run = lab.run("dense, trained on", flops=1.0, entrant="dense")
    done = arena.tune(Ready(arena.tree, whole, arena.uncut), run, epochs)
    return compact_row(
        arena,
        done.params,
        after=lab.logits(done.params, done.stats),
        run=run.label,
        before=arena.uncut,
        seconds=dense.seconds + done.seconds,
        extra={"flops": 1.0},
    )


def _chosen(arena: Arena, rule: str, share: float, images: int, samples: int) -> Ready:
    """The dense network with what a rule without training removes."""
    lab, deps, tree = arena.lab, arena.deps, arena.tree
    apply, ids = structured.network(lab), [g.id for g in arena.groups]
    norms = arena.filters(tree)
    if rule == "uniform":
        found = deps.scores(tree, reduce="mean")
        keeps = surgery.choose(deps, found, flops=share, ranking="group")
        return Ready(tree, arena.plan(keeps), arena.uncut)
    if rule == "similarity":
        found = compress.similar_channels(deps, tree, flops=share, groups=ids)
        index = structured.examples(lab, 2 * lab.mesh.size)
        plan, values = compress.remove_similar(
            apply, deps, tree, found, index, how="remove"
        )
        return Ready(values, plan, arena.uncut)
    if rule == "random":
        draw = np.random.default_rng([lab.seed, round(1000 * share)])
        norms = {name: draw.uniform(size=len(x)) for name, x in norms.items()}
    keeps = arena.keeps(norms, share)
    if rule != "lasso":
        return Ready(tree, arena.plan(keeps), arena.uncut)
    index = lab.dataset.train[:images].astype(np.int32).reshape(-1, 100)
    found = compress.reconstruct(
        apply,
        deps,
        tree,
        [lab.replicated(part) for part in index],
        {name: int(np.sum(keep)) for name, keep in keeps.items()},
        samples=samples,
        key=lab.key("lasso"),
    )
    return Ready(found.variables, found.plan, arena.uncut)
