"""The configurations in the authors' settings: two steps of each run on mock data.

A run must make every row that a claim or the paper's figures speak of. ResNet-32, 56
and 110 are run as ResNet-20, which is the same module with fewer blocks.
"""

import dataclasses
import importlib
import re
from functools import partial

import jax
import numpy as np
import pytest

from experiments import build, config, train
from experiments.config import Claim, ConfigError, cheaper, exact, loses
from experiments.data.dataset import Dataset
from experiments.results import Row
from experiments.schedules import learning_rate
from jprune import compress

NAMES = [name for name in config.names() if name.startswith("authors_")]
PARTS = [
    (name, number) for name in NAMES for number in range(len(config.load(name).parts()))
]
DEEP = dict.fromkeys(("resnet32", "resnet56", "resnet110"), "resnet20")
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "imagenet": (32, 32, 3)}


def mock(name):
    """20 training and 8 test images of noise, every class among them."""
    pixels = np.random.default_rng(0).integers(0, 256, (28, *SHAPES[name]), np.uint8)
    classes = np.arange(28, dtype=np.int32) % 10
    index = np.arange(28, dtype=np.int32)
    mean, std = np.float32(120), np.float32(60)
    return Dataset(name, pixels, classes, index[:20], index[20:], 10, mean, std)


def two_steps(part):
    """The part with batches of 8 and runs of one epoch, which has two of them."""
    fields = {"validation": 0, "accumulate": 1, "compute": "float32"}
    short = config.shortened(part, 0, 0, batch=8, **fields)
    short = dataclasses.replace(short, model=DEEP.get(part.model, part.model))
    for run in short.runs.values():
        run.update({key: 8 for key in ("batch",) if key in run})
        run.update({key: 2 for key in ("rounds", "seeds") if key in run})
        if run["method"] in ("prune_at_init", "tpp"):  # many programs for each share
            run.update(sparsity=(0.9,))
            claims = [c for c in short.claims if all(map(_at_90, c.runs))]
            short = dataclasses.replace(short, claims=tuple(claims))
        if run["method"] == "gap":
            run.update(cyclic_rounds=(1,), parallel_rounds=(1,))
            short = dataclasses.replace(short, claims=tuple(map(_one, short.claims)))
        if run["method"] == "weightmom":  # its last removal must come before the end
            run.update(end=0.5)
        if run["method"] == "tpp":  # every group needs a step of its own at the end
            run.update(epochs=6, grow=0.1)
    return short


def _one(claim):
    runs = [re.sub(r"\d rounds", "1 rounds", run) for run in claim.runs]
    return dataclasses.replace(claim, runs=tuple(runs))


def _at_90(run):
    return "%" not in run or "90%" in run


def fields(part):
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}


@pytest.fixture
def take_two_steps(tmp_path, open_tiny, monkeypatch):
    """`take_two_steps(part)`: every row that a claim speaks of is made.

    On one device: four simulated ones share the cores, and XLA ends the process when
    one waits 40 seconds for another.
    """
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for data in SHAPES:
        monkeypatch.setitem(build.DATA, data, lambda folder, data=data: mock(data))
    anyhow = partial(compress.merge, tolerance=10.0)  # filters of two steps lie apart
    monkeypatch.setattr(compress, "merge", anyhow)

    def run(part):
        part = two_steps(part)
        lab = open_tiny(tmp_path, **fields(part))
        rows = {row.run: row for row in train._rows(lab)}
        assert len(rows) > len(part.runs)
        assert all(np.isfinite(row.after) for row in rows.values())
        for claim in part.claims:
            assert set(claim.runs) <= rows.keys(), claim.text
            holds = claim.holds(*(rows[run] for run in claim.runs))
            assert isinstance(holds, bool | np.bool_)
            assert holds or not claim.text.startswith("every count"), claim.text

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(spread|SWD|learning rate).*:UserWarning")
@pytest.mark.parametrize(("name", "number"), PARTS)
def test_two_steps_on_mock_data(name, number, take_two_steps):
    take_two_steps(config.load(name).parts()[number])


def test_two_steps_of_the_winning_tickets(take_two_steps):
    """Of LeNet-5's GSM at 125x, on the network without convolutions."""
    part = config.only(config.load("authors_lenet5"), ["gsm125"])
    mine = [claim for claim in part.claims if "125x" in claim.runs[-1]]
    assert len(mine) == 3
    take_two_steps(dataclasses.replace(part, model="lenet300", claims=tuple(mine)))


