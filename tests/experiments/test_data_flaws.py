"""Data that would train or test something else in silence is refused, by its name."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import build, config
from experiments.config import ConfigError
from experiments.data import digits, graphs, images
from experiments.data import super_resolution as pairs
from experiments.data.dataset import DataError, checked

PLACE = Path("the place")


def pixels(count, seed=0, side=4):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, side, side, 3), np.uint8)


def labels(count):
    return np.arange(count, dtype=np.int32) % 3


def made(train=None, train_labels=None, test=None, test_labels=None):
    arrays = [
        pixels(12) if train is None else train,
        labels(12) if train_labels is None else train_labels,
        pixels(6, seed=1) if test is None else test,
        labels(6) if test_labels is None else test_labels,
    ]
    return images._dataset("own", arrays, PLACE, classes=3, axis=(0, 1, 2))


def test_a_set_that_is_whole_passes():
    data = made()
    assert len(data.train) == 12 and checked(data, PLACE) is data
    whole = digits.load_digits()
    assert checked(whole, PLACE) is whole


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_labels": labels(12) + 1}, "a training label is 3 of 3 classes"),
        ({"test_labels": labels(6) - 1}, "a test label is -1 of 3 classes"),
        ({"test_labels": labels(5)}, "18 examples and 17 labels"),
        ({"train": pixels(12) * 0}, "all alike"),
        (
            {
                "train": pixels(1200),
                "train_labels": labels(1200),
                "test": pixels(1000),
                "test_labels": labels(1000),
            },
            "most test images are training images",
        ),
        ({"test": pixels(6, side=5)}, r"test images \(5, 5, 3\)"),
        ({"test": pixels(0), "test_labels": labels(0)}, "no test examples"),
    ],
)
def test_what_jax_would_clamp_or_pass_on_is_refused(given, message):
    with pytest.raises(DataError, match=message) as caught:
        made(**given)
    assert str(caught.value).startswith("the place is damaged")


def test_indices_and_floats_are_looked_at_too():
    data = made()
    for change, message in (
        ({"train": data.train - 1}, "a training index is outside"),
        ({"test": data.test + 1}, "a test index is outside"),
        ({"test": data.train[:3]}, "training examples are test examples"),
        ({"inputs": np.full(data.inputs.shape, np.nan)}, "an input is not finite"),
    ):
        with pytest.raises(DataError, match=message):
            checked(data._replace(**change), PLACE)


# A folder of images for each class.


@pytest.fixture
def tree(tmp_path):
    """`imagenette` of two classes, two images each, in both splits."""
    for split, seed in (("train", 0), ("val", 1)):
        for k, name in enumerate(("a", "b")):
            (tmp_path / "imagenette" / split / name).mkdir(parents=True)
            for i, image in enumerate(pixels(2, seed=10 * seed + k, side=8)):
                file = tmp_path / "imagenette" / split / name / f"{i}.png"
                Image.fromarray(image).save(file)
    return tmp_path


def load(tree):
    return images.load_imagenette(str(tree), size=8)


def test_a_tree_of_images(tree):
    (tree / "imagenette/train/a/.DS_Store").write_bytes(b"a note")
    data = load(tree)
    assert data.labels.tolist() == [0, 0, 1, 1] * 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_without_images_is_named(split, tree):
    for file in (tree / "imagenette" / split / "b").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=rf"{split}/b holds no image"):
        load(tree)


@pytest.mark.parametrize("more", [True, False])
def test_both_splits_have_the_same_classes(more, tree):
    folder = tree / "imagenette/val" / ("c" if more else "b")
    if more:
        folder.mkdir()
    else:
        folder.rename(tree / "elsewhere")
    with pytest.raises(DataError, match=f"{folder.name} is in one of the two only"):
        load(tree)


def gradient():
    return np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000


def test_sixteen_bits_keep_their_gray_levels(tree):
    file = tree / "imagenette/train/a/0.png"
    Image.fromarray(gradient()).save(file)
    found = load(tree).inputs[0]  # cut off at 255 it would be white all over
    np.testing.assert_array_equal(found, (gradient() // 256)[..., None].repeat(3, -1))


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA", "1"])
def test_other_modes_become_three_colors(mode, tree):
    file = tree / "imagenette/train/a/0.png"
    file.unlink()
    suffix = ".tiff"
    picture = Image.fromarray(pixels(1, side=8)[0]).convert(mode)
    picture.save(file.with_suffix(suffix))
    wanted = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(load(tree).inputs[0], wanted)


def test_numbers_that_are_no_gray_levels_are_refused(tree):
    file = tree / "imagenette/train/a/0.tiff"
    Image.fromarray(np.ones((8, 8), np.float32)).save(file)
    with pytest.raises(DataError, match=r"0\.tiff .*mode F"):
        load(tree)


# Super-resolution.


def test_images_to_enlarge(tmp_path):
    (tmp_path / "Set5").mkdir()
    file = tmp_path / "Set5" / "x.png"
    Image.fromarray(gradient()).save(file)
    (found,) = pairs.load_set("Set5", 2, str(tmp_path))
    np.testing.assert_array_equal(found.large, pairs.luma(gradient() // 256))
    with pytest.raises(DataError, match="no image has a patch of 16 x 16"):
        pairs.patches([found], 16, 8)
    with pytest.raises(DataError, match=r"x\.png has 8 x 8 pixels"):
        pairs.load_set("Set5", 4, str(tmp_path))


# Graphs.


def graph(folder, **changes):
    """Four nodes in a ring, two words, two classes."""
    arrays = {
        "x_data": np.ones(4, np.float32),
        "x_indices": np.array([0, 1, 0, 1], np.int32),
        "x_indptr": np.arange(5, dtype=np.int32),
        "x_shape": np.array([4, 2]),
        "labels": np.array([0, 1, 0, 1], np.int32),
        "adj_indices": np.array([1, 3, 0, 2, 1, 3, 0, 2], np.int32),
        "adj_indptr": np.arange(0, 9, 2, dtype=np.int32),
        "idx_train": np.array([0, 1], np.int32),
        "idx_test": np.array([2, 3], np.int32),
        "num_classes": np.array(2),
    }
    np.savez(folder / "cora.npz", **{**arrays, **changes})
    return graphs.load_graph("cora", str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([0, 2, 0, 1])}, "a training label is 2 of 2"),
        ({"labels": np.array([0, 1, -1, 1])}, "a test label is -1 of 2"),
        ({"idx_train": np.array([0, 9])}, "a training index is outside"),
        ({"idx_test": np.array([1, 2])}, "training examples are test examples"),
        ({"x_data": np.array([1, np.nan, 1, 1])}, "an input is not finite"),
        ({"adj_indices": np.array([1, 3, 0, 2, 1, 3, 0, 9])}, "outside of 4"),
        ({"x_indices": np.array([0, 1, 0, -1])}, "outside of 2"),
        ({"adj_indptr": np.array([0, 2, 4, 6, 7])}, "does not count"),
        ({"x_indptr": np.array([0, 2, 1, 3, 4])}, "falls"),
        ({"labels": np.array([0, 1, 0])}, "4 examples and 3 labels"),
    ],
)
def test_a_graph_that_points_outside_of_itself(changes, message, tmp_path):
    pytest.importorskip("jraph", reason="the optional extra `data`")
    assert len(graph(tmp_path).test) == 2
    with pytest.raises(DataError, match=message) as caught:
        graph(tmp_path, **changes)
    assert "cora.npz" in str(caught.value)


def test_steps_and_validation_of_a_graph_must_fit(tmp_path):
    pytest.importorskip("jraph", reason="the optional extra `data`")
    graph(tmp_path)
    small = config.override(config.load("cora"), ["setup.validation=0"])

    def opened(*settings):
        part = config.override(small, settings)
        passed = dict.fromkeys(("journal", "checkpoints"), SimpleNamespace())
        return build.open_runner(
            part, seed=0, data_dir=str(tmp_path), prefix="", **passed
        )

    assert len(opened().splits["test"]) == 2
    with pytest.raises(ConfigError, match="`dense.steps` is 50: .* multiple of 20"):
        opened("dense.steps=50")
    with pytest.raises(ConfigError, match="`setup.validation` is 3"):
        opened("setup.validation=3")
