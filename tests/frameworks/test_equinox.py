"""Compact Equinox modules: one test for each column of the table, then the rest."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import analysis, compress, surgery, transforms
from jprune.frameworks import equinox as jeqx
from tests.frameworks import fresh
from tests.frameworks.equinox_nets import MLP, ConvNet

X = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
V = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(3), 4)


pytestmark = pytest.mark.usefixtures("broadcasting")


@functools.cache
def compact_pair():
    """Model and state: the plan, the reference with zeros, the compact pair."""
    model, state = eqx.nn.make_with_state(ConvNet)(jax.random.key(0))
    deps = jeqx.groups(eqx.nn.inference_mode(model), X[0], state)
    plan = surgery.plan_from_keep(deps, {g.id: range(0, g.size, 2) for g in deps})
    return plan, plan.zero((model, state)), jeqx.shrink(model, plan, state)


@eqx.filter_jit
def forward(model, state, xs, keys=None, **kwargs):
    """The batch, as Equinox's own examples run it."""
    one = lambda x, state, key: model(x, state, key, **kwargs)  # noqa: E731
    axes = (0, None, None if keys is None else 0)
    call = jax.vmap(one, axis_name="batch", in_axes=axes, out_axes=(0, None))
    return call(xs, state, keys)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def close_trees(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    for x, y in pairs:
        close(x, y)


def test_build():
    plan, _, (small, state) = compact_pair()
    assert isinstance(small, eqx.Module)
    assert small.packed.conv.weight.shape == (4, 3, 3, 3)
    assert small.packed.head.weight.shape == (4, 6)
    assert isinstance(state, eqx.nn.State)
    shapes = [
        x.shape for x in jax.tree.leaves(eqx.filter((small, state), eqx.is_array))
    ]
    assert sorted(shapes) == sorted(plan.compact_shapes.values())


def test_difference():
    _, (dense, state), (small, packed) = compact_pair()
    dense, small = eqx.nn.inference_mode((dense, small))
    got, want = forward(small, packed, X), forward(dense, state, X)
    close(got[0], want[0])


def test_call():
    _, (dense, state), (small, packed) = compact_pair()
    got = forward(small, packed, X, KEYS, scale=3.0)
    close(got[0], forward(dense, state, X, KEYS, scale=3.0)[0])


def test_statistics():
    plan, (dense, state), (small, packed) = compact_pair()
    want = forward(dense, state, X, KEYS)[1]
    got = forward(small, packed, X, KEYS)[1]
    close_trees(got, plan.pack((dense, want))[1])
    assert float(jnp.abs(jax.tree.leaves(got)[-2]).max()) > 0.0


@eqx.filter_jit
def step(model, state, opt_state, tx, keys):
    def loss(model):
        out, new = forward(model, state, X, keys)
        return jnp.mean((out - 1.0) ** 2), new

    (value, new), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model)
    updates, opt_state = tx.update(grads, opt_state, model)
    return eqx.apply_updates(model, updates), new, opt_state, value, grads


def test_train_step():
    plan, (dense, state), (small, packed) = compact_pair()
    tx = optax.adam(0.01)
    start = [tx.init(eqx.filter(m, eqx.is_inexact_array)) for m in (dense, small)]
    _, _, _, want, wants = step(dense, state, start[0], tx, KEYS)
    small, packed, opt, first, grads = step(small, packed, start[1], tx, KEYS)
    close(first, want)
    close_trees(grads.packed, plan.pack(wants, at=0))
    for _ in range(20):
        small, packed, opt, last, _ = step(small, packed, opt, tx, KEYS)
    assert float(last) < 0.7 * float(first)


def test_save(tmp_path):
    plan, _, (small, packed) = compact_pair()
    plan.save(tmp_path / "plan.json")
    eqx.tree_serialise_leaves(tmp_path / "small.eqx", (small, packed))
    model, state = eqx.nn.make_with_state(ConvNet)(jax.random.key(8))
    like = jeqx.load(model, tmp_path / "plan.json", state)
    other = eqx.tree_deserialise_leaves(tmp_path / "small.eqx", like)
    pairs = (eqx.nn.inference_mode(pair) for pair in (other, (small, packed)))
    a, b = (forward(*pair, X)[0] for pair in pairs)
    close(a, b, 0.0)


@pytest.mark.slow
def test_fresh_process(tmp_path):
    plan, _, (small, packed) = compact_pair()
    plan.save(tmp_path / "plan.json")
    np.save(tmp_path / "x.npy", X)
    eqx.tree_serialise_leaves(tmp_path / "small.eqx", (small, packed))
    got = fresh.run(
        "import equinox as eqx, jax\n"
        "from jprune.frameworks import equinox as jeqx\n"
        "from tests.frameworks.equinox_nets import ConvNet\n"
        "model, state = eqx.nn.make_with_state(ConvNet)(jax.random.key(5))\n"
        "like = jeqx.load(model, folder / 'plan.json', state)\n"
        "small, state = eqx.tree_deserialise_leaves(folder / 'small.eqx', like)\n"
        "small = eqx.nn.inference_mode(small)\n"
        "run = jax.vmap(small, in_axes=(0, None), out_axes=(0, None))\n"
        "result = run(np.load(folder / 'x.npy'), state)[0]\n",
        tmp_path,
    )
    close(got, forward(eqx.nn.inference_mode(small), packed, X)[0])


