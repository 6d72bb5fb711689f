"""Statistics from data: against NumPy, in Flax and Haiku."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import compress


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(3)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        return nn.Dense(2)(nn.relu(x))


@pytest.fixture(scope="module")
def flax_case():
    rng = np.random.default_rng(0)
    batches = [rng.normal(2.0, 3.0, (6, 4)).astype(np.float32) for _ in range(5)]
    model = Net()
    variables = model.init(jax.random.key(0), batches[0])
    kernel = variables["params"]["Dense_0"]["kernel"]
    hidden = [batch @ np.asarray(kernel, np.float64) for batch in batches]
    expected = {
        "mean": np.mean([h.mean(0) for h in hidden], 0),
        "var": np.mean([h.var(0) for h in hidden], 0),
    }

    def update(stats, x):
        given = {"params": variables["params"], "batch_stats": stats}
        return model.apply(given, x, True, mutable=["batch_stats"])[1]["batch_stats"]

    return update, variables["batch_stats"], batches, expected


def test_mean_over_the_batches_whatever_came_before(flax_case):
    update, stats, batches, expected = flax_case
    for scale in (1.0, 1e3):
        stale = jax.tree.map(lambda s, c=scale: c * s + c, stats)
        new = compress.recalibrate(update, stale, batches, momentum=0.8)
        for name, value in expected.items():
            np.testing.assert_allclose(new["BatchNorm_0"][name], value, rtol=2e-5)


def test_without_momentum_the_layers_own_average_runs(flax_case):
    update, stats, batches, _ = flax_case
    expected = stats
    for batch in batches:
        expected = update(expected, batch)
    new = compress.recalibrate(update, stats, batches)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, expected
    )


def test_haiku_state_with_counters():
    def net(x):
        return hk.BatchNorm(True, True, 0.9)(x, True)

    model = hk.transform_with_state(net)
    rng = np.random.default_rng(0)
    batches = [rng.normal(1.0, 2.0, (50, 3)).astype(np.float32) for _ in range(60)]
    params, state = model.init(jax.random.key(0), batches[0])

    def update(state, x):
        return model.apply(params, state, None, x)[1]

    new = compress.recalibrate(update, state, batches)
    average = new["batch_norm/~/mean_ema"]["average"]
    np.testing.assert_allclose(average.ravel(), np.ones(3), atol=0.15)
    assert new["batch_norm/~/mean_ema"]["counter"] == 60


def test_integer_leaves_are_kept_with_momentum():
    def update(stats, x):
        return {
            "mean": 0.5 * stats["mean"] + 0.5 * x.mean(),
            "count": stats["count"] + 1,
        }

    old = {"mean": jnp.float32(9), "count": jnp.int32(4)}
    new = compress.recalibrate(update, old, [jnp.ones(2)], momentum=0.5)
    assert new["count"] == 4 and new["count"].dtype == jnp.int32
    assert new["mean"] == 1.0


def test_errors():
    stats = {"mean": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"\[jprune\] `batches` is empty"):
        compress.recalibrate(lambda s, x: s, stats, [])
    with pytest.raises(ValueError, match="`batches` is empty"):
        compress.recalibrate(lambda s, x: s, stats, [], momentum=0.9)
    with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\).*got 1"):
        compress.recalibrate(lambda s, x: s, stats, [1], momentum=1.0)
    with pytest.raises(ValueError, match=r"exactly the structure[^$]*missing: mean"):
        compress.recalibrate(lambda s, x: {"m": s["mean"]}, stats, [jnp.ones(1)])
    update = lambda s, x: {"mean": 0.9 * s["mean"] + 0.1 * x.mean(0)}  # noqa: E731
    good, bad = jnp.ones((3, 2)), jnp.ones((3, 2)).at[0, 0].set(jnp.nan)
    for momentum in (None, 0.9):
        with pytest.raises(ValueError, match="must give finite statistics.*\n  mean"):
            compress.recalibrate(update, stats, [good, bad], momentum=momentum)


@pytest.mark.parametrize("steps", [0, 1, 10, 1000])
def test_debiased_averages_are_the_mean_and_go_on_from_there(steps):
    """Haiku's `average` is `hidden / (1 - m^counter)`; the counter keeps its value."""

    def net(x):
        return hk.BatchNorm(True, True, 0.9)(x, True)

    model = hk.without_apply_rng(hk.transform_with_state(net))
    rng = np.random.default_rng(0)
    batches = [rng.normal(2.0, 1.5, (64, 3)).astype(np.float32) for _ in range(3)]
    params, state = model.init(jax.random.key(0), batches[0])
    update = jax.jit(lambda s, x: model.apply(params, s, x)[1])
    for _ in range(steps):
        state = update(state, batches[0] - 5)
    new = compress.recalibrate(update, state, batches, momentum=0.9)
    wanted = {
        "mean_ema": np.mean([b.mean(0) for b in batches], 0),
        "var_ema": np.mean([b.var(0) for b in batches], 0),
    }
    for name, value in wanted.items():
        found = new[f"batch_norm/~/{name}"]
        np.testing.assert_allclose(found["average"].ravel(), value, rtol=1e-4)
        assert found["counter"] == steps
        np.testing.assert_allclose(
            found["hidden"].ravel(), value * (1 - 0.9**steps), rtol=1e-3, atol=1e-5
        )


