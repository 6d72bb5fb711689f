"""The arena: one budget, as many tries for all, the best of them, exact counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import build, config, lanes
from experiments.checkpoints import Checkpoints
from experiments.config import ConfigError
from experiments.data.dataset import Dataset
from experiments.journal import Journal
from experiments.systems import arena, contenders, mnist
from jprune import masks

CHOSEN = config.load("mnist_arena")


def _dataset(folder):
    del folder
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 96).astype(np.int32)
    images = random.integers(0, 60, (96, 28, 28, 1)).astype(np.uint8)
    images[np.arange(96), labels, labels] = 255
    train, test = np.arange(80, dtype=np.int32), np.arange(80, 96, dtype=np.int32)
    return Dataset(
        "mnist", images, labels, train, test, 10, np.float32(9), np.float32(20)
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    setup = {**CHOSEN.setup, "seeds": 2, "validation": 32}
    small = dataclasses.replace(CHOSEN, batch=16, setup=setup)
    with pytest.MonkeyPatch.context() as patch, Journal(folder) as journal:
        patch.setitem(mnist.DATA, "mnist", _dataset)
        yield build.open_runner(
            small,
            seed=0,
            data_dir=None,
            journal=journal,
            checkpoints=lambda run: Checkpoints(
                folder / run.replace(" ", "-"), resume=False, every=1
            ),
            prefix="",
        )


def test_all_have_one_budget_and_as_many_tries():
    build.check(CHOSEN)
    runs = [CHOSEN.dense, *CHOSEN.runs.values()]
    assert {run["epochs"] for run in runs} == {4}
    assert {len(run["tries"]) for run in runs} == {3}
    assert {run["sparsity"] for run in runs} == {(0.9, 0.95, 0.98, 0.99, 0.995)}
    assert {run["method"] for run in CHOSEN.runs.values()} == set(contenders.METHODS)


def test_a_contenders_settings_are_checked():
    runs = {"swd": {**CHOSEN.runs["swd"], "strength": 1.0}}
    with pytest.raises(ConfigError, match="unknown setting of run `swd` `strength`"):
        build.check(dataclasses.replace(CHOSEN, runs=runs))
    short = {k: v for k, v in CHOSEN.runs["swd"].items() if k != "mu"}
    with pytest.raises(ConfigError, match="run `swd` lacks mu"):
        build.check(dataclasses.replace(CHOSEN, runs={"swd": short}))


def test_the_try_that_is_best_on_validation_is_taken(opened):
    """A contender that trains with rates of which one alone learns."""

    @arena.contender("toy", "lr")
    def toy(trial):
        program = arena.compile_program(trial, lambda h: optax.sgd(h.knob))
        return lambda task: task.fit(program, trial.epochs)

    start = arena.Start(opened.first(), None)
    tries = {"tries": (0.0, 0.1, 1e30), "tune_at": 0.5}
    (row,) = toy(opened, start, **tries, sparsity=(0.9,), epochs=20)
    assert row.run == "toy 90%" and row.nonzero == row.kept == 26_620
    assert row.extra["lr"] == 0.1 and row.extra["validation when tuned"] > 0.3


def test_a_task_starts_from_networks_of_its_own_seeds(opened):
    tuning = opened._replace(seeds=(1000,))
    start = arena.Start(opened.first(), tuning.first())
    trial = arena.Trial(opened, start, 6)
    assert trial.half == 3 and trial.steps == 18 and trial.size == 266_200
    three = opened._replace(seeds=(1000,) * 3)
    task = arena.Task(
        trial, three, 0.98, np.float32([1, 2, 3]), "r", tuning=True, spent=[]
    )
    assert task.kept == 5324
    jax.tree.map(
        lambda many, one: np.testing.assert_array_equal(many[2], one[0]),
        task.start(),
        start.tuning,
    )
    given = task.given().tree
    assert given.knob.tolist() == [1, 2, 3] and given.keep.tolist() == [5324] * 3


def test_a_cut_keeps_the_count_and_never_brings_back(opened):
    params = opened.first()
    found = arena.cut(params, 100)
    assert [lanes.nonzero(lanes.lane(found, i)) for i in (0, 1)] == [100, 100]
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert lanes.nonzero(lanes.lane(arena.cut(zeros, 100), 0)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHOSEN.runs))
def test_every_contender_ends_with_the_count(name, opened):
    start = arena.Start(opened.first(), opened._replace(seeds=(1000,)).first())
    settings = {**CHOSEN.runs[name], "sparsity": (0.98,)}
    method = contenders.METHODS[settings["method"]]
    (row,) = method(opened, start, **build.keywords(settings))
    learned = name in ("asl", "aswl")
    assert row.nonzero == row.kept == 5324 or (learned and row.nonzero < 5324)
    assert (
        row.extra[next(k for k in row.extra if k not in _SHARED)] in settings["tries"]
    )


_SHARED = {"deviation", "seed 0", "seed 1", "validation when tuned"}


@pytest.mark.slow
def test_the_dense_rows(opened):
    start, rows = arena.train_dense(
        opened,
        tries=(0.01, 0.05),
        epochs=2,
        momentum=0.9,
        weight_decay=1e-4,
        sparsity=(0.9,),
    )
    assert [row.run for row in rows] == ["dense", "one-shot, not trained on 90%"]
    assert rows[1].nonzero == rows[1].kept == 26_620
    assert masks.size(lanes.lane(start.tuning, 0)) == 266_200


def test_a_budget_is_made_up_by_its_halves_and_their_rounds():
    arena.require_halves({"dense": CHOSEN.dense, **CHOSEN.runs})
    for run, message in (
        ({"method": "one_shot", "epochs": 5}, "`it.epochs` is 5: .* multiple of 2"),
        ({"method": "iterative", "epochs": 6, "rounds": 2}, "multiple of 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            arena.require_halves({"it": run})
