"""Every method on the digits, in one table and one figure.

All configurations named `digits` or `digits_<method>` share data, network and dense
run; this one trains the dense network once and then everything they list, with their
claims. A new `digits_<method>.py` is taken in by being there.

Command: `python -m experiments.train digits_all`.
"""

from experiments import config
from experiments.config import Config


def get_config() -> Config:
    """All of them, the main job first."""
    names = [name for name in config.names() if name.startswith("digits")]
    names.remove("digits_all")
    return config.combine([config.load(name) for name in names])
