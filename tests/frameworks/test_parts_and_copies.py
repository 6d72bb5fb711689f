"""What a user does with a model object besides calling it: copies, pickles, methods.

A method whose result is a width from inside the model returns the coordinates that are
left; the reference is the dense method on zeroed parameters, indexed by hand.
"""

import copy
import pickle

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jprune import surgery
from jprune.frameworks import equinox as jeqx
from jprune.frameworks import haiku as jhk
from jprune.frameworks import linen as jlinen
from jprune.frameworks import nnx as jnnx

pytestmark = pytest.mark.usefixtures("broadcasting")

X = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
KEPT = [0, 2, 3]


class NNXNet(nnx.Module):
    """Of arrays alone: layers of the oldest Flax hold functions that do not pickle."""

    def __init__(self, rngs: nnx.Rngs):
        normal = lambda *shape: nnx.Param(jax.random.normal(rngs(), shape))  # noqa: E731
        self.enter, self.shift = normal(5, 6), normal(6)
        self.leave, self.bias = normal(6, 2), normal(2)

    def encode(self, x):
        return (
            jnp.tanh(x @ self.enter[...] + self.shift[...]) + 1
        )  # 1 where none is left

    def decode(self, z):
        return z @ self.leave[...] + self.bias[...]

    def __call__(self, x):
        return self.decode(self.encode(x))


