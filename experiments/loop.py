"""The training loop: one compiled step, driven without waiting for it.

The loop only dispatches. An epoch's loss and hits add up on the device; its test
accuracy and mask statistics are dispatched behind its last step and read one epoch
later, so the host never stands between two steps. What differs between the runs of one
program (how many weights to keep) is traced, so a program compiles once for all of
them.

A run whose loss or weights are no longer numbers stops (`Diverged`). One that is asked
to leave saves where it stands, within an epoch too, and raises `Stopped`.
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

from experiments import stopping
from experiments.checkpoints import Checkpoints, Saved
from experiments.config import ConfigError
from experiments.lab import Forward, Lab, Run
from jprune import masks, reparam, transforms


class Diverged(RuntimeError):
    """A run whose loss or weights are no longer numbers: names run, step and leaf."""


class State(NamedTuple):
    """All that training changes; what a checkpoint holds."""

    step: jax.Array
    params: Any
    stats: Any
    opt: Any
    average: Any = None


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
    r: reparam.Reparam | None = None,
    teacher: tuple[Any, Any] | None = None,
) -> Program:
    """A program for one method.

    Args:
      lab: the shared part.
      transform: from the traced hyper-parameters (any pytree) to the optimizer.
      select: `(params, hyper)` -> mask of what removal would keep now, for the log;
        compiled, and called once an epoch.
      forward: the network, where it is not the lab's (a compact one).
      logits: the test pass that goes with `forward`, or with `r`.
      r: a reparameterization; what is trained is then its theta.
      teacher: parameters and statistics of the network to distill from, as
        `config.distill` says.
    """
    network = forward or lab.forward
    everywhere = NamedSharding(lab.mesh, PartitionSpec())

    @partial(jax.jit, out_shardings=everywhere)
    def begin(params: Any, stats: Any, hyper: Any) -> State:
        opt = transform(hyper).init(params)
        average = params if lab.config.ema else None
        return State(jnp.zeros((), jnp.int32), params, stats, opt, average)

    loss_fn = _loss(lab, network, teacher)
    objective = _of_theta(loss_fn, r) if r else loss_fn
    gradient = _gradient(objective, lab.config.accumulate)

    def one_step(state: State, data: Any, order: jax.Array, key: jax.Array, hyper: Any):
        at = state.step % lab.per_epoch * lab.batch
        index = jax.lax.dynamic_slice(order, (at,), (lab.batch,))
        key = jax.random.fold_in(key, state.step)
        grads, stats, numbers = gradient(state.params, state.stats, data, index, key)
        updates, opt = transform(hyper).update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        average = _averaged(state.average, params, state.step, lab.config.ema)
        return State(state.step + 1, params, stats, opt, average), numbers

    @partial(
        jax.jit,
        donate_argnums=0,
        static_argnames="count",
        out_shardings=everywhere,
    )
    def advance(state, totals, data, order, key, hyper, *, count: int):
        def body(carry, _):
            state, numbers = one_step(carry[0], data, order, key, hyper)
            return (state, _added(carry[1], numbers)), None

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


def _loss(
    lab: Lab, network: Forward, teacher: tuple[Any, Any] | None
) -> Callable[..., Any]:
    """`(params, stats, data, index, key)` -> loss, (statistics, loss and hits)."""

    def loss_fn(params: Any, stats: Any, data: Any, index: jax.Array, key: jax.Array):
        inputs, labels = data
        out, stats = network(params, stats, inputs, index, train=True, key=key)
        wanted = labels[index]
        loss = cross_entropy(out, wanted, lab.config.smoothing)
        if teacher and lab.config.distill:
            loss = _distilled(lab, loss, out, teacher, inputs, index, key)
        hits = jnp.mean(out.argmax(-1) == wanted)
        return loss, (stats, jnp.stack([loss, hits]))

    return loss_fn


def cross_entropy(logits: jax.Array, wanted: jax.Array, smoothing: float) -> jax.Array:
    """The mean over a batch; `smoothing` of each label lies on all classes alike."""
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()
    if not smoothing:
        return plain
    even = -jax.nn.log_softmax(logits).mean()
    return (1 - smoothing) * plain + smoothing * even


def _distilled(
    lab: Lab,
    loss: jax.Array,
    out: jax.Array,
    teacher: tuple[Any, Any],
    inputs: Any,
    index: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """The loss with a share of Hinton's distance to the teacher on the same images."""
    soft, share = lab.config.distill_temperature, lab.config.distill
    told, _ = lab.forward(*teacher, inputs, index, train=False, key=key, augmented=True)
    wanted = jax.nn.softmax(jax.lax.stop_gradient(told) / soft)
    distance = optax.losses.kl_divergence(jax.nn.log_softmax(out / soft), wanted)
    return (1 - share) * loss + share * soft**2 * distance.mean()


