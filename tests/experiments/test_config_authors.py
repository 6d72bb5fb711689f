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

from experiments import build, config, page, train
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
    short = dataclasses.replace(
        part,
        model=DEEP.get(part.model, part.model),
        **{"batch": 8, "validation": 0, "accumulate": 1, "compute": "float32"},
        dense={**part.dense, "epochs": 1},
        runs={name: dict(run) for name, run in part.runs.items()},
    )
    ones = ("epochs", "tune_epochs", "every", "interval", "window")
    for run in short.runs.values():
        run.update({key: 1 for key in ones if key in run})
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
        if run["method"] == "early_pruning":  # two decisions, then training
            run.update(epochs=3)
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
    for word in ("Deviations", "Ours: ", "--small", "in the authors' settings"):
        assert word in text, word
    ran = re.findall(r"`(\w+_seed\d+\.json)`", text)  # what was run names its numbers
    assert ("Ours: not run" in text) == (not ran)
    assert all((page.RESULTS / name).exists() for name in ran)
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
def test_a_small_form_has_every_method_and_ends_in_minutes(name):
    """Seconds of one core, from what was measured: see `SECONDS`."""
    whole, small = config.load(name), config.load(name, small=True)
    build.check(small)
    methods = [
        [(part.model, label, run["method"]) for label, run in part.runs.items()]
        for part in small.parts()
    ]
    assert methods == [
        [(part.model, label, run["method"]) for label, run in part.runs.items()]
        for part in whole.parts()
    ]
    assert train._parser().parse_args([name, "--small"]).small
    spent = sum(map(seconds, small.parts()))
    assert 30 < spent < 480, spent
    assert sum(map(seconds, whole.parts())) > 20 * spent  # the estimate sees the length


SECONDS = {
    "densenet40": (0.03, 40),
    "lenet300": (0.0001, 6),
    "lenet5": (0.0008, 6),
    "resnet110": (0.03, 30),
    "resnet20": (0.012, 12),
    "resnet32": (0.012, 12),
    "resnet50": (0.03, 22),
    "resnet56": (0.016, 15),
    "vgg16": (0.14, 12),
}
"""Of a training image of a small form, and of what a run has beside its training."""


def seconds(part):
    """What a part of a small form takes, about."""
    image, beside = SECONDS[part.model]
    images = part.train_examples or 50_000
    found = [(part.dense["epochs"], 1)]
    found += [trained(part, run) for run in part.runs.values()]
    return sum(images * image * epochs + beside * runs for epochs, runs in found)


def trained(part, run):
    """The epochs of all networks that one entry of a configuration trains, and runs."""
    epochs, tuned = run.get("epochs", 0), run.get("tune_epochs", 0)
    shares, arms = len(np.atleast_1d(run.get("sparsity", 0))), len(run.get("arms", ()))
    match run["method"]:
        case "one_shot":
            return 0, 1
        case "gsm_tickets":
            return epochs + 2 * part.dense["epochs"], 3
        case "early_pruning":
            rows = 1 + arms * shares + len(run["fraction"])
            slow = 10 if part.model == "lenet5" else 1  # convolutions inside a loop
            return slow * rows * run["seeds"] * epochs, rows
        case "gap":
            (cyclic,), (parallel,) = run["cyclic_rounds"], run["parallel_rounds"]
            steps = 4 * (2 * cyclic + parallel) * epochs
            return shares * (steps + 3 * tuned), shares * 6
        case "masksparsity":
            return 2 * (epochs + tuned), 4
        case "prune_at_init":
            return shares * len(run["criteria"]) * epochs, shares
        case "tpp":
            return shares * (epochs + 2 * tuned), shares * 3
        case "trp":
            return len(run["kinds"]) * epochs, len(run["kinds"])
        case "weightmom":
            return shares * len(run["strengths"]) * epochs, shares
    assert run["method"] in ("asl", "aswl", "csgd", "dynamic_sparse", "gsm", "swd")
    return shares * epochs, shares


def test_what_has_no_small_form_says_so():
    with pytest.raises(ConfigError, match="`digits` has no small form"):
        config.load("digits", small=True)


