"""Soft shrinkage and N:M at toy length: the counts that were asked for."""

import pytest

from experiments import build
from experiments.methods.dense import train_dense
from experiments.methods.reparameterized import eligible

SIZES = (64 * 300, 300 * 100, 100 * 10)
SIZE = sum(SIZES)
SHRINK = {"batch": 360, "epochs": 2, "end": 0.5, "lr": 3e-3, "drops_at": (0.8,)}
SGD = {"epochs": 2, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, open_tiny, tiny):
    lab = open_tiny(tmp_path_factory.mktemp("shrinking"))
    return lab, train_dense(lab, **tiny.dense)


def rows_of(method, trained, **settings):
    rows = list(build.rows(*trained, {"method": method, **settings}))
    for row in rows:
        assert row.nonzero == row.kept and row.method == method
        assert 0 <= row.after <= 1
    return {row.run: row for row in rows}


def low(share):
    return sum(-(-round(share * 1000) * n // 1000) for n in SIZES)


@pytest.mark.slow
def test_issp(trained):
    rows = rows_of("issp", trained, sparsity=(0.5, 0.9), factors=(0.95, 0.0), **SHRINK)
    assert {run: row.nonzero for run, row in rows.items()} == {
        "iss-p 0.95, 50%": SIZE - low(0.5),
        "iss-p 0.95, 90%": SIZE - low(0.9),
        "iht, 50%": SIZE - low(0.5),
        "iht, 90%": SIZE - low(0.9),
    }


@pytest.mark.slow
def test_issr(trained):
    given = {"increments": (0.1,), "every": 1, "limit": 0.15}
    rows = rows_of("issr", trained, sparsity=(0.9,), **given, **SHRINK)
    assert rows["iss-r 0.1, 90%"].nonzero == SIZE - low(0.9)


@pytest.mark.slow
def test_hard_n_of_m(trained):
    rows = rows_of(
        "hard_n_of_m",
        trained,
        pairs=((1, 4),),
        begin=0.0,
        end=0.7,
        stats_momentum=None,
        **SGD,
    )
    names = ["one-shot 1:4", "one-shot, tuned 1:4", "gradual 1:4"]
    assert list(rows) == names
    for row in rows.values():
        assert row.nonzero == SIZE // 4
        # A float32 in four, and two bits to place it.
        stored = row.extra["bytes of the N:M kernels"]
        assert stored == pytest.approx(17 / 64, abs=1e-5)  # whole bytes


@pytest.mark.slow
def test_sr_ste(trained):
    rows = rows_of("sr_ste", trained, pairs=((2, 4),), strengths=(2e-4,), **SGD)
    row = rows["sr-ste 0.0002, 2:4"]
    assert row.nonzero == SIZE // 2 and row.extra["bytes of the N:M kernels"] == 17 / 32


def test_eligible_kernels(trained):
    scope = eligible(trained[1].params, 32)
    assert [scope[f"Dense_{i}"]["kernel"] for i in range(3)] == [True, False, False]
    assert not scope["Dense_0"]["bias"]
