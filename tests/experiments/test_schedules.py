"""Schedules: their length, their ends, a few values by hand."""

import math

import numpy as np
import pytest

from experiments.schedules import drops, warmup_cosine


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
