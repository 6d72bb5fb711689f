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
