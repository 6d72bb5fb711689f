"""The bench gate: every bound names a bench, and a figure past its bound is counted."""

import math

from experiments.bench import check


def test_bounds_name_benches_and_hold_at_the_bound():
    for bound in check.BOUNDS:
        assert bound.bench in check.BENCHES and bound.why
        assert bound.holds(bound.value) and not bound.holds(math.nan)
        past = bound.value * (1.01 if bound.side == "<=" else 0.99)
        assert not bound.holds(past)


def test_a_missed_bound_is_counted_and_shown(monkeypatch, capsys):
    bounds = (
        check.Bound("one", ("rows", "slow"), "<=", 2.0, "why so"),
        check.Bound("one", ("fast",), ">=", 3.0, "why not"),
    )
    asked = []

    def bench(quick):
        asked.append(quick)
        return {"rows": {"slow": 2.5}, "fast": 9}

    monkeypatch.setattr(check, "BENCHES", {"one": bench, "other": bench})
    monkeypatch.setattr(check, "BOUNDS", bounds)
    assert check.check(True, "one") == 1 and asked == [True]
    shown = capsys.readouterr().out.splitlines()
    assert "MISSED" in shown[0] and "why so" in shown[0] and "ok" in shown[1]