@pytest.mark.parametrize("name", NAMES)
def test_a_document_says_what_is_the_authors_and_what_is_not(name):
    chosen = config.load(name)
    text = importlib.import_module(f"experiments.configs.{name}").__doc__
    for word in ("Deviations", "Ours: not run", "--small", "in the authors' settings"):
        assert word in text, word
    labels = [label for part in chosen.parts() for label in part.runs]
    assert len(set(labels)) == len(labels), "`--only` could not tell them apart"
    for label in labels:
        assert re.search(rf"`(--only )?([\w,]+,)?{label}[,`]", text), label


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_figures_are_in_the_document_too(name):
    module = importlib.import_module(f"experiments.configs.{name}")
    parts = config.load(name).parts()
    beginnings = train.prefixes(parts)
    told = {
        beginning + run
        for part, beginning in zip(parts, beginnings, strict=True)
        for claim in part.claims
        for run in claim.runs
    }
    for run, figure in getattr(module, "PAPER", {}).items():
        assert figure in module.__doc__, figure
        assert run in told or run.endswith("dense") or " l1 " in run, run


@pytest.mark.parametrize("name", NAMES)
def test_a_small_form_is_short_and_complete(name):
    whole, small = config.load(name), config.load(name, small=True)
    build.check(small)
    for part in small.parts():
        assert part.dense["epochs"] <= 20
    assert {part.model for part in small.parts()} == {
        part.model for part in whole.parts()
    }
    assert train._parser().parse_args([name, "--small"]).small


def test_what_has_no_small_form_says_so():
    with pytest.raises(ConfigError, match="`digits` has no small form"):
        config.load("digits", small=True)


def test_a_shorter_experiment_keeps_the_shape_of_its_rates():
    whole = config.load("authors_resnet56")
    short = config.shortened(whole, 0.01, 0.5, batch=16)
    assert [part.batch for part in short.parts()] == [16] * 4
    tpp = short.parts()[2].runs["tpp"]
    assert (tpp["epochs"], tpp["tune_epochs"], tpp["interval"]) == (3, 1, 50)
    assert tpp["tune_lr"] == whole.parts()[2].runs["tpp"]["tune_lr"]
    assert whole.parts()[2].runs["tpp"]["epochs"] == 283
    drops = config.shortened(config.load("mnist_gsm"), 0.1, 1).runs["gsm"]
    assert (drops["epochs"], drops["drops"], drops["warmup"]) == (24, (16, 20), 0)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_csgd_brings_filters_together_before_it_merges_them(name, small):
    """Their spread ends below 1e-4 of the first one: kernels, norms and biases."""
    for part in config.load(name, small=small).parts():
        for run in [run for run in part.runs.values() if run["method"] == "csgd"]:
            images = 10_000 if small else 50_000
            steps = run["epochs"] * (images // part.batch)
            rates = learning_rate(run["lr"], steps)(np.arange(steps)).astype(float)
            assert rates.max() * run["strength"] < 0.1  # far from a step too large
            for pull in (run["strength"], run["strength"] * run["vector_multiplier"]):
                assert rates.sum() * pull / (1 - run["momentum"]) > np.log(1e4)


def row(run, after, **extra):
    return Row(
        run, "m", asked=0.9, got=0.9, kept=5, nonzero=5, after=after, extra=extra
    )


def test_claims_of_a_loss_a_gain_and_a_price():
    dense = row("dense", 0.9405)
    paper = loses("gsm 10x", 0.25)
    assert paper.runs == ("dense", "gsm 10x") and "paper's 0.25 points" in paper.text
    assert paper.holds(dense, row("gsm 10x", 0.9380))
    assert not paper.holds(dense, row("gsm 10x", 0.9379))
    gain = loses("c", -0.05)
    assert "gains no less than the paper's 0.05" in gain.text
    assert gain.holds(dense, row("c", 0.941)) and not gain.holds(dense, dense)
    tuned = loses("m", 0.0, extra="tuned")
    assert tuned.holds(dense, row("m", 0.1, tuned=0.95))
    assert cheaper("c", 2.0).holds(row("c", 0.9, flops=0.5))
    assert not cheaper("c", 2.0).holds(row("c", 0.9, flops=0.51))
    assert exact("a").holds(dense) and not exact("a").holds(dense._replace(nonzero=4))
    assert isinstance(exact("a"), Claim)
