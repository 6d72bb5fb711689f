"""A lab small enough for tests: digits, a dense network, two steps an epoch."""

import dataclasses
from contextlib import ExitStack
from functools import partial

import pytest

from experiments import build
from experiments.checkpoints import Checkpoints
from experiments.config import Config
from experiments.journal import Journal

TINY = Config(
    data="digits",
    model="lenet300",
    batch=716,
    dense={"epochs": 2, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    runs={},
    checkpoint_every=1,
)


@pytest.fixture(scope="session")
def tiny() -> Config:
    """The configuration that `open_tiny` changes."""
    return TINY


@pytest.fixture(scope="session")
def open_tiny():
    """`open_tiny(folder, seed=, resume=, **changes)` -> the lab of `tiny`, changed."""
    with ExitStack() as journals:
        yield partial(_open_tiny, journals)


def _open_tiny(journals, folder, *, seed=0, resume=False, **changes):
    """The lab of `TINY` with these fields changed; log and checkpoints in `folder`."""
    config = dataclasses.replace(TINY, **changes)
    folder.mkdir(exist_ok=True)

    def keep(run):
        place = folder / "checkpoints" / f"{run.label}-{run.digest[:8]}"
        return Checkpoints(place, resume=resume, every=config.checkpoint_every)

    make = partial(build.open_lab, config, seed=seed, data_dir=None)
    journal = journals.enter_context(Journal(folder, resume=resume))
    return make(journal=journal, checkpoints=keep)
