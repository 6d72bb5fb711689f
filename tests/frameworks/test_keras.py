"""Compact Keras models: one test for each column of the table, then pruning in fit."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from jprune import masks, surgery, transforms
from jprune.frameworks import keras as jkeras
from tests.frameworks import fresh
from tests.frameworks.keras_nets import conv_net, text_net

pytestmark = [
    pytest.mark.usefixtures("broadcasting"),
    pytest.mark.filterwarnings(  # Keras' own, where it writes a file
        "ignore:__array__ implementation:DeprecationWarning"
    ),
]

X = np.random.default_rng(0).standard_normal((8, 8, 8, 3)).astype(np.float32)
Y = np.ones((8, 4), np.float32)
TOKENS = np.random.default_rng(1).integers(0, 11, (4, 6))


def halves(model, *args):
    deps = jkeras.groups(model, *args)
    keep = {g.id: range(0, g.size, 2) for g in deps if g.kind != "unused"}
    return surgery.plan_from_keep(deps, keep)


def give(model, source, arrays):
    """Assigns arrays that lie at the paths of `source`, a model built alike."""
    for v, w in zip(model.variables, source.variables, strict=True):
        v.assign(jnp.array(arrays[w.path], copy=True))
    return model


def zeroed(model, plan):
    """A second dense model with the removed parts set to zero: the reference."""
    return give(conv_net(), model, plan.zero(jkeras.named(model)))


@functools.cache
def made():
    model = conv_net()
    return model, halves(model, X)


def compact_pair():
    """The plan, the dense reference, the compact model."""
    model, plan = made()
    return plan, zeroed(model, plan), jkeras.shrink(model, plan)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def packed_values(plan, model):
    """The dense model's values, packed, in its own order."""
    model_paths = list(jkeras.named(made()[0]))
    values = dict(zip(model_paths, jkeras.named(model).values(), strict=True))
    return plan.pack(values)


def test_build():
    plan, dense, small = compact_pair()
    assert isinstance(small, keras.Model)
    shapes = {(p,): x.shape for p, x in jkeras.named(small).items()}
    assert shapes == plan.compact_shapes
    assert shapes["conv/kernel",] == (3, 3, 3, 4)
    assert small.count_params() < 0.5 * dense.count_params()


def test_difference():
    _, dense, small = compact_pair()
    close(small.predict(X, verbose=0), dense.predict(X, verbose=0))
    close(small(X[:3]), dense(X[:3]))


def test_call():
    _, dense, small = compact_pair()
    close(small(X, training=True), dense(X, training=True))  # the same dropout masks
    inputs = keras.Input((8, 8, 3))
    whole = keras.Model(inputs, keras.layers.Dense(2)(small(inputs)))
    assert whole(X).shape == (8, 2)
    close(whole(X), small(X) @ whole.layers[-1].kernel.value + 0.0)


def test_statistics():
    plan, dense, small = compact_pair()
    for model in (small, dense):
        model(X, training=True)
    want, got = packed_values(plan, dense), jkeras.named(small)
    for path in ("norm/moving_mean", "norm/moving_variance"):
        close(got[path], want[path])
    assert float(jnp.abs(got["norm/moving_mean"]).max()) > 0.0


