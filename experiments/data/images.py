"""MNIST, CIFAR and their kind through `tfds.data_source`, without TensorFlow.

The folders hold array_record files, which tensorflow-datasets reads with NumPy and
Pillow alone. Everything is decoded once into one uint8 array (about 9 s for CIFAR-10);
feeding training record by record would cost that every epoch.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import (
    DataError,
    Dataset,
    checked,
    find_folder,
    reading,
    rgb,
)

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


def load_cifar10_small(data_dir: str | None = None) -> Dataset:
    """CIFAR-10's first 10,000 and 2,000 test images at 16 x 16: means of 2 x 2 pixels.

    For two CPU cores; standardized by channel, by the moments of these images.
    """
    folder = find_folder(data_dir, "cifar10", _HOW.format(name="cifar10"))
    train, train_labels = _read("cifar10", "train[:10000]", folder, 0)
    test, test_labels = _read("cifar10", "test[:2000]", folder, 0)
    arrays = halved(train), train_labels, halved(test), test_labels
    return _dataset(
        "cifar10_small", arrays, folder / "cifar10", classes=10, axis=(0, 1, 2)
    )


def halved(images: np.ndarray) -> np.ndarray:
    """Images of half the height and width: means of 2 x 2 pixels, uint8."""
    count, height, width, channels = images.shape
    parts = images.reshape(count, height // 2, 2, width // 2, 2, channels)
    return np.round(parts.mean((2, 4))).astype(np.uint8)


def load_fashion_mnist(data_dir: str | None = None) -> Dataset:
    """Fashion-MNIST: the counts and form of MNIST, ten kinds of clothes."""
    return _load("fashion_mnist", data_dir, axis=None)


def load_cifar100(data_dir: str | None = None) -> Dataset:
    """CIFAR-100: the counts and form of CIFAR-10, 100 classes."""
    return _load("cifar100", data_dir, axis=(0, 1, 2), classes=100)


def load_imagenet(data_dir: str | None = None, size: int = 64) -> Dataset:
    """ImageNet 2012, the short side shrunk to `size` and cut to a square.

    All of it lies in memory: 16 GB at 64 pixels. At 224, the size of the papers, it
    would be 193 GB, which no single device holds; this is not their setting.
    """
    return _load(
        "imagenet2012",
        data_dir,
        axis=(0, 1, 2),
        classes=1000,
        splits=("train", "validation"),
        size=size,
    )


def load_imagenette(data_dir: str | None = None, size: int = 64) -> Dataset:
    """A tree of image files: `imagenette/train/CLASS/*` and `imagenette/val/CLASS/*`.

    Any set in that form will do; labels are the class folders in sorted order.

    Raises:
      DataError: if the tree is not there, or an image cannot be read; names it.
    """
    how = "It is a folder with `train` and `val`, in each a folder of images a class."
    root = find_folder(data_dir, "imagenette", how) / "imagenette"
    names = sorted(part.name for part in (root / "train").glob("*") if part.is_dir())
    if not names:
        raise DataError(f"no class folders in {root / 'train'}. {how}")
    (train, train_labels), (test, test_labels) = (
        _read_tree(root / split, names, size) for split in ("train", "val")
    )
    return _dataset(
        "imagenette",
        (train, train_labels, test, test_labels),
        root,
        classes=len(names),
        axis=(0, 1, 2),
    )


def _read_tree(
    root: Path, names: list[str], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images under `root`, a folder for each of the classes and no other."""
    images, labels = [], []
    there = {part.name for part in root.glob("*") if part.is_dir()}
    if there ^ {*names}:
        raise DataError(
            f"{root} must have the classes of `train`, these alone: "
            f"{', '.join(sorted(there ^ {*names})[:5])} is in one of the two only."
        )
    for label, name in enumerate(names):
        found = sorted(file for file in (root / name).glob("*") if _is_shown(file))
        if not found:
            raise DataError(f"{root / name} holds no image: each class needs some.")
        for file in found:
            images.append(_square(rgb(file), size))
            labels.append(label)
    return np.stack(images), np.array(labels, np.int32)


def _is_shown(file: Path) -> bool:
    """Whether it is no note of a file browser."""
    return not file.name.startswith(".") and file.name not in ("Thumbs.db",)


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """The short side shrunk to `size`, the middle cut out; [size, size, 3] uint8."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = size / min(height, width)
    shape = max(round(width * scale), size), max(round(height * scale), size)
    small = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.LANCZOS))
    top, left = (small.shape[0] - size) // 2, (small.shape[1] - size) // 2
    return small[top : top + size, left : left + size]


def _load(
    name: str,
    data_dir: str | None,
    axis: tuple[int, ...] | None,
    *,
    classes: int = 10,
    splits: tuple[str, str] = ("train", "test"),
    size: int = 0,
) -> Dataset:
    folder = find_folder(data_dir, name, _HOW.format(name=name))
    arrays = [part for split in splits for part in _read(name, split, folder, size)]
    return _dataset(name, arrays, folder / name, classes=classes, axis=axis)


def _dataset(
    name: str,
    arrays: Sequence[np.ndarray],
    place: Path,
    *,
    classes: int,
    axis: Any,
) -> Dataset:
    """From training images and labels, and those of the test set."""
    train, train_labels, test, test_labels = arrays
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{place} is damaged or not what it should be: its training images are "
            f"{train.shape[1:]}, its test images {test.shape[1:]}."
        )
    mean, std = _moments(train, axis)
    found = Dataset(
        name=name,
        inputs=np.concatenate([train, test]),
        labels=np.concatenate([train_labels, test_labels]),
        train=np.arange(len(train), dtype=np.int32),
        test=np.arange(len(train), len(train) + len(test), dtype=np.int32),
        classes=classes,
        mean=mean,
        std=std,
    )
    return checked(found, place)


def _eight_bits(image: np.ndarray) -> np.ndarray:
    """An image, [height, width, channels] uint8 and nothing else."""
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"an image is {image.dtype}{list(image.shape)}, not uint8")
    return image


def _read(
    name: str, split: str, folder: Path, size: int
) -> tuple[np.ndarray, np.ndarray]:
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
        images, labels = [], []
        for first in range(0, len(source), _CHUNK):
            last = min(first + _CHUNK, len(source))
            for record in source.__getitems__(list(range(first, last))):
                image = _eight_bits(record["image"])
                images.append(_square(image, size) if size else image)
                labels.append(record["label"])
        return np.stack(images), np.array(labels, np.int32)


_CHUNK = 10_000
"""Records decoded at a time: images that are shrunk are never all there in full."""


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
