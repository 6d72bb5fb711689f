"""The methods that train theta, at toy length: rows tell what the network used."""

import jax
import numpy as np
import optax
import pytest

from experiments import build
from experiments.methods import gates, scales, structured
from experiments.methods.dense import train_dense
from experiments.methods.powerprop import agreement
from experiments.methods.reparameterized import train_theta
from jprune import analysis, masks, reparam, surgery

SGD = {"epochs": 2, "lr": 0.05, "momentum": 0.9}
RUNS = {
    "asl": {
        **SGD,
        "sparsity": (0.8,),
        "weight": 10.0,
        "budget": "global",
        "min_size": 1001,
        "threshold_rate": 0.1,
        "weight_decay": 5e-4,
    },
    "aswl": {
        **SGD,
        "density": (0.3,),
        "gamma": 5.0,
        "alpha": 1.0,
        "decay": 1e-4,
        "attention_rate": 0.1,
    },
    "powerprop": {**SGD, "alpha": (2,), "sparsity": (0.5, 0.9), "weight_decay": 0.0},
    "sls": {
        **SGD,
        "m": 4,
        "density": (0.5,),
        "uniform": True,
        "weight": 1.0,
        "scope": "Dense_[01]/kernel",
        "weight_decay": 5e-4,
    },
    "straight_through": {**SGD, "sparsity": (0.9,), "weight_decay": 5e-4},
    "top_kast": {**SGD, "sparsity": (0.9,), "backward": 2.0, "weight_decay": 5e-4},
}
SLOW = {"top_kast", "straight_through", "aswl", "sls"}
SIZE = 64 * 300 + 300 * 100 + 100 * 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory, open_tiny, tiny):
    lab = open_tiny(tmp_path_factory.mktemp("reparam"))
    return lab, train_dense(lab, **tiny.dense)


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in sorted(RUNS)],
)
def test_rows_count_what_is_there(method, trained):
    lab, dense = trained
    rows = list(build.rows(lab, dense, {"method": method, **RUNS[method]}))
    for row in rows:
        assert row.nonzero == row.kept and row.got == 1 - row.nonzero / SIZE
        assert row.method == method and 0 <= row.after <= 1
    shares = RUNS[method].get("sparsity", ())
    if method in ("powerprop", "straight_through", "top_kast"):
        assert [row.nonzero for row in rows] == [round(SIZE * (1 - s)) for s in shares]
    if method == "sls":
        half = (SIZE - 1000) // 2 + 1000
        assert rows[1].nonzero == half and rows[1].run == "uniform 2:4"


def test_rows_are_of_the_exported_network(trained):
    lab, _ = trained
    r = reparam.straight_through(lambda p: masks.n_of_m(p, 1, 4))
    done = train_theta(lab, r, optax.sgd(0.05), run=lab.run("check"), epochs=1)
    assert bool(masks.is_n_of_m(done.mask, 1, 4, axis=0))
    cut = masks.apply(done.mask, done.theta)
    jax.tree.map(np.testing.assert_array_equal, done.params, cut)


def test_a_start_that_would_never_train_is_refused(trained):
    lab, dense = trained
    start = (jax.tree.map(np.zeros_like, dense.params), dense.stats)
    r, tx = reparam.powerpropagation(2), optax.sgd(0.05)
    with pytest.raises(ValueError, match="would never train"):
        train_theta(lab, r, tx, run=lab.run("check"), epochs=1, start=start)


def test_the_branches_of_the_network_end_in_the_norms_of_its_blocks():
    model = build.MODELS["digits_resnet14"](10)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    deps = surgery.groups(model.apply)(variables, image)
    found = analysis.residual_branches(model.apply, deps, variables, image, at="params")
    assert [b.leaves for b in found.branches.values()] == [
        (f"BatchNorm_{n}/scale", f"BatchNorm_{n}/bias") for n in (2, 4, 6, 8, 11, 13)
    ]
    inner = [b.inner for b in found.branches.values()]
    assert {g.id for (g,) in inner} == {g.id for g in structured.inner(deps)}


@pytest.mark.slow
def test_closed_gates_leave_a_smaller_equal_network(tmp_path, open_tiny, tiny):
    lab = open_tiny(tmp_path, model="digits_resnet14")
    dense = train_dense(lab, **{**tiny.dense, "epochs": 1})
    settings = {
        **{key: SGD[key] for key in ("epochs", "lr", "momentum")},
        "price": (100.0,),
        "target": (),
        "rate": 0.1,
        "wait": 0,
        "ramp": 1,
        "channel_rate": 1.0,
        "branch_rate": 1.5,
        "weight_decay": 5e-4,
        "stats_momentum": 0.9,
        "tune_epochs": 1,
        "tune_lr": 0.01,
    }
    shared = ("epochs", "lr", "momentum", "weight_decay", "stats_momentum")
    shared += ("tune_epochs", "tune_lr")
    both = [
        *gates.gates(lab, dense, **settings),
        *scales.scales(lab, dense, price=(20.0,), **{k: settings[k] for k in shared}),
    ]
    for row in both:
        left = row.extra or {}
        assert left["blocks"] < 6 and left["flops"] < 0.9
        assert row.nonzero == row.kept < 65_488
        assert row.changed == 0 and (row.logit_change or 0) < 1e-3


def test_agreement_counts_covered_weights():
    a = {"w": np.array([True, True, False, False]), "b": np.array(True)}
    b = {"w": np.array([True, False, False, True]), "b": np.array(True)}
    assert agreement(a, b) == 0.5
