"""The five measures side by side, by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

from jprune import analysis, compress, surgery


def mlp(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def test_measures_by_hand():
    rng = np.random.default_rng(0)
    dense = {"a": rng.normal(size=(8, 6)).astype("f"), "b": np.ones((6, 4), "f")}
    dense["a"][:, 2:] = 0  # 32 of 72 scalars
    compact = {"a": dense["a"][:, :2], "b": dense["b"][:2]}
    x = jnp.ones((3, 8))
    both = analysis.compare((mlp, dense), (mlp, compact), x, rounds=3)
    assert both.dense.parameters == 72 and both.compact.parameters == 24
    assert both.dense.sparsity == pytest.approx(32 / 72)
    assert both.compact.sparsity == 0.0
    assert both.dense.flops == 2 * 3 * (8 * 6 + 6 * 4)
    assert both.compact.flops == both.dense.flops // 3
    # a: 16 floats and 48 bits; b and the compact arrays as they are.
    assert both.dense.stored_bytes == 4 * 16 + 48 // 8 + 4 * 24
    assert both.compact.stored_bytes == 4 * 24
    assert both.dense.latency.rounds == 3 and both.compact.latency.median > 0


def test_zeros_are_counted_over_all_leaves():
    fn, params = lambda p, x: x @ p["a"], {"a": jnp.ones((2, 2)), "bias": jnp.zeros(4)}
    both = analysis.compare((fn, params), (fn, params), jnp.ones((1, 2)), rounds=1)
    assert both.dense.sparsity == 0.5


@pytest.fixture(scope="module")
def found():
    """Some comparison, whose numbers the tests replace."""
    fn, params = lambda p, x: x @ p["a"], {"a": jnp.ones((2, 2))}
    return analysis.compare((fn, params), (fn, params), jnp.ones((1, 2)), rounds=1)


def test_text_shows_every_measure_with_its_ratio(found):
    time = type(found.dense.latency)(0.004, 0.003, 0.005, 9)
    dense = type(found.dense)(2_000_000, 0.5, 4_000_000, 10**9, time)
    quick = time._replace(median=0.001)
    compact = type(dense)(1_000_000, 0.0, 2_000_000, 25 * 10**7, quick)
    lines = str(type(found)(dense, compact)).splitlines()
    cells = [line.rsplit(maxsplit=3) for line in lines]
    assert lines[0].split() == ["dense", "compact", "dense/compact"]
    assert cells[2][-3:] == ["2,000,000", "1,000,000", "2.00x"]
    assert cells[3][-3:] == ["50.0%", "0.0%", "-"]
    assert lines[4].split()[-5:] == ["4.0", "MB", "2.0", "MB", "2.00x"]
    assert cells[5][-3:] == ["1e+09", "2.5e+08", "4.00x"]
    assert cells[6][-3:] == ["4", "1", "4.00x"]


@pytest.mark.parametrize(
    "low, high, smaller, line",
    [
        (0.0001, 0.0002, True, ""),
        (0.0010, 0.0030, True, "No speed-up can be told"),
        (0.0060, 0.0100, True, "is 2 times SLOWER here: it saves storage, not time"),
        (0.0060, 0.0100, False, ""),
    ],
)
def test_smaller_and_slower_is_said(found, low, high, smaller, line):
    time = type(found.dense.latency)((low + high) / 2, low, high, 9)
    usual = time._replace(median=0.004, low=0.002, high=0.005)
    dense = type(found.dense)(100, 0.5, 400, 10, usual)
    parameters = 50 if smaller else 100
    both = type(found)(dense, dense._replace(parameters=parameters, latency=time))
    assert (line in both.warning) and (bool(both.warning) == bool(line))
    assert str(both).endswith(both.warning)


def test_sparse_rows_cost_what_they_hold():
    """2 operations for each stored value and each row of the input."""
    kernel = jnp.zeros((8, 6)).at[jnp.arange(5), jnp.arange(5)].set(2.0)
    rows = compress.to_bcsr(kernel)
    assert analysis.flops(compress.sparse_dot)(jnp.ones((3, 8)), rows) == 2 * 3 * 5
    listed = sparse.BCOO.fromdense(kernel.T)
    assert analysis.flops(lambda m, x: m @ x)(listed, jnp.ones((8, 4))) == 2 * 4 * 5


def test_errors():
    with pytest.raises(TypeError, match=r"\[jprune\] `compact` must be a pair `\(app"):
        analysis.compare((mlp, {}), mlp, jnp.ones(3))  # type: ignore[arg-type]


def test_leaves_that_are_no_numbers_pass():
    """Functions, flags and random keys, as in modules of Equinox and NNX."""
    params = {
        "f": jnp.tanh,
        "key": jax.random.key(0),
        "on": True,
        "w": jnp.ones((3, 2)),
    }

    def fn(p, x, scale):
        assert p["on"] is True and scale == 2
        return {"y": scale * p["f"](x @ p["w"]), "name": None}

    x = jnp.ones((4, 3))
    both = analysis.compare((fn, params), (fn, params), x, 2, rounds=1)
    assert both.dense.parameters == 6 and both.dense.flops == 2 * 4 * 3 * 2
    assert analysis.latency(fn, params, x, 2, rounds=1, warmup=1).rounds == 1


def test_keyword_arguments_go_to_both():
    """As a network that takes `train=`; by hand 2 * 3 * 8 * 4 with it, else nothing."""

    def net(params, x, *, train=True, scale):
        assert train is False
        return scale * (x @ params["w"])

    wide, narrow = {"w": jnp.ones((8, 4))}, {"w": jnp.ones((8, 2))}
    how: Any = {"train": False, "scale": jnp.float32(2)}
    x = jnp.ones((3, 8))
    both = analysis.compare((net, wide), (net, narrow), x, rounds=1, **how)
    assert (both.dense.flops, both.compact.flops) == (2 * 3 * 8 * 4, 2 * 3 * 8 * 2)
    assert analysis.latency(net, wide, x, rounds=1, **how).median > 0
    deps = surgery.groups(net)(wide, x, **how)
    nothing = surgery.plan_from_keep(deps, {})
    assert analysis.relative_cost("flops", net, wide, x, **how)(nothing) == 1.0


def test_weights_that_are_called_like_statistics():
    """Heads of a policy; the mean of a norm beside them is a statistic."""

    def policy(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["trunk"] - p["norm"]["mean"][None])
        return h @ p["heads"]["mean"], h @ p["heads"]["var"]

    wide = {
        "trunk": jnp.ones((5, 8)),
        "norm": {"mean": jnp.ones(8)},
        "heads": {"mean": jnp.ones((8, 3)), "var": jnp.zeros((8, 3))},
    }
    found = analysis.compare((policy, wide), (policy, wide), jnp.ones((1, 5)), rounds=1)
    assert (found.dense.parameters, found.dense.statistics) == (40 + 24 + 24, 8)
    assert found.dense.sparsity == 24 / 88


def test_what_lies_in_the_collection_params_is_trained():
    """Centers of radial functions, subtracted as the mean of a norm is."""

    def radial(v: Any, x: Any) -> Any:
        p, s = v["params"], v["batch_stats"]
        h = x @ p["enter"] - s["mean"][None]
        return jnp.exp(-jnp.square(h - p["mean"][None])) @ p["leave"]

    v = {
        "params": {
            "enter": jnp.ones((5, 8)),
            "mean": jnp.arange(8.0),
            "leave": jnp.ones((8, 2)),
        },
        "batch_stats": {"mean": jnp.ones(8)},
    }
    deps = surgery.groups(radial)(v, jnp.ones((1, 5)))
    assert deps.parameters() == 40 + 8 + 16
    found = analysis.compare((radial, v), (radial, v), jnp.ones((1, 5)), rounds=1)
    assert (found.dense.parameters, found.dense.statistics) == (64, 8)