def test_another_use_of_a_counter_is_refused():
    def update(stats, x):
        count = stats["count"] + 1
        return {"count": count, "mean": stats["mean"] / count + x.mean() * count}

    stats = {"count": jnp.int32(4), "mean": jnp.float32(0)}
    with pytest.raises(ValueError, match="depends on a counter"):
        compress.recalibrate(update, stats, [jnp.ones(3)], momentum=0.9)


def test_an_update_that_returns_the_output_too():
    with pytest.raises(ValueError, match="structure of `stats`"):
        compress.recalibrate(lambda s, b: (b, s), {"mean": jnp.zeros(2)}, [jnp.ones(2)])


def test_a_momentum_that_is_not_the_layers_is_refused(flax_case):
    update, stats, batches, _ = flax_case
    says = r"change these statistics s to 0.9 s .* `momentum` is not that of the layers"
    with pytest.raises(ValueError, match=says):
        compress.recalibrate(update, stats, batches, momentum=0.9)


def test_a_network_without_statistics_has_none_to_measure():
    assert (
        compress.recalibrate(lambda s, x: s, {}, [jnp.ones((2, 3))], momentum=0.9) == {}
    )


def moved(s, x, m=0.9):
    return m * s + (1 - m) * x


NO_AVERAGES = {
    "another momentum": lambda s, x: {"a": moved(s["a"], x.mean(), 0.8)},
    "maximum": lambda s, x: {"a": jnp.maximum(s["a"], x.max())},
    "minimum": lambda s, x: {"a": jnp.minimum(s["a"], x.min())},
    "sum": lambda s, x: {"a": s["a"] + x.sum()},
    "about the old": lambda s, x: {"a": moved(s["a"], jnp.mean((x - s["a"]) ** 2))},
}


@pytest.mark.parametrize("counted", [False, True], ids=["", "with a counter"])
@pytest.mark.parametrize("old", [0.0, 2.0])
@pytest.mark.parametrize("kind", NO_AVERAGES)
def test_what_is_no_average_of_this_momentum_is_refused(kind, old, counted):
    """Its "mean over the batches" would be off by any factor."""

    def update(s, x):
        count = {"n": s["n"] + 1} if counted else {}
        return NO_AVERAGES[kind](s, x) | {"b": moved(s["b"], x.mean())} | count

    stats = {"a": jnp.float32(old), "b": jnp.float32(0)}
    stats |= {"n": jnp.int32(7)} if counted else {}
    batches = [5 + jnp.arange(4.0) + i for i in range(3)]
    with pytest.raises(ValueError, match="they are no averages[^$]*\n  a$"):
        compress.recalibrate(update, stats, batches, momentum=0.9)


def test_debiased_averages_with_counters_that_differ():
    """Each hidden average is its share 1 - m^n of the mean; a plain one is whole."""

    def update(stats, x):
        new = {"plain": moved(stats["plain"], x.mean())}
        for name in ("old", "young"):
            n, h = stats[name]["n"] + 1, moved(stats[name]["h"], x.mean())
            new[name] = {"n": n, "h": h, "average": h / (1 - 0.9**n)}
        return new

    zero = jnp.float32(0)
    stats = {
        name: {"n": jnp.int32(n), "h": zero, "average": zero}
        for name, n in (("old", 40), ("young", 2))
    } | {"plain": zero}
    batches = [jnp.full(4, 1.0), jnp.full(4, 5.0)]
    new = compress.recalibrate(update, stats, batches, momentum=0.9)
    for name, n in (("old", 40), ("young", 2)):
        np.testing.assert_allclose(new[name]["average"], 3, rtol=1e-5)
        np.testing.assert_allclose(new[name]["h"], 3 * (1 - 0.9**n), rtol=1e-4)
    np.testing.assert_allclose(new["plain"], 3, rtol=1e-5)
    after = update(new, jnp.full(4, 3.0))
    np.testing.assert_allclose(after["young"]["average"], 3, rtol=1e-4)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_what_is_kept_is_a_copy(momentum):
    stats = {"mean": jnp.float32(3), "n": jnp.int32(5), "host": np.int32(4)}

    def update(s, x):
        return s | {"mean": moved(s["mean"], x.mean())}

    new = compress.recalibrate(update, stats, [jnp.ones(3)], momentum=momentum)
    assert new["n"].unsafe_buffer_pointer() != stats["n"].unsafe_buffer_pointer()
    jax.jit(lambda s: jax.tree.map(jnp.sum, s), donate_argnums=0)(new)
    assert stats["n"] == 5 and stats["mean"] == 3


def test_inside_of_jit_it_says_that_it_runs_outside():
    update = lambda s, x: {"mean": 0.9 * s["mean"] + 0.1 * jnp.mean(x)}  # noqa: E731
    call = jax.jit(lambda s, x: compress.recalibrate(update, s, [x], momentum=0.9))
    with pytest.raises(TypeError, match="outside of `jit`"):
        call({"mean": jnp.zeros(())}, jnp.ones(3))
