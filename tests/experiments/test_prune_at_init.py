"""Pruning before training at toy length: exact counts, honest rows, fair examples."""

import numpy as np
import pytest

from experiments.config import ConfigError
from experiments.methods.prune_at_init import examples, prune_at_init
from jprune import masks

SETTINGS = {
    "criteria": ("snip rescaled",),
    "sparsity": (0.98,),
    "prefix": "try: ",
    "draw": (2.0, 0.0),
    "sigma_w2": 2.0,
    "per_class": 4,
    "chunks": 2,
    "temperature": 200.0,
    "rounds": 3,
    "epochs": 1,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory, open_tiny):
    return open_tiny(tmp_path_factory.mktemp("at_init"))


@pytest.mark.parametrize(
    "criterion",
    [
        "snip rescaled",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("random", "magnitude", "grasp shuffled", "synflow")
        ),
    ],
)
def test_rows_count_what_is_there(lab, criterion):
    given = {**SETTINGS, "criteria": (criterion,), "sparsity": (0.95, 0.98)}
    rows = list(prune_at_init(lab, **given))
    assert [row.run for row in rows] == [f"try: {criterion} {s}%" for s in (95, 98)]
    size = masks.size(lab.init()[0])
    for row, share in zip(rows, (0.95, 0.98), strict=True):
        assert row.nonzero == row.kept == masks.kept_count(size, share)
        assert row.extra is not None and row.before is None
        assert row.extra["effective"] >= row.got - 1e-6 and row.extra["emptied"] == 0
        one_shot = not row.run.startswith("try: synflow")
        assert ("critical" in row.extra) == one_shot
        assert 0.98 < row.extra.get("critical", 1) <= 1


def test_examples_are_a_few_of_each_class(lab):
    index = np.asarray(examples(lab, 4, 2))
    assert len(index) == 40 and set(index) <= set(lab.dataset.train)
    labels = np.asarray(lab.dataset.labels)[index]
    for half in labels.reshape(2, 20):
        np.testing.assert_array_equal(np.bincount(half), 2)


def test_an_unknown_criterion_is_an_error(lab):
    for bad in ("snap", "snip twice"):
        with pytest.raises(ConfigError, match=f"unknown criterion `{bad}`"):
            next(prune_at_init(lab, **{**SETTINGS, "criteria": (bad,)}))
