"""Data sets: the split, the standardization, the graphs, and the word when absent."""

import pickle
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_digits as raw_digits

from experiments.data import augment, digits, graphs, images, planetoid
from experiments.data.dataset import DataError


def test_digits_split_is_fixed_stratified_and_complete():
    data = digits.load_digits()
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert sorted([*data.train, *data.test]) == list(range(1797))
    shares = np.bincount(data.labels[data.test], minlength=10)
    assert shares.tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    again = digits.load_digits()
    np.testing.assert_array_equal(data.test, again.test)


def test_digits_are_sixteenths_with_the_moments_of_the_training_pixels():
    data = digits.load_digits()
    digits_of_sklearn: Any = raw_digits()
    raw = np.asarray(digits_of_sklearn.images)
    np.testing.assert_array_equal(data.inputs[..., 0] * 16, raw)
    seen = (data.inputs[data.train].astype(np.float64) - data.mean) / data.std
    assert abs(seen.mean()) < 1e-5 and abs(seen.std() - 1) < 1e-5


@pytest.mark.parametrize(
    ("load", "wanted"),
    [
        (images.load_mnist, "no `mnist` in"),
        (images.load_cifar10, "no `cifar10` in"),
        (lambda folder: graphs.load_graph("cora", folder), "no `cora.npz` in"),
    ],
)
def test_missing_data_says_what_and_how(load, wanted, tmp_path):
    with pytest.raises(DataError) as caught:
        load(str(tmp_path))
    text = str(caught.value)
    assert wanted in text and str(tmp_path) in text
    assert "--data-dir" in text and "TFDS_DATA_DIR" in text
    assert "download_and_prepare" in text or "experiments.data.planetoid" in text


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
    with pytest.raises(DataError, match="here"):
        images.load_mnist()


def test_moments_from_counts_are_those_of_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), np.uint8)
    for axis in (None, (0, 1, 2)):
        mean, std = images._moments(pixels, axis)
        np.testing.assert_allclose(mean.squeeze(), pixels.mean(axis), rtol=1e-6)
        np.testing.assert_allclose(std.squeeze(), pixels.std(axis), rtol=1e-6)


def _raw_graph(folder):
    """Six nodes; test nodes 3 and 5 listed as 5, 3; node 4 is a gap of the range."""
    words = np.array([[1, 0], [0, 1], [1, 1], [1, 0], [0, 0], [0, 1]], np.float32)
    onehot = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [0, 0], [1, 0]], np.int32)
    test = [5, 3]
    parts = {
        "y": onehot[:1],
        "tx": sparse.csr_matrix(words[test]),
        "ty": onehot[test],
        "allx": sparse.csr_matrix(words[:3]),
        "ally": onehot[:3],
        "graph": {0: [1, 1, 0], 1: [2], 2: [], 3: [5], 4: [], 5: [3]},
        "x": sparse.csr_matrix(words[:1]),
    }
    for name, value in parts.items():
        (folder / f"ind.cora.{name}").write_bytes(pickle.dumps(value))
    (folder / "ind.cora.test.index").write_text("5\n3\n")
    return words, onehot


def test_planetoid_rows_land_on_their_nodes(tmp_path):
    words, onehot = _raw_graph(tmp_path)
    with pytest.raises(DataError, match=r"ind\.cora\.y is not the published file"):
        planetoid.main(str(tmp_path), str(tmp_path))
    planetoid.main(str(tmp_path), str(tmp_path), digests=None)
    data = graphs.load_graph("cora", str(tmp_path))
    share = words / np.maximum(words.sum(1, keepdims=True), 1)
    np.testing.assert_array_equal(data.inputs.nodes, share)
    labels = np.where(onehot.any(1), onehot.argmax(1), -1)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.train.tolist() == [0] and data.test.tolist() == [3, 5]
    pairs = set(
        zip(data.inputs.senders.tolist(), data.inputs.receivers.tolist(), strict=True)
    )
    edges = {(0, 1), (1, 0), (1, 2), (2, 1), (3, 5), (5, 3)}
    assert pairs == edges | {(node, node) for node in range(6)}
    assert data.inputs.n_edge.tolist() == [len(pairs)]


def test_planetoid_without_files(tmp_path):
    with pytest.raises(SystemExit, match="no ind.cora.x"):
        planetoid.main(str(tmp_path), str(tmp_path))


def test_crop_flip_gives_shifts_and_mirrors_of_the_image():
    image = np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3, 1)
    batch = jnp.stack([image] * 64)
    out = np.asarray(augment.crop_flip(jax.random.key(0), batch, pad=1))
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    shifts = [padded[i : i + 3, j : j + 3] for i in range(3) for j in range(3)]
    allowed = {
        x.tobytes() for s in shifts for x in (s, np.ascontiguousarray(s[:, ::-1]))
    }
    seen = {x.tobytes() for x in out}
    assert seen <= allowed and len(seen) > 9
    np.testing.assert_array_equal(augment.keep(jax.random.key(0), batch), batch)


@pytest.mark.data
def test_mnist_is_the_whole_set(data_dir):
    data = images.load_mnist(str(data_dir))
    assert data.inputs.shape == (70_000, 28, 28, 1) and data.inputs.dtype == np.uint8
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.labels[data.train]).tolist() == counts
    np.testing.assert_allclose(data.mean / 255, [0.1307], atol=1e-4)
    np.testing.assert_allclose(data.std / 255, [0.3081], atol=1e-4)


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_is_the_whole_set(data_dir):
    data = images.load_cifar10(str(data_dir))
    assert data.inputs.shape == (60_000, 32, 32, 3)
    assert set(np.bincount(data.labels[data.test])) == {1000}
    np.testing.assert_allclose(data.mean / 255, [0.4914, 0.4822, 0.4465], atol=1e-4)
    np.testing.assert_allclose(data.std / 255, [0.2470, 0.2435, 0.2616], atol=1e-4)


def test_a_graph_is_written_whole_and_errors_are_one_line(tmp_path, monkeypatch):
    _raw_graph(tmp_path)

    def full(place, **arrays):
        place.write_text("half")
        raise OSError(28, "No space left on device", str(place))

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        planetoid.main(str(tmp_path), str(tmp_path), digests=None)
    assert not list(tmp_path.glob("*cora*.npz"))
    words = [sys.executable, "-m", "experiments.data.planetoid", tmp_path, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert "is not the published file" in done.stderr and done.stderr.count("\n") == 1
