"""Several seeds of a small network side by side: one program, compiled once for all.

A *lane* is one seed. Parameters, optimizer state and batch order have a leading axis of
lanes; a step is `vmap` over it, and an epoch is one `lax.scan` of steps. What the runs
of one method differ in (how many weights to keep) is traced, so the program serves them
all. This suits dense and graph networks; XLA's convolutions on CPU do not gain.
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import stopping
from experiments.checkpoints import Saved
from experiments.config import ConfigError
from experiments.loop import Diverged, bad_leaf
from experiments.methods.removal import kernels
from experiments.results import Row
from jprune import masks, reparam

Network = Callable[..., Any]
"""`network(params, data, index, key)` -> logits [index, classes]; key None in tests."""


class Lanes(NamedTuple):
    """What every run of one experiment shares.

    Attributes:
      network: the network as a pure function of parameters, data, index and key.
      init: `init(key)` -> parameters of one lane.
      data: whatever the network reads, on the device.
      labels: [n] int32.
      splits: indices by name; "train" is trained on, "test" gives a row's accuracy.
      seeds: one a lane.
      batch: examples in a step; 0 for all of "train" in every step.
      per_epoch: steps in an epoch.
      journal: log and progress.
      checkpoints: opens the checkpoints of one run.
      config: the configuration.
      prefix: put before the names of its runs.
    """

    network: Network
    init: Callable[[jax.Array], Any]
    data: Any
    labels: jax.Array
    splits: dict[str, np.ndarray]
    seeds: tuple[int, ...]
    batch: int
    per_epoch: int
    journal: Any
    checkpoints: Callable[[str], Any]
    config: Any = None
    prefix: str = ""

    def first(self) -> Any:
        """The parameters every lane begins with, [lanes, ...]."""
        keys = jnp.stack([jax.random.key(seed) for seed in self.seeds])
        return _side_by_side(self.init)(keys)

    def order(self, epoch: int) -> jax.Array:
        """Training examples of an epoch for each lane, [lanes, per_epoch, batch]."""
        train = self.splits["train"]
        if not self.batch:
            shape = (len(self.seeds), self.per_epoch, len(train))
            return jnp.broadcast_to(jnp.asarray(train), shape)
        used = self.per_epoch * self.batch
        lanes = [
            np.random.default_rng([seed, epoch]).permutation(train)[:used]
            for seed in self.seeds
        ]
        return jnp.asarray(lanes).reshape(-1, self.per_epoch, self.batch)

    def keys(self, run: str) -> jax.Array:
        """One key a lane for the run called `run`."""
        name = crc32(run.encode())
        lanes = [jax.random.fold_in(jax.random.key(s), name) for s in self.seeds]
        return jnp.stack(lanes)

    def accuracy(self, params: Any, split: str = "test") -> np.ndarray:
        """Share of the split that each lane gets right, [lanes]."""
        index = jnp.asarray(self.splits[split])
        return np.asarray(_hits(self.network, params, self.data, self.labels, index))


@lru_cache(maxsize=8)
def _side_by_side(init: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """Compiled once: a network's random initialization is slow to compile."""
    return jax.jit(jax.vmap(init))


@partial(jax.jit, static_argnums=0)
def _hits(network: Network, params: Any, data: Any, labels: Any, index: Any):
    def one(lane: Any) -> jax.Array:
        out = network(lane, data, index, None)
        return jnp.mean(out.argmax(-1) == labels[index])

    return jax.lax.map(one, params)


class State(NamedTuple):
    """All that training changes, [lanes, ...]; what a checkpoint holds."""

    step: jax.Array
    params: Any
    opt: Any


class Fit(NamedTuple):
    """A finished run: parameters [lanes, ...], optimizer state, wall seconds."""

    params: Any
    opt: Any
    seconds: float


class Program(NamedTuple):
    """A compiled method; made by `compile_program`."""

    begin: Callable[..., State]
    advance: Callable[..., tuple[State, jax.Array]]
    used: Callable[[Any], Any]


