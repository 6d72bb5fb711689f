"""The 8 x 8 handwritten digits that ship inside scikit-learn: nothing to download.

1,797 grey images, values 0..16, split 1,437 / 360 with equal class shares by a fixed
seed: seeds of a run change its initialization and batch order, never its test set.
"""

from typing import Any

import numpy as np

from experiments.data.dataset import Dataset


def load_digits() -> Dataset:
    """Digits over 16, standardized by the mean and deviation of the training pixels."""
    from sklearn import datasets, model_selection

    raw: Any = datasets.load_digits()
    images = (np.asarray(raw["images"]) / 16).astype(np.float32)[..., None]
    labels = np.asarray(raw["target"]).astype(np.int32)
    every = np.arange(len(labels), dtype=np.int32)
    train, test = map(
        np.asarray,
        model_selection.train_test_split(
            every, test_size=0.2, random_state=0, stratify=labels
        ),
    )
    return Dataset(
        name="digits",
        inputs=images,
        labels=labels,
        train=train,
        test=test,
        classes=10,
        mean=images[train].mean(),
        std=images[train].std(),
    )