def test_train_step():
    plan, dense, small = compact_pair()
    for model in (dense, small):
        model.compile(keras.optimizers.SGD(0.05), loss="mse")
    logs = [m.train_on_batch(X, Y, return_dict=True) for m in (dense, small)]
    close(logs[1]["loss"], logs[0]["loss"])  # with the penalty of the regularizer
    want, got = packed_values(plan, dense), jkeras.named(small)
    for path, value in got.items():
        close(value, want[path])
    history = small.fit(X, Y, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


def test_save(tmp_path):
    plan, _, small = compact_pair()
    plan.save(tmp_path / "plan.json")
    small.save_weights(tmp_path / "small.weights.h5")
    other = jkeras.load(conv_net(), tmp_path / "plan.json")
    other.load_weights(tmp_path / "small.weights.h5")
    close(other(X), small(X), 0.0)
    small.save(tmp_path / "small.keras")
    again: Any = keras.saving.load_model(tmp_path / "small.keras")
    close(again(X), small(X), 0.0)


@pytest.mark.parametrize("name", ["small.h5", "small.hdf5", "small", "s.weights.h5"])
def test_save_in_a_format_that_holds_no_plan(tmp_path, name):
    _, _, small = compact_pair()
    with pytest.raises(ValueError, match=rf"as `\.keras`[^$]*{name}[^$]*save_weights"):
        small.save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    small.save(str(tmp_path / "small.keras"), overwrite=True)


@pytest.mark.slow
def test_fresh_process(tmp_path):
    plan, _, small = compact_pair()
    np.save(tmp_path / "x.npy", X)
    small.save(tmp_path / "small.keras")
    plan.save(tmp_path / "plan.json")
    small.save_weights(tmp_path / "small.weights.h5")
    got = fresh.run(
        "import os; os.environ['KERAS_BACKEND'] = 'jax'\n"
        "import keras\n"
        "from jprune.frameworks import keras as jkeras\n"
        "from tests.frameworks.keras_nets import conv_net\n"
        "x = np.load(folder / 'x.npy')\n"
        "a = keras.saving.load_model(folder / 'small.keras')\n"
        "b = jkeras.load(conv_net(), folder / 'plan.json')\n"
        "b.load_weights(folder / 'small.weights.h5')\n"
        "result = np.stack([a.predict(x, verbose=0), b.predict(x, verbose=0)])\n",
        tmp_path,
    )
    close(got, np.stack([small(X)] * 2))


def test_statistics_never_score():
    model = made()[0]
    deps, arrays = jkeras.groups(model, X), dict(jkeras.named(model))
    scores = deps.scores(arrays)
    for path in ("norm/moving_mean", "norm/moving_variance"):
        arrays[path] = 100.0 * jnp.arange(1.0, 9.0)
    jax.tree.map(close, deps.scores(arrays), scores)


def test_attention_and_names():
    model = text_net()
    plan = halves(model, TOKENS)
    small = jkeras.shrink(model, plan)
    give(model, model, plan.zero(jkeras.named(model)))
    close(small(TOKENS), model(TOKENS))
    scope = masks.prunable(jkeras.named(model.trainable_variables))
    taken = {path for path, here in scope.items() if here}
    assert len(taken) == 5 and all(path.endswith("/kernel") for path in taken)


def fit(tx, epochs=3):
    model = conv_net()
    model.compile(optimizer=jkeras.Optimizer(tx), loss="mse")
    model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0, shuffle=False)
    return model


def test_an_optax_chain_in_fit():
    """As Keras' own rule, step for step."""
    ours = conv_net()
    theirs = give(conv_net(), ours, jkeras.named(ours))
    ours.compile(jkeras.Optimizer(optax.sgd(0.05, momentum=0.9)), loss="mse")
    theirs.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss="mse")
    for model in (ours, theirs):
        model.fit(X, Y, batch_size=4, epochs=3, verbose=0, shuffle=False)
    for a, b in zip(ours.variables, theirs.variables, strict=True):
        close(a.value, b.value)


@pytest.mark.parametrize(
    "name",
    [
        "swd",
        pytest.param("prune_gradually", marks=pytest.mark.slow),
        pytest.param("rigl", marks=pytest.mark.slow),
    ],
)
def test_pruning_in_fit(name):
    steps = 6
    tx = {
        "swd": lambda: transforms.swd(0.05, mu=5e-4, total_steps=steps, sparsity=0.75),
        "prune_gradually": lambda: optax.chain(
            optax.sgd(0.05), transforms.prune_gradually(0.75, begin=1, end=5, every=1)
        ),
        "rigl": lambda: transforms.rigl(
            0.05, sparsity=0.75, total_steps=steps, key=jax.random.key(0)
        ),
    }[name]()
    model = fit(tx)
    arrays = jkeras.named(model.trainable_variables)
    scope = masks.prunable(arrays)
    sizes = [x.size for p, x in arrays.items() if scope[p]]
    zeros = [int((x == 0).sum()) for p, x in arrays.items() if scope[p]]
    assert sum(zeros) == int(0.75 * sum(sizes) + 0.5)
    assert all(int((x == 0).sum()) == 0 for p, x in arrays.items() if p == "norm/gamma")
    assert int(model.optimizer.iterations) == steps
    assert jax.tree.structure(model.optimizer.state) == jax.tree.structure(
        tx.init(arrays)
    )