def compile_program(
    lanes: Lanes,
    transform: Callable[[Any], optax.GradientTransformation],
    *,
    r: reparam.Reparam | None = None,
    at_once: bool = True,
) -> Program:
    """The training of one method, for every setting of its traced hyper-parameters.

    Args:
      lanes: the shared part.
      transform: from the hyper-parameters to the optimizer.
      r: a reparameterization; the parameters of the program are then its theta.
      at_once: whether a step is one `vmap` over the lanes. Otherwise an epoch of one
        lane follows that of another: what a method does now and then alone (a mask
        that moves every 100 steps) is then not computed in every step.
    """
    used = r.apply if r else lambda params: params

    def loss_fn(params: Any, data: Any, labels: Any, index: jax.Array, key: Any):
        logits = lanes.network(used(params), data, index, key)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels[index])
        return loss.mean() + (r.penalty(params) if r else 0.0)

    def one_step(state: State, data: Any, labels: Any, index: Any, key: Any, hyper):
        key = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(loss_fn)(
            state.params, data, labels, index, key
        )
        updates, opt = transform(hyper).update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt), loss

    @jax.jit
    def begin(params: Any, hyper: Any) -> State:
        def one(params: Any, hyper: Any) -> State:
            return State(jnp.int32(0), params, transform(hyper).init(params))

        return jax.vmap(one)(params, hyper)

    @partial(jax.jit, donate_argnums=0)
    def advance(state: State, data: Any, labels: Any, order: Any, keys: Any, hyper):
        def body(state: State, index: jax.Array):
            step = jax.vmap(one_step, in_axes=(0, None, None, 0, 0, 0))
            return step(state, data, labels, index, keys, hyper)

        def alone(lane: tuple):
            state, order, key, hyper = lane
            return jax.lax.scan(
                lambda s, index: one_step(s, data, labels, index, key, hyper),
                state,
                order,
            )

        if not at_once:
            state, losses = jax.lax.map(alone, (state, order, keys, hyper))
            return state, losses.mean(1)
        state, losses = jax.lax.scan(body, state, jnp.swapaxes(order, 0, 1))
        return state, losses.mean(0)

    return Program(begin, advance, jax.jit(jax.vmap(used)))


def fit(
    lanes: Lanes,
    program: Program,
    run: str,
    epochs: int,
    *,
    start: Any = None,
    hyper: Any = None,
    log_every: int = 10,
    split: str = "test",
    may_diverge: bool = False,
) -> Fit:
    """Trains every lane; logs and keeps checkpoints at every `log_every` epochs.

    Args:
      lanes: the shared part.
      program: of the method.
      run: name in the log, the random keys and the checkpoints.
      epochs: how many.
      start: parameters to start from, [lanes, ...]; None for the lanes' own.
      hyper: the traced hyper-parameters; each leaf is given to every lane, but a tree
        whose leaves have the lanes' axis is given lane by lane (wrap it in `PerLane`).
      log_every: epochs between two lines of the log.
      split: whose accuracy the log tells.
      may_diverge: go on when a lane's loss is no longer finite, for tuning: the lane
        then has the accuracy of a guess.

    Raises:
      ConfigError: if there are no steps.
      Diverged: when a lane's loss or weights are no longer finite, unless they may.
      Stopped: if the job was asked to leave; what was done is saved.
    """
    clock = time.perf_counter()
    if epochs < 1 or lanes.per_epoch < 1:
        raise ConfigError(f"`{run}` has no step: nothing would be trained.")
    own = hyper.tree if isinstance(hyper, PerLane) else each(lanes, hyper)
    begins = lanes.first() if start is None else jax.tree.map(jnp.copy, start)
    state = program.begin(begins, own)
    zero, keys = jnp.zeros(()), lanes.keys(run)
    with lanes.checkpoints(run) as keeper:
        found = keeper.restore(state, zero) or Saved(0, state, zero, 0.0)
        done, state, _, earlier = found
        if done < epochs and stopping.wanted():
            raise stopping.Stopped(f"asked to leave before run `{run}`")
        lanes.journal.begin(run, epochs * lanes.per_epoch, done * lanes.per_epoch)
        for epoch in range(done + 1, epochs + 1):
            order = lanes.order(epoch - 1)
            state, loss = program.advance(
                state, lanes.data, lanes.labels, order, keys, own
            )
            leave = epoch != epochs and stopping.wanted()
            if epoch % log_every and epoch != epochs and not leave:
                continue
            entry = _entry(lanes, program, state, loss, split)
            bad = (
                "its loss" if not np.isfinite(entry["loss"]) else bad_leaf(state.params)
            )
            if bad and not may_diverge:
                raise Diverged(
                    f"`{run}` diverged before epoch {epoch}: {bad} is not finite."
                )
            lanes.journal.record(run, {"epoch": epoch, **entry})
            spent = earlier + time.perf_counter() - clock
            keeper.save(Saved(epoch, state, zero, spent))
            if leave:
                raise stopping.Stopped(f"asked to leave in run `{run}`")
    lanes.journal.end()
    jax.block_until_ready(state)
    passed = time.perf_counter() - clock if done < epochs else 0.0
    return Fit(state.params, state.opt, earlier + passed)


