"""FBNetV3-C cut to the multiply-adds of FBNetV3-A, against A from scratch.

Claim, protocol and rules: `fbnetv3_tiny`. C has 555.6 M multiply-adds at 248 x 248, A
355.5 M at 224 x 224; zoo accuracies on ImageNet 80.83 and 79.57 %. Here both members
see CIFAR-10 at its own 32 x 32 pixels with 10 classes, all 50,000 images: the trainer
has no ImageNet. At that size C and A differ by the same blocks, their cost by as much.

Deviations from the paper: data, image size, and a protocol of ours; SGD with momentum
where the family was trained with RMSProp, averaging and distillation.

Not run: it wants an accelerator.

Command: `python -m experiments.train fbnetv3 --data-dir FOLDER`.
"""

from experiments.config import Config
from experiments.configs.fbnetv3_tiny import pair


def get_config() -> Config:
    """The settings."""
    return pair(
        Config(
            data="cifar10",
            model="fbnetv3_c",
            batch=256,
            dense={"epochs": 200, "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4},
            runs={},
            augment="crop_flip",
        ),
        "fbnetv3_a",
        tune=40,
    )
