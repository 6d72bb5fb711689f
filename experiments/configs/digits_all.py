"""Every method on the digits, in one table and one figure.

Everything that the configurations named `digits` or `digits_<method>` list, with their
claims. Those that share a network and its dense run train it once; the rest stand
beside with their own, their rows marked by the network's name. A new
`digits_<method>.py` is taken in by being there.

Ours, seed 0, on two cores: the 194 rows of `experiments/results/digits_all_seed0.json`.
70 of the 100 claims hold; the document of each configuration
says what is behind those that do not. This was another processor than that of the
single results: the same seed then trains another network, and rows near a bound change
sides by an image or two.

Command: `python -m experiments.train digits_all`.
"""

from experiments import config
from experiments.config import Config


def get_config() -> Config:
    """All of them, the main job first."""
    names = [name for name in config.names() if name.startswith("digits")]
    names.remove("digits_all")
    return config.combine([config.load(name) for name in names])