def test_a_shorter_experiment_keeps_its_proportions():
    whole = config.load("authors_resnet56")
    short = config.shortened(whole, 50, examples=5000, of=50_000, batch=32, ema=0.5)
    gsm, csgd, tpp, aswl = short.parts()
    assert {(p.batch, p.train_examples, p.ema) for p in short.parts()} == {
        (32, 5000, 0.5)
    }
    assert (gsm.dense["epochs"], gsm.runs["gsm"]["epochs"]) == (42, 50)
    assert (csgd.dense["epochs"], csgd.runs["csgd"]["epochs"]) == (50, 50)
    run = tpp.runs["tpp"]
    assert (tpp.dense["epochs"], run["epochs"], run["tune_epochs"]) == (50, 28, 12)
    assert run["sparsity"] == (0.3,)
    # 28 epochs of 156 steps for 283 of 390, and 100 steps between two groups
    assert run["interval"] == round(100 * 28 * 156 / (283 * 390)) == 4
    # 32 images in a step for 128, and for 32
    assert run["tune_lr"] == {
        **whole.parts()[2].runs["tpp"]["tune_lr"],
        "peak": 1e-2 / 4,
    }
    assert run["lr"] == 1e-3 / 4 and aswl.dense == {
        **whole.parts()[3].dense,
        "epochs": 50,
    }
    assert (aswl.validation, aswl.dense["epochs"]) == (500, 50)
    assert whole.parts()[2].runs["tpp"]["epochs"] == 283


def test_every_group_has_its_turn_in_a_short_tpp():
    part = config.load("authors_resnet56", small=True).parts()[2]
    run, groups = part.runs["tpp"], (56 - 2) // 2
    steps = run["epochs"] * (part.train_examples // part.batch)
    assert steps - round(run["grow"] * steps) > run["interval"] * groups


def test_what_happens_every_so_many_steps_happens_in_a_short_run_too():
    def runs(name, number, epochs):
        whole = config.load(name)
        short = config.shortened(whole, epochs, examples=640, of=50_000, batch=32)
        return short.parts()[number].runs

    rigl = runs("authors_resnet50", 0, 4)["rigl"]  # 80 steps
    assert (rigl["every"], rigl["end"], rigl["sparsity"]) == (8, 25 / 32, (0.8,))
    assert runs("authors_resnet50", 0, 60)["rigl"]["every"] == 100  # of 1,200
    assert runs("authors_resnet20", 1, 8)["trp"]["every"] == 5  # of 160: as it was
    momentum = runs("authors_vgg16", 1, 6)["weightmom"]
    assert (momentum["every"], momentum["batch"]) == (12, 32)
    starts = runs("authors_lenet300", 3, 30)["k_starts"]
    assert (starts["epochs"], starts["window"], len(starts["arms"])) == (30, 2, 8)
    assert runs("authors_lenet300", 3, 5)["k_starts"]["window"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_small_form_judges_no_accuracy(name):
    """Its claims are those that hold of the counts of networks at chance."""
    worst = Row("x", "m", asked=0.9, got=0.9, kept=5, nonzero=5, after=0.0)
    for part in config.load(name, small=True).parts():
        for claim in part.claims:
            assert claim.small and claim.holds(*[worst] * len(claim.runs))
            assert not claim.holds(*[worst._replace(nonzero=6)] * len(claim.runs))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_csgd_brings_filters_together_before_it_merges_them(name, small):
    """Their spread ends below 1e-4 of the first one: kernels, norms and biases.

    The difference of two filters sees nothing but the pull, so its run can be had here:
    Nesterov's momentum on it, biases at their own rate. Running statistics follow at
    the networks' momentum, 0.9.
    """
    for part in config.load(name, small=small).parts():
        for run in [run for run in part.runs.values() if run["method"] == "csgd"]:
            images = part.train_examples or 50_000
            steps = run["epochs"] * (images // part.batch)
            rates = np.asarray(learning_rate(run["lr"], steps)(np.arange(steps)), float)
            vectors = run["strength"] * run["vector_multiplier"]
            for pull, times in (
                (run["strength"], 1),
                (vectors, 1),
                (vectors, run["bias_rate"]),
            ):
                spread, trace, running = 1.0, 0.0, 1.0
                for rate in times * rates:
                    trace = run["momentum"] * trace + pull * spread
                    spread -= rate * (pull * spread + run["momentum"] * trace)
                    running = 0.9 * running + 0.1 * abs(spread)
                assert abs(spread) < 1e-4 and running < 1e-4


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
