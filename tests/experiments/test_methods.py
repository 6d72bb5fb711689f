"""Every method of the table at toy length: exact counts, honest rows."""

import chex
import jax
import numpy as np
import pytest

from experiments import build
from experiments.loop import fit
from experiments.methods import iterative
from experiments.methods.dense import train_dense
from experiments.methods.gap import average_density
from experiments.methods.one_shot import recalibration
from experiments.methods.removal import count_nonzero
from jprune import masks

SGD = {"epochs": 2, "lr": 0.05, "momentum": 0.9}
RUNS = {
    "gap": {
        "sparsity": (0.9,),
        "partitions": ("Dense_[01]/", "Dense_2/"),
        "epochs": 1,
        "cyclic_rounds": (1,),
        "parallel_rounds": (1,),
        "tune_epochs": 1,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
    },
    "gradual": {
        **SGD,
        "sparsity": (0.5, 0.9),
        "batch": 360,
        "end": 0.75,
        "every": 1,
        "weight_decay": 5e-4,
    },
    "gsm": {**SGD, "compression": 7, "nesterov": True, "weight_decay": 0.01},
    "weightmom": {
        **SGD,
        "sparsity": (0.5, 0.9),
        "strengths": ((0.9, 1.0),),
        "batch": 360,
        "begin": 0.1,
        "end": 0.75,
        "every": 1,
        "weight_decay": 5e-4,
    },
    "iterative": {
        **SGD,
        "sparsity": (0.9,),
        "rounds": 2,
        "early_epochs": 1,
        "weight_decay": 5e-4,
    },
    "one_shot": {"sparsity": (0.57, 0.98), "stats_momentum": None},
    "swd": {
        **SGD,
        "sparsity": (0.9, 0.98),
        "batch": 360,
        "mu": 1e-3,
        "a_min": 1.0,
        "a_max": 1e3,
    },
}
UNCUT = {"gradual", "weightmom"}
"""Methods that reach their zeros while training: there is no moment before them."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, open_tiny, tiny):
    lab = open_tiny(tmp_path_factory.mktemp("methods"))
    return lab, train_dense(lab, **tiny.dense)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            name, marks=[] if name in ("one_shot", "swd") else pytest.mark.slow
        )
        for name in sorted(RUNS.keys() - {"gap", "iterative"})
    ],
)
def test_counts_are_exact_and_rows_consistent(method, trained):
    lab, dense = trained
    size = masks.size(dense.params)
    assert size == 64 * 300 + 300 * 100 + 100 * 10
    rows = list(build.rows(lab, dense, {"method": method, **RUNS[method]}))
    shares = RUNS[method].get("sparsity", (1 - 1 / 7,))
    assert len(rows) == len(shares)
    for row, share in zip(rows, shares, strict=True):
        kept = size - int(share * size + 0.5) if "sparsity" in RUNS[method] else 7172
        assert row.nonzero == row.kept == kept, row.run
        assert row.got == row.asked == 1 - kept / size
        assert row.method == method and 0 <= row.after <= 1
        assert (row.before is None) == (row.changed is None) == (method in UNCUT)


@pytest.mark.slow
def test_grow_and_prune_in_its_three_forms(trained):
    lab, dense = trained
    rows = list(build.rows(lab, dense, {"method": "gap", **RUNS["gap"]}))
    names = ["C-GaP 90%, 1 rounds", "P-GaP 90%, 1 rounds", "static random 90%"]
    assert [row.run for row in rows] == names
    for row in rows:
        assert row.nonzero == row.kept == 1920 + 3000 + 100
        assert row.before is None and row.extra["epochs"] == 3


@pytest.mark.slow
def test_iterative_pruning_rewinds_as_it_says(trained, monkeypatch):
    lab, dense = trained
    runs = {}

    def recorded(lab, program, name, epochs, *, start=None, hyper):
        begins = jax.tree.map(np.asarray, None if start is None else start[0])
        found = fit(lab, program, name, epochs, start=start, hyper=hyper)
        ends, mask = jax.tree.map(np.asarray, (found.params, hyper))
        runs[name.label] = begins, ends, mask
        return found

    monkeypatch.setattr(iterative, "fit", recorded)
    rows = list(build.rows(lab, dense, {"method": "iterative", **RUNS["iterative"]}))
    names = ["weights rewound 90%", "rate rewound 90%", "one round 90%"]
    assert [row.run for row in rows] == names
    for row in rows:
        assert row.nonzero == row.kept == 5020 and row.method == "iterative"
        assert row.before is None and row.got == row.asked == 1 - 5020 / 50_200
    early = runs["iterative, early"][1]
    for name, last, source in [
        ("weights rewound 90%", 2, lambda before: early),
        ("rate rewound 90%", 2, lambda before: before[1]),
        ("one round 90%", 1, lambda before: before[1]),
    ]:
        assert f"{name} round {last + 1}" not in runs
        for k in range(1, last + 1):
            begins, _, mask = runs[f"{name} round {k}"]
            want = masks.apply(mask, source(runs[f"{name} round {k - 1}"]))
            chex.assert_trees_all_equal(begins, want)


def test_removal_is_measured_against_the_network_before_it(trained):
    lab, dense = trained
    row, _ = build.rows(lab, dense, {"method": "one_shot", **RUNS["one_shot"]})
    before = np.asarray(lab.logits(dense.params, dense.stats))
    scope = masks.prunable(dense.params)
    flat = np.concatenate(
        [
            np.abs(np.asarray(leaf)).ravel()
            for leaf, on in zip(
                jax.tree.leaves(dense.params), jax.tree.leaves(scope), strict=True
            )
            if on
        ]
    )
    least = np.sort(flat)[-row.kept]
    cut = jax.tree.map(
        lambda leaf, on: np.where(np.abs(leaf) >= least, leaf, 0) if on else leaf,
        jax.device_get(dense.params),
        scope,
    )
    assert count_nonzero(cut) == row.kept
    after = np.asarray(lab.logits(cut, dense.stats))
    labels = lab.dataset.labels[lab.dataset.test]
    assert row.before == np.mean(before.argmax(-1) == labels)
    assert row.after == np.mean(after.argmax(-1) == labels)
    assert row.changed == np.sum(after.argmax(-1) != before.argmax(-1))
    assert row.logit_change == pytest.approx(np.abs(after - before).max(), rel=1e-5)


def test_recalibrated_statistics_are_means_over_the_batches(tmp_path, open_tiny):
    lab = open_tiny(tmp_path, model="digits_resnet", batch=476)
    params, stats = lab.init()
    fresh = recalibration(lab, 0.9)(params, stats)
    data, means = lab.dataset, []
    order = np.asarray(lab.order(0)).reshape(lab.per_epoch, lab.batch)
    for index in order:
        x = (data.inputs[index] - data.mean) / data.std
        kernel = params["Conv_0"]["kernel"]
        out = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        means.append(out.mean((0, 1, 2)))
    found = fresh["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, np.mean(means, 0), atol=1e-4)


def test_a_moving_mask_keeps_its_count(trained):
    lab, dense = trained
    run = {**SGD, "weight_decay": 5e-4, "sparsity": (0.9,), "every": 2, "end": 1.0}
    run |= {"recipe": "rigl", "drop_fraction": 0.3}
    (row,) = build.rows(lab, dense, {"method": "dynamic_sparse", **run})
    size = masks.size(dense.params)
    assert row.kept == row.extra["in the mask"] == size - int(0.9 * size + 0.5)
    assert 0.9 * row.kept < row.nonzero <= row.kept  # some that grew are still 0
    assert row.run == "rigl 90%" and 0.05 < row.extra["moved"] < 0.7


@pytest.mark.slow
def test_trp_ends_factorised(open_tiny, tiny, tmp_path):
    lab = open_tiny(tmp_path, model="digits_resnet", batch=476)
    dense = train_dense(lab, **tiny.dense)
    shared = {"epochs": 1, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    own = {"kinds": ("channel", "spatial"), "energy": 0.7, "every": 2}
    own |= {"nuclear": 3e-4, "stats_momentum": 0.9, "rounds": 1}
    rows = build.rows(lab, dense, {"method": "trp", **shared, **own})
    for row in rows:
        assert row.changed == 0 and row.logit_change < 1e-3
        assert row.kept == row.nonzero < masks.size(dense.params)
        assert row.extra["flops"] < 1 and row.extra["kernels split"] == 6


@pytest.mark.parametrize("sparsity, want", [(0.8, 0.4), (0.9, 0.325), (0.0, 1.0)])
def test_gap_g9_average_density(sparsity, want):
    params = {str(i): {"kernel": np.ones((4, 5))} for i in range(4)}
    assert average_density(params, sparsity, 4) == pytest.approx(want)
