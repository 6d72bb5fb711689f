"""The graphs experiment on Citeseer: network, methods and settings of `cora`.

3,703 words, 6 classes: 59,344 weights in two kernels, 120 training nodes. Nothing was
tuned on this graph. The network's paper has 70.3 %.

Not run here: the machine was shared by eight jobs.

Command: `python -m experiments.train citeseer --data-dir FOLDER`.
"""

from experiments.config import Config
from experiments.configs import cora


def get_config() -> Config:
    """The settings of `cora`."""
    return cora.get_config("citeseer")
