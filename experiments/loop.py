"""The training loop: one compiled step, driven without waiting for it.

The loop only dispatches. An epoch's loss and hits add up on the device; its test
accuracy and mask statistics are dispatched behind its last step and read one epoch
later, so the host never stands between two steps. What differs between the runs of one
program (how many weights to keep) is traced, so a program compiles once for all of
them.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from experiments.lab import Forward, Lab
from jprune import masks, transforms


class State(NamedTuple):
    """All that training changes; what a checkpoint holds."""

    step: jax.Array
    params: Any
    stats: Any
    opt: Any


class Program(NamedTuple):
    """A compiled training step with its companions; made by `compile_program`.

    Attributes:
      begin: `(params, stats, hyper)` -> the first `State`.
      advance: `(state, totals, data, order, key, hyper, count=)` -> the state and the
        sums of the epoch, `count` steps later.
      watch: `(params, optimizer state, hyper, previous mask)` -> the mask now and
        numbers for the log; the first time the previous mask is None.
      logits: `(params, stats)` -> the network on the test set.
    """

    begin: Callable[..., State]
    advance: Callable[..., tuple[State, jax.Array]]
    watch: Callable[..., tuple[Any, dict[str, jax.Array]]]
    logits: Callable[[Any, Any], jax.Array]


class Fit(NamedTuple):
    """A finished run: its variables and optimizer state, ready, and its wall time."""

    params: Any
    stats: Any
    seconds: float
    opt: Any = None


def compile_program(
    lab: Lab,
    transform: Callable[[Any], optax.GradientTransformation],
    *,
    select: Callable[[Any, Any], Any] | None = None,
    forward: Forward | None = None,
    logits: Callable[[Any, Any], jax.Array] | None = None,
    penalty: Callable[[Any], jax.Array] | None = None,
) -> Program:
    """A program for one method.

    Args:
      lab: the shared part.
      transform: from the traced hyper-parameters (any pytree) to the optimizer.
      select: `(params, hyper)` -> mask of what removal would keep now, for the log;
        compiled, and called once an epoch.
      forward: the network, where it is not the lab's (a compact one, or a
        reparameterized one).
      logits: the test pass that goes with `forward`.
      penalty: of the parameters, added to the loss.
    """
    network = forward or lab.forward
    everywhere = NamedSharding(lab.mesh, PartitionSpec())

    @partial(jax.jit, out_shardings=everywhere)
    def begin(params: Any, stats: Any, hyper: Any) -> State:
        opt = transform(hyper).init(params)
        return State(jnp.zeros((), jnp.int32), params, stats, opt)

    def loss_fn(params: Any, stats: Any, data: Any, index: jax.Array, key: jax.Array):
        inputs, labels = data
        out, stats = network(params, stats, inputs, index, train=True, key=key)
        wanted = labels[index]
        loss = optax.softmax_cross_entropy_with_integer_labels(out, wanted).mean()
        hits = jnp.mean(out.argmax(-1) == wanted)
        extra = penalty(params) if penalty else 0.0
        return loss + extra, (stats, jnp.stack([loss, hits]))

    def one_step(state: State, data: Any, order: jax.Array, key: jax.Array, hyper: Any):
        at = state.step % lab.per_epoch * lab.batch
        index = jax.lax.dynamic_slice(order, (at,), (lab.batch,))
        grads, (stats, numbers) = jax.grad(loss_fn, has_aux=True)(
            state.params, state.stats, data, index, jax.random.fold_in(key, state.step)
        )
        updates, opt = transform(hyper).update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, stats, opt), numbers

    @partial(
        jax.jit,
        donate_argnums=0,
        static_argnames="count",
        out_shardings=everywhere,
    )
    def advance(state, totals, data, order, key, hyper, *, count: int):
        def body(carry, _):
            state, numbers = one_step(carry[0], data, order, key, hyper)
            return (state, carry[1] + numbers), None

        if count == 1:
            return body((state, totals), None)[0]
        return jax.lax.scan(body, (state, totals), length=count)[0]

    def watch(params: Any, opt: Any, hyper: Any, previous: Any):
        if not select:
            mask = zeros(params)
            return mask, {"sparsity": removed(mask)}
        mask = select(params, hyper)
        return mask, {} if previous is None else observe(params, mask, previous, opt)

    return Program(begin, advance, watch, logits or lab.logits)


zeros = jax.jit(masks.from_zeros)
removed = jax.jit(masks.sparsity)


@jax.jit
def observe(params: Any, mask: Any, previous: Any, opt: Any) -> dict[str, jax.Array]:
    """What is zero now, and the numbers every method logs about its choice."""
    numbers = {"sparsity": masks.sparsity(masks.from_zeros(params))}
    return numbers | transforms.diagnostics(params, mask, previous=previous, state=opt)


def fit(
    lab: Lab,
    program: Program,
    run: str,
    epochs: int,
    *,
    start: tuple[Any, Any] | None = None,
    opt: Any = None,
    hyper: Any = None,
) -> Fit:
    """Trains, logs every epoch, keeps checkpoints.

    Args:
      lab: the shared part.
      program: of the method.
      run: the name in log, bar and checkpoints.
      epochs: how many.
      start: parameters and statistics to start from; None for the seed's own.
      opt: optimizer state to start from; None for a fresh one.
      hyper: the traced hyper-parameters of this run.

    Returns:
      The variables at the end, ready.
    """
    clock = time.perf_counter()
    state = program.begin(*_copied(start or lab.init()), hyper)
    if opt is not None:
        state = state._replace(opt=_copied(opt))
    key, run = lab.key(run), lab.prefix + run
    keeper = lab.checkpoints(run)
    done, state, earlier = keeper.restore(state) or (0, state, 0.0)
    lab.journal.begin(run, epochs * lab.per_epoch, done * lab.per_epoch)
    data = (lab.inputs, lab.labels)
    mask, _ = program.watch(state.params, state.opt, hyper, None)
    waiting = []
    for epoch in range(done, epochs):
        order, totals = lab.order(epoch), lab.replicated(np.zeros(2, np.float32))
        for count in _dispatches(lab):
            state, totals = program.advance(
                state, totals, data, order, key, hyper, count=count
            )
        hits = _hits(program.logits(state.params, state.stats), lab)
        mask, numbers = program.watch(state.params, state.opt, hyper, mask)
        waiting.append((epoch + 1, totals / lab.per_epoch, hits, numbers))
        saving = keeper.due(epoch + 1, epochs)
        while len(waiting) > (0 if saving else 1):
            lab.journal.record(run, _entry(lab, *waiting.pop(0)))
        if saving:
            keeper.save(epoch + 1, state, earlier + time.perf_counter() - clock)
    jax.block_until_ready(state)
    keeper.close()
    lab.journal.end()
    seconds = earlier + (time.perf_counter() - clock if done < epochs else 0.0)
    return Fit(state.params, state.stats, seconds, state.opt)


def _copied(tree: Any) -> Any:
    """Fresh buffers: the first step donates its state, the start belongs to others."""
    return jax.tree.map(jnp.copy, tree)


def _dispatches(lab: Lab) -> list[int]:
    """How many steps each compiled call of an epoch takes."""
    whole, rest = divmod(lab.per_epoch, lab.per_dispatch)
    return [lab.per_dispatch] * whole + ([rest] if rest else [])


def _hits(logits: jax.Array, lab: Lab) -> jax.Array:
    return jnp.mean(logits.argmax(-1) == lab.dataset.labels[lab.dataset.test])


def _entry(
    lab: Lab, epoch: int, totals: jax.Array, hits: jax.Array, numbers: dict
) -> dict[str, Any]:
    """Reads an epoch's numbers from the device."""
    loss, train = np.asarray(totals).tolist()
    rest = {name: np.asarray(value).item() for name, value in numbers.items()}
    return {
        "epoch": epoch,
        "step": epoch * lab.per_epoch,
        "loss": loss,
        "train_accuracy": train,
        "test_accuracy": float(hits),
        **rest,
    }
