"""Pruning a graph convolutional network, all seeds side by side.

Every run sees all training nodes in every step and trains for as many steps as every
other, from the initialization, but for GSM and one-shot pruning, which begin with the
dense network as in their papers.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import lanes
from experiments.config import Config, ConfigError
from experiments.data import graphs
from experiments.lanes import Fit, Lanes, PerLane
from experiments.models import sparse_gcn
from experiments.results import Row
from experiments.systems.runner import Runner
from jprune import at_init, masks, scores, surgery, transforms

DATA = {name: partial(graphs.load_graph, name) for name in ("cora", "citeseer")}
CHUNK = 20
"""Steps in one compiled call."""


def _gcn(classes: int, hidden: int) -> Any:
    from experiments.models import gcn  # jraph comes with the extra `data`

    return gcn.GCN(classes, hidden)


MODELS = {"gcn": _gcn}


def open_graph(
    config: Config,
    *,
    seed: int,
    data_dir: str | None,
    journal: Any,
    checkpoints: Callable[[str], Any],
    prefix: str,
    seeds: int,
    hidden: int,
    validation: int,
) -> Lanes:
    """One citation graph on the device and the network beside it.

    Args:
      config: the configuration.
      seed: of the first lane; the others count on from it.
      data_dir: where the data set is.
      journal: log and progress.
      checkpoints: opens the checkpoints of one run.
      prefix: put before the names of the runs.
      seeds: how many lanes.
      hidden: width of the hidden layer.
      validation: so many nodes behind the training nodes, to choose settings by.

    Raises:
      DataError: if the data is not there.
    """
    data = DATA[config.data](data_dir)
    model = MODELS[config.model](data.classes, hidden)

    def network(params: Any, graph: Any, index: jax.Array, key: Any) -> jax.Array:
        whole, near = graph
        used = whole if key is None else near  # a key says that this is training
        return sparse_gcn.logits(params, used, key)[index]

    whole = sparse_gcn.from_jraph(data.inputs)

    last = int(data.train.max()) + 1
    return Lanes(
        network=network,
        init=lambda key: model.init(key, data.inputs)["params"],
        data=(whole, sparse_gcn.around(whole, data.train)),
        labels=jnp.asarray(data.labels),
        splits={
            "train": data.train,
            "validation": jnp.arange(last, last + validation),
            "test": data.test,
        },
        seeds=tuple(range(seed, seed + seeds)),
        batch=0,
        per_epoch=CHUNK,
        journal=journal,
        checkpoints=checkpoints,
        config=config,
        prefix=prefix,
    )


def adam(lr: optax.ScalarOrSchedule, weight_decay: float, *last: Any) -> Any:
    """Adam with coupled decay, as the network's authors train it; then `last`."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=masks.prunable),
        optax.adam(lr),
        *last,
    )


