"""The structured arena at toy length: equal starts, exact budgets, one row each."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import build, config, costs, results
from experiments.configs import cifar_arena
from experiments.data import images
from experiments.loop import Fit
from experiments.methods import arena, invariant, structured
from experiments.results import Row
from jprune import analysis

ARENA = config.load("cifar_arena")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, open_tiny):
    """A dense network of no training on which plans can be made."""
    lab = open_tiny(tmp_path_factory.mktemp("arena"), model="cifar_resnet14", batch=100)
    params, stats = lab.init()
    return lab, Fit(params, stats, 0.0)


def test_every_entrant_has_the_same_epochs():
    for name, run in ARENA.runs.items():
        assert run.get("epochs", 0) + run.get("tune_epochs", 0) == 2, name
        assert run["flops"] == (0.5, 0.25)


def test_one_ratio_in_every_block_meets_the_budget(trained):
    lab, dense = trained
    mine = arena.open_arena(lab, dense, lr=0.1, momentum=0.9, weight_decay=0.0)
    assert sorted(g.size for g in mine.groups) == [8, 8, 16, 16, 32, 32]
    keeps = mine.keeps(mine.filters(mine.tree), 0.5)
    plan = mine.plan(keeps)
    packed = plan.pack(mine.tree)
    left = structured.flops_left(lab, plan, packed, mine.tree)
    assert 0.47 < left <= 0.5
    # the streams are whole, and in every block about the same share went
    assert packed["params"]["Dense_0"]["kernel"].shape == (32, 10)
    shares = [float(np.mean(keeps[g.id])) for g in mine.groups]
    assert max(shares) - min(shares) <= 1 / 8
    kernel = np.abs(np.asarray(dense.params["Conv_1"]["kernel"])).sum((0, 1, 2))
    wanted = np.sort(
        np.argsort(-kernel)[: packed["params"]["Conv_1"]["kernel"].shape[-1]]
    )
    group = next(g for g in mine.groups if "Conv_1/" in g.id)
    assert np.flatnonzero(np.asarray(keeps[group.id])).tolist() == wanted.tolist()


def test_folded_kernels_are_those_of_the_network_without_norms(trained):
    lab, dense = trained
    rng = np.random.default_rng(0)
    norms = jax.tree.map(
        lambda x: np.float32(rng.uniform(0.5, 2, np.shape(x))),
        {"params": dense.params["BatchNorm_1"], **dense.stats},
    )
    params = {**dense.params, "BatchNorm_1": norms.pop("params")}
    tree = structured.variables(params, norms)
    index = structured.examples(lab, 4)
    groups = analysis.scale_invariance(structured.network(lab), tree, index).groups
    folded = invariant.folded(tree, groups)
    gain = tree["params"]["BatchNorm_1"]["scale"] / np.sqrt(
        tree["batch_stats"]["BatchNorm_1"]["var"] + 1e-5
    )
    np.testing.assert_allclose(
        folded["params"]["Conv_1"]["kernel"],
        np.asarray(tree["params"]["Conv_1"]["kernel"]) * gain,
        rtol=1e-6,
    )
    head = folded["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(head, tree["params"]["Dense_0"]["kernel"])


def test_halved_images_are_means_of_two_by_two_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 8, 6, 3), np.uint8)
    small = images.halved(pixels)
    assert small.shape == (3, 4, 3, 3) and small.dtype == np.uint8
    assert abs(small[2, 1, 2, 1] - pixels[2, 2:4, 4:6, 1].astype(float).mean()) <= 0.5
    flat = np.full((1, 4, 4, 3), 200, np.uint8)
    np.testing.assert_array_equal(images.halved(flat), flat[:, :2, :2])


@pytest.mark.data
def test_small_cifar_is_the_beginning_of_cifar(data_dir):
    small, whole = (
        load(str(data_dir)) for load in (images.load_cifar10_small, images.load_cifar10)
    )
    assert len(small.train) == 10_000 and len(small.test) == 2_000
    np.testing.assert_array_equal(small.labels[small.train], whole.labels[:10_000])
    first = whole.test[:2_000]
    np.testing.assert_array_equal(small.labels[small.test], whole.labels[first])
    halved = images.halved(whole.inputs[first[:5]])
    np.testing.assert_array_equal(small.inputs[small.test[:5]], halved)


def test_the_figure_is_of_the_rows_that_have_a_cost(tmp_path):
    cost = {"flops": 0.5, "ms": 2.0, "dense ms": 8.0, "at the cut": 0.1}
    made = Row("l1, 50% FLOPs", "m", 0.5, 0.5, 1, 1, 0.9, extra=cost)
    other = made._replace(run="dense", extra=None)
    gates = made._replace(run="gates", extra={"flops": 0.5, "ms": 2.0, "dense ms": 3.0})
    found = costs.costed([(row, 0.9, 0.01) for row in (made, other, gates)])
    assert [row.run for row, _, _ in found] == ["l1, 50% FLOPs"]
    assert costs.flops_left(made) == 0.5 and costs.time_left(made) == 0.25
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    costs.draw(tmp_path / "a.png", found, 0.95, title="t", label="accuracy, %")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["cifar_lasso", "cifar_similarity", "cifar_bn"])
def test_what_is_cut_at_once_shares_the_dense_network(name):
    chosen = config.load(name)
    build.check(chosen)
    for field in ("data", "model", "batch", "dense", "augment"):
        assert getattr(chosen, field) == getattr(ARENA, field)


CHANGES = (
    *("data=digits", "augment=none", "dense.epochs=1", "tpp.interval=1"),
    *("csgd.strength=4.0", "csgd.momentum=0.5", "csgd.epochs=3", "trp.every=10"),
    *(f"{name}.flops=0.5" for name in ARENA.runs),
)


@pytest.mark.slow
def test_every_entrant_of_the_arena(tmp_path):
    """On one device: collectives of four give up when the machine is very busy."""
    words = [word for change in CHANGES for word in ("--set", change)]
    command = [sys.executable, "-m", "experiments.train", "cifar_arena", *words]
    free = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([*command, "--out", str(tmp_path / "o")], env=free, check=True)
    _, rows = results.load(tmp_path / "o" / "result.json")
    names = [f"{name}, 50% FLOPs" for name in cifar_arena.ENTRANTS]
    wanted = ["dense", "dense, trained on", *names]
    assert sorted(row.run for row in rows) == sorted(wanted)
    for row in rows[2:]:
        assert 0.3 < row.extra["flops"] <= 0.5, row.run
        assert row.extra["ms"] > 0 and 0 <= row.after <= 1