def test_without_state_and_with_functions_among_the_leaves():
    model = MLP(jax.random.key(0))
    deps = jeqx.groups(model, V[0])
    plan = surgery.plan_from_keep(deps, {deps[0].id: range(10)})
    small, dense = jeqx.shrink(model, plan), plan.zero(model)
    assert small.packed.layers[0].weight.shape == (10, 8)
    close(jax.vmap(small)(V), jax.vmap(dense)(V))
    close(small.loss(V), dense.loss(V))
    got = eqx.filter_jit(eqx.filter_grad(lambda m: m.loss(V)))(small)
    want = plan.pack(eqx.filter_grad(lambda m: m.loss(V))(dense))
    close_trees(got.packed, want)
    whole = surgery.groups(lambda m, x: jax.vmap(m)(x))(model, V)
    assert [g.id for g in whole] == [g.id for g in deps]  # either way is good


def test_a_second_cut_keeps_the_weights_of_the_compact_module():
    plan, (dense, dense_state), (small, state) = compact_pair()
    tuned = jax.tree.map(lambda x: x * 1.25 if eqx.is_inexact_array(x) else x, small)
    deps = jeqx.groups(eqx.nn.inference_mode(tuned), X[0], state)
    keep = {g.id: range(0, g.size, 2) for g in deps if g.size > 1}
    again = surgery.plan_from_keep(deps, keep)
    less, left = jeqx.shrink(tuned, again, state)
    assert less.packed.conv.weight.shape == (2, 3, 3, 3)
    both = less.setting.plan
    filled = both.unpack((less.packed, left))
    arrays, _ = eqx.partition(filled, eqx.is_array)
    _, rest = eqx.partition((dense, dense_state), eqx.is_array)
    want, want_state = eqx.nn.inference_mode(eqx.combine(arrays, rest))
    got = forward(eqx.nn.inference_mode(less), left, X)[0]
    close(got, forward(want, want_state, X)[0])
    mlp = MLP(jax.random.key(0))
    mlp_width = mlp.layers[0].weight.shape[0]
    for _ in range(2):  # without state
        deps = jeqx.groups(mlp, V[0])
        keep = {g.id: range(0, g.size, 2) for g in deps}
        mlp = jeqx.shrink(mlp, surgery.plan_from_keep(deps, keep))
    assert mlp.packed.layers[0].weight.shape[0] == mlp_width // 4
    dense_mlp = mlp.setting.plan.unpack(mlp.packed)
    close(jax.vmap(mlp)(V), jax.vmap(dense_mlp)(V))


def test_what_is_refused():
    plan, (dense, state), (small, packed) = compact_pair()
    model = MLP(jax.random.key(0))
    with pytest.raises(ValueError, match="`plan` was not made for this model"):
        jeqx.shrink(small, plan, packed)
    with pytest.raises(ValueError, match=r"needs `shrink\(model, plan, state\)`"):
        jeqx.shrink(dense, plan)
    with pytest.raises(TypeError, match=r"`model` must be an eqx\.Module"):
        jeqx.shrink(jax.nn.relu, plan)
    with pytest.raises(AttributeError, match="no 'conv' of its own: its arrays are in"):
        _ = small.conv
    with pytest.raises(ValueError, match="one `eqx.nn.State`, got 2"):
        jeqx.groups(dense, X[0], state, state)
    del model


def test_a_function_around_a_module_is_refused():
    """It holds no arrays, so that nothing could be removed."""
    with pytest.raises(TypeError, match="under `jax.vmap` give the model"):
        jeqx.groups(jax.vmap(MLP(jax.random.key(0))), jnp.ones((3, 8)))


class TwoNorms(eqx.Module):
    """Two norms that divide by their running values, in training too."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    norms: list[eqx.nn.BatchNorm]

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first, self.second = (eqx.nn.Linear(8, 8, key=key) for key in keys)
        norm = functools.partial(eqx.nn.BatchNorm, 8, "batch", momentum=0.9)
        self.norms = [norm(mode="ema"), norm(mode="ema")]

    def __call__(self, x, state):
        x, state = self.norms[0](self.first(x), state)
        x, state = self.norms[1](self.second(jax.nn.relu(x)), state)
        return x, state


def test_running_values_of_two_norms_are_measured_layer_by_layer():
    """Against NumPy: the second norm sees what the first divided by the batch's own."""
    model, state = eqx.nn.make_with_state(TwoNorms)(jax.random.key(1))
    batches = [np.asarray(jax.random.normal(key, (16, 8))) + 2 for key in KEYS]
    _, state = jax.vmap(
        model, axis_name="batch", in_axes=(0, None), out_axes=(0, None)
    )(batches[0], state)
    new = compress.recalibrate(model, state, batches)
    means = {0: [], 1: []}
    for x in batches:
        for i, layer in enumerate((model.first, model.second)):
            x = x @ np.asarray(layer.weight).T + np.asarray(layer.bias)
            means[i].append((x.mean(0), x.var(0)))
            x = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)
    for i, norm in enumerate(model.norms):
        got = new.get(norm.ema_state_index)
        np.testing.assert_allclose(got, np.mean(means[i], 0), rtol=1e-3, atol=1e-4)