def test_a_second_cut_keeps_the_weights_of_the_compact_model():
    plan, dense, small = compact_pair()
    for v in small.trainable_variables:
        v.assign(v.value * 1.25)
    again = halves(small, X)
    less = jkeras.shrink(small, again)
    assert jkeras.named(less)["conv/kernel"].shape == (3, 3, 3, 2)
    filled = plan.then(again).unpack(jkeras.named(less))
    want = give(dense, made()[0], filled)
    close(less.predict(X, verbose=0), want.predict(X, verbose=0))


def test_what_is_refused():
    model, plan = made()
    with pytest.raises(ValueError, match="`plan` was not made for this model"):
        jkeras.shrink(jkeras.shrink(model, plan), plan)
    with pytest.raises(ValueError, match="`plan` was not made for this model"):
        jkeras.shrink(text_net(), plan)
    with pytest.raises(TypeError, match=r"`model` must be a keras\.Model"):
        jkeras.shrink(model.layers[1], plan)
    with pytest.raises(TypeError, match="`plan` must be a `surgery.Plan`"):
        jkeras.shrink(model, {})
    with pytest.raises(TypeError, match="`tx` must be an Optax transformation"):
        jkeras.Optimizer("adam")
    assert jkeras.Optimizer(optax.MultiSteps(optax.sgd(0.1), 2))
    with pytest.raises(ValueError, match="two variables have the path"):
        jkeras.named([*model.variables, *model.variables])
    with pytest.raises(ValueError, match="compile=False"):
        jkeras.Optimizer.from_config({})


def unnamed():
    """An embedding, its mean, a head; Keras numbers the layers."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(11, 8),
            layers.GlobalAveragePooling1D(),
            layers.Dense(4),
        ]
    )


def test_a_reloaded_plan_keeps_its_lookups_under_other_numbers(tmp_path):
    """Rows of a table that is looked up went; the second model is `embedding_n`."""
    first, second = unnamed(), unnamed()
    (table,) = [p for p in jkeras.named(first) if p.endswith("/embeddings")]
    (other,) = [p for p in jkeras.named(second) if p.endswith("/embeddings")]
    assert table != other
    deps = jkeras.groups(first, TOKENS, lookups=[f"{table}:0"])
    (rows,) = (g for g in deps if g.size == 11)
    plan = surgery.plan_from_keep(deps, {rows.id: range(0, 11, 2)})
    plan.save(tmp_path / "plan.json")
    again = jkeras.load(second, tmp_path / "plan.json")
    assert again._setting.plan.lookups == ((((other,), 0),),)
    give(again, first, plan.pack(jkeras.named(first)))
    reference = give(unnamed(), first, plan.zero(jkeras.named(first)))
    close(again(TOKENS), reference(TOKENS))
    assert [tuple(v.shape) for v in again.variables][0] == (6, 8)


@pytest.mark.parametrize("make", [conv_net, unnamed])
def test_an_export_gets_the_inputs_of_the_dense_model(make, monkeypatch):
    model = make()
    x = X if make is conv_net else TOKENS
    small = jkeras.shrink(model, halves(model, x))
    assert small.input_shape == model.input_shape
    assert small.output_shape == model.output_shape
    asked: dict[str, Any] = {}
    monkeypatch.setattr(keras.Model, "export", lambda *_, **how: asked.update(how))
    small.export("small")
    (spec,) = keras.tree.flatten(asked["input_signature"])
    assert spec.shape == (None, *x.shape[1:])
    assert spec.dtype == ("float32" if make is conv_net else "int32")
    with pytest.raises(ValueError, match="closed jaxpr"):
        small.export("small.onnx", format="onnx")
    with pytest.raises(AttributeError, match="no attribute"):
        _ = small.nothing_of_that_name
