"""Graph networks that are sparse before they are trained to the end."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import lanes
from experiments.lanes import Fit, Lanes, PerLane
from experiments.results import Row
from experiments.rules import percent
from experiments.systems.graph_runs import adam, fit, size, sparse_row
from jprune import at_init, masks, scores, transforms


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
        run = f"gradual {percent(share)}"
        done = fit(shared, program, run, steps, hyper=jnp.float32(share))
        yield sparse_row(shared, done, share, run=run, method="gradual")


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

        run = f"RigL {percent(share)}" if dense_last else f"RigL, ERK {percent(share)}"
        mask = jax.jit(jax.vmap(draw))(shared.keys("mask"), first)
        start, hyper = lanes.apply(mask, first), PerLane(mask)
        done = fit(shared, program, run, steps, start=start, hyper=hyper)
        yield sparse_row(shared, done, share, run=run, method="rigl")


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
        run, kept = f"SNIP {percent(share)}", masks.kept_count(size(first), share)
        mask = select(first, kept)
        start, hyper = lanes.apply(mask, first), PerLane(mask)
        done = fit(shared, program, run, steps, start=start, hyper=hyper)
        yield sparse_row(shared, done, share, run=run, method="snip")
