"""Several seeds side by side: what one alone does, and the MNIST system on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import build, lanes
from experiments.checkpoints import Checkpoints
from experiments.config import Config, ConfigError
from experiments.data.dataset import Dataset
from experiments.journal import Journal
from experiments.loop import Diverged
from experiments.systems import mnist
from jprune import masks, transforms


def _dataset(folder):
    del folder
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 80).astype(np.int32)
    images = random.integers(0, 60, (80, 28, 28, 1)).astype(np.uint8)
    images[np.arange(80), labels, labels] = 255
    train, test = np.arange(64, dtype=np.int32), np.arange(64, 80, dtype=np.int32)
    return Dataset(
        "mnist", images, labels, train, test, 10, np.float32(9), np.float32(20)
    )


CONFIG = Config(
    runner="mnist",
    data="mnist",
    model="lenet300",
    batch=16,
    setup={"seeds": 2, "inputs": "standardized", "init": "he", "validation": 16},
    dense={
        "epochs": 2,
        "lr": 0.05,
        "drops": (1,),
        "warmup": 1,
        "momentum": 0.9,
        "weight_decay": 1e-3,
    },
    runs={},
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lanes")
    with pytest.MonkeyPatch.context() as patch, Journal(folder) as journal:
        patch.setitem(mnist.DATA, "mnist", _dataset)
        shared = build.open_runner(
            CONFIG,
            seed=3,
            data_dir=None,
            journal=journal,
            checkpoints=lambda run: Checkpoints(
                folder / "keep" / run.replace(" ", "-"), resume=False, every=1
            ),
            prefix="",
        )
        yield shared


def test_a_lane_is_the_seed_trained_alone(opened):
    tx = optax.sgd(0.01, 0.9)
    program = lanes.compile_program(opened, lambda _: tx)
    found = lanes.fit(opened, program, "both", 2)

    def loss(params, index):
        out = opened.network(params, opened.data, index, None)
        picked = jax.nn.log_softmax(out)[jnp.arange(16), opened.labels[index]]
        return -picked.mean()

    @jax.jit
    def step(params, opt, index):
        updates, opt = tx.update(jax.grad(loss)(params, index), opt, params)
        return optax.apply_updates(params, updates), opt

    assert opened.seeds == (3, 4) and opened.per_epoch == 3
    for at, seed in enumerate(opened.seeds):
        params = opened.init(jax.random.key(seed))
        opt = tx.init(params)
        for epoch in range(2):
            shuffle = np.random.default_rng([seed, epoch])
            order = shuffle.permutation(opened.splits["train"])[:48].reshape(3, 16)
            for index in order:
                params, opt = step(params, opt, index)
        jax.tree.map(
            lambda a, b, at=at: np.testing.assert_allclose(a[at], b, atol=2e-5),
            found.params,
            params,
        )


@pytest.mark.slow
def test_one_lane_after_the_other_is_all_at_once(opened):
    made = [
        lanes.compile_program(
            opened,
            lambda rate: optax.chain(
                optax.sgd(rate), transforms.prune_gradually(0.5, end=4, every=2)
            ),
            at_once=at_once,
        )
        for at_once in (True, False)
    ]
    rates = lanes.PerLane(jnp.float32([0.01, 0.02]))
    together, apart = (
        lanes.fit(opened, program, f"at once {i}", 2, hyper=rates, may_diverge=True)
        for i, program in enumerate(made)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        together.params,
        apart.params,
    )
    assert lanes.nonzero(lanes.lane(apart.params, 1)) == 133_100


def test_validation_is_not_trained_on(opened):
    train, held = opened.splits["train"], opened.splits["validation"]
    assert len(train) == 48 and len(held) == 16 and not set(train) & set(held)
    assert not set(np.asarray(opened.order(5)).ravel()) & set(held)


@pytest.mark.slow
def test_gsm_counts_rows_and_tickets(opened):
    dense, (first,) = mnist.train_dense(opened, **CONFIG.dense)
    assert first.nonzero == masks.size(lanes.lane(dense.params, 0)) == 266_200
    rows = list(
        mnist.gsm(
            opened,
            dense,
            compression=60,
            epochs=1,
            lr=0.03,
            drops=(),
            warmup=0,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-3,
            tickets=True,
        )
    )
    names = ["gsm 60x", "one-shot 60x", "ticket by magnitude 60x", "ticket by GSM 60x"]
    assert [row.run for row in rows] == names
    for row in rows:
        assert row.nonzero == row.kept == 4437
        seeds = [row.extra["seed 3"], row.extra["seed 4"]]
        assert row.after == pytest.approx(np.mean(seeds), abs=1e-7)
        assert row.extra["deviation"] == pytest.approx(np.std(seeds, ddof=1), abs=1e-7)
    assert rows[0].extra["active"] == 4436


@pytest.mark.slow
def test_layers_lose_what_the_notebook_says(opened):
    params = opened.first()
    assert mnist.kept_inside(lanes.lane(params, 0), 0.05, 2.0) == [11760, 1500, 100]
    mask = mnist.inside_layers(params, 0.05, 2.0)
    for at in range(2):
        for name, count in (("Dense_0", 11760), ("Dense_1", 1500), ("Dense_2", 100)):
            weights = np.abs(np.asarray(params[name]["kernel"][at]))
            kept = np.asarray(mask[name]["kernel"][at])
            assert kept.sum() == count and weights[kept].min() >= weights[~kept].max()
    assert mnist.overlap(mask, mask) == 1.0


@pytest.mark.slow
def test_powerprop_rows(opened):
    rows = list(
        mnist.powerprop(
            opened, None, alpha=(1, 3), keep=(0.1,), output=2.0, epochs=1, lr=0.1
        )
    )
    assert [row.run for row in rows[:3]] == [
        "alpha 1, dense",
        "alpha 1, 10% kept in each layer",
        "alpha 1, 10% kept of the network",
    ]
    for row in rows:
        assert row.nonzero == row.kept
    assert rows[1].kept == 23520 + 3000 + 200 and rows[2].kept == 26620


def test_a_lane_that_diverges_stops_with_its_name(opened):
    program = lanes.compile_program(
        opened,
        lambda _: optax.chain(optax.scale(jnp.inf), transforms.keep_masked(masks.full)),
    )
    with pytest.raises(Diverged, match="`bad` diverged"):
        lanes.fit(opened, program, "bad", 2)


def test_words_of_the_setup_are_checked(opened):
    passed = {
        "seed": 0,
        "data_dir": None,
        "journal": None,
        "checkpoints": None,
        "prefix": "",
    }
    with pytest.raises(ConfigError, match="`inputs` is 'raw'"):
        mnist.open_mnist(
            CONFIG, **passed, seeds=1, inputs="raw", init="he", validation=0
        )


def test_the_rate_by_hand():
    schedule = mnist.rate(0.1, (2, 4), per_epoch=10, warmup=1)
    found = [float(schedule(t)) for t in (0, 5, 10, 19, 20, 39, 40)]
    np.testing.assert_allclose(found, [0, 0.05, 0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-5)
