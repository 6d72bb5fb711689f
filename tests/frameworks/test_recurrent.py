"""Scans, recurrent cells and caches in the compact objects of each framework."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

from jprune import surgery
from jprune.frameworks import equinox as jeqx
from jprune.frameworks import haiku as jhk
from jprune.frameworks import keras as jkeras
from jprune.frameworks import linen as jlinen
from jprune.frameworks import nnx as jnnx

XS = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)


pytestmark = pytest.mark.usefixtures("broadcasting")


def halves(deps):
    keep = {
        g.id: np.arange(g.size) % 2 == 0
        for g in deps
        if g.kind != "unused" and g.size > 1 and deps.exactness[g.id].exact
    }
    assert keep
    return surgery.plan_from_keep(deps, keep)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def of_nnx(model, *args, **kwargs):
    plan = halves(jnnx.groups(model, *args, **kwargs))
    graphdef, state = nnx.split(model)
    dense = nnx.merge(graphdef, plan.zero(state), copy=True)
    return dense, jnnx.shrink(model, plan)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return x + self.drop(self.down(nnx.relu(self.up(x))))


class Stack(nnx.Module):
    """Stacked layers under `nnx.scan`, the parameters made by `nnx.vmap`."""

    def __init__(self, rngs):
        make = nnx.vmap(Layer, in_axes=(0,), out_axes=0)
        self.layers = nnx.split_rngs(splits=3)(make)(rngs)
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        scan = nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return self.out(scan(lambda layer, x: layer(x))(self.layers, x))


def test_nnx_scan_over_layers_with_dropout():
    dense, small = of_nnx(Stack(nnx.Rngs(0)), np.ones((2, 8), np.float32))
    assert small.layers.up.kernel.shape == (2, 8, 8)  # the stream is the input
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    for _ in range(2):  # the counters of the layers' dropout go on
        close(small(x), dense(x))


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.out = nnx.Linear(16, 7, rngs=rngs)

    def __call__(self, tokens, decode: bool = False):
        return self.out(self.attention(self.embed(tokens), decode=decode))


def test_nnx_generation_with_a_cache():
    model = Decoder(nnx.Rngs(0))
    model.attention.init_cache((2, 5, 16))
    tokens = np.array([[1], [2]])
    dense, small = of_nnx(model, tokens, decode=True)
    state = nnx.to_pure_dict(nnx.state(small))["attention"]
    assert state["cached_key"].shape == (2, 5, 2, 2)
    for i in range(3):
        close(small(tokens + i, decode=True), dense(tokens + i, decode=True))
    state = nnx.to_pure_dict(nnx.state(small))["attention"]
    assert int(state["cache_index"]) == 3


@pytest.mark.slow
def test_linen_cache():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(7, 16)(tokens)
            return nn.Dense(7)(nn.MultiHeadDotProductAttention(4, decode=True)(x))

    model, tokens = Net(), np.array([[1], [2]])
    variables = model.init(jax.random.key(0), np.zeros((2, 5), int))
    deps = jlinen.groups(model, variables, tokens, mutable=["cache"])
    plan = halves(deps)
    small, packed, dense = (
        jlinen.shrink(model, plan),
        *map(lambda f: f(variables), (plan.pack, plan.zero)),
    )
    for i in range(3):
        got, new = small.apply(packed, tokens + i, mutable=["cache"])
        want, old = model.apply(dense, tokens + i, mutable=["cache"])
        close(got, want)
        packed, dense = {**packed, **new}, {**dense, **old}


@pytest.mark.slow
def test_equinox_cell():
    class Net(eqx.Module):
        cell: eqx.nn.LSTMCell
        out: eqx.nn.Linear

        def __init__(self, key):
            self.cell = eqx.nn.LSTMCell(3, 8, key=key)
            self.out = eqx.nn.Linear(8, 2, key=key)

        def __call__(self, xs):
            start = (jnp.zeros(8), jnp.zeros(8))
            step = lambda c, x: (self.cell(x, c), None)  # noqa: E731
            return self.out(jax.lax.scan(step, start, xs)[0][0])

    model = Net(jax.random.key(0))
    plan = halves(jeqx.groups(model, XS[0]))
    small = jeqx.shrink(model, plan)
    assert small.packed.cell.weight_hh.shape == (16, 4)
    close(jax.vmap(small)(XS), jax.vmap(plan.zero(model))(XS))


@pytest.mark.slow
def test_haiku_lstm():
    @hk.without_apply_rng
    @hk.transform
    def model(xs):
        core = hk.LSTM(8)
        out, _ = hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))
        return hk.Linear(2)(out[-1])

    params = model.init(jax.random.key(0), XS)
    plan = halves(jhk.groups(model, params, XS))
    got = jhk.shrink(model, plan).apply(plan.pack(params), XS)
    close(got, model.apply(plan.zero(params), XS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "masked_gru", "two_inputs", "mixed"])
def test_keras_networks(kind):
    layers = keras.layers
    if kind == "lstm":
        inputs, x = keras.Input((5, 3)), XS
        h = layers.LSTM(8)(inputs)
    elif kind == "masked_gru":
        inputs, x = keras.Input((5,), dtype="int32"), np.array([[1, 2, 0, 0, 0]] * 2)
        h = layers.GRU(6)(layers.Embedding(9, 8, mask_zero=True)(inputs))
    elif kind == "two_inputs":
        inputs, x = [keras.Input((3,)), keras.Input((3,))], [XS[:, 0], XS[:, 1]]
        h = layers.Dense(8, "relu")(layers.Concatenate()(inputs))
    else:
        inputs, x = keras.Input((3,)), XS[:, 0]
        h = layers.Dense(8, "relu", dtype="mixed_bfloat16")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(h))
    plan = halves(jkeras.groups(model, x))
    small, arrays = jkeras.shrink(model, plan), plan.zero(jkeras.named(model))
    got = small(x)
    for v in model.variables:
        v.assign(jnp.array(arrays[v.path]))
    close(got, model(x), 1e-2 if kind == "mixed" else 1e-5)
