"""Scores of groups as `deps.scores` gives them: by hand, statistics left out."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jprune import surgery
from tests.surgery.test_select import DEPS, SHAPES, X


def test_scores_by_hand():
    rng = np.random.default_rng(0)
    params = {k: rng.standard_normal(s) for k, s in SHAPES.items()}
    l2 = DEPS.scores(params, raw=True)["up:1"]
    want = (
        (params["up"] ** 2).sum(0) + params["bias"] ** 2 + (params["down"] ** 2).sum(1)
    )
    np.testing.assert_allclose(l2, np.sqrt(want))
    found = DEPS.scores(params, reduce="sum")
    np.testing.assert_allclose(found["up:1"], l2 / l2.mean())
    found = DEPS.scores(params)  # what is written times what is read
    passed = (params["up"] ** 2).sum(0) * (params["down"] ** 2).sum(1)
    want = np.sqrt(passed) / np.sqrt(passed).mean()
    np.testing.assert_allclose(found["up:1"], want)
    np.testing.assert_allclose([v.mean() for v in found.values()], 1)
    l1 = DEPS.scores(params, norm="l1", reduce="max", roles=("out", "in"), raw=True)
    l1 = l1["up:1"]
    want = np.maximum(np.abs(params["up"]).sum(0), np.abs(params["down"]).sum(1))
    np.testing.assert_allclose(l1, want)
    assert list(DEPS.scores(params, roles=("bias",))) == ["up:1"]
    with pytest.raises(ValueError, match="None of the groups has a member in the role"):
        DEPS.scores(params, roles=("table",))
    with pytest.raises(ValueError, match=r"does not fit axis 1 of up, shape \(1, 1\)"):
        DEPS.scores({"up": np.ones((1, 1))})


def test_statistics_are_known_by_the_program_and_by_name():
    """Subtracted or under a root; returned updated; unread, in a named collection."""

    def train(v: Any, x: Any) -> Any:
        p, s = v["params"], v["stat"]
        h = x @ p["a"]
        old = s["mu"] * 0.9 + h.mean(0) * 0.1
        out = jnp.tanh((h - h.mean(0)[None]) * p["gamma"][None]) @ p["b"]
        return out, {"stat": {"mu": old, "unread": s["unread"]}}

    def evaluate(v: Any, x: Any) -> Any:
        p, s = v["params"], v["stat"]
        h = (x @ p["a"] - s["mu"][None]) * p["gamma"][None]
        return jnp.tanh(h) @ p["b"]

    shapes = {"a": (5, 8), "gamma": (8,), "b": (8, 3)}
    rng = np.random.default_rng(0)
    params = {k: rng.standard_normal(s) for k, s in shapes.items()}
    plain = {"mu": np.ones(8), "unread": np.ones(8)}
    loud = {"mu": 1e4 * np.arange(8.0), "unread": 1e4 * np.ones(8)}
    for fn in (train, evaluate):
        for stat in ("stat", "batch_stats"):
            run = lambda v, x, fn=fn, s=stat: fn(  # noqa: E731
                {"params": v["params"], "stat": v[s]}, x
            )
            if fn is train and stat != "stat":
                continue
            deps = surgery.groups(run)({"params": params, stat: plain}, X)
            name = "params/a:1"
            a = deps.scores({"params": params, stat: plain})[name]
            b = deps.scores({"params": params, stat: loud})[name]
            np.testing.assert_array_equal(a, b)


def test_scores_on_a_flattened_axis():
    def fn(p: Any, x: Any) -> Any:
        h = jnp.tanh(x[:, :, None] * p["a"][None])  # [b, 5, 8]
        return h.reshape(2, 40) @ p["o"]

    params = {"a": np.zeros((5, 8)), "o": np.arange(80.0).reshape(40, 2)}
    deps = surgery.groups(fn)(params, X)
    scores = deps.scores(params, norm="l1", raw=True)
    (name,) = scores
    want = params["o"].sum(1).reshape(5, 8).sum(0)
    np.testing.assert_allclose(scores[name], want)


@pytest.mark.parametrize("options", [{}, {"raw": True}, {"norm": "l1"}], ids=str)
def test_scores_of_weights_that_are_not_finite_are_refused(options):
    params = {k: np.ones(s) for k, s in SHAPES.items()}
    params["up"][0, 3] = np.nan
    found = DEPS.scores(params, **options)
    assert np.isnan(found["up:1"][3])
    with pytest.raises(ValueError, match=r"(?s)up:1.*finite, got 1 of .*NaN.*up:1"):
        surgery.select(DEPS, found, flops=0.5)
