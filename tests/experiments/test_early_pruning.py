"""Pruning in the first epochs at toy length: counts, spread, and what is refused."""

import itertools

import jax
import numpy as np
import pytest

from experiments import build, stopping
from experiments.config import ConfigError
from experiments.loop import Diverged

RUN = {
    "arms": ("dissipating, then K-starts",),
    "sparsity": (0.9,),
    "seeds": 2,
    "k": 2,
    "fraction": (0.02,),
    "window": 1,
    "scope": "Dense_[01]/kernel",
    "epochs": 3,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}
EVERY = (
    "random",
    "K-starts",
    "K-starts |w|",
    "K-starts |g|",
    "dissipating",
    "K-starts, then dissipating",
    "magnitude",
)
SIZE = 64 * 300 + 300 * 100 + 100 * 10


@pytest.fixture(scope="module")
def lab(tmp_path_factory, open_tiny):
    return open_tiny(tmp_path_factory.mktemp("early")).rebatched(128)


def run(lab, **changes):
    given = {"method": "early_pruning", **RUN, **changes}
    return list(build.rows(lab, None, given))


def check(rows):
    for row in rows:
        assert row.nonzero == row.kept and row.got == 1 - row.nonzero / SIZE
        least, greatest = row.extra["least"], row.extra["greatest"]
        assert row.extra["seeds"] == 2 and row.after == (least + greatest) / 2
        np.testing.assert_allclose(row.extra["sd"], (greatest - least) / 2**0.5)


@pytest.mark.slow
def test_rows_are_means_over_seeds_with_exact_counts(lab):
    rows = run(lab)
    check(rows)
    assert rows[0].extra["sd"] > 0
    assert [row.run for row in rows] == [
        "dense, 2 seeds",
        "dissipating, then K-starts, 90%",
        "dissipating 0.02",
    ]
    assert [row.kept for row in rows[:2]] == [SIZE, 1920 + 3000 + 1000]
    assert 1400 < rows[2].kept < SIZE  # an outcome


@pytest.mark.slow
def test_every_arm(lab):
    rows = run(lab, arms=EVERY, sparsity=(0.9, 0.98))
    check(rows)
    assert {row.kept for row in rows[1:-1]} == {5920, 384 + 600 + 1000}
    rows = run(lab, arms=("K-starts by channel",))
    check(rows)
    assert rows[1].kept == 6 * 300 + 30 * 100 + 1000  # of 64 and 300 for each unit


def test_another_seed_has_its_own_start_and_order(lab, open_tiny, tmp_path):
    first, other = lab.reseeded(1), open_tiny(tmp_path / "one", seed=1)
    jax.tree.map(np.testing.assert_array_equal, first.init(), other.init())
    np.testing.assert_array_equal(first.order(0)[:1408], other.order(0)[:1408])
    assert np.any(np.asarray(lab.order(0)) != np.asarray(first.order(0)))


def test_mistakes(lab):
    with pytest.raises(ConfigError, match="unknown arm `K-start`: did you mean K-star"):
        run(lab, arms=("K-start",))
    with pytest.raises(ConfigError, match="`epochs` is 2: the arm .* first 2 epochs"):
        run(lab, epochs=2)  # the mask would come last: nothing trains what it left
    params, _ = lab.init()
    normed = lab._replace(init=lambda seed: (params, {"mean": np.zeros(3)}))
    with pytest.raises(ConfigError, match="without batch statistics; `lenet300` has"):
        run(normed)


@pytest.mark.slow
def test_rows_resume_where_they_were_left(open_tiny, tmp_path, monkeypatch):
    def job(folder, leave_at, resume=False):
        lab = open_tiny(tmp_path / folder, resume=resume).rebatched(476)
        asked = itertools.count(1)
        monkeypatch.setattr(stopping, "wanted", lambda: next(asked) == leave_at)
        rows = []
        try:
            for row in build.rows(lab, None, {"method": "early_pruning", **RUN}):
                rows.append(row._replace(seconds=0.0))
        except stopping.Stopped as error:
            return str(error)
        return rows

    whole = job("whole", 0)
    assert job("cut", 2) == "asked to leave in run `dense, 2 seeds`"
    assert "then K-starts" in job("cut", 4, resume=True)
    assert job("cut", 0, resume=True) == whole and len(whole) == 3
    asked = itertools.count(1)
    monkeypatch.setattr(stopping, "wanted", lambda: bool(next(asked)))
    lab = open_tiny(tmp_path / "cut", resume=True).rebatched(476)
    assert len(run(lab)) == 3  # all was saved: nothing is trained, nobody leaves


def test_seeds_that_diverge_are_no_row(open_tiny, tmp_path):
    lab = open_tiny(tmp_path / "wild").rebatched(476)
    with pytest.raises(Diverged, match=r"run `dense, 2 seeds` diverged"):
        run(lab, lr=1e38)
