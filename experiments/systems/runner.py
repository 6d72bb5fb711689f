"""What a system gives to the trainer in place of a lab."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Runner(NamedTuple):
    """How one kind of experiment is run.

    Attributes:
      open: `(config, *, seed, data_dir, journal, checkpoints, prefix, **setup)` -> what
        its runs share, with the attributes `config`, `journal` and `prefix`.
      dense: `(shared, **config.dense)` -> the dense run and its rows.
      methods: `(shared, dense, **settings)` -> rows, by name.
      data: names of its data sets.
      models: names of its networks.
    """

    open: Callable[..., Any]
    dense: Callable[..., tuple[Any, list[Any]]]
    methods: Mapping[str, Callable[..., Any]]
    data: Mapping[str, Any]
    models: Mapping[str, Any]
