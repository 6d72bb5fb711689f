"""What a data set is: arrays held in memory, and index lists into them.

All examples, training and test, lie in one array and a split is a list of indices. A
batch is then a slice of an index list, gathered on the device; a graph is the same form
with nodes for examples and the whole graph as the input.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np


class DataError(FileNotFoundError):
    """Data that is not there or damaged: names the file, says how to get it."""


class Dataset(NamedTuple):
    """A data set in host memory.

    Attributes:
      name: as in the configuration.
      inputs: images `[n, height, width, channels]` (any dtype; the model sees
        `(x - mean) / std` in float32), or a graph of n nodes.
      labels: [n] int32.
      train: indices of the training examples, int32.
      test: indices of the test examples, int32.
      classes: number of labels.
      mean: subtracted from the inputs, in their units.
      std: the inputs are divided by it.
      kind: "examples", independent of one another, or "nodes" of one graph.
    """

    name: str
    inputs: Any
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    classes: int
    mean: np.ndarray | np.floating
    std: np.ndarray | np.floating
    kind: Literal["examples", "nodes"] = "examples"


def checked(dataset: Dataset, place: Path) -> Dataset:
    """The data set, once nothing in it would train or test something else in silence.

    JAX clamps an index or a label that is out of range, and a NaN spreads: none of them
    would be noticed.

    Args:
      dataset: as it was read.
      place: its file or folder, for the error.

    Raises:
      DataError: naming the place and what is wrong there.
    """
    for why in _flaws(dataset):
        raise DataError(f"{place} is damaged or not what it should be: {why}.")
    return dataset


def _flaws(dataset: Dataset) -> Iterator[str]:
    """What is wrong with a data set, in words."""
    count = len(dataset.labels)
    nodes = dataset.kind == "nodes"
    inputs = dataset.inputs.nodes if nodes else dataset.inputs
    if len(inputs) != count:
        yield f"{len(inputs):,} examples and {count:,} labels"
    splits = {"training": dataset.train, "test": dataset.test}
    for name, index in splits.items():
        if not len(index):
            yield f"it has no {name} examples"
        elif index.min() < 0 or index.max() >= count:
            yield f"a {name} index is outside of its {count:,} examples"
        else:
            found = dataset.labels[index]
            if found.min() < 0 or found.max() >= dataset.classes:
                wrong = int(found.min() if found.min() < 0 else found.max())
                yield f"a {name} label is {wrong} of {dataset.classes} classes"
    if np.intersect1d(dataset.train, dataset.test).size:
        yield "training examples are test examples too"
    if np.issubdtype(inputs.dtype, np.floating) and not np.isfinite(inputs).all():
        yield "an input is not finite"
    if not (np.isfinite(dataset.std).all() and (np.asarray(dataset.std) > 0).all()):
        yield "the training inputs are all alike"
    if inputs.dtype == np.uint8 and len(dataset.test) >= _MANY:
        train, test = (
            {hash(one.tobytes()) for one in inputs[index]} for index in splits.values()
        )
        if 2 * len(train & test) > len(test):
            yield "most test images are training images"


_MANY = 1000
"""Test images from which on copies of training images are no toy's: `mock_data`."""


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Whatever a reader makes of a damaged file is a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise DataError(
            f"{place} is damaged or not what it should be "
            f"({type(error).__name__}: {lines[0][:200]}). Fetch or make it anew."
        ) from error


def rgb(file: Path) -> np.ndarray:
    """A picture of any mode, [height, width, 3] uint8, upright.

    Of 16 bits the upper 8 are taken: Pillow would cut them off at 255.

    Raises:
      DataError: if it cannot be read, or holds numbers that are no gray levels.
    """
    from PIL import Image, ImageOps

    with reading(file), Image.open(file) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I;16"):
            high = (np.asarray(picture) >> 8).astype(np.uint8)
            picture = Image.fromarray(high)
        if picture.mode in ("I", "F"):
            raise ValueError(f"its pixels are of the mode {picture.mode}, not 8 bits")
        return np.asarray(picture.convert("RGB"))


def find_folder(data_dir: str | None, wanted: str, how: str) -> Path:
    """The folder that holds `wanted`.

    Args:
      data_dir: where to look; None for the environment variable TFDS_DATA_DIR, and
        without it `~/tensorflow_datasets`.
      wanted: a file or folder name inside it.
      how: one sentence on getting it, for the error.

    Raises:
      DataError: if it is not there.
    """
    place = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = Path(place).expanduser()
    if (folder / wanted).exists():
        return folder
    raise DataError(
        f"no `{wanted}` in {folder}. Pass `--data-dir` (or set TFDS_DATA_DIR) to the "
        f"folder that holds it. {how}"
    )
