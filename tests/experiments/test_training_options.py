"""What a configuration may ask of training, each against its formula in NumPy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from scipy.special import log_softmax, softmax

from experiments import build, config
from experiments.config import ConfigError
from experiments.data import images
from experiments.data.dataset import DataError
from experiments.loop import _distilled, compile_program, cross_entropy, fit
from experiments.methods.swept import swd
from experiments.models.lenet import max_of_fours


def sgd(_):
    return optax.sgd(0.1, 0.9)


def close(a, b, tol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


def trained(lab, epochs=2):
    return fit(lab, compile_program(lab, sgd), lab.run("run"), epochs)


def test_smoothed_labels():
    random = np.random.default_rng(0)
    logits, wanted = random.normal(size=(5, 4)), np.array([0, 1, 2, 3, 0])
    soft = 0.9 * np.eye(4)[wanted] + 0.1 / 4
    by_hand = -(soft * log_softmax(logits, axis=-1)).sum(-1).mean()
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(wanted), 0.1)
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, open_tiny):
    whole = open_tiny(tmp_path / "a")
    parts = open_tiny(tmp_path / "b", batch=712, accumulate=2)
    with pytest.raises(ConfigError, match="4 devices and 2 parts, e.g. 712"):
        open_tiny(tmp_path / "c", accumulate=2)
    whole = whole.rebatched(712)
    close(trained(parts).params, trained(whole).params)


def test_the_average_of_the_parameters_step_by_step(tmp_path, open_tiny):
    lab = open_tiny(tmp_path, ema=0.6, steps_per_dispatch=1)
    program = compile_program(lab, sgd)
    state, totals = program.begin(*lab.init(), None), jnp.zeros(3)
    data, order, key = (lab.inputs, lab.labels), lab.order(0), lab.key(lab.run("run"))
    average = jax.tree.map(np.asarray, state.params)
    for step in range(2):
        state, totals = program.advance(state, totals, data, order, key, None, count=1)
        rate = max(1 - 0.6, 1 / (step + 1))
        average = jax.tree.map(
            lambda a, p, rate=rate: a + rate * (np.asarray(p) - a),
            average,
            state.params,
        )
    close(state.average, average)
    close(trained(lab, 1).params, average)


def test_an_averaged_run_keeps_its_count(tmp_path, open_tiny):
    lab = open_tiny(tmp_path, ema=0.9)._replace(settings={"method": "swd"})
    given = {"sparsity": (0.9,), "batch": 360, "epochs": 2, "lr": 0.05}
    given |= {"momentum": 0.9, "mu": 1e-3, "a_min": 1.0, "a_max": 1e3}
    (row,) = swd(lab, **given)
    assert row.nonzero == row.kept == 5020
    zero = {"w": jnp.array([0.0, 1.0])}
    state = compile_program(lab, sgd).begin(zero, {}, None)
    from experiments.loop import _masked_average

    found = _masked_average(state._replace(average={"w": jnp.array([0.3, 0.7])}))
    np.testing.assert_allclose(found["w"], [0.0, 0.7])


def test_bfloat16_computes_and_float32_stays(tmp_path, open_tiny):
    full, half = (
        open_tiny(tmp_path / "a"),
        open_tiny(tmp_path / "b", compute="bfloat16"),
    )
    params, stats = full.init()
    exact, rough = full.logits(params, stats), half.logits(params, stats)
    assert rough.dtype == jnp.float32
    difference = np.abs(np.asarray(exact) - np.asarray(rough)).max()
    assert 0 < difference < 0.05 * np.abs(np.asarray(exact)).max()
    done = trained(half, 1)
    assert {x.dtype for x in jax.tree.leaves(done.params)} == {np.dtype("float32")}
    with pytest.raises(ConfigError, match="unknown value of `compute` `bf16`"):
        build.check(dataclasses.replace(config.load("digits"), compute="bf16"))


def test_statistics_keep_their_type_in_bfloat16(tmp_path, open_tiny):
    lab = open_tiny(tmp_path, model="digits_resnet", compute="bfloat16")
    shapes = jax.eval_shape(
        lambda p, s: lab.forward(
            p, s, lab.inputs, jnp.arange(4), train=True, key=jax.random.key(0)
        ),
        *jax.eval_shape(lab.init),
    )
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype("float32")}


def test_distillation_by_hand(tmp_path, open_tiny):
    lab = open_tiny(tmp_path, distill=0.25, distill_temperature=2.0)
    params, stats = lab.init()
    index, key = jnp.arange(8), jax.random.key(0)
    student = jnp.asarray(np.random.default_rng(0).normal(size=(8, 10)), jnp.float32)
    found = _distilled(
        lab, jnp.float32(1.5), student, (params, stats), lab.inputs, index, key
    )
    told = np.asarray(
        lab.forward(params, stats, lab.inputs, index, train=False, key=key)[0]
    )
    wanted = softmax(told / 2, axis=-1)
    distance = wanted * (np.log(wanted) - log_softmax(np.asarray(student) / 2, axis=-1))
    by_hand = 0.75 * 1.5 + 0.25 * 4 * distance.sum(-1).mean()
    assert float(found) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.slow
def test_a_student_says_what_its_teacher_says(tmp_path, open_tiny):
    lab = open_tiny(tmp_path, distill=1.0, distill_temperature=1.0)
    params, stats = lab.init()
    bias = jnp.zeros(10).at[3].set(20.0)  # it takes everything for a three
    params = {**params, "Dense_2": {**params["Dense_2"], "bias": bias}}
    program = compile_program(lab, sgd, teacher=(params, stats))
    taught = fit(lab, program, lab.run("taught"), 6)
    said = np.asarray(lab.logits(*taught[:2])).argmax(-1)
    assert np.mean(said == 3) > 0.95
    assert np.mean(np.asarray(lab.logits(*trained(lab)[:2])).argmax(-1) == 3) < 0.5


def test_a_validation_split_is_neither_trained_nor_tested_on():
    whole = build.DATA["digits"](None)
    final = build.without_validation(whole, 200, tune=False)
    tuning = build.without_validation(whole, 200, tune=True)
    held = set(whole.train.tolist()) - set(final.train.tolist())
    assert len(held) == 200 and set(final.test) == set(whole.test)
    assert set(tuning.test.tolist()) == held
    assert set(tuning.train.tolist()) | held == set(whole.train.tolist())
    assert build.without_validation(whole, 0, tune=False) is whole
    for count, tune in ((0, True), (1437, False)):
        with pytest.raises(ConfigError, match="`validation` is"):
            build.without_validation(whole, count, tune)


def test_the_first_examples_are_what_is_trained_and_tested_on(tmp_path, open_tiny):
    lab = open_tiny(tmp_path, batch=40, train_examples=100, test_examples=30)
    whole = build.DATA["digits"](None)
    np.testing.assert_array_equal(lab.dataset.train, whole.train[:100])
    np.testing.assert_array_equal(lab.dataset.test, whole.test[:30])
    assert lab.per_epoch == 2 and lab.logits(*lab.init()).shape == (30, 10)
    held = open_tiny(tmp_path, batch=40, train_examples=100, validation=10)
    np.testing.assert_array_equal(held.dataset.train, whole.train[:90])
    for asked in ({"train_examples": 1438}, {"test_examples": 361}):
        (name,) = asked
        with pytest.raises(ConfigError, match=f"`{name}` is .*: digits has"):
            open_tiny(tmp_path, batch=40, **asked)


def test_what_a_runner_does_not_do_is_refused():
    chosen = config.load("mnist_gsm")
    with pytest.raises(ConfigError, match="`smoothing`.*the runner `mnist`"):
        build.check(dataclasses.replace(chosen, smoothing=0.1))


def test_pooling_by_reshape_is_max_pooling():
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    weight = jax.random.normal(jax.random.key(1), (2, 4, 3, 3))

    def theirs(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    np.testing.assert_array_equal(max_of_fours(x), theirs(x))
    ours, other = (
        jax.grad(lambda x, f=f: jnp.sum(weight * f(x)))(x)
        for f in (max_of_fours, theirs)
    )
    np.testing.assert_array_equal(ours, other)


# Data sets.


@pytest.fixture
def mocked(monkeypatch):
    """`tfds.testing.mock_data`, whose batched read lacks its first argument."""
    pytest.importorskip("tensorflow_datasets", reason="the optional extra `data`")
    from tensorflow_datasets.testing import mocking

    def read(keys, generator):
        return [generator[key] for key in keys]

    monkeypatch.setattr(mocking, "_getitems", read)
    return mocking.mock_data


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("fashion_mnist", (28, 28, 1), 10),
        ("cifar100", (32, 32, 3), 100),
        ("imagenet", (64, 64, 3), 1000),
    ],
)
def test_tfds_sets_on_mock_data(name, shape, classes, tmp_path, mocked):
    folder = {"imagenet": "imagenet2012"}.get(name, name)
    (tmp_path / folder).mkdir()
    with mocked(num_examples=6):
        data = build.DATA[name](str(tmp_path))
    assert data.inputs.shape == (12, *shape) and data.inputs.dtype == np.uint8
    assert data.classes == classes and data.labels.max() < classes
    assert (len(data.train), len(data.test)) == (6, 6)


def image_tree(root):
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("ape", "bee")):
            folder = root / "imagenette" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((80, 100, 3), 40 + 100 * label, np.uint8)
                pixels += random.integers(0, 9, pixels.shape, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def test_a_tree_of_images(tmp_path):
    image_tree(tmp_path)
    data = images.load_imagenette(str(tmp_path))
    assert data.inputs.shape == (10, 64, 64, 3) and data.classes == 2
    assert data.labels[data.train].tolist() == [0, 0, 0, 1, 1, 1]
    means = data.inputs.reshape(10, -1).mean(1)
    assert ((means > 100) == (data.labels == 1)).all()
    broken = tmp_path / "imagenette" / "val" / "bee" / "0.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bee/0\.png is damaged"):
        images.load_imagenette(str(tmp_path))


def test_an_image_is_shrunk_and_cut_in_the_middle():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (images._square(wide, 10) == 200).all()
    assert images._square(np.zeros((7, 5, 3), np.uint8), 10).shape == (10, 10, 3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet300", "resnet20"])
def test_imagenet_for_two_steps_on_mock_data(model, tmp_path, mocked):
    from experiments import train

    (tmp_path / "imagenet2012").mkdir()
    words = [
        "imagenet_swd",
        "--only",
        "swd",
        "--data-dir",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
    ]
    small = ["batch=4", "dense.epochs=1", "swd.epochs=1", "swd.batch=4"]
    small += [f"model={model}", "compute=float32", "accumulate=1"]
    with mocked(num_examples=8):
        assert train.main([*words, *(f"--set={text}" for text in small)]) == 0
