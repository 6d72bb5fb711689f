"""The arena: every unstructured method, one training budget, as many tuning tries each.

A contender is a function that makes `train(task) -> parameters`; `contender` turns it
into a method of the runner. Its one knob is tried on the validation split, at one
sparsity and with a seed of its own; then every sparsity is run with the value that was
best there, on the seeds of the job. Whatever a contender leaves, the largest weights of
the whole network stay, as many as were asked for.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import lanes
from experiments.config import ConfigError
from experiments.lanes import Lanes
from experiments.results import Row
from experiments.rules import percent
from experiments.schedules import warmup_cosine
from jprune import masks, transforms

TUNING_SEED = 1000
"""How far the seed of the tuning runs is from the first seed of the job."""


class Start(NamedTuple):
    """The networks that are trained for the first half of the budget.

    Attributes:
      lanes: one a seed.
      tuning: that of the tuning seed, one lane.
    """

    lanes: Any
    tuning: Any


class Trial(NamedTuple):
    """What a contender is made of.

    Attributes:
      shared: the lanes of the job.
      start: the dense networks at half of the budget.
      epochs: the whole budget.
    """

    shared: Lanes
    start: Start
    epochs: int

    @property
    def steps(self) -> int:
        """Of the whole budget."""
        return self.epochs * self.shared.per_epoch

    @property
    def half(self) -> int:
        """Epochs of one half of the budget."""
        return self.epochs // 2

    @property
    def size(self) -> int:
        """Prunable weights of the network."""
        return masks.size(lanes.lane(self.start.lanes, 0))

    @property
    def shapes(self) -> Any:
        """The parameters of one lane, as shapes."""
        return jax.eval_shape(self.shared.init, jax.random.key(0))

    def schedule(self, lr: Any, steps: int = 0) -> optax.Schedule:
        """Warm-up and cosine over the budget, or over so many steps."""
        return warmup_cosine(lr, steps or self.steps)


class Given(NamedTuple):
    """The traced numbers of one lane: its knob, how many weights to keep, its mask."""

    knob: Any
    keep: Any
    sparsity: Any
    mask: Any
    key: Any


class Task(NamedTuple):
    """One run of a contender.

    Attributes:
      trial: what it is made of.
      shared: the lanes to train: the job's, or the tuning ones.
      sparsity: to reach.
      knob: the value of each lane; one number where it decides the program.
      run: name in the log and of the checkpoints.
      tuning: whether this is a tuning run.
      spent: wall seconds of its trainings so far, compilation included.
    """

    trial: Trial
    shared: Lanes
    sparsity: float
    knob: Any
    run: str
    tuning: bool
    spent: list[float]

    @property
    def kept(self) -> int:
        """Weights to keep."""
        return masks.kept_count(self.trial.size, self.sparsity)

    def start(self) -> Any:
        """The dense networks at half of the budget, one a lane."""
        if not self.tuning:
            return self.trial.start.lanes
        count = len(self.shared.seeds)
        return jax.tree.map(lambda x: jnp.repeat(x, count, 0), self.trial.start.tuning)

    def given(self, mask: Any = ()) -> lanes.PerLane:
        """The traced numbers of every lane."""
        count = len(self.shared.seeds)
        return lanes.PerLane(
            Given(
                jnp.broadcast_to(jnp.float32(self.knob), (count,)),
                jnp.full(count, self.kept, jnp.int32),
                jnp.full(count, self.sparsity, jnp.float32),
                mask,
                self.shared.keys(self.run),
            )
        )

    def fit(
        self,
        program: lanes.Program,
        epochs: int,
        *,
        start: Any = None,
        mask: Any = (),
        stage: str = "",
    ) -> Any:
        """Trains; the parameters [lanes, ...]."""
        done = lanes.fit(
            self.shared,
            program,
            self.run + stage,
            epochs,
            start=start,
            hyper=self.given(mask),
            log_every=epochs,
            split="validation",
            may_diverge=self.tuning,
        )
        self.spent.append(done.seconds)
        return done.params


Train = Callable[[Task], Any]
"""From a task to the trained parameters, [lanes, ...]."""


def compile_program(
    trial: Trial, transform: Callable[[Given], Any], r: Any = None
) -> lanes.Program:
    """A program of the arena: one lane after the other."""
    return lanes.compile_program(trial.shared, transform, r=r, at_once=False)


def contender(label: str, knob: str, *, static: bool = False) -> Callable[..., Any]:
    """Makes a method of the runner from `make(trial, **own) -> train`.

    Args:
      label: of its rows.
      knob: what `tries` are values of.
      static: the knob decides the program, so each try is a run of its own.
    """

    def decorate(make: Callable[..., Train]) -> Callable[..., Iterator[Row]]:
        def method(
            shared: Lanes,
            dense: Start,
            *,
            tries: tuple[float, ...],
            tune_at: float,
            sparsity: tuple[float, ...],
            epochs: int,
            **own: Any,
        ) -> Iterator[Row]:
            trial = Trial(shared, dense, epochs)
            train = make(trial, **own)
            best = tune(trial, train, label, tries, tune_at, static)
            for share in sparsity:
                yield run_one(trial, train, label, share, knob, best)

        mine = [p for p in _parameters(method) if p.kind is not p.VAR_KEYWORD]
        theirs = [p for p in _parameters(make) if p.kind is p.KEYWORD_ONLY]
        method.__signature__ = inspect.Signature([*mine, *theirs])  # for the checks
        method.__doc__ = make.__doc__
        return method

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def tune(
    trial: Trial,
    train: Train,
    label: str,
    tries: Sequence[float],
    share: float,
    static: bool,
) -> tuple[float, float]:
    """The try with the best validation accuracy, and that accuracy.

    The tries are lanes of one program, all of the tuning seed.
    """
    seed = trial.shared.seeds[0] + TUNING_SEED
    groups: list[tuple[float, ...]] = (
        [(x,) for x in tries] if static else [tuple(tries)]
    )
    found: list[float] = []
    for group in groups:
        shared = trial.shared._replace(seeds=(seed,) * len(group))
        knob = group[0] if static else np.array(group, np.float32)
        name = f"{label} tuning" + (f" {group[0]:g}" if static else "")
        task = Task(trial, shared, share, knob, name, tuning=True, spent=[])
        params = cut(train(task), task.kept)
        found += shared.accuracy(params, "validation").tolist()
    best = int(np.argmax(found))
    return tries[best], found[best]


def run_one(
    trial: Trial,
    train: Train,
    label: str,
    share: float,
    knob: str,
    best: tuple[float, float],
) -> Row:
    """All seeds at one sparsity, and their row."""
    run = f"{label} {percent(share)}"
    task = Task(trial, trial.shared, share, best[0], run, tuning=False, spent=[])
    params = train(task)
    return lanes.row(
        trial.shared,
        cut(params, task.kept),
        run=run,
        method=label,
        kept=task.kept,
        before=params,
        seconds=sum(task.spent),
        extra={knob: best[0], "validation when tuned": best[1]},
    )


def cut(params: Any, kept: int) -> Any:
    """The `kept` largest weights of each lane stay; fewer where there are fewer."""
    return lanes.apply(lanes.largest(params, kept), params)


def sgd(rate: Any, momentum: float, weight_decay: float, *then: Any) -> Any:
    """Heavy ball with coupled decay of the kernels, and what comes behind it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=masks.prunable),
        optax.sgd(rate, momentum),
        *then,
    )


