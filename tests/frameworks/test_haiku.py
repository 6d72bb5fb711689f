"""Compact Haiku pairs: one test for each column of the table, then the rest."""

import functools
import pickle

import haiku as hk
import haiku.experimental as hk_experimental
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import surgery
from jprune.frameworks import haiku as jhk
from tests.frameworks import fresh
from tests.frameworks.haiku_nets import conv_net, two_functions

X = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
KEY = jax.random.key(7)


pytestmark = pytest.mark.usefixtures("broadcasting")


@functools.cache
def compact_pair():
    """The plan, the reference `(params, state)`, the compact pair and its trees."""
    trees = conv_net.init(jax.random.key(0), X, True)
    deps = jhk.groups(conv_net, *trees, KEY, X, is_training=True)
    plan = surgery.plan_from_keep(deps, {g.id: range(0, g.size, 2) for g in deps})
    return plan, plan.zero(trees), jhk.shrink(conv_net, plan), plan.pack(trees)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_build():
    plan, _, small, (params, _) = compact_pair()
    assert isinstance(small, hk.TransformedWithState)
    assert params["conv2_d"]["w"].shape == (3, 3, 3, 4)
    assert params["linear_1"]["w"].shape == (6, 4)
    made = small.init(jax.random.key(3), X, True)
    want = plan.pack(conv_net.init(jax.random.key(3), X, True))
    jax.tree.map(functools.partial(close, tolerance=0), made, want)


def test_difference():
    _, zeroed, small, packed = compact_pair()
    want, _ = conv_net.apply(*zeroed, None, X)
    got, state = small.apply(*packed, None, X)
    close(got, want)
    jax.tree.map(close, state, packed[1])  # evaluation changes nothing


def test_a_second_cut_is_over_the_packed_trees():
    plan, _, small, packed = compact_pair()
    tuned = jax.tree.map(lambda x: x * 1.25, packed)
    deps = jhk.groups(small, *tuned, KEY, X, is_training=True)
    keep = {g.id: range(0, g.size, 2) for g in deps if g.size > 1}
    again = surgery.plan_from_keep(deps, keep)
    less, left = jhk.shrink(small, again), again.pack(tuned)
    assert left[0]["conv2_d"]["w"].shape == (3, 3, 3, 2)
    got, _ = less.apply(*left, None, X)
    want, _ = conv_net.apply(*plan.then(again).unpack(left), None, X)
    close(got, want)


def test_call():
    _, zeroed, small, packed = compact_pair()
    want, _ = conv_net.apply(*zeroed, KEY, X[:3], is_training=True, scale=3.0)
    got, _ = small.apply(*packed, KEY, X[:3], is_training=True, scale=3.0)
    close(got, want)  # the dropout masks are those of the dense model
    mapped = jax.jit(jax.vmap(lambda x: small.apply(*packed, None, x[None])[0]))(X)
    close(mapped[:, 0], conv_net.apply(*zeroed, None, X)[0])


def test_statistics():
    plan, zeroed, small, packed = compact_pair()
    _, want = conv_net.apply(*zeroed, KEY, X, True)
    _, got = small.apply(*packed, KEY, X, True)
    jax.tree.map(close, got, plan.pack(want, at=1))
    assert float(jnp.abs(jax.tree.leaves(got)[0]).max()) > 0.0


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(apply, tx, params, state, opt_state, key):
    def loss(params):
        out, new = apply(params, state, key, X, True)
        return jnp.mean((out - 1.0) ** 2), new

    (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), state, opt_state, value, grads


def test_train_step():
    plan, zeroed, small, (params, state) = compact_pair()
    tx = optax.adam(0.01)
    *_, want, wants = step(conv_net.apply, tx, *zeroed, tx.init(zeroed[0]), KEY)
    opt = plan.pack_state(tx.init(zeroed[0]), zeroed[0], at=0)
    params, state, opt, first, grads = step(small.apply, tx, params, state, opt, KEY)
    close(first, want)
    jax.tree.map(close, grads, plan.pack(wants, at=0))
    for i in range(20):
        key = jax.random.key(i)
        params, state, opt, last, _ = step(small.apply, tx, params, state, opt, key)
    assert float(last) < 0.7 * float(first)


def test_save(tmp_path):
    plan, _, small, packed = compact_pair()
    plan.save(tmp_path / "plan.json")
    data = pickle.dumps(jax.device_get(packed))
    other = jhk.load(conv_net, tmp_path / "plan.json")
    like = jax.eval_shape(lambda key: other.init(key, X, True), jax.random.key(0))
    arrays = pickle.loads(data)
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, arrays)
    close(other.apply(*arrays, None, X)[0], small.apply(*packed, None, X)[0], 0.0)


@pytest.mark.slow
def test_fresh_process(tmp_path):
    plan, _, small, packed = compact_pair()
    plan.save(tmp_path / "plan.json")
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "packed").write_bytes(pickle.dumps(jax.device_get(packed)))
    got = fresh.run(
        "import pickle\n"
        "from jprune.frameworks import haiku as jhk\n"
        "from tests.frameworks.haiku_nets import conv_net\n"
        "small = jhk.load(conv_net, folder / 'plan.json')\n"
        "packed = pickle.loads((folder / 'packed').read_bytes())\n"
        "result = small.apply(*packed, None, np.load(folder / 'x.npy'))[0]\n",
        tmp_path,
    )
    close(got, small.apply(*packed, None, X)[0])


def test_a_compact_pair_loses_its_key_and_has_no_table():
    def net(x):
        return hk.Linear(2)(jax.nn.relu(hk.Linear(6)(x)))

    model, x = hk.transform(net), X.reshape(4, -1)
    params = model.init(jax.random.key(0), x)
    deps = jhk.groups(model, params, None, x)
    plan = surgery.plan_from_keep(deps, {deps[0].id: [1, 2, 3]})
    small = hk.without_apply_rng(jhk.shrink(model, plan))
    want = model.apply(plan.zero(params), None, x)
    close(small.apply(plan.pack(params), x), want)
    with pytest.raises(ValueError, match="no Haiku function any more"):
        hk_experimental.tabulate(small)(x)


def test_several_functions_without_a_key():
    x = X.reshape(4, -1)
    params = two_functions.init(jax.random.key(0), x)
    first = hk.Transformed(two_functions.init, two_functions.apply[0])
    deps = jhk.groups(first, params, x)
    plan = surgery.plan_from_keep(deps, {deps[0].id: [1, 2, 3]})
    small, packed = jhk.shrink(two_functions, plan), plan.pack(params)
    assert isinstance(small, hk.MultiTransformed)
    for got, want in zip(small.apply, two_functions.apply, strict=True):
        close(got(packed, x), want(plan.zero(params), x))


def test_what_is_refused():
    plan, _, _, _ = compact_pair()
    with pytest.raises(TypeError, match="`model` must be what `hk.transform` returns"):
        jhk.shrink(conv_net.apply, plan)
    with pytest.raises(TypeError, match="`plan` must be a `surgery.Plan`"):
        jhk.shrink(conv_net, {})
    with pytest.raises(TypeError, match="returns, got MultiTransformed"):
        jhk.groups(two_functions, {}, X)
    params, _ = conv_net.init(jax.random.key(0), X, True)
    fn = lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(p))  # noqa: E731
    alone = surgery.plan_from_keep(surgery.groups(fn)(params), {})
    with pytest.raises(ValueError, match=r"over the pair `\(params, state\)`"):
        jhk.shrink(conv_net, alone)