class Dropped(eqx.Module):
    """Dropout before a norm: what the norm sees tells whether it was on."""

    drop: eqx.nn.Dropout
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.drop = eqx.nn.Dropout(0.5)
        self.norm = eqx.nn.BatchNorm(8, "batch", momentum=0.9, mode="batch")

    def __call__(self, x, state, key=None):
        return self.norm(self.drop(x, key=key), state)


def test_statistics_are_measured_without_dropout():
    """Means and variances of the rows themselves, whatever mode the model is in."""
    model, state = eqx.nn.make_with_state(Dropped)()
    norm, quiet = model.norm, eqx.nn.inference_mode(model)
    xs = [np.asarray(jax.random.normal(key, (16, 8))) + 2 for key in KEYS]
    _, state = jax.vmap(norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
        xs[0], state
    )  # a counter of 1: a tenth of the mean is stored
    keys = jax.random.split(KEYS[0], 16)
    wanted = 0.1 * np.mean([[x.mean(0), x.var(0)] for x in xs], 0)
    for given, batches in ((model, xs), (quiet, [(x, keys) for x in xs])):
        new = compress.recalibrate(given, state, batches)
        np.testing.assert_allclose(new.get(norm.batch_state_index), wanted, rtol=1e-4)


def test_statistics_are_measured_with_keys_beside_the_inputs():
    """`model(x, state, key)`: the state goes where the call names it."""
    model, state = eqx.nn.make_with_state(ConvNet)(jax.random.key(0))
    batches = [(X, KEYS), (X + 1, KEYS)]
    means = [compress.recalibrate(model, state, [b]) for b in batches]
    new = compress.recalibrate(model, state, batches)
    read = lambda state: state.get(model.norm.ema_state_index)[0]  # noqa: E731
    close(read(new), (read(means[0]) + read(means[1])) / 2, 1e-3)


def test_a_training_mode_model_is_measured_outside_of_its_vmap():
    """As `groups` does: an axis name that is not bound has one position.

    FLOPs of one example by hand: 8 filters of 3 x 3 x 3 at 6 x 6, then 8-12-4.
    """
    pair = model, state = eqx.nn.make_with_state(ConvNet)(jax.random.key(0))
    call = X[0], state, KEYS[0]
    assert analysis.flops(model)(*call) == 2 * (36 * 27 * 8 + 8 * 12 + 12 * 4)
    deps = jeqx.groups(model, *call)
    half = {"0/conv/weight:0": range(4), "0/dense/weight:0": range(6)}
    plan = surgery.plan_from_keep(deps, half)
    assert analysis.latency(model, *call, rounds=1).median > 0
    measures = ("latency", "flops")
    costs = [analysis.relative_cost(of, model, *call, rounds=1) for of in measures]
    assert all(0 < cost(plan) for cost in costs) and 0.4 < costs[1](plan) < 0.6
    both = analysis.compare(pair, jeqx.shrink(model, plan, state), X[0], KEYS[0])
    assert both.compact.flops == 2 * (36 * 27 * 4 + 4 * 6 + 6 * 4)
    assert surgery.verify(model, plan, *call, gradient=True).ok


def test_a_call_in_training_mode_says_what_to_pass():
    model, state = eqx.nn.make_with_state(ConvNet)(jax.random.key(0))
    with pytest.raises(RuntimeError, match="requires a key") as error:
        analysis.flops(model)(X[0], state)
    assert any("eqx.nn.inference_mode(model)" in n for n in error.value.__notes__)


TAKES_MODELS = {
    "prune_gradually": lambda: transforms.prune_gradually(0.5, end=1),
    "add_selective_decay": lambda: transforms.add_selective_decay(
        0.1, 2.0, sparsity=0.5
    ),
    "truncate_rank": lambda: transforms.truncate_rank(0.8, every=1),
    "prune_to_n_of_m": lambda: transforms.prune_to_n_of_m(2, 4, axis=1, end=1),
    "drop_and_grow": lambda: transforms.drop_and_grow(
        optax.adam(0.1), 0.5, every=1, begin=0
    ),
}


@pytest.mark.parametrize("name", TAKES_MODELS)
def test_a_model_as_it_is_in_place_of_its_arrays(name):
    """As `optax.sgd` takes it, which ignores the parameters."""
    model = eqx.nn.MLP(8, 4, 8, 1, jax.nn.relu, key=KEYS[0])
    assert any(callable(x) for x in jax.tree.leaves(model))
    grads = eqx.filter_grad(lambda m: jnp.mean(jax.vmap(m)(V) ** 2))(model)
    arrays, tx = eqx.filter(model, eqx.is_array), TAKES_MODELS[name]()
    want = tx.update(grads, tx.init(arrays), arrays)
    close_trees(tx.update(grads, tx.init(model), model), want)