def held(
    trial: Trial, momentum: float, weight_decay: float, steps: int, skip: int = 0
) -> lanes.Program:
    """Training under a mask, the knob its rate, from step `skip` of the schedule."""

    def transform(h: Any) -> Any:
        whole = trial.schedule(h.knob, steps)
        return sgd(
            lambda step: whole(step + skip),
            momentum,
            weight_decay,
            transforms.keep_masked(h.mask),
        )

    return compile_program(trial, transform)


def stacked(trees: Iterable[Any]) -> Any:
    """Trees of one lane each as [lanes, ...]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def require_halves(runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a budget that its halves, or the rounds of a half, do not make up.

    Raises:
      ConfigError: naming the run; the epochs that are left over would not be trained.
    """
    for name, run in runs.items():
        rounds = run.get("rounds", 1) if run.get("method") == "iterative" else 1
        if run.get("epochs", 0) % (2 * rounds):
            raise ConfigError(
                f"`{name}.epochs` is {run['epochs']}: two halves of {rounds} rounds "
                f"need a multiple of {2 * rounds}."
            )


def train_dense(
    shared: Lanes,
    *,
    tries: tuple[float, ...],
    epochs: int,
    momentum: float,
    weight_decay: float,
    sparsity: tuple[float, ...],
) -> tuple[Start, list[Row]]:
    """The dense network, the same cut at once, and the one half of the budget makes.

    Args:
      shared: the lanes of the job.
      tries: learning rates.
      epochs: the budget.
      momentum: of heavy ball.
      weight_decay: of the kernels.
      sparsity: at which the dense network is cut and not trained on.
    """
    require_halves({"dense": {"epochs": epochs}, **shared.config.runs})
    rule = partial(sgd, momentum=momentum, weight_decay=weight_decay)
    empty = Start(shared.first(), None)
    trial = Trial(shared, empty, epochs)
    program = compile_program(trial, lambda h: rule(trial.schedule(h.knob)))
    whole: Train = lambda task: task.fit(program, epochs)  # noqa: E731
    lr, told = tune(trial, whole, "dense", tries, 0.0, static=False)
    task = Task(trial, shared, 0.0, lr, "dense", tuning=False, spent=[])
    params = whole(task)
    note = {"lr": lr, "validation when tuned": told}
    rows = [
        lanes.row(
            shared,
            params,
            run="dense",
            method="dense",
            kept=trial.size,
            seconds=sum(task.spent),
            extra=note,
        )
    ]
    for share in sparsity:
        kept = masks.kept_count(trial.size, share)
        rows.append(
            lanes.row(
                shared,
                cut(params, kept),
                run=f"one-shot, not trained on {percent(share)}",
                method="one_shot",
                kept=kept,
                before=params,
            )
        )
    return _halves(trial, rule, lr), rows


def _halves(trial: Trial, rule: Callable[..., Any], lr: float) -> Start:
    """Dense networks of half the budget, of the seeds and of the tuning seed."""
    steps = trial.half * trial.shared.per_epoch
    program = compile_program(trial, lambda h: rule(trial.schedule(h.knob, steps)))
    seed = trial.shared.seeds[0] + TUNING_SEED
    found = []
    for name, seeds in (("", trial.shared.seeds), (" tuning", (seed,))):
        shared = trial.shared._replace(seeds=seeds)
        task = Task(
            trial, shared, 0.0, lr, f"dense, half{name}", tuning=False, spent=[]
        )
        found.append(task.fit(program, trial.half))
    return Start(*found)