class EquinoxNet(eqx.Module):
    enter: eqx.nn.Linear
    leave: eqx.nn.Linear
    title: str = eqx.field(static=True, default="net")

    def encode(self, x):
        return jnp.tanh(jax.vmap(self.enter)(x)) + 1

    def decode(self, z):
        return jax.vmap(self.leave)(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


class LinenNet(nn.Module):
    width: int = 6

    def setup(self):
        self.enter, self.leave = nn.Dense(self.width), nn.Dense(2)

    def encode(self, x):
        h = jnp.tanh(self.enter(x)) + 1
        self.sow("intermediates", "features", h)
        return h

    def decode(self, z):
        return self.leave(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


class Head(nn.Module):
    """Transfer: a new head on another model's features."""

    body: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(self.body.encode(x))


def halved(deps):
    (group,) = deps
    return surgery.plan_from_keep(deps, {group.id: KEPT})


def nnx_pair():
    model = NNXNet(nnx.Rngs(0))
    plan = halved(jnnx.groups(model, X))
    graph, state = nnx.split(model)
    return jnnx.shrink(model, plan), nnx.merge(graph, plan.zero(state))


def equinox_pair():
    a, b = jax.random.split(jax.random.key(0))
    model = EquinoxNet(eqx.nn.Linear(5, 6, key=a), eqx.nn.Linear(6, 2, key=b))
    plan = halved(jeqx.groups(model, X))
    return jeqx.shrink(model, plan), plan.zero(model)


def linen_pair():
    model = LinenNet()
    variables = {"params": model.init(jax.random.key(0), X)["params"]}
    plan = halved(jlinen.groups(model, variables, X))
    small, packed = jlinen.shrink(model, plan), plan.pack(variables)
    return small, packed, model, plan.zero(variables)


PAIRS = {"nnx": nnx_pair, "equinox": equinox_pair}


@pytest.mark.parametrize("name", PAIRS)
def test_a_method_returns_the_inner_coordinates_that_are_left(name):
    small, zeroed = PAIRS[name]()
    features = small.encode(X)
    np.testing.assert_allclose(features, zeroed.encode(X)[:, KEPT], atol=1e-6)
    np.testing.assert_allclose(small(X), zeroed(X), atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
def test_copies_call_as_the_model_and_share_its_program(name, how):
    small, _ = PAIRS[name]()
    make = {
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    }[how]
    again = make(small)
    np.testing.assert_array_equal(again(X), small(X))
    np.testing.assert_array_equal(again.encode(X), small.encode(X))
    averaged = jax.tree.map(lambda a, b: (a + b) / 2, *_states(small, again))
    assert len(jax.tree.leaves(averaged)) == 4
    if name == "nnx":
        assert nnx.graphdef(again) == nnx.graphdef(small)
        assert hash(nnx.graphdef(again)) == hash(nnx.graphdef(small))
        assert type(again) is type(small)
        assert isinstance(again, NNXNet)


def _states(*models):
    if isinstance(models[0], nnx.Module):
        return [nnx.state(m) for m in models]
    return list(models)


def test_models_of_two_plans_are_two_programs():
    model = NNXNet(nnx.Rngs(0))
    deps = jnnx.groups(model, X)
    plans = [surgery.plan_from_keep(deps, {deps[0].id: keep}) for keep in ([0], [1])]
    a, b = (jnnx.shrink(model, plan) for plan in plans)
    assert nnx.graphdef(a) != nnx.graphdef(b)


def test_plain_attributes_of_a_compact_equinox_module():
    small, _ = equinox_pair()
    assert small.title == "net"
    with pytest.raises(AttributeError, match="its arrays are in `.packed`"):
        _ = small.enter
    assert not hasattr(small, "nothing_of_that_name")


def decoders():
    """Of each framework the compact `decode`, and what the error calls it."""
    small, packed, *_ = linen_pair()
    for method in ("decode", LinenNet.decode):
        how = {"method": method}
        yield lambda z, how=how: small.apply(packed, z, **how), "decode"
    yield small.bind(packed).decode, "decode"
    yield nnx_pair()[0].decode, "decode"
    yield equinox_pair()[0].decode, "decode"
    _, decode, packed = haiku_parts()
    yield lambda z: decode(packed, z), "apply"


@pytest.mark.parametrize("width", [6, 3], ids=["dense", "compact"])
def test_an_inner_width_that_comes_as_an_argument(width):
    says = rf"float32\[4, {width}\], whose axis 1 .*: 6 in the dense one, .* leaves 3\."
    for decode, name in decoders():
        with pytest.raises(ValueError, match=rf"\[jprune\] `{name}` was given {says}"):
            decode(np.ones((4, width), np.float32))


def test_another_error_of_a_method_is_its_own():
    for decode, _ in decoders():
        with pytest.raises(Exception) as error:  # noqa: B017, PT011 - the framework's
            decode(np.ones((3, 7), np.float32))  # three rows, and a width of no layer
        assert "was given" not in str(error.value)


def test_what_the_error_of_an_inner_width_advises():
    model = NNXNet(nnx.Rngs(0))
    deps = jnnx.groups(model, X)
    (group,) = deps
    with pytest.raises(ValueError, match="kept whole by `exclude`"):
        surgery.select(deps, deps.scores(nnx.state(model)), flops=0.5, exclude="enter")
    small = jnnx.shrink(model, surgery.plan_from_keep(deps, {group.id: range(6)}))
    z = np.ones((3, 6), np.float32)
    np.testing.assert_allclose(small.decode(z), model.decode(z), atol=1e-6)


@pytest.mark.parametrize("method", ["encode", LinenNet.encode])
def test_a_method_given_to_apply(method):
    small, packed, model, zeroed = linen_pair()
    want = model.apply(zeroed, X, method="encode")[:, KEPT]
    np.testing.assert_allclose(small.apply(packed, X, method=method), want, atol=1e-6)


def test_methods_and_fields_of_a_compact_linen_module():
    small, packed, model, zeroed = linen_pair()
    want = model.apply(zeroed, X, method="encode")[:, KEPT]
    for features in (
        small.apply(packed, X, method=small.encode),
        small.bind(packed).encode(X),
    ):
        np.testing.assert_allclose(features, want, atol=1e-6)
    assert small.width == 6  # of the class, as `out_features` of an NNX module
    with pytest.raises(AttributeError):
        _ = small.nothing_of_that_name
    assert pickle.loads(pickle.dumps(small)) == small == copy.deepcopy(small)


def test_what_a_call_sows_is_compact():
    small, packed, model, zeroed = linen_pair()
    asked = {"mutable": ["intermediates"]}
    out, found = small.apply(packed, X, **asked)
    dense, want = model.apply(zeroed, X, **asked)
    np.testing.assert_allclose(out, dense, atol=1e-6)
    (got,), (full,) = (f["intermediates"]["features"] for f in (found, want))
    np.testing.assert_allclose(got, full[:, KEPT], atol=1e-6)


def test_a_new_head_on_compact_features():
    small, packed, model, zeroed = linen_pair()
    fresh = Head(small).init(jax.random.key(1), X)["params"]
    assert fresh["Dense_0"]["kernel"].shape == (3, 4)
    fresh["body"] = packed["params"]
    kernel, bias = fresh["Dense_0"]["kernel"], fresh["Dense_0"]["bias"]
    want = model.apply(zeroed, X, method="encode")[:, KEPT] @ kernel + bias
    got = Head(small).apply({"params": fresh}, X)
    np.testing.assert_allclose(got, want, atol=1e-5)


def haiku_net():
    enter, leave = hk.Linear(6), hk.Linear(2)
    encode = lambda x: jnp.tanh(enter(x)) + 1  # noqa: E731
    call = lambda x: leave(encode(x))  # noqa: E731
    return call, (call, encode, leave)


def haiku_parts():
    """The compact encoder and decoder, and their parameters."""
    many = hk.without_apply_rng(hk.multi_transform(haiku_net))
    params = many.init(jax.random.key(0), X)
    call = hk.without_apply_rng(hk.transform(lambda x: haiku_net()[0](x)))
    plan = halved(jhk.groups(call, params, X))
    return *jhk.shrink(many, plan).apply[1:], plan.pack(params)


def test_one_of_several_haiku_functions_returns_features():
    many = hk.without_apply_rng(hk.multi_transform(haiku_net))
    params = many.init(jax.random.key(0), X)
    call = hk.without_apply_rng(hk.transform(lambda x: haiku_net()[0](x)))
    plan = halved(jhk.groups(call, params, X))
    logits, features, _ = jhk.shrink(many, plan).apply
    packed, zeroed = plan.pack(params), plan.zero(params)
    np.testing.assert_allclose(
        features(packed, X), many.apply[1](zeroed, X)[:, KEPT], atol=1e-6
    )
    np.testing.assert_allclose(logits(packed, X), many.apply[0](zeroed, X), atol=1e-6)


def test_a_replaced_layer_says_where_to_replace_it():
    small, _ = nnx_pair()
    small.leave = nnx.Param(jnp.ones((3, 7)))
    with pytest.raises(ValueError, match=r"model before the cut[^$]*\(3, 7\)"):
        small(X)
