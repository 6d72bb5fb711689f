"""ResNet-56 on CIFAR-10: `cifar_resnet20` at the depth of the papers.

Papers: GSM at 10x: 94.05 -> 93.80. C-SGD with 5/8 of the filters: 93.39 -> 93.44.
Deviations, expectations and cost are those of `cifar_resnet20`, three times as long.

Ours: not run; `experiments/gpu.sh` runs it if there is time.

Command: `python -m experiments.train cifar_resnet56 --data-dir FOLDER`.
"""

from experiments.config import Config
from experiments.configs import cifar_resnet20


def get_config() -> Config:
    """The settings."""
    return cifar_resnet20.get_config("resnet56")
