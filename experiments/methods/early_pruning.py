"""Pruning in the first epochs, every arm on several seeds at once.

The networks of all seeds train side by side under one `vmap`, each with its own
initialization and order of batches; a row is their mean, with the spread beside it.
Every arm trains for the same number of epochs in all, and nothing is rewound.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import stopping
from experiments.checkpoints import Saved
from experiments.config import ConfigError, unknown
from experiments.lab import Lab
from experiments.lanes import deviation
from experiments.loop import Diverged, bad_leaf
from experiments.methods.removal import accuracy, count_nonzero, kernels
from experiments.results import Row
from experiments.rules import percent
from jprune import at_init, masks

Step = Callable[[Any, jax.Array, Any], Any]
"""`step(early, key, sparsity)` -> the mask after an epoch; sparsity may be traced."""


def early_pruning(
    lab: Lab,
    *,
    arms: tuple[str, ...],
    sparsity: tuple[float, ...],
    seeds: int,
    k: int,
    fraction: tuple[float, ...],
    window: int,
    scope: str,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """A row for each arm and sparsity, and one for each fraction that dissipates alone.

    Args:
      lab: the shared part.
      arms: what is compared, names of `_arms`.
      sparsity: fractions to remove of each kernel in scope.
      seeds: how many, from the job's own on.
      k: candidates of K-starts.
      fraction: of dissipating gradients without a target; the first is also that of
        the combination.
      window: epochs that dissipating gradients takes, one test after each.
      scope: regular expression of the kernels that are pruned.
      epochs: length of each run, in all.
      lr: where the cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.

    Raises:
      ConfigError: for an unknown arm, or one that decides last of all, when nothing is
        trained any more.
    """
    rate = optax.cosine_decay_schedule(lr, epochs * lab.per_epoch)
    tx = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=masks.prunable),
        optax.sgd(rate, momentum),
    )
    trial = _Trial(lab, tx, seeds, epochs, scope)
    known = _arms(k, fraction[0], window, scope)
    for name in arms:
        if name not in known:
            raise unknown("arm", name, known)
        if len(known[name].steps) >= epochs:
            raise ConfigError(
                f"`epochs` is {epochs}: the arm `{name}` decides after each of the "
                f"first {len(known[name].steps)} epochs, and needs one more to train "
                "what is left. Give more epochs, or a shorter `window`."
            )
    compiled = {name: [_vmapped(step) for step in known[name].steps] for name in arms}
    yield trial.row(f"dense, {seeds} seeds", [], None)
    for share in sparsity:
        for name, steps in compiled.items():
            found = trial.row(f"{name}, {percent(share)}", steps, share)
            kept = trial.kept(share, by_channel=known[name].by_channel)
            yield found._replace(kept=kept, asked=1 - kept / trial.size)
    for f in fraction:
        drop = _vmapped(lambda e, key, s, f=f: at_init.dissipating(f, scope=scope)(e))
        yield trial.row(f"dissipating {f:g}", [drop] * window, None)


class Arm(NamedTuple):
    """The decisions, one after each of the first epochs, and what they count by."""

    steps: Sequence[Step]
    by_channel: bool = False


def _arms(k: int, fraction: float, window: int, scope: str) -> dict[str, Arm]:
    """The arms, by name."""

    def starts(balance: float, share: str = "leaf", k: int = k) -> Sequence[Step]:
        how = {"k": k, "balance": balance, "share": share, "scope": scope}
        return [
            lambda e, key, s: at_init.k_starts(
                key, e.params, e.grads, s, within=e.mask, **how
            )
        ]

    def both(order: Any) -> Sequence[Step]:
        how = {"epochs": window, "order": order, "fraction": fraction}

        def at(i: int) -> Step:
            rules = partial(at_init.dissipating_k_starts, k=k, scope=scope, **how)
            return lambda e, key, s: rules(key, s)[i](e)

        return [at(i) for i in range(window + 1)]

    def move(part: float) -> Step:
        return lambda e, key, s: at_init.dissipating(
            sparsity=1 - (1 - s) ** part, scope=scope
        )(e)

    def largest(e: Any, key: jax.Array, s: jax.Array) -> Any:
        return masks.unstructured(e.params, s, ranking="leaf", scope=scope)

    return {
        "random": Arm(starts(1.0, k=1)),
        "K-starts": Arm(starts(0.5)),
        "K-starts |w|": Arm(starts(1.0)),
        "K-starts |g|": Arm(starts(0.0)),
        "K-starts by channel": Arm(starts(0.5, "channel"), by_channel=True),
        "dissipating": Arm([move((i + 1) / window) for i in range(window)]),
        "dissipating, then K-starts": Arm(both("dissipating_first")),
        "K-starts, then dissipating": Arm(both("k_starts_first")),
        "magnitude": Arm([largest]),
    }


ARMS = tuple(_arms(1, 0.5, 1, ""))
"""The names of what can be compared."""


class _Trial:
    """All seeds of one lab, and the programs that every arm shares."""

    def __init__(
        self,
        lab: Lab,
        tx: optax.GradientTransformation,
        seeds: int,
        epochs: int,
        scope: str,
    ):
        self.labs = [lab.reseeded(lab.seed + i) for i in range(seeds)]
        self.epochs = epochs
        started = [one.init() for one in self.labs]
        self.params = started[0][0]
        self.inside = masks.prunable(self.params, include=scope)
        self.size = masks.size(self.params)
        if any(jax.tree.leaves(stats) for _, stats in started):
            raise ConfigError(
                f"`early_pruning` trains networks without batch statistics; "
                f"`{lab.config.model}` has some."
            )
        starts = _stacked([params for params, _ in started])
        self.keys = jnp.stack([one.key("early") for one in self.labs])

        def loss(params: Any, batch: Any) -> jax.Array:
            inputs, labels = batch
            index = jnp.arange(lab.batch)
            key = jax.random.key(0)  # nothing is random in these networks
            out, _ = lab.forward(params, {}, inputs, index, train=True, key=key)
            losses = optax.softmax_cross_entropy_with_integer_labels(out, labels)
            return losses.mean()

        def begin(params: Any) -> Any:
            return at_init.train_early(loss, tx, params, [], [], scope=scope)

        def train(early: Any, batches: Any) -> Any:
            return at_init.train_early(loss, tx, early, [batches], [None])

        self.first = jax.jit(jax.vmap(begin))(starts)
        self.train = jax.jit(jax.vmap(train))

    def batches(self, epoch: int) -> Any:
        """An epoch of every seed: inputs and labels, [seeds, steps, batch, ...]."""
        lab, orders = self.labs[0], [one.order(epoch) for one in self.labs]
        order = jnp.stack(orders).reshape(len(orders), lab.per_epoch, lab.batch)
        return lab.inputs[order], lab.labels[order]

    def row(self, run: str, steps: Sequence[Step], share: float | None) -> Row:
        """Trains all seeds, decides after each of the first epochs; one row of them."""
        early, seconds = self._trained(run, steps, share)
        networks = [
            jax.tree.map(lambda x, i=i: x[i], early.params)
            for i in range(len(self.labs))
        ]
        found = [
            accuracy(lab, lab.logits(params, {}))
            for lab, params in zip(self.labs, networks, strict=True)
        ]
        nonzero = [count_nonzero(params) for params in networks]
        left = round(float(np.mean(nonzero)))
        return Row(
            run=run,
            method="early_pruning",
            asked=1 - left / self.size,
            got=1 - left / self.size,
            kept=left,
            nonzero=left,
            after=float(np.mean(found)),
            seconds=seconds,
            extra={
                "sd": deviation(found),
                "least": min(found),
                "greatest": max(found),
                "seeds": len(found),
            },
        )

    def _trained(
        self, run: str, steps: Sequence[Step], share: float | None
    ) -> tuple[Any, float]:
        """All seeds at the end of a run, and its seconds; kept as checkpoints.

        Raises:
          Diverged: if a weight of any seed is no longer a number.
          Stopped: if the job was asked to leave; what was done is saved.
        """
        clock, lab, zero = time.perf_counter(), self.labs[0], jnp.zeros(())
        with lab.checkpoints(lab.run(run, row=run)) as keeper:
            begin = keeper.restore(self.first, zero) or Saved(0, self.first, zero, 0.0)
            early, saved = begin.state, begin.step
            for epoch in range(begin.step, self.epochs):
                leave = stopping.wanted()
                if leave and epoch > saved:
                    keeper.save(Saved(epoch, early, zero, _since(clock, begin)))
                if leave:
                    raise stopping.Stopped(f"asked to leave in run `{run}`")
                early = self.train(early, self.batches(epoch))
                if epoch < len(steps):
                    mask = steps[epoch](early, self.keys, share)
                    early = early._replace(params=cut(mask, early.params), mask=mask)
                if not keeper.due(epoch + 1, self.epochs):
                    continue
                if bad := bad_leaf(early.params):
                    raise Diverged(
                        f"run `{lab.prefix}{run}` diverged before epoch {epoch + 1}: "
                        f"{bad} is not finite. Lower `lr`."
                    )
                saved = epoch + 1
                keeper.save(Saved(saved, early, zero, _since(clock, begin)))
        done = begin.step == self.epochs
        return early, begin.seconds if done else _since(clock, begin)

    def kept(self, share: float, *, by_channel: bool) -> int:
        """Weights left when each kernel in scope, or each of its outputs, loses it."""
        removed = 0
        for leaf in kernels(self.params, self.inside):
            units = leaf.shape[-1] if by_channel else 1
            n = leaf.size // units
            removed += units * (n - masks.kept_count(n, share))
        return self.size - removed


def _since(clock: float, begin: Saved) -> float:
    """Seconds of a run, those before it was left among them."""
    return begin.seconds + time.perf_counter() - clock


def _vmapped(step: Step) -> Step:
    return jax.jit(jax.vmap(step, (0, 0, None)))


cut = jax.jit(jax.vmap(masks.apply))


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
