"""Latency: turns, counts and order of magnitude; errors."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune.analysis import latency


def _sleep(seconds):
    """A jittable function that takes about `seconds`."""

    def host(x):
        time.sleep(seconds)
        return np.asarray(x)

    def fn(x):
        return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    return fn


def test_known_times_are_told_apart():
    x = jnp.zeros(())
    calls = {"slow": (_sleep(0.02), x), "fast": (_sleep(0.002), x)}
    found = latency(calls, rounds=5, warmup=1)
    assert list(found) == ["slow", "fast"]
    assert found["slow"].median >= 0.02
    assert 0.002 <= found["fast"].median < found["slow"].median


def test_functions_take_turns_and_compiling_is_not_counted():
    seen = []

    def recorded(name):
        def host(x):
            seen.append(name)
            return np.asarray(x)

        def fn(x):
            time.sleep(0.2)  # at trace time only
            return jax.pure_callback(host, jax.ShapeDtypeStruct((), x.dtype), x)

        return fn

    x = jnp.zeros(())
    found = latency({"a": (recorded("a"), x), "b": (recorded("b"), x)}, rounds=3)
    assert seen == ["a", "b"] * 5  # 2 to warm up, 3 timed
    assert found["a"].rounds == 3 and found["a"].high < 0.2


def test_summary_and_text():
    found = latency(lambda x: x + 1, np.ones(3), rounds=7)
    assert found.low <= found.median <= found.high and found.rounds == 7
    text = str(type(found)(0.0123, 0.0120, 0.0130, 7))
    assert text == "12.3 ms (12 to 13)"


def test_errors():
    with pytest.raises(ValueError, match=r"\[jprune\] `rounds` must be at least 1"):
        latency(jnp.sin, 1.0, rounds=0)
    with pytest.raises(ValueError, match="`warmup` must be at least 1, got 0"):
        latency(jnp.sin, 1.0, warmup=0)
    with pytest.raises(ValueError, match="`fn` is empty"):
        latency({})
    with pytest.raises(TypeError, match=r"`fn\['a'\]` must be a tuple `\(fn, "):
        latency({"a": jnp.sin})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`args` of several functions stand in"):
        latency({"a": (jnp.sin, 1.0)}, 1.0)  # type: ignore[call-overload]