def _gradient(objective: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """`(params, stats, data, index, key)` -> gradient, statistics, numbers.

    With several parts the batch is cut, and each part sees the statistics of the one
    before it.
    """
    whole = jax.grad(objective, has_aux=True)

    def gradient(params: Any, stats: Any, data: Any, index: jax.Array, key: jax.Array):
        if parts == 1:
            grads, (stats, numbers) = whole(params, stats, data, index, key)
            return grads, stats, numbers
        found = []
        for i, part in enumerate(index.reshape(parts, -1)):
            own = jax.random.fold_in(key, i)
            grads, (stats, numbers) = whole(params, stats, data, part, own)
            found.append((grads, numbers))
        grads, numbers = jax.tree.map(lambda *x: sum(x) / parts, *found)
        return grads, stats, numbers

    return gradient


def _averaged(average: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The running average, which begins as a plain mean; None without one."""
    if average is None:
        return None
    rate = jnp.maximum(1 - decay, 1 / (step + 1))
    return jax.tree.map(
        lambda a, p: (a + rate * (p - a)).astype(a.dtype), average, params
    )


@jax.jit
def _masked_average(state: State) -> Any:
    """The average, exactly 0 where the parameters are."""
    return jax.tree.map(
        lambda a, p: jnp.where(p == 0, jnp.zeros_like(a), a),
        state.average,
        state.params,
    )


def _of_theta(loss_fn: Callable[..., Any], r: reparam.Reparam) -> Callable[..., Any]:
    """The loss of the network that theta makes, with the penalty of theta."""
    wrapped = reparam.wrap(loss_fn, r, has_aux=True)

    def loss(theta: Any, stats: Any, data: Any, index: jax.Array, key: jax.Array):
        noise = jax.random.fold_in(key, 1)
        return wrapped(theta, stats, data, index, key, reparam_key=noise)

    return loss


def _added(totals: jax.Array, numbers: jax.Array) -> jax.Array:
    """The sums, and how many steps the loss was a number since the epoch began."""
    good = jnp.isfinite(numbers[0]) & jnp.isfinite(totals[0])
    return totals + jnp.append(numbers, good.astype(numbers.dtype))


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
    run: Run,
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
      run: what it is called, and the settings that make its checkpoints its own.
      epochs: how many.
      start: parameters and statistics to start from; None for the seed's own.
      opt: optimizer state to start from; None for a fresh one.
      hyper: the traced hyper-parameters of this run.

    Returns:
      The variables at the end, ready.

    Raises:
      ConfigError: if there are no epochs.
      Diverged: if the loss or a weight is no longer a number.
      Stopped: if the job was asked to leave; what was done is saved.
    """
    clock = time.perf_counter()
    if epochs < 1:
        raise ConfigError(f"run `{run.label}` has no epoch: nothing would be trained.")
    state = program.begin(*_copied(start or lab.init()), hyper)
    if opt is not None:
        state = state._replace(opt=_copied(opt))
    zero = np.zeros(3, np.float32)
    with lab.checkpoints(run) as keeper:
        found = keeper.restore(state, lab.replicated(zero))
        begin = found or Saved(0, state, zero, 0.0)
        state = _train(lab, program, run, epochs, hyper, keeper, begin, clock)
    lab.journal.end()
    done = begin.step == epochs * lab.per_epoch
    seconds = begin.seconds + (0.0 if done else time.perf_counter() - clock)
    params = state.params if state.average is None else _masked_average(state)
    return Fit(params, state.stats, seconds, state.opt)


def _train(
    lab: Lab,
    program: Program,
    run: Run,
    epochs: int,
    hyper: Any,
    keeper: Checkpoints,
    begin: Saved,
    clock: float,
) -> State:
    """The epochs that are left, from what was saved."""
    step, state, totals, earlier = begin
    last, key, data = epochs * lab.per_epoch, lab.key(run), (lab.inputs, lab.labels)
    if step < last and stopping.wanted():
        raise stopping.Stopped(f"asked to leave before run `{run.label}`")
    lab.journal.begin(run.label, last, step)
    mask, _ = program.watch(state.params, state.opt, hyper, None)
    waiting: list[Any] = []

    def record(leave: int) -> None:
        """Writes the finished epochs, all but the last `leave`."""
        while len(waiting) > leave:
            entry = _entry(lab, *waiting.pop(0))
            good = entry.pop("good")
            if good < lab.per_epoch:
                at = entry["step"] - lab.per_epoch + good + 1
                raise Diverged(_diverged(lab, run, at, state))
            entry["id"] = run.digest[:12]
            lab.journal.record(lab.prefix + run.label, entry)

    def save() -> None:
        record(0)
        if _bad_leaf(state):
            raise Diverged(_diverged(lab, run, step, state))
        spent = earlier + time.perf_counter() - clock
        keeper.save(Saved(step, state, totals, spent))

    while step < last:
        epoch, inside = divmod(step, lab.per_epoch)
        order = lab.order(epoch)
        totals = totals if inside else lab.replicated(np.zeros(3, np.float32))
        for count in _dispatches(lab, inside):
            state, totals = program.advance(
                state, totals, data, order, key, hyper, count=count
            )
            step += count
            if step < last and stopping.wanted():
                save()
                raise stopping.Stopped(f"asked to leave in run `{run.label}`")
        hits = _hits(program.logits(state.params, state.stats), lab)
        mask, numbers = program.watch(state.params, state.opt, hyper, mask)
        waiting.append((epoch + 1, totals, hits, numbers))
        if keeper.due(epoch + 1, epochs):
            save()
        record(1)
    jax.block_until_ready(state)
    return state


def _diverged(lab: Lab, run: Run, step: int, state: State) -> str:
    where = _bad_leaf(state) or "the loss"
    return (
        f"run `{lab.prefix}{run.label}` diverged at step {step}: {where} is no longer "
        "finite. Lower `lr`, or whatever this run has of penalties. Its last good "
        "checkpoint is kept."
    )


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)


def _bad_leaf(state: State) -> str | None:
    """The path of the first leaf of the variables that is not finite."""
    return bad_leaf(state.params) or bad_leaf(state.stats) or bad_leaf(state.average)


def bad_leaf(tree: Any) -> str | None:
    """The path of the first leaf of a tree that is not finite."""
    for path, good in jax.tree_util.tree_leaves_with_path(_finite(tree)):
        if not good:
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


def _copied(tree: Any) -> Any:
    """Fresh buffers: the first step donates its state, the start belongs to others."""
    return jax.tree.map(jnp.copy, tree)


def _dispatches(lab: Lab, done: int = 0) -> list[int]:
    """How many steps each compiled call takes, of an epoch whose first are done."""
    whole, rest = divmod(lab.per_epoch - done, lab.per_dispatch)
    return [lab.per_dispatch] * whole + ([rest] if rest else [])


def _hits(logits: jax.Array, lab: Lab) -> jax.Array:
    return jnp.mean(logits.argmax(-1) == lab.dataset.labels[lab.dataset.test])


def _entry(
    lab: Lab, epoch: int, totals: jax.Array, hits: jax.Array, numbers: dict
) -> dict[str, Any]:
    """Reads an epoch's numbers from the device."""
    loss, train = (np.asarray(totals[:2]) / np.float32(lab.per_epoch)).tolist()
    rest = {name: np.asarray(value).item() for name, value in numbers.items()}
    return {
        "epoch": epoch,
        "step": epoch * lab.per_epoch,
        "loss": loss,
        "train_accuracy": train,
        "test_accuracy": float(hits),
        "good": int(totals[2]),
        **rest,
    }
