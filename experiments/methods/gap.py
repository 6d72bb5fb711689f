"""Scheduled grow-and-prune: cyclic, parallel, and random masks that stand still."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.lab import Lab, Run
from experiments.loop import Fit, Program, compile_program, fit
from experiments.methods.removal import kernels
from experiments.methods.swept import row_of, sgd
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, scores, transforms


def gap(
    lab: Lab,
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
      sparsity: fractions to remove, of each kernel.
      partitions: a regular expression for each part.
      epochs: length of a step, E.
      cyclic_rounds: rounds of C-GaP, as many steps each as there are parts.
      parallel_rounds: rounds of P-GaP, one step each for all workers.
      tune_epochs: length of fine-tuning, F.
      lr: where each cosine starts.
      momentum: of heavy ball.
      weight_decay: of all leaves in C-GaP, of the kernels elsewhere.
    """
    plan = _Plan(lab, partitions, epochs, tune_epochs, lr, momentum, weight_decay)
    worker, tuning = plan.held(plan.cosine(epochs)), plan.held(plan.cosine(tune_epochs))
    for share in sparsity:
        growing = {
            "density while growing": average_density(
                jax.eval_shape(lab.init)[0], share, len(partitions)
            )
        }
        for rounds in cyclic_rounds:
            run = plan.named("C-GaP", share, rounds)
            done = plan.cyclic(share, rounds, run)
            yield plan.row(share, done, run, rounds, growing)
        for rounds in parallel_rounds:
            run = plan.named("P-GaP", share, rounds)
            done = plan.parallel(share, rounds, run, worker, tuning)
            yield plan.row(share, done, run, rounds, growing)
        longest, own = max(cyclic_rounds), {"sparsity": share, "form": "static"}
        run = lab.run(f"static random {percent(share)}", **own)
        yield plan.row(share, plan.static(share, longest, run), run, longest, {})


def average_density(params: Any, share: float, parts: int) -> float:
    """The share of the kernels' weights that is there, on average over a round."""
    sizes = [kernel.size for kernel in kernels(params)]
    size, kept = sum(sizes), sum(masks.kept_count(n, share) for n in sizes)
    return (size + (parts - 1) * kept) / (parts * size)


class _Plan(NamedTuple):
    """The settings that the three forms share, and the forms."""

    lab: Lab
    partitions: tuple[str, ...]
    epochs: int
    tune_epochs: int
    lr: float
    momentum: float
    weight_decay: float

    def named(self, form: str, share: float, rounds: int) -> Run:
        """The run of a form, a sparsity and a number of rounds."""
        own = {"form": form, "sparsity": share, "rounds": rounds}
        return self.lab.run(f"{form} {percent(share)}, {rounds} rounds", **own)

    def length(self, rounds: int) -> int:
        """Epochs of training, those of all workers together."""
        return len(self.partitions) * rounds * self.epochs + self.tune_epochs

    def cosine(self, epochs: int) -> optax.Schedule:
        return warmup_cosine(self.lr, epochs * self.lab.per_epoch)

    def held(self, rate: Any) -> Program:
        """A program whose hyper-parameter is the mask that it keeps."""
        return compile_program(
            self.lab,
            lambda mask: sgd(
                rate, self.momentum, self.weight_decay, transforms.keep_masked(mask)
            ),
        )

    def cyclic(self, share: float, rounds: int, run: Run) -> Fit:
        steps, period = len(self.partitions) * rounds, self.epochs * self.lab.per_epoch
        rate = optax.join_schedules(
            [self.cosine(self.epochs)] * steps + [self.cosine(self.tune_epochs)],
            [k * period for k in range(1, steps + 1)],
        )
        tx = transforms.gap(
            rate,
            share,
            partitions=self.partitions,
            period=period,
            steps=steps,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            key=self.lab.seed,
        )
        program = compile_program(self.lab, lambda _: tx)
        return fit(self.lab, program, run, self.length(rounds))

    def parallel(
        self, share: float, rounds: int, run: Run, worker: Program, tuning: Program
    ) -> Fit:
        seconds = 0.0

        def train(tree: Any, mask: Any, i: int, number: int) -> Any:
            nonlocal seconds
            name = run.then(f"round {number + 1} worker {i + 1}")
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
        name, kept = run.then("tuned"), mask["params"]
        done = fit(self.lab, tuning, name, self.tune_epochs, start=start, hyper=kept)
        return done._replace(seconds=seconds + done.seconds)

    def static(self, share: float, rounds: int, run: Run) -> Fit:
        epochs = self.length(rounds)
        params, stats = self.lab.init()
        lots = scores.random(jax.random.key(self.lab.seed), params)
        mask = masks.unstructured(lots, share, ranking="leaf")
        start = (masks.apply(mask, params), stats)
        program = self.held(self.cosine(epochs))
        return fit(self.lab, program, run, epochs, start=start, hyper=mask)

    def row(
        self, share: float, done: Fit, run: Run, rounds: int, extra: dict[str, float]
    ) -> Row:
        kept = [masks.kept_count(x.size, share) for x in kernels(done.params)]
        found = row_of(
            self.lab, done, run=run.label, method="gap", kept=int(np.sum(kept))
        )
        return found._replace(extra={"epochs": float(self.length(rounds)), **extra})


def _parameters(tree: Any) -> Any:
    """The scope: kernels among the parameters, nothing of the batch statistics."""
    nowhere = jax.tree.map(lambda _: False, tree["stats"])
    return {"params": masks.prunable(tree["params"]), "stats": nowhere}
