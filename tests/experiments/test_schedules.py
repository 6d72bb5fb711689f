"""Schedules: their length, their ends, a few values by hand."""

import math

import numpy as np
import pytest

from experiments.build import check
from experiments.config import ConfigError, load, override
from experiments.schedules import drops, in_steps, learning_rate, warmup_cosine


def at(schedule, *steps):
    return [float(np.asarray(schedule(step))) for step in steps]


def test_warmup_cosine_by_hand():
    rate = warmup_cosine(0.1, 100, warmup=0.1)
    assert at(rate, 0) == [0]
    half_risen = 0.5 * 0.1 * 0.5 * (1 + math.cos(math.pi * 0.05))
    np.testing.assert_allclose(at(rate, 5, 50), [half_risen, 0.05], rtol=1e-6)
    np.testing.assert_allclose(at(rate, 100), [0], atol=1e-9)
    assert at(rate, 99)[0] > 0


@pytest.mark.parametrize("steps", [1, 7])
def test_short_runs_have_a_schedule_too(steps):
    values = at(warmup_cosine(0.1, steps), *range(steps))
    assert all(np.isfinite(values)) and max(values) <= 0.1


def test_drops_by_hand():
    rate = drops(1.0, 10, (0.5, 0.8))
    expected = [1.0] * 5 + [0.1] * 3 + [0.01] * 2
    np.testing.assert_allclose(at(rate, *range(10)), expected, rtol=1e-6)


def test_two_drops_may_fall_on_one_step():
    np.testing.assert_allclose(at(drops(1.0, 2, (0.4, 0.5)), 0, 1), [1, 0.01], 1e-6)


def test_a_rate_in_steps_by_hand():
    """GSM's ResNet-56: 5 epochs of warm-up, a tenth after 400 and 500 of 600."""
    rate = learning_rate(in_steps(5e-3, 600, (400, 500), warmup=5), 6000)
    expected = [0, 2.5e-3, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5]
    moments = 0, 25, 50, 3999, 4001, 4999, 5001
    np.testing.assert_allclose(at(rate, *moments), expected, rtol=1e-6)
    half = learning_rate(in_steps(5e-3, 600, (400, 500), warmup=5), 60, times=0.5)
    np.testing.assert_allclose(at(half, 39, 59), [2.5e-3, 2.5e-5], rtol=1e-6)
    flat = learning_rate(in_steps(0.1, 10, (5,), factor=0.2), 10)
    np.testing.assert_allclose(at(flat, 0, 4, 6), [0.1, 0.1, 0.02], rtol=1e-6)


def test_a_number_is_a_cosine():
    ours, plain = learning_rate(0.2, 50, times=0.5), warmup_cosine(0.1, 50)
    np.testing.assert_allclose(at(ours, 0, 20, 49), at(plain, 0, 20, 49), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peak": 0.1}, "`swd.lr` lacks rise, drops_at, factor"),
        ({**in_steps(0.1, 2), "drop": 1}, "unknown part of `swd.lr` `drop`"),
        (in_steps(0.1, 2, (3,)), r"`swd.lr.drops_at` must be from 0 to 1, got 1.5"),
        (in_steps(0.0, 2), "`swd.lr.peak` must be finite and greater than 0"),
    ],
)
def test_a_wrong_rate_is_refused_before_anything_runs(change, message):
    chosen = load("digits")
    chosen.runs["swd"]["lr"] = change
    with pytest.raises(ConfigError, match=message):
        check(chosen)


def test_a_rate_in_steps_is_set_part_by_part_and_only_where_it_is_known():
    chosen = load("digits")
    chosen.dense["lr"] = in_steps(0.1, 4, (2,))
    changed = override(chosen, ["dense.lr.peak=0.2", "dense.lr.drops_at=[0.25, 0.5]"])
    assert changed.dense["lr"]["peak"] == 0.2
    assert changed.dense["lr"]["drops_at"] == (0.25, 0.5)
    check(changed)
    chosen = load("digits_tpp")
    chosen.runs["tpp"]["lr"] = in_steps(0.1, 4)
    with pytest.raises(ConfigError, match="`tpp.lr` must be a number here"):
        check(chosen)
