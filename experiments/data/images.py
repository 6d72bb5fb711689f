"""MNIST and CIFAR-10 through `tfds.data_source`, without TensorFlow.

The folders hold array_record files, which tensorflow-datasets reads with NumPy and
Pillow alone. Everything is decoded once into one uint8 array (about 9 s for CIFAR-10);
feeding training record by record would cost that every epoch.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import DataError, Dataset, find_folder, reading

_HOW = (
    "It is a tensorflow-datasets folder in array_record form; where TensorFlow is "
    "installed, `tfds.builder({name!r}, file_format='array_record')"
    ".download_and_prepare()` makes it."
)


def load_mnist(data_dir: str | None = None) -> Dataset:
    """MNIST: 60,000 / 10,000 grey images of 28 x 28, one mean and deviation."""
    return _load("mnist", data_dir, axis=None)


def load_cifar10(data_dir: str | None = None) -> Dataset:
    """CIFAR-10: 50,000 / 10,000 color images of 32 x 32, standardized by channel."""
    return _load("cifar10", data_dir, axis=(0, 1, 2))


def load_cifar10_part(data_dir: str | None = None) -> Dataset:
    """CIFAR-10's first 10,000 training images and first 2,000 test images.

    For two CPU cores; the moments are those of all training images.
    """
    whole = load_cifar10(data_dir)
    return whole._replace(
        name="cifar10_part", train=whole.train[:10000], test=whole.test[:2000]
    )


def _load(name: str, data_dir: str | None, axis: tuple[int, ...] | None) -> Dataset:
    folder = find_folder(data_dir, name, _HOW.format(name=name))
    train, train_labels = _read(name, "train", folder)
    test, test_labels = _read(name, "test", folder)
    mean, std = _moments(train, axis)
    return Dataset(
        name=name,
        inputs=np.concatenate([train, test]),
        labels=np.concatenate([train_labels, test_labels]),
        train=np.arange(len(train), dtype=np.int32),
        test=np.arange(len(train), len(train) + len(test), dtype=np.int32),
        classes=10,
        mean=mean,
        std=std,
    )


def _read(name: str, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"reading `{name}` needs tensorflow-datasets: "
            'install the extra with `pip install -e ".[experiments,data]"`.'
        ) from error
    logging.getLogger("absl").setLevel(logging.ERROR)  # it names the image decoder
    with reading(folder / name):
        source: Any = tfds.data_source(
            name, split=split, data_dir=folder, download=False
        )
        records = source.__getitems__(list(range(len(source))))
        images = np.stack([record["image"] for record in records])
        return images, np.array([record["label"] for record in records], np.int32)


def _moments(
    images: np.ndarray, axis: tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation from the 256 counts of each channel: exact, no float copy."""
    value = np.arange(256.0)
    channels = [images] if axis is None else np.moveaxis(images, -1, 0)
    counts = np.stack([np.bincount(c.ravel(), minlength=256) for c in channels])
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ value
    std = np.sqrt(share @ value**2 - mean**2)
    return mean.astype(np.float32), std.astype(np.float32)