class PerLane(NamedTuple):
    """Hyper-parameters that differ between the lanes: leaves [lanes, ...]."""

    tree: Any


def each(lanes: Lanes, tree: Any) -> Any:
    """The same value for every lane: [lanes, ...]."""
    count = len(lanes.seeds)
    return jax.tree.map(
        lambda x: jnp.broadcast_to(jnp.asarray(x), (count, *jnp.shape(x))), tree
    )


def _entry(
    lanes: Lanes, program: Program, state: State, loss: jax.Array, split: str
) -> dict[str, float]:
    params = program.used(state.params)
    return {
        "step": int(state.step[0]),
        "loss": float(loss.mean()),
        "test_accuracy": float(lanes.accuracy(params, split).mean()),
        "sparsity": float(masks.sparsity(masks.from_zeros(lane(params, 0)))),
    }


def lane(tree: Any, at: int) -> Any:
    """One lane of a tree."""
    return jax.tree.map(lambda x: x[at], tree)


def row(
    lanes: Lanes,
    params: Any,
    *,
    run: str,
    method: str,
    kept: int,
    before: Any = None,
    seconds: float = 0.0,
    extra: dict[str, float] | None = None,
) -> Row:
    """The mean of all lanes; spread, and each seed's accuracy, in `extra`.

    Args:
      lanes: the shared part.
      params: after removal, [lanes, ...].
      run: label of the row.
      method: name of the method.
      kept: how many weights each lane was to keep.
      before: the parameters just before removal, where there is such a moment.
      seconds: wall time of all lanes together.
      extra: further numbers.
    """
    count = len(lanes.seeds)
    size = masks.size(lane(params, 0))
    left = [nonzero(lane(params, at)) for at in range(count)]
    after = lanes.accuracy(params)
    seeds = {f"seed {s}": float(x) for s, x in zip(lanes.seeds, after, strict=True)}
    found = Row(
        run=run,
        method=method,
        asked=1 - kept / size,
        got=1 - max(left) / size,
        kept=kept,
        nonzero=max(left),
        after=float(after.mean()),
        seconds=seconds,
        extra={"deviation": deviation(after), **seeds, **(extra or {})},
    )
    if before is None:
        return found
    return found._replace(before=float(lanes.accuracy(before).mean()))


def deviation(values: Sequence[float] | np.ndarray) -> float:
    """Standard deviation between seeds (n - 1); 0 for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def nonzero(params: Any) -> int:
    """Weights of the prunable leaves of one lane that are not exactly 0, in NumPy."""
    leaves = kernels(params)
    return sum(int(np.count_nonzero(np.asarray(leaf))) for leaf in leaves)


apply = jax.jit(jax.vmap(masks.apply))
"""`masks.apply` of each lane's mask to its parameters."""


@jax.jit
def largest(params: Any, keep: int) -> Any:
    """The `keep` largest weights of each lane over all its kernels, as a mask."""
    return jax.vmap(lambda p: masks.unstructured(p, keep=keep, min_keep=0))(params)
