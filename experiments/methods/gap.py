"""Scheduled grow-and-prune: cyclic, parallel, and random masks that stand still."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.lab import Lab
from experiments.loop import Fit, Program, compile_program, fit
from experiments.methods.removal import kernels, row
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, scores, transforms


def gap(
    lab: Lab,
    dense: Fit,
    *,
    sparsity: tuple[float, ...],
    partitions: tuple[str, ...],
    epochs: int,
    cyclic_rounds: tuple[int, ...],
    parallel_rounds: tuple[int, ...],
    tune_epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Iterator[Row]:
    """For each sparsity: C-GaP and P-GaP of some lengths, and static random masks.

    All start from the seed's own initialization. A static run is as long as the longest
    C-GaP, in one go. The learning rate is a cosine within each step of GaP and a cosine
    in fine-tuning.

    Args:
      lab: the shared part.
      dense: the dense run; only the sizes of its weights are looked at.
      sparsity: fractions to remove, of each kernel.
      partitions: a regular expression for each part.
      epochs: length of a step, E.
      cyclic_rounds: rounds of C-GaP, as many steps each as there are parts.
      parallel_rounds: rounds of P-GaP, one step each for all workers.
      tune_epochs: length of fine-tuning, F.
      lr: where each cosine starts.
      momentum: of heavy ball.
      weight_decay: of the kernels.
    """
    plan = _Plan(lab, partitions, epochs, tune_epochs, lr, momentum, weight_decay)
    worker, tuning = plan.held(plan.cosine(epochs)), plan.held(plan.cosine(tune_epochs))
    for share in sparsity:
        for rounds in cyclic_rounds:
            run = f"C-GaP {percent(share)}, {rounds} rounds"
            yield plan.row(share, plan.cyclic(share, rounds, run), run, rounds)
        for rounds in parallel_rounds:
            run = f"P-GaP {percent(share)}, {rounds} rounds"
            done = plan.parallel(share, rounds, run, worker, tuning)
            yield plan.row(share, done, run, rounds)
        longest, run = max(cyclic_rounds), f"static random {percent(share)}"
        yield plan.row(share, plan.static(share, longest, run), run, longest)


class _Plan(NamedTuple):
    """The settings that the three forms share, and the forms."""

    lab: Lab
    partitions: tuple[str, ...]
    epochs: int
    tune_epochs: int
    lr: float
    momentum: float
    weight_decay: float

    def length(self, rounds: int) -> int:
        """Epochs of training, those of all workers together."""
        return len(self.partitions) * rounds * self.epochs + self.tune_epochs

    def cosine(self, epochs: int) -> optax.Schedule:
        return warmup_cosine(self.lr, epochs * self.lab.per_epoch)

    def inner(self, rate: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, mask=masks.prunable),
            optax.sgd(rate, self.momentum),
        )

    def held(self, rate: Any) -> Program:
        """A program whose hyper-parameter is the mask that it keeps."""
        return compile_program(
            self.lab,
            lambda mask: optax.chain(self.inner(rate), transforms.keep_masked(mask)),
        )

    def cyclic(self, share: float, rounds: int, run: str) -> Fit:
        steps, period = len(self.partitions) * rounds, self.epochs * self.lab.per_epoch
        rate = optax.join_schedules(
            [self.cosine(self.epochs)] * steps + [self.cosine(self.tune_epochs)],
            [k * period for k in range(1, steps + 1)],
        )
        tx = transforms.grow_and_prune(
            self.inner(1.0),
            share,
            partitions=self.partitions,
            period=period,
            steps=steps,
            rate=rate,
            key=self.lab.seed,
        )
        program = compile_program(self.lab, lambda _: tx)
        return fit(self.lab, program, run, self.length(rounds))

    def parallel(
        self, share: float, rounds: int, run: str, worker: Program, tuning: Program
    ) -> Fit:
        seconds = 0.0

        def train(tree: Any, mask: Any, i: int, number: int) -> Any:
            nonlocal seconds
            name = f"{run}, round {number + 1} worker {i + 1}"
            start = (tree["params"], tree["stats"])
            done = fit(
                self.lab, worker, name, self.epochs, start=start, hyper=mask["params"]
            )
            seconds += done.seconds
            return {"params": done.params, "stats": done.stats}

        params, stats = self.lab.init()
        tree, mask = transforms.grow_in_parallel(
            train,
            {"params": params, "stats": stats},
            share,
            partitions=self.partitions,
            rounds=rounds,
            workers="loop",
            scope=_parameters,
            key=self.lab.seed,
        )
        start = (tree["params"], tree["stats"])
        name, kept = f"{run}, tuned", mask["params"]
        done = fit(self.lab, tuning, name, self.tune_epochs, start=start, hyper=kept)
        return done._replace(seconds=seconds + done.seconds)

    def static(self, share: float, rounds: int, run: str) -> Fit:
        epochs = self.length(rounds)
        params, stats = self.lab.init()
        lots = scores.random(jax.random.key(self.lab.seed), params)
        mask = masks.unstructured(lots, share, ranking="leaf")
        start = (masks.apply(mask, params), stats)
        program = self.held(self.cosine(epochs))
        return fit(self.lab, program, run, epochs, start=start, hyper=mask)

    def row(self, share: float, done: Fit, run: str, rounds: int) -> Row:
        kept = [masks.kept_count(x.size, share) for x in kernels(done.params)]
        found = row(
            self.lab,
            done.params,
            after=self.lab.logits(done.params, done.stats),
            run=run,
            method="gap",
            kept=int(np.sum(kept)),
            seconds=done.seconds,
        )
        density = transforms.average_density(done.params, share, self.partitions)
        extra = {"epochs": float(self.length(rounds))}
        extra |= {} if run.startswith("static") else {"density while growing": density}
        return found._replace(extra=extra)


def _parameters(tree: Any) -> Any:
    """The scope: kernels among the parameters, nothing of the batch statistics."""
    nowhere = jax.tree.map(lambda _: False, tree["stats"])
    return {"params": masks.prunable(tree["params"]), "stats": nowhere}
