"""Configurations: every one is complete, every mistake in one names what is near."""

import dataclasses

import pytest

from experiments import build, config
from experiments.config import Claim, ConfigError
from experiments.configs.digits_all import UNDECIDED


@pytest.mark.parametrize("name", config.names())
def test_every_configuration_is_complete(name):
    chosen = config.load(name)
    build.check(chosen)
    doc = __import__(f"experiments.configs.{name}", fromlist=["_"]).__doc__
    assert f"python -m experiments.train {name}" in doc


def test_unknown_configuration_names_the_near_one():
    with pytest.raises(ConfigError, match="unknown configuration `digit`.*digits"):
        config.load("digit")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch", "expected key=value"),
        ("bach=3", "unknown key `bach`: did you mean batch"),
        ("swd.epoch=3", "unknown key `swd.epoch`: did you mean swd.epochs"),
        ("swd=3", "unknown key `swd`"),
        ("dense=3", "unknown key `dense`"),
        ("batch.size=3", "unknown key `batch.size`"),
        ("batch=many", "`batch` is 64: expected a value of type int, got 'many'"),
        ("batch=1.5", "expected a value of type int"),
        ("batch=True", "expected a value of type int"),
        ("swd.mu=None", "expected a value of type float"),
        ("claims=()", "unknown key `claims`"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(ConfigError, match=message):
        config.override(config.load("digits"), [setting])


def test_settings_reach_their_place_and_leave_the_original_alone():
    before = config.load("digits")
    settings = [
        "batch=32",
        "dense.epochs=2",
        "swd.mu=1",
        "runs.swd.a_max=1e3",
        "swd.sparsity=0.5",
        "gradual.sparsity=[0.5, 0.6]",
        "model=lenet5",
    ]
    after = config.override(before, settings)
    assert after.batch == 32 and after.model == "lenet5"
    assert after.dense["epochs"] == 2
    assert after.runs["swd"]["mu"] == 1.0 and type(after.runs["swd"]["mu"]) is float
    assert after.runs["swd"]["a_max"] == 1e3
    assert after.runs["swd"]["sparsity"] == (0.5,)
    assert after.runs["gradual"]["sparsity"] == (0.5, 0.6)
    assert after.claims == before.claims
    assert before.runs["swd"]["a_max"] == 5e6 and before.batch == 64


def test_only_keeps_the_named_runs():
    chosen = config.load("digits")
    assert list(config.only(chosen, ["swd", "gsm"]).runs) == ["gsm", "swd"]
    with pytest.raises(ConfigError, match="unknown run `swdd`: did you mean swd"):
        config.only(chosen, ["swdd"])


def test_combined_configurations_share_a_dense_run():
    main = config.load("digits")
    other = dataclasses.replace(main, runs={"again": main.runs["swd"]}, claims=())
    both = config.combine([main, other, main])
    assert list(both.runs) == [*main.runs, "again"] and not both.beside
    assert both.claims == main.claims * 2
    clash = dataclasses.replace(main, runs={"swd": main.runs["gsm"]})
    with pytest.raises(ConfigError, match="have a run `swd`, not alike"):
        config.combine([main, clash])


def test_another_dense_run_stands_beside():
    main = config.load("digits")
    other = dataclasses.replace(main, model="lenet300", claims=())
    pair = config.combine([main, other])
    assert [part.model for part in pair.parts()] == ["digits_resnet", "lenet300"]
    assert pair.settings()["beside"] == [other.settings()]
    again = config.combine([main, pair])  # what stands beside stays there, once
    assert again.settings() == pair.settings()
    changed = config.override(pair, ["dense.epochs=1", "swd.mu=0.5"])
    assert [p.dense["epochs"] for p in changed.parts()] == [1, 1]
    assert [p.runs["swd"]["mu"] for p in changed.parts()] == [0.5, 0.5]
    alone = dataclasses.replace(other, runs={"extra": other.runs["swd"]})
    pair = config.only(config.combine([main, alone]), ["extra"])
    assert [part.model for part in pair.parts()] == ["lenet300"]
    with pytest.raises(ConfigError, match="unknown data set"):
        build.check(
            dataclasses.replace(main, beside=(dataclasses.replace(main, data="x"),))
        )


def test_digits_all_has_every_digits_configuration():
    every = config.load("digits_all")
    labels = {label for part in every.parts() for label in part.runs}
    for name in config.names():
        if name.startswith("digits"):
            assert set(config.load(name).runs) <= labels


def test_digits_all_leaves_out_what_its_test_set_cannot_decide():
    every, single = config.load("digits_all"), config.names()
    texts = {claim.text for part in every.parts() for claim in part.claims}
    own = {
        claim.text
        for name in single
        if name.startswith("digits_") and name != "digits_all"
        for claim in config.load(name).claims
    }
    assert set(UNDECIDED) <= own and not texts & set(UNDECIDED)
    assert own - set(UNDECIDED) <= texts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "digit"}, "unknown data set `digit`: did you mean digits"),
        ({"model": "lenet"}, "unknown model `lenet`: did you mean lenet5 or lenet300"),
        ({"augment": "flip"}, "unknown augmentation `flip`"),
        ({"dense": {"epochs": 1}}, "run `dense` lacks lr, momentum, weight_decay"),
        ({"runs": {"a": {}}}, "run `a` has no `method`"),
        ({"runs": {"a": {"method": "sdw"}}}, "unknown method `sdw`: did you mean swd"),
        (
            {"runs": {"a": {"method": "one_shot", "sparsitty": ()}}},
            "unknown setting of run `a` `sparsitty`: did you mean sparsity",
        ),
        (
            {"runs": {"a": {"method": "one_shot", "sparsity": ()}}},
            "run `a` lacks stats_momentum",
        ),
    ],
)
def test_names_are_checked_before_anything_runs(change, message):
    chosen = dataclasses.replace(config.load("digits"), **change)
    with pytest.raises(ConfigError, match=message):
        build.check(chosen)


def test_claims_speak_only_of_rows_that_are_there():
    from experiments.results import Row, verdict_text, verdicts

    row = Row("a", "m", asked=0.5, got=0.5, kept=2, nonzero=2, after=0.9)
    claims = [
        Claim("good", ("a",), lambda a: a.after > 0.8),
        Claim("bad", ("a",), lambda a: a.after > 0.95),
        Claim("absent", ("a", "b"), lambda a, b: False),
        Claim("twice", ("a",), lambda a: False),
        Claim("twice", ("a",), lambda a: True),
    ]
    found = verdicts(claims, [row])
    assert found == {"good": True, "bad": False, "twice": False}
    assert verdict_text(found) == "holds  good\nFAILS  bad\nFAILS  twice"


def test_a_claim_of_the_first_part_may_compare_it_with_those_beside_it():
    from experiments.results import Row, verdicts

    row = Row("a", "m", asked=0.5, got=0.5, kept=2, nonzero=2, after=0.9)
    rows = [row, row._replace(run="b a", after=0.8)]
    leads = Claim("leads", ("b a", "a"), lambda other, own: own.after > other.after)
    assert verdicts([leads], rows) == {"leads": True}
    assert verdicts([leads], rows[:1]) == verdicts([leads], rows, "b ") == {}
    good = Claim("good", ("a",), lambda a: a.after > 0.85)
    assert verdicts([good], rows, "b ") == {"b good": False}