def _fit(shared: Lanes, program: Any, run: str, steps: int, **given: Any) -> Fit:
    return lanes.fit(shared, program, run, steps // CHUNK, log_every=5, **given)


def _size(params: Any) -> int:
    return masks.size(lanes.lane(params, 0))


def _validated(shared: Lanes, params: Any) -> dict[str, float]:
    return {"validation": float(shared.accuracy(params, "validation").mean())}


def train_dense(
    shared: Lanes, *, steps: int, lr: float, weight_decay: float
) -> tuple[Fit, list[Row]]:
    """Adam on all training nodes.

    Args:
      shared: the shared part.
      steps: length of the run.
      lr: constant.
      weight_decay: coupled.
    """
    program = lanes.compile_program(shared, lambda _: adam(lr, weight_decay))
    done = _fit(shared, program, "dense", steps)
    row = lanes.row(
        shared,
        done.params,
        run="dense",
        method="dense",
        kept=_size(done.params),
        seconds=done.seconds,
        extra=_validated(shared, done.params),
    )
    return done, [row]


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
        extra=_validated(shared, params),
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
        kept = masks.kept_count(_size(dense.params), share)
        cut = Fit(dense.params, None, 0.0)
        run = f"one-shot {share:.0%}"
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
        kept = masks.kept_count(_size(dense.params), share)
        run = f"{name} {share:.0%}"
        done = _fit(shared, program, run, steps, hyper=jnp.int32(kept))
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
        kept = masks.kept_count(_size(dense.params), share)
        run, hyper = f"GSM {share:.0%}", jnp.int32(kept)
        done = _fit(shared, program, run, steps, start=dense.params, hyper=hyper)
        yield _removed(shared, done, share, run=run, method="gsm", kept=kept)


def _sparse(shared: Lanes, done: Fit, share: float, *, run: str, method: str) -> Row:
    """The row of a run that is sparse before it ends."""
    return lanes.row(
        shared,
        done.params,
        run=run,
        method=method,
        kept=masks.kept_count(_size(done.params), share),
        seconds=done.seconds,
        extra=_validated(shared, done.params),
    )


def gradual(
    shared: Lanes,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    steps: int,
    end: float,
    every: int,
    lr: float,
    weight_decay: float,
) -> Iterator[Row]:
    """Gradual magnitude pruning from the initialization; one program for all.

    Args:
      shared: the shared part.
      dense: unused.
      sparsity: fractions to remove.
      steps: length of each run.
      end: share of the run after which the mask stands still.
      every: steps between two removals.
      lr: constant.
      weight_decay: coupled.
    """
    del dense
    program = lanes.compile_program(
        shared,
        lambda final: adam(
            lr,
            weight_decay,
            transforms.prune_gradually(final, end=round(end * steps), every=every),
        ),
    )
    for share in sparsity:
        run = f"gradual {share:.0%}"
        done = _fit(shared, program, run, steps, hyper=jnp.float32(share))
        yield _sparse(shared, done, share, run=run, method="gradual")


def rigl(
    shared: Lanes,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    steps: int,
    end: float,
    every: int,
    drop_fraction: float,
    dense_last: bool,
    lr: float,
    weight_decay: float,
) -> Iterator[Row]:
    """RigL around Adam, from a random mask.

    Args:
      shared: the shared part.
      dense: the dense run; only the shapes of its parameters are used.
      sparsity: fractions to remove.
      steps: length of each run.
      end: share of the run after which the mask stands still.
      every: steps between two moves.
      drop_fraction: share of the kept weights that moves, falling along a cosine.
      dense_last: the small last kernel keeps all its weights and the first pays for
        them; else the Erdos-Renyi-kernel allocation of the paper.
      lr: constant.
      weight_decay: coupled.
    """
    last = round(end * steps)
    program = lanes.compile_program(
        shared,
        lambda mask: transforms.drop_and_grow(
            adam(lr, weight_decay),
            mask=mask,
            drop_fraction=optax.cosine_decay_schedule(drop_fraction, last),
            every=every,
            end=last,
        ),
    )
    first, shapes = shared.first(), lanes.lane(dense.params, 0)
    for share in sparsity:
        part = _dense_last(shapes, share) if dense_last else masks.erk(shapes, share)

        def draw(key: jax.Array, params: Any, part=part) -> Any:
            return masks.unstructured(scores.random(key, params), part)

        run = f"RigL {share:.0%}" if dense_last else f"RigL, ERK {share:.0%}"
        mask = jax.jit(jax.vmap(draw))(shared.keys("mask"), first)
        start, hyper = lanes.apply(mask, first), PerLane(mask)
        done = _fit(shared, program, run, steps, start=start, hyper=hyper)
        yield _sparse(shared, done, share, run=run, method="rigl")


def _dense_last(params: Any, share: float) -> Any:
    """The sparsity of the first kernel that makes up for a whole last one."""
    first, last = (params[f"Dense_{i}"]["kernel"].size for i in (0, 1))
    kept = masks.kept_count(first + last, share)
    return {
        "Dense_0": {"kernel": 1 - (kept - last) / first},
        "Dense_1": {"kernel": 0.0},
    }


def snip(
    shared: Lanes,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    steps: int,
    lr: float,
    weight_decay: float,
) -> Iterator[Row]:
    """SNIP on all training nodes, dropout off; the mask is held.

    Args:
      shared: the shared part.
      dense: unused.
      sparsity: fractions to remove.
      steps: length of each run.
      lr: constant.
      weight_decay: coupled.
    """
    del dense
    program = lanes.compile_program(
        shared, lambda mask: adam(lr, weight_decay, transforms.keep_masked(mask))
    )
    train = jnp.asarray(shared.splits["train"])

    def loss(params: Any, index: jax.Array) -> jax.Array:
        out = shared.network(params, shared.data, index, None)
        wanted = shared.labels[index]
        return optax.softmax_cross_entropy_with_integer_labels(out, wanted).mean()

    @jax.jit
    def select(params: Any, keep: jax.Array) -> Any:
        def one(p: Any) -> Any:
            worth = at_init.snip(loss, p, train)
            return masks.unstructured(worth, keep=keep, min_keep=0)

        return jax.vmap(one)(params)

    first = shared.first()
    for share in sparsity:
        run, kept = f"SNIP {share:.0%}", masks.kept_count(_size(first), share)
        mask = select(first, kept)
        start, hyper = lanes.apply(mask, first), PerLane(mask)
        done = _fit(shared, program, run, steps, start=start, hyper=hyper)
        yield _sparse(shared, done, share, run=run, method="snip")


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
        done = _fit(shared, program, f"{run}, tuned", steps, start=start)
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
                kept=_size(params),
                seconds=seconds,
                extra={**facts, **_validated(shared, params)},
            )
            share = 1 - _size(params) / _size(dense.params)
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
